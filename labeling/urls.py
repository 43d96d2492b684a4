"""Routes of labeling."""

from django.urls import path

from labeling.views import agreement, answers, compare, imports, projects, rank

app_name = "labeling"
urlpatterns = [
    path("", projects.home, name="home"),
    path("projects/new/", projects.create, name="create"),
    path("projects/<slug:slug>/", projects.overview, name="project"),
    path("projects/<slug:slug>/edit/", projects.edit, name="edit"),
    path("projects/<slug:slug>/members/", projects.set_member, name="set_member"),
    path("projects/<slug:slug>/comparisons/", projects.comparisons, name="comparisons"),
    path("projects/<slug:slug>/comparisons/<int:pk>/", projects.comparison, name="comparison"),
    path("projects/<slug:slug>/agreement/", agreement.agreement, name="agreement"),
    path("projects/<slug:slug>/compare/", compare.compare, name="compare"),
    path("projects/<slug:slug>/compare/skip/", compare.skip, name="skip"),
    path("projects/<slug:slug>/compare/undo/", compare.undo, name="undo"),
    path("projects/<slug:slug>/compare/rank/", rank.rank, name="rank"),
    path("projects/<slug:slug>/compare/rank/skip/", rank.skip, name="rank_skip"),
    path("projects/<slug:slug>/compare/release/", compare.release_ahead, name="release"),
    path(
        "projects/<slug:slug>/compare/<int:pk>/difference/", compare.difference, name="difference"
    ),
    path("projects/<slug:slug>/answers/", answers.answers, name="answers"),
    path("projects/<slug:slug>/answers/<int:pk>/", answers.answer, name="answer"),
    path("projects/<slug:slug>/import/", imports.upload, name="import"),
    path("projects/<slug:slug>/import/preview/", imports.preview_upload, name="import_preview"),
    path("projects/<slug:slug>/import/<int:pk>/", imports.job_page, name="import_job"),
    path("projects/<slug:slug>/import/<int:pk>/cancel/", imports.cancel, name="import_cancel"),
    path("projects/<slug:slug>/import/<int:pk>/resume/", imports.resume, name="import_resume"),
    path("projects/<slug:slug>/import/<int:pk>/rejects/", imports.rejects, name="import_rejects"),
]
