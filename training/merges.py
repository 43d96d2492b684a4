"""Start, carry out and keep merges: which models, in which order, and what came of them."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling import shared
from labeling.changes import note_change
from labeling.jobs import Job, JobTaken
from labeling.models import Messages, Project, Worker
from labeling.storage import storage_path
from training.ml.merge_recipe import SETTINGS, MergeRecipe, at_hand, form_of, scores, why_not
from training.models import Merge, ModelVersion, Run
from training.runs import base_version, free_name, known_models, version_folder

SECONDS_BETWEEN_REPORTS = 0.5
PROMPTS_CHECKED = 32
OF_ROWS = ("method", "models", "base", "weights")
"""Settings of a recipe that stand in rows and columns of their own."""


def mergeable_models(project: Project) -> list[str]:
    """Names that a merge may take: models of the project, then folders under models/."""
    names = list(project.models.values_list("name", flat=True))
    return names + [name for name in known_models(project, Run.Kind.DPO) if name not in names]


def make_merge_recipe(
    project: Project,
    *,
    method: str,
    models: Sequence[str],
    base: str = "",
    weights: Sequence[float] = (),
    settings: Mapping[str, Any] | None = None,
) -> MergeRecipe:
    """The recipe with the folders that the names stand for.

    Raises: ValueError in plain words that begins with the name of the setting to change, for what
        does not fit: unlike shapes, tokenizers or bases.
    """
    chosen = dict(settings or {})
    known = {field.name: field.type for field in fields(MergeRecipe)}
    for name in chosen:
        if name not in known or name in OF_ROWS:
            raise ValueError(f"{name}: there is no such setting of a merge")
    try:
        typed = {name: known[name](value) for name, value in chosen.items()}  # type: ignore[operator]
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {error}") from None
    recipe = MergeRecipe(
        method=method,
        models=tuple(_folder(project, name) for name in models),
        base=_folder(project, base) if base else "",
        weights=tuple(float(weight) for weight in weights),
        **typed,
    )
    if reason := why_not(recipe, list(models)):
        raise ValueError(reason)
    return recipe


def _folder(project: Project, name: str) -> str:
    version = project.models.filter(name=name).first()
    if version is None and name not in known_models(project, Run.Kind.DPO):
        raise ValueError(f"models: there is no model {name} in this project")
    if version is None:
        return str(storage_path("models") / name)
    return at_hand(version_folder(version))


def create_merge(
    project: Project,
    *,
    name: str,
    method: str,
    models: Sequence[str],
    base: str = "",
    weights: Sequence[float] = (),
    settings: Mapping[str, Any] | None = None,
    created_by: Any = None,
) -> Merge:
    """Write the merge's rows, queued but not yet sent to a worker.

    Raises: ValueError as make_merge_recipe, and for a name that is taken.
    """
    if project.models.filter(name=name).exists():
        raise ValueError(f"name: there is a model {name} already")
    recipe = make_merge_recipe(
        project, method=method, models=models, base=base, weights=weights, settings=settings
    )
    read = SETTINGS[method]
    kept = {k: v for k, v in asdict(recipe).items() if k in (*read, "dtype") and k not in OF_ROWS}
    with transaction.atomic():
        merge = Merge.objects.create(
            project=project,
            name=name,
            method=method,
            base=base_version(project, base) if base else None,
            recipe=kept,
            created_by=created_by,
        )
        for place, (model, weight) in enumerate(zip(models, recipe.shares, strict=True), 1):
            merge.parts.create(model=base_version(project, model), place=place, weight=weight)
        note_change(
            project,
            created_by,
            gettext_noop("start merge"),
            name,
            after={"method": method, "models": list(models)} | ({"base": base} if base else {}),
        )
    return merge


def why_no_worker(method: str) -> str:
    """Why no worker of now could carry out a merge by this method; empty where one could, or where
    none is there to be asked."""
    if method != "mergekit":
        return ""
    there = [worker for worker in Worker.objects.present() if "gpu" in worker.queues]
    if not there or any("mergekit" in worker.versions for worker in there):
        return ""
    return _(
        "No worker has mergekit: install it in an environment of its own, put mergekit-yaml on the "
        "worker's PATH, and start the worker anew."
    )


def start_merge(project: Project, **settings: Any) -> Merge:
    """create_merge, and wake a worker once it is committed.

    Raises: ValueError as create_merge, and where no worker could carry it out.
    """
    if reason := why_no_worker(settings["method"]):
        raise ValueError(f"method: {reason}")
    merge = create_merge(project, **settings)
    merge.enqueue()
    return merge


def recipe_of(merge: Merge) -> MergeRecipe:
    """The recipe of a merge with the folders where its models lie now."""
    parts = list(merge.parts.select_related("model"))
    weighted = "weights" in SETTINGS[merge.method]
    return MergeRecipe(
        method=merge.method,
        models=tuple(at_hand(version_folder(part.model)) for part in parts),
        base=at_hand(version_folder(merge.base)) if merge.base else "",
        weights=tuple(part.weight for part in parts) if weighted else (),
        **merge.recipe,
    )


def carry_out_merge(merge: Merge) -> ModelVersion:
    """Do the merge in this process, end its row, and keep the model.

    Raises: ValueError for models that no longer fit, or where the check fails: nothing is saved.
        JobCancelled, JobTaken.
    """
    from training.ml.merging import merge as merge_models

    recipe = recipe_of(merge)
    names = [part.model.name for part in merge.parts.select_related("model")]
    if reason := why_not(recipe, names):  # files may have changed since the launch
        raise ValueError(reason)
    folder = storage_path(f"merges/{merge.pk}/model")
    if folder.exists():  # whole, of a worker that was killed before it could say so
        shutil.rmtree(folder)
    reported_at = 0.0

    def on_tensor(done: int, total: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= SECONDS_BETWEEN_REPORTS or done == total:
            merge.report(n_done=done, n_total=total)
            reported_at = time.monotonic()

    found = merge_models(recipe, folder, on_tensor, prompts_of(merge.project))
    shared.put(f"merges/{merge.pk}/model")
    with transaction.atomic():
        # First, as the proof that the merge is still this worker's; it locks the row until commit.
        if not merge.finish(Job.Status.SUCCEEDED, result=found):
            raise JobTaken(f"merge {merge.pk} went to another worker")
        return keep_merged(merge)


def keep_merged(merge: Merge) -> ModelVersion:
    """The model that a finished merge left; made once per merge."""
    parts = [part.model for part in merge.parts.select_related("model__base")]
    folder = str(storage_path(f"merges/{merge.pk}/model"))
    # An adapter stands on a base still; a whole model on nothing.
    base = parts[0].base if form_of(folder) != "whole" else None
    kind = ModelVersion.Kind.REWARD if scores(folder) else ModelVersion.Kind.POLICY
    version, _created = ModelVersion.objects.get_or_create(
        merge=merge,
        defaults={
            "project": merge.project,
            "name": free_name(merge.project, merge.name),
            "kind": kind,
            "path": f"merges/{merge.pk}/model",
            "base": base,
        },
    )
    return version


def prompts_of(project: Project) -> list[Messages]:
    """Prompts to check a merge on, the oldest first."""
    return list(project.prompts.order_by("pk").values_list("messages", flat=True)[:PROMPTS_CHECKED])


def check_in_words(merge: Merge) -> str:
    """What the check of a finished merge found, in a sentence."""
    check = merge.result.get("check") or {}
    if "largest" in check:
        return _(
            "On %(n)s prompts its logits are those of the adapter over its base: they differ by "
            "%(largest)s at most, and %(tolerance)s would be rounding."
        ) % {
            "n": check["n"],
            "largest": f"{check['largest']:.2g}",
            "tolerance": f"{check['tolerance']:.2g}",
        }
    if check:
        return _("It loads, and its logits on %(n)s prompts are finite.") % {"n": check["n"]}
    return ""
