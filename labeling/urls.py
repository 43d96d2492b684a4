"""Routes of labeling."""

from django.urls import path

from labeling.views import agreement, compare, imports, projects, tokens, webhooks

app_name = "labeling"
urlpatterns = [
    path("", projects.home, name="home"),
    path("account/tokens/", tokens.tokens, name="tokens"),
    path("account/tokens/<int:pk>/revoke/", tokens.revoke_token, name="revoke_token"),
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
    path("projects/<slug:slug>/import/", imports.upload, name="import"),
    path("projects/<slug:slug>/import/preview/", imports.preview_upload, name="import_preview"),
    path("projects/<slug:slug>/import/<int:pk>/", imports.job_page, name="import_job"),
    path("projects/<slug:slug>/import/<int:pk>/cancel/", imports.cancel, name="import_cancel"),
    path("projects/<slug:slug>/import/<int:pk>/resume/", imports.resume, name="import_resume"),
    path("projects/<slug:slug>/import/<int:pk>/rejects/", imports.rejects, name="import_rejects"),
    path("projects/<slug:slug>/webhooks/", webhooks.webhooks, name="webhooks"),
    path("projects/<slug:slug>/webhooks/<int:pk>/", webhooks.webhook, name="webhook"),
    path("projects/<slug:slug>/webhooks/<int:pk>/switch/", webhooks.switch, name="webhook_switch"),
    path("projects/<slug:slug>/webhooks/<int:pk>/test/", webhooks.test, name="webhook_test"),
    path(
        "projects/<slug:slug>/webhooks/<int:pk>/deliveries/<int:delivery>/again/",
        webhooks.again,
        name="webhook_again",
    ),
]
