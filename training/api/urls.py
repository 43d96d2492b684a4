"""Routes of training's API below /api/."""

from django.urls import path

from training.api import (
    arenas,
    datasets,
    deleting,
    exports,
    merges,
    models,
    playground,
    rounds,
    runs,
    studies,
    sweeps,
)

app_name = "training-api"
PROJECT = "projects/<slug:slug>/"
urlpatterns = [
    path(f"{PROJECT}runs/", runs.Runs.as_view(), name="runs"),
    path(f"{PROJECT}runs/<int:pk>/", runs.OneRun.as_view(), name="run"),
    path(f"{PROJECT}runs/<int:pk>/cancel/", runs.CancelRun.as_view(), name="cancel"),
    path(f"{PROJECT}runs/<int:pk>/resume/", runs.ResumeRun.as_view(), name="resume"),
    path(f"{PROJECT}runs/<int:pk>/delete/", deleting.DeleteRun.as_view(), name="delete_run"),
    path(f"{PROJECT}runs/<int:pk>/studies/", studies.Studies.as_view(), name="studies"),
    path(f"{PROJECT}studies/<int:pk>/", studies.OneStudy.as_view(), name="study"),
    path(f"{PROJECT}studies/<int:pk>/cancel/", studies.CancelStudy.as_view(), name="cancel_study"),
    path(f"{PROJECT}studies/<int:pk>/resume/", studies.ResumeStudy.as_view(), name="resume_study"),
    path(f"{PROJECT}sweeps/", sweeps.Sweeps.as_view(), name="sweeps"),
    path(f"{PROJECT}sweeps/<int:pk>/", sweeps.OneSweep.as_view(), name="sweep"),
    path(f"{PROJECT}sweeps/<int:pk>/cancel/", sweeps.CancelSweep.as_view(), name="cancel_sweep"),
    path(f"{PROJECT}models/", models.Models.as_view(), name="models"),
    path(f"{PROJECT}models/<int:pk>/", models.OneModel.as_view(), name="model"),
    path(f"{PROJECT}models/<int:pk>/delete/", deleting.DeleteModel.as_view(), name="delete_model"),
    path(f"{PROJECT}merges/", merges.Merges.as_view(), name="merges"),
    path(f"{PROJECT}merges/<int:pk>/", merges.OneMerge.as_view(), name="merge"),
    path(f"{PROJECT}merges/<int:pk>/cancel/", merges.CancelMerge.as_view(), name="cancel_merge"),
    path(f"{PROJECT}merges/<int:pk>/resume/", merges.ResumeMerge.as_view(), name="resume_merge"),
    path(f"{PROJECT}models/<int:pk>/report/", models.ModelReports.as_view(), name="report"),
    path(f"{PROJECT}models/<int:pk>/card/", models.Card.as_view(), name="card"),
    path(f"{PROJECT}models/<int:pk>/files/", models.ModelFiles.as_view(), name="files"),
    path(f"{PROJECT}models/<int:pk>/serving/", models.Serving.as_view(), name="serving"),
    path(f"{PROJECT}models/<int:pk>/exports/", exports.Exports.as_view(), name="exports"),
    path(f"{PROJECT}exports/<int:pk>/", exports.OneExport.as_view(), name="export"),
    path(
        f"{PROJECT}exports/<int:pk>/cancel/", exports.CancelExport.as_view(), name="cancel_export"
    ),
    path(f"{PROJECT}exports/<int:pk>/file/", exports.ExportedFile.as_view(), name="exported_file"),
    path(f"{PROJECT}playground/", playground.Playground.as_view(), name="playground"),
    path(f"{PROJECT}playground/<int:pk>/", playground.OnePair.as_view(), name="pair"),
    path(
        f"{PROJECT}playground/<int:pk>/cancel/", playground.CancelPair.as_view(), name="cancel_pair"
    ),
    path(f"{PROJECT}playground/<int:pk>/send/", playground.SendPair.as_view(), name="send_pair"),
    path(f"{PROJECT}datasets/", datasets.Datasets.as_view(), name="datasets"),
    path(f"{PROJECT}datasets/<int:pk>/", datasets.OneDataset.as_view(), name="dataset"),
    path(f"{PROJECT}dataset-drafts/<int:pk>/", datasets.OneDraft.as_view(), name="draft"),
    path(
        f"{PROJECT}dataset-drafts/<int:pk>/cancel/",
        datasets.CancelDraft.as_view(),
        name="cancel_draft",
    ),
    path(f"{PROJECT}rounds/", rounds.Rounds.as_view(), name="rounds"),
    path(f"{PROJECT}rounds/<int:pk>/", rounds.OneRound.as_view(), name="round"),
    path(f"{PROJECT}rounds/<int:pk>/cancel/", rounds.CancelRound.as_view(), name="cancel_round"),
    path(f"{PROJECT}rounds/<int:pk>/resume/", rounds.ResumeRound.as_view(), name="resume_round"),
    path(f"{PROJECT}rounds/<int:pk>/train/", rounds.TrainRound.as_view(), name="train_round"),
    path(f"{PROJECT}rounds/<int:pk>/compare/", rounds.CompareRound.as_view(), name="compare_round"),
    path(f"{PROJECT}rounds/<int:pk>/measure/", rounds.MeasureRound.as_view(), name="measure_round"),
    path(f"{PROJECT}arenas/", arenas.Arenas.as_view(), name="arenas"),
    path(f"{PROJECT}arenas/<int:pk>/", arenas.OneArena.as_view(), name="arena"),
    path(f"{PROJECT}arenas/<int:pk>/cancel/", arenas.CancelArena.as_view(), name="cancel_arena"),
    path(f"{PROJECT}arenas/<int:pk>/resume/", arenas.ResumeArena.as_view(), name="resume_arena"),
]
