"""Routes of training."""

from django.urls import path

from training.views import (
    arenas,
    compare,
    datasets,
    deleting,
    fits,
    merges,
    models,
    playground,
    reports,
    rounds,
    runs,
    sweeps,
)

app_name = "training"
urlpatterns = [
    path("projects/<slug:slug>/training/", runs.overview, name="list"),
    path("projects/<slug:slug>/training/new/<slug:kind>/", runs.launch, name="launch"),
    path("projects/<slug:slug>/training/new/<slug:kind>/fits/", fits.fits, name="fits"),
    path("projects/<slug:slug>/training/fits/", fits.working, name="working"),
    path("projects/<slug:slug>/training/runs/<int:pk>/", runs.run, name="run"),
    path("projects/<slug:slug>/training/runs/<int:pk>/cancel/", runs.cancel, name="cancel"),
    path("projects/<slug:slug>/training/runs/<int:pk>/resume/", runs.resume, name="resume"),
    path("projects/<slug:slug>/training/runs/<int:pk>/delete/", deleting.run, name="delete_run"),
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
    path("projects/<slug:slug>/training/models/", models.overview, name="models"),
    path("projects/<slug:slug>/training/models/<slug:name>/", models.model, name="model"),
    path(
        "projects/<slug:slug>/training/models/<slug:name>/describe/",
        models.change,
        name="describe_model",
    ),
    path(
        "projects/<slug:slug>/training/models/<slug:name>/delete/",
        deleting.model,
        name="delete_model",
    ),
    path(
        "projects/<slug:slug>/training/models/<slug:name>/download/",
        models.download,
        name="download_model",
    ),
    path(
        "projects/<slug:slug>/training/models/<slug:name>/gguf/",
        models.export,
        name="export_model",
    ),
    path("projects/<slug:slug>/training/exports/<int:pk>/", models.exported, name="exported"),
    path(
        "projects/<slug:slug>/training/exports/<int:pk>/cancel/",
        models.cancel_export,
        name="cancel_export",
    ),
    path("projects/<slug:slug>/training/merges/new/", merges.new, name="new_merge"),
    path("projects/<slug:slug>/training/merges/<int:pk>/", merges.merge, name="merge"),
    path(
        "projects/<slug:slug>/training/merges/<int:pk>/cancel/", merges.cancel, name="cancel_merge"
    ),
    path(
        "projects/<slug:slug>/training/merges/<int:pk>/resume/", merges.resume, name="resume_merge"
    ),
    path("projects/<slug:slug>/training/playground/", playground.overview, name="playground"),
    path(
        "projects/<slug:slug>/training/playground/<int:pk>/",
        playground.side_by_side,
        name="side_by_side",
    ),
    path(
        "projects/<slug:slug>/training/playground/<int:pk>/cancel/",
        playground.cancel,
        name="cancel_side_by_side",
    ),
    path(
        "projects/<slug:slug>/training/playground/<int:pk>/send/",
        playground.send,
        name="send_to_people",
    ),
    path("projects/<slug:slug>/training/models/<slug:name>/report/", reports.report, name="report"),
    path("projects/<slug:slug>/training/models/<slug:name>/card/", reports.card, name="card"),
    path(
        "projects/<slug:slug>/training/models/<slug:name>/card/file/",
        reports.card_file,
        name="card_file",
    ),
    path(
        "projects/<slug:slug>/training/runs/<int:pk>/studies/", reports.new_study, name="new_study"
    ),
    path("projects/<slug:slug>/training/studies/<int:pk>/", reports.study, name="study"),
    path(
        "projects/<slug:slug>/training/studies/<int:pk>/cancel/",
        reports.cancel_study,
        name="cancel_study",
    ),
    path(
        "projects/<slug:slug>/training/studies/<int:pk>/resume/",
        reports.resume_study,
        name="resume_study",
    ),
    path("projects/<slug:slug>/training/rounds/", rounds.overview, name="rounds"),
    path("projects/<slug:slug>/training/rounds/<int:pk>/", rounds.one, name="round"),
    path(
        "projects/<slug:slug>/training/rounds/<int:pk>/cancel/", rounds.cancel, name="cancel_round"
    ),
    path(
        "projects/<slug:slug>/training/rounds/<int:pk>/resume/", rounds.resume, name="resume_round"
    ),
    path("projects/<slug:slug>/training/rounds/<int:pk>/train/", rounds.train, name="train_round"),
    path(
        "projects/<slug:slug>/training/rounds/<int:pk>/compare/",
        rounds.compare,
        name="compare_round",
    ),
    path(
        "projects/<slug:slug>/training/rounds/<int:pk>/measure/",
        rounds.measure,
        name="measure_round",
    ),
    path("projects/<slug:slug>/training/arenas/", arenas.overview, name="arenas"),
    path("projects/<slug:slug>/training/arenas/<int:pk>/", arenas.arena, name="arena"),
    path(
        "projects/<slug:slug>/training/arenas/<int:pk>/cancel/", arenas.cancel, name="cancel_arena"
    ),
    path(
        "projects/<slug:slug>/training/arenas/<int:pk>/resume/", arenas.resume, name="resume_arena"
    ),
]
