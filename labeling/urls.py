"""Routes of labeling."""

from django.urls import path

from labeling.views import (
    agreement,
    answers,
    compare,
    exports,
    imports,
    members,
    projects,
    raters,
    tokens,
    webhooks,
)

app_name = "labeling"
urlpatterns = [
    path("", projects.home, name="home"),
    path("account/tokens/", tokens.tokens, name="tokens"),
    path("account/tokens/<int:pk>/revoke/", tokens.revoke_token, name="revoke_token"),
    path("projects/new/", projects.create, name="create"),
    path("projects/<slug:slug>/", projects.overview, name="project"),
    path("projects/<slug:slug>/edit/", projects.edit, name="edit"),
    path("projects/<slug:slug>/progress/", projects.progress, name="progress"),
    path("projects/<slug:slug>/members/", members.members, name="members"),
    path("projects/<slug:slug>/members/invite/", members.make_invitation, name="invite"),
    path(
        "projects/<slug:slug>/members/invitations/<int:pk>/revoke/",
        members.revoke_invitation,
        name="revoke_invitation",
    ),
    path("join/<str:token>/", members.join, name="join"),
    path("projects/<slug:slug>/raters/", raters.raters, name="raters"),
    path("projects/<slug:slug>/raters/<int:pk>/", raters.rater, name="rater"),
    path("projects/<slug:slug>/raters/<int:pk>/pause/", raters.pause, name="pause"),
    path("projects/<slug:slug>/raters/<int:pk>/resume/", raters.resume, name="resume"),
    path("projects/<slug:slug>/raters/<int:pk>/requalify/", raters.ask_again, name="requalify"),
    path("projects/<slug:slug>/raters/<int:pk>/admit/", raters.admit, name="admit"),
    path("projects/<slug:slug>/raters/<int:pk>/limit/", raters.set_limit, name="set_limit"),
    path("projects/<slug:slug>/sets/", raters.sets, name="sets"),
    path("projects/<slug:slug>/sets/<int:pk>/out/", raters.take_out, name="take_out"),
    path("projects/<slug:slug>/comparisons/", projects.comparisons, name="comparisons"),
    path("projects/<slug:slug>/comparisons/<int:pk>/", projects.comparison, name="comparison"),
    path("projects/<slug:slug>/agreement/", agreement.agreement, name="agreement"),
    path("projects/<slug:slug>/compare/", compare.compare, name="compare"),
    path("projects/<slug:slug>/compare/skip/", compare.skip, name="skip"),
    path("projects/<slug:slug>/compare/undo/", compare.undo, name="undo"),
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
    path("projects/<slug:slug>/webhooks/", webhooks.webhooks, name="webhooks"),
    path("projects/<slug:slug>/webhooks/<int:pk>/", webhooks.webhook, name="webhook"),
    path("projects/<slug:slug>/webhooks/<int:pk>/switch/", webhooks.switch, name="webhook_switch"),
    path("projects/<slug:slug>/webhooks/<int:pk>/test/", webhooks.test, name="webhook_test"),
    path(
        "projects/<slug:slug>/webhooks/<int:pk>/deliveries/<int:delivery>/again/",
        webhooks.again,
        name="webhook_again",
    ),
    path("projects/<slug:slug>/export/", exports.export, name="export"),
    path("projects/<slug:slug>/export/download/", exports.download, name="export_download"),
]
