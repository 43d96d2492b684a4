"""Routes of training."""

from django.urls import path

from training.views import compare, datasets, fits, runs, sweeps

app_name = "training"
urlpatterns = [
    path("projects/<slug:slug>/training/", runs.overview, name="list"),
    path("projects/<slug:slug>/training/new/<slug:kind>/", runs.launch, name="launch"),
    path("projects/<slug:slug>/training/new/<slug:kind>/fits/", fits.fits, name="fits"),
    path("projects/<slug:slug>/training/runs/<int:pk>/", runs.run, name="run"),
    path("projects/<slug:slug>/training/runs/<int:pk>/cancel/", runs.cancel, name="cancel"),
    path("projects/<slug:slug>/training/runs/<int:pk>/resume/", runs.resume, name="resume"),
    path("projects/<slug:slug>/training/compare/", compare.compare, name="compare"),
    path("projects/<slug:slug>/training/sweeps/<int:pk>/", sweeps.sweep, name="sweep"),
    path(
        "projects/<slug:slug>/training/sweeps/<int:pk>/cancel/",
        sweeps.cancel,
        name="cancel_sweep",
    ),
    path("projects/<slug:slug>/training/datasets/", datasets.overview, name="datasets"),
    path("projects/<slug:slug>/training/datasets/new/", datasets.builder, name="new_dataset"),
    path("projects/<slug:slug>/training/drafts/<int:pk>/", datasets.draft, name="draft"),
    path(
        "projects/<slug:slug>/training/drafts/<int:pk>/cancel/",
        datasets.cancel_draft,
        name="cancel_draft",
    ),
    path(
        "projects/<slug:slug>/training/drafts/<int:pk>/freeze/",
        datasets.freeze_draft,
        name="freeze_draft",
    ),
    path("projects/<slug:slug>/training/datasets/<str:sha256>/", datasets.dataset, name="dataset"),
    path(
        "projects/<slug:slug>/training/datasets/<str:sha256>/file/",
        datasets.download,
        name="dataset_file",
    ),
    path("projects/<slug:slug>/training/models/<slug:name>/", runs.model, name="model"),
]
