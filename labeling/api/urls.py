"""Routes of the API below /api/, but for those of judges and training."""

from django.urls import path

from labeling.api import (
    answers,
    comparisons,
    documentation,
    exports,
    invitations,
    jobs,
    projects,
    raters,
    webhooks,
    work,
)

app_name = "api"
PROJECT = "projects/<slug:slug>/"
urlpatterns = [
    path("schema/", documentation.Schema.as_view(), name="schema"),
    path("docs/", documentation.docs, name="docs"),
    path("me/", projects.Me.as_view(), name="me"),
    path("projects/", projects.Projects.as_view(), name="projects"),
    path(PROJECT, projects.OneProject.as_view(), name="project"),
    path(f"{PROJECT}members/", projects.Members.as_view(), name="members"),
    path(f"{PROJECT}members/<int:pk>/", projects.OneMember.as_view(), name="member"),
    path(f"{PROJECT}invitations/", invitations.Invitations.as_view(), name="invitations"),
    path(
        f"{PROJECT}invitations/<int:pk>/revoke/",
        invitations.RevokeInvitation.as_view(),
        name="revoke_invitation",
    ),
    path(f"{PROJECT}changes/", projects.Changes.as_view(), name="changes"),
    path(f"{PROJECT}raters/", raters.Raters.as_view(), name="raters"),
    path(f"{PROJECT}raters/<int:pk>/", raters.OneRater.as_view(), name="rater"),
    path(f"{PROJECT}raters/<int:pk>/pause/", raters.Pause.as_view(), name="pause"),
    path(f"{PROJECT}raters/<int:pk>/resume/", raters.Resume.as_view(), name="resume"),
    path(f"{PROJECT}raters/<int:pk>/requalify/", raters.Requalify.as_view(), name="requalify"),
    path(f"{PROJECT}raters/<int:pk>/let-in/", raters.LetIn.as_view(), name="let_in"),
    path(f"{PROJECT}comparisons/", comparisons.Comparisons.as_view(), name="comparisons"),
    path(
        f"{PROJECT}comparisons/change/", comparisons.ChangeMany.as_view(), name="change_comparisons"
    ),
    path(f"{PROJECT}comparisons/<int:pk>/", comparisons.OneComparison.as_view(), name="comparison"),
    path(f"{PROJECT}responses/", comparisons.Responses.as_view(), name="responses"),
    path(f"{PROJECT}preferences/", answers.Preferences.as_view(), name="preferences"),
    path(f"{PROJECT}decisions/", answers.Decisions.as_view(), name="decisions"),
    path(f"{PROJECT}decisions/<int:pk>/", answers.OneDecision.as_view(), name="decision"),
    path(f"{PROJECT}flags/", answers.Flags.as_view(), name="flags"),
    path(f"{PROJECT}flags/<int:pk>/", answers.OneFlag.as_view(), name="flag"),
    path(f"{PROJECT}next/", work.Next.as_view(), name="next"),
    path(f"{PROJECT}undo/", work.Undo.as_view(), name="undo"),
    path(f"{PROJECT}release/", work.Release.as_view(), name="release"),
    path("preferences/", work.Answers.as_view(), name="answer"),
    path("preferences/<int:pk>/", answers.OnePreference.as_view(), name="revise"),
    path("rankings/", work.Rankings.as_view(), name="rank"),
    path("rankings/<int:pk>/", work.OneRanking.as_view(), name="revise_ranking"),
    path("assignments/<int:pk>/skip/", work.Skip.as_view(), name="skip"),
    path("assignments/<int:pk>/flag/", work.FlagIt.as_view(), name="flag_it"),
    path(f"{PROJECT}imports/", jobs.Imports.as_view(), name="imports"),
    path(f"{PROJECT}imports/<int:pk>/", jobs.OneImport.as_view(), name="import"),
    path(f"{PROJECT}imports/<int:pk>/cancel/", jobs.CancelImport.as_view(), name="cancel_import"),
    path(f"{PROJECT}imports/<int:pk>/resume/", jobs.ResumeImport.as_view(), name="resume_import"),
    path(f"{PROJECT}imports/<int:pk>/rejects/", jobs.Rejects.as_view(), name="rejects"),
    path(f"{PROJECT}export/", exports.Export.as_view(), name="export"),
    path(f"{PROJECT}agreement/", jobs.Reports.as_view(), name="reports"),
    path(f"{PROJECT}agreement/<int:pk>/", jobs.OneReport.as_view(), name="report"),
    path(f"{PROJECT}leaderboards/", jobs.Leaderboards.as_view(), name="leaderboards"),
    path(f"{PROJECT}leaderboards/<int:pk>/", jobs.OneLeaderboard.as_view(), name="leaderboard"),
    path(f"{PROJECT}webhooks/", webhooks.Webhooks.as_view(), name="webhooks"),
    path(f"{PROJECT}webhooks/<int:pk>/", webhooks.OneWebhook.as_view(), name="webhook"),
    path(f"{PROJECT}webhooks/<int:pk>/test/", webhooks.SendTest.as_view(), name="test_webhook"),
    path(
        f"{PROJECT}webhooks/<int:pk>/deliveries/", webhooks.Deliveries.as_view(), name="deliveries"
    ),
    path(
        f"{PROJECT}webhooks/<int:pk>/deliveries/<int:delivery>/send-again/",
        webhooks.SendAgain.as_view(),
        name="send_again",
    ),
]
