"""Routes of labeling."""

from django.urls import path

from labeling.views import agreement, compare, history, imports, projects, queue

app_name = "labeling"
urlpatterns = [
    path("", projects.home, name="home"),
    path("projects/new/", projects.create, name="create"),
    path("projects/<slug:slug>/", projects.overview, name="project"),
    path("projects/<slug:slug>/edit/", projects.edit, name="edit"),
    path("projects/<slug:slug>/members/", projects.set_member, name="set_member"),
    path("projects/<slug:slug>/comparisons/", queue.comparisons, name="comparisons"),
    path("projects/<slug:slug>/comparisons/change/", queue.change, name="change_comparisons"),
    path("projects/<slug:slug>/comparisons/disputed/", queue.disputed, name="disputed"),
    path("projects/<slug:slug>/comparisons/<int:pk>/", queue.comparison, name="comparison"),
    path("projects/<slug:slug>/comparisons/<int:pk>/decide/", queue.decide, name="decide"),
    path("projects/<slug:slug>/comparisons/<int:pk>/withdraw/", queue.withdraw, name="withdraw"),
    path("projects/<slug:slug>/comparisons/<int:pk>/place/", queue.place, name="place"),
    path("projects/<slug:slug>/flags/<int:pk>/", queue.flag, name="flag"),
    path("projects/<slug:slug>/history/", history.history, name="history"),
    path("projects/<slug:slug>/agreement/", agreement.agreement, name="agreement"),
    path("projects/<slug:slug>/compare/", compare.compare, name="compare"),
    path("projects/<slug:slug>/compare/skip/", compare.skip, name="skip"),
    path("projects/<slug:slug>/compare/undo/", compare.undo, name="undo"),
    path("projects/<slug:slug>/import/", imports.upload, name="import"),
    path("projects/<slug:slug>/import/preview/", imports.preview_upload, name="import_preview"),
    path("projects/<slug:slug>/import/<int:pk>/", imports.job_page, name="import_job"),
    path("projects/<slug:slug>/import/<int:pk>/cancel/", imports.cancel, name="import_cancel"),
    path("projects/<slug:slug>/import/<int:pk>/resume/", imports.resume, name="import_resume"),
    path("projects/<slug:slug>/import/<int:pk>/rejects/", imports.rejects, name="import_rejects"),
]
