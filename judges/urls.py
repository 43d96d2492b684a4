"""Routes of judges."""

from django.urls import path

from judges import server_pages
from judges.views import judges as views
from judges.views import laboratory, routing

app_name = "judges"
urlpatterns = [
    path("projects/<slug:slug>/judges/", views.judge_list, name="list"),
    path("projects/<slug:slug>/judges/new/", views.create, name="create"),
    path("projects/<slug:slug>/judges/laboratory/", laboratory.laboratory, name="laboratory"),
    path(
        "projects/<slug:slug>/judges/laboratory/<int:pk>/",
        laboratory.experiment_page,
        name="experiment",
    ),
    path(
        "projects/<slug:slug>/judges/laboratory/<int:pk>/cancel/",
        laboratory.cancel_experiment,
        name="experiment_cancel",
    ),
    path(
        "projects/<slug:slug>/judges/laboratory/<int:pk>/resume/",
        laboratory.resume_experiment,
        name="experiment_resume",
    ),
    path("projects/<slug:slug>/judges/laboratory/<int:pk>/use/", laboratory.use, name="use"),
    path("projects/<slug:slug>/judges/laboratory/labels/", laboratory.settle_again, name="settle"),
    path("projects/<slug:slug>/judges/drift/", laboratory.start_check, name="check_start"),
    path("projects/<slug:slug>/judges/drift/<int:pk>/", laboratory.check_page, name="check"),
    path(
        "projects/<slug:slug>/judges/drift/<int:pk>/known/",
        laboratory.drift_is_known,
        name="drift_is_known",
    ),
    path("projects/<slug:slug>/judges/routing/", routing.routing, name="routing"),
    path("projects/<slug:slug>/judges/routing/<int:pk>/", routing.run_status, name="routing_run"),
    path(
        "projects/<slug:slug>/judges/routing/<int:pk>/cancel/",
        routing.cancel_routing,
        name="routing_cancel",
    ),
    path(
        "projects/<slug:slug>/judges/routing/<int:pk>/resume/",
        routing.resume_routing,
        name="routing_resume",
    ),
    path(
        "projects/<slug:slug>/judges/certificates/<int:pk>/revoke/",
        routing.revoke_certificate,
        name="revoke",
    ),
    path("projects/<slug:slug>/judges/prompts/", views.prompt_list, name="prompts"),
    path("projects/<slug:slug>/judges/prompts/<int:pk>/", views.prompt_page, name="prompt"),
    path("projects/<slug:slug>/judges/<int:pk>/", views.judge_page, name="judge"),
    path("projects/<slug:slug>/judges/<int:pk>/edit/", views.edit, name="edit"),
    path("projects/<slug:slug>/judges/<int:pk>/launch/", views.launch, name="launch"),
    path("projects/<slug:slug>/judges/<int:pk>/try/", views.start_trial, name="try"),
    path("projects/<slug:slug>/judges/trials/<int:pk>/", views.trial_page, name="trial"),
    path("projects/<slug:slug>/judges/runs/<int:pk>/", views.run_page, name="run"),
    path("projects/<slug:slug>/judges/runs/<int:pk>/cancel/", views.cancel, name="cancel"),
    path("projects/<slug:slug>/judges/runs/<int:pk>/pause/", views.pause, name="pause"),
    path("projects/<slug:slug>/judges/runs/<int:pk>/resume/", views.resume, name="resume"),
    path("projects/<slug:slug>/judges/runs/<int:pk>/worker/", views.another_worker, name="worker"),
    path("judge-servers/", server_pages.server_list, name="servers"),
    path("judge-servers/new/", server_pages.allow, name="allow_server"),
    path("judge-servers/<int:pk>/", server_pages.server_page, name="server"),
    path("judge-servers/<int:pk>/change/", server_pages.change, name="change_server"),
    path("judge-servers/<int:pk>/try/", server_pages.try_it, name="try_server"),
    path("judge-servers/<int:pk>/remove/", server_pages.remove, name="remove_server"),
]
