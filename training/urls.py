"""Routes of training."""

from django.urls import path

from training import views

app_name = "training"
urlpatterns = [
    path("projects/<slug:slug>/training/", views.overview, name="list"),
    path("projects/<slug:slug>/training/new/<slug:kind>/", views.launch, name="launch"),
    path("projects/<slug:slug>/training/runs/<int:pk>/", views.run, name="run"),
    path("projects/<slug:slug>/training/runs/<int:pk>/cancel/", views.cancel, name="cancel"),
    path("projects/<slug:slug>/training/runs/<int:pk>/resume/", views.resume, name="resume"),
    path("projects/<slug:slug>/training/models/<slug:name>/", views.model, name="model"),
]
