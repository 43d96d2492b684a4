"""Start, stop and follow runs; where models lie and what made them."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.models import Project, Rater
from labeling.scoring import raters_that_rate
from labeling.storage import HUB_ID, files_folder, model_folder, storage_path
from training.dataset_settings import DatasetSettings, settings_of_now
from training.datasets import freeze
from training.ml.architecture import model_folder as cached_folder
from training.ml.architecture import named_layers
from training.ml.config import ON_TEXTS, RECIPES, AnyRecipe, TextRecipe, make_recipe, typed
from training.ml.merge_recipe import root_of
from training.ml.methods import BESIDE, IN_4_BITS, PROMPTS, SCORERS, SETTINGS, why_not
from training.ml.objectives import why_not_base, why_not_labels
from training.ml.ppo_config import PPORecipe
from training.ml.settings import METHODS, TRACKERS, is_target, targets
from training.models import Dataset, ModelVersion, Run, RunRewardModel, Sweep
from training.texts import text_path
from training.writers import check_generation

STEPS_OF_PACE = 20


@lru_cache(maxsize=1)
def code_version() -> str:
    """The commit of this code, or the installed package's version."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 - whichever git is installed
            cwd=settings.BASE_DIR,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        try:
            return metadata.version("prefloop")
        except metadata.PackageNotFoundError:
            return "unknown"


def named_model(project: Project, name: str) -> str:
    """What to load for a model's name: a model of this project, or as labeling.storage says."""
    version = project.models.filter(name=name).first()
    return version_folder(version) if version else model_folder(name)


def known_models(project: Project, kind: str) -> list[str]:
    """Names that a run could start from: bases (and for policies, policies) of the project, then
    folders under PREFLOOP_STORAGE/models."""
    kinds = [ModelVersion.Kind.BASE]
    if kind != Run.Kind.REWARD:
        kinds.append(ModelVersion.Kind.POLICY)
    names = [
        version.name
        for version in project.models.filter(kind__in=kinds).select_related("run")
        # A learned prompt changes no weights that a run could start from.
        if version.run is None or version.run.recipe.get("method") not in PROMPTS
    ]
    stored = sorted(path.parent.name for path in storage_path("models").glob("*/config.json"))
    return names + [name for name in stored if name not in names]


def version_folder(version: ModelVersion) -> str:
    """Where a model's files lie."""
    return files_folder(version.path, is_base=version.kind == ModelVersion.Kind.BASE)


class Impossible(ValueError):
    """This recipe cannot train this base by this method, or from these labels."""


def check_base(folder: str, recipe: AnyRecipe) -> None:
    """Look at the base before a run is queued, without loading it.

    Raises: ValueError that begins with the name of the setting to change; Impossible, one of them.
    """
    kind = next(name for name, known in RECIPES.items() if type(recipe) is known)
    path = Path(folder)
    if not path.is_dir():
        path = _cached(folder) or path
    reason = why_not(
        kind,
        recipe.method,
        _config_of(path),
        gradient_checkpointing=recipe.gradient_checkpointing,
        packing=getattr(recipe, "packing", False),
    )
    if reason:
        raise Impossible(f"method: {reason}")
    if reason := why_not_base(recipe, _config_of(path)):
        raise Impossible(reason)
    if not path.is_dir():
        if not HUB_ID.fullmatch(folder):
            raise ValueError(f"base_model: there is no model folder {folder}")
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise ValueError(
                f"base_model: {folder} is neither a folder here nor in the hub's cache, and "
                "HF_HUB_OFFLINE=1 forbids fetching it"
            )
        _check_targets(folder, recipe)
        return
    adapter = (path / "adapter_config.json").exists()
    if not adapter and not (path / "config.json").exists():
        raise ValueError(f"base_model: {folder} holds no model (no config.json)")
    if adapter and not (path / "adapter_model.safetensors").is_file():
        raise ValueError(f"base_model: {folder} has no adapter_model.safetensors")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"base_model: {folder} has no weights as safetensors")
    if adapter:
        # PPO goes on with an adapter of its own kind as it is; others are merged into their base.
        goes_on = kind == Run.Kind.PPO and _made_by(path) in BESIDE
        if recipe.method in IN_4_BITS and not goes_on:
            raise Impossible(
                "method: the base is an adapter; merge it first, or use LoRA instead of QLoRA"
            )
        if kind in SCORERS:
            raise ValueError("base_model: a reward model starts from a base model, not an adapter")
        settings = _config_of(path, "adapter_config.json")
        if settings.get("num_virtual_tokens"):
            raise ValueError(
                "base_model: a learned prompt changes no weights, so no run can start from it; "
                "name the base it was learned on"
            )
        if settings.get("task_type") == "SEQ_CLS":
            raise ValueError("base_model: this is a reward model's adapter, which writes no text")
        made = path / "made_by.json"
        if (
            recipe.rope_scaling != "none"
            and made.exists()
            and "rope" in _config_of(path, made.name)
        ):
            raise Impossible("rope_scaling: the positions of this policy are scaled already")
        base = root_of(str(path))
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise ValueError(
                f"base_model: {folder} is an adapter of {base}, which is not on this machine"
            )
    _check_targets(str(path), recipe)


def _check_targets(folder: str, recipe: AnyRecipe) -> None:
    """Hold the target modules against the layers of the base, where their names are at hand.

    Raises: ValueError if a target is no layer of the base, or too narrow for the rank.
    """
    layers = named_layers(folder) if "target_modules" in SETTINGS[recipe.method] else {}
    if not layers:
        return
    wanted = targets(recipe)
    if isinstance(wanted, list):
        missing = [end for end in wanted if not any(is_target(path, [end]) for path in layers)]
        if missing:
            names = sorted({path.rpartition(".")[2] for path in layers})
            numbers = [int(n) for path in layers for n in re.findall(r"\.(\d+)\.", f".{path}")]
            blocks = f" in layers 0 to {max(numbers)}" if numbers else ""
            raise ValueError(
                f"target_modules: the model has no layer {', '.join(missing)}; it has "
                f"{', '.join(names)}{blocks}"
            )
    room = min((min(s) for path, s in layers.items() if is_target(path, wanted)), default=0)
    if recipe.method in ("pissa", "loftq") and recipe.lora_rank > room:
        name = METHODS[recipe.method].split(":")[0]
        raise ValueError(
            f"lora_rank: {name} starts at the main directions of each layer, and the narrowest has "
            f"{room}"
        )


def _config_of(folder: Path, file: str = "config.json") -> dict[str, Any]:
    """The model's or adapter's own description, or of an adapter's base; empty if not at hand."""
    if file == "config.json" and (folder / "adapter_config.json").exists():
        folder = Path(_config_of(folder, "adapter_config.json")["base_model_name_or_path"])
    try:
        found: dict[str, Any] = json.loads((folder / file).read_text())
    except OSError:
        return {}
    except ValueError:
        raise ValueError(f"base_model: {folder / file} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"base_model: {folder / file} holds no settings")
    return found


def _made_by(folder: Path) -> str:
    """The method by which an adapter was trained here; "lora" where nobody said."""
    place = folder / "made_by.json"
    return str(_config_of(folder, place.name).get("method", "lora")) if place.exists() else "lora"


def _cached(name: str) -> Path | None:
    """Where a hub id's config and weights lie in the hub's cache, if they do."""
    try:
        found = cached_folder(name) if HUB_ID.fullmatch(name) else None
    except ValueError:
        return None
    return found if found and any(found.glob("*.safetensors")) else None


def checked_recipe(
    project: Project,
    *,
    kind: str,
    base_model: str,
    recipe_settings: Mapping[str, Any] | None,
    dataset: Dataset | None,
    test_share: float,
) -> AnyRecipe:
    """The recipe of a run that could be carried out, as far as can be told without loading it.

    Raises: ValueError in plain words: unknown setting, missing model or file; Impossible, one of
        them.
    """
    folder = named_model(project, base_model)
    chosen = {**(recipe_settings or {}), "base_model": folder}
    if kind in ON_TEXTS:
        chosen.setdefault("test_share", test_share)
    recipe = make_recipe(kind, chosen)
    check_base(folder, recipe)
    if isinstance(recipe, PPORecipe):
        with_folders(project, recipe)
        rating_judge(project, recipe)
        check_generation(recipe)
    if isinstance(recipe, TextRecipe):
        if dataset is not None:
            raise ValueError("dataset: this recipe reads a file of text, no dataset")
        text_path(recipe.text)
    return recipe


def create_run(
    project: Project,
    *,
    kind: str,
    base_model: str,
    recipe_settings: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
    labels: str = "mixed",
    test_share: float = 0.1,
    report_to: str = "",
    created_by: Any = None,
) -> Run:
    """Write the run's row, queued but not yet sent to a worker.

    Args:
        dataset: a frozen one; None freezes the labels of now, by majority, split with the
            recipe's seed. A run on raw text has none: its recipe's `text` names a file, of which
            `test_share` is held out.
        report_to: a tracker of TRACKERS, or none.
    Raises: ValueError in plain words: unknown setting, missing model or file, too few pairs.
    """
    recipe = checked_recipe(
        project,
        kind=kind,
        base_model=base_model,
        recipe_settings=recipe_settings,
        dataset=dataset,
        test_share=test_share,
    )
    if dataset is None and not isinstance(recipe, TextRecipe):
        dataset = freeze(project, settings_of_now(labels, test_share, recipe.seed))
    return write_run(
        project, kind, base_model, recipe, dataset, report_to=report_to, created_by=created_by
    )


def start_run(
    project: Project,
    *,
    kind: str,
    base_model: str,
    recipe_settings: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
    labels: str = "mixed",
    test_share: float = 0.1,
    made_by: DatasetSettings | None = None,
    report_to: str = "",
    created_by: Any = None,
) -> Run:
    """As create_run, and wake a worker once it is committed. Without a dataset it is the worker
    that freezes the labels: of many that takes seconds, for which no request should wait.

    Args: made_by: how the labels of now are frozen, in place of `labels` and `test_share`.
    Raises: ValueError in plain words: unknown setting, missing model or file.
    """
    recipe = checked_recipe(
        project,
        kind=kind,
        base_model=base_model,
        recipe_settings=recipe_settings,
        dataset=dataset,
        test_share=test_share,
    )
    frozen = labels_of_now(recipe, dataset, labels, test_share)
    if frozen and made_by is not None:
        frozen = made_by.as_json()
    with transaction.atomic():
        run = write_run(
            project,
            kind,
            base_model,
            recipe,
            dataset,
            labels=frozen,
            report_to=report_to,
            created_by=created_by,
        )
        note_change(
            project,
            created_by,
            gettext_noop("start run"),
            run,
            after={"base_model": base_model, "dataset": _named(dataset), **unusual(recipe)},
        )
        run.enqueue()  # sends on commit; were the message lost, the sweep would send it again
    return run


def labels_of_now(
    recipe: AnyRecipe, dataset: Dataset | None, labels: str, test_share: float
) -> dict[str, Any]:
    """The settings by which a worker will freeze a dataset; empty if there is nothing to freeze."""
    if dataset is not None or isinstance(recipe, TextRecipe):
        return {}
    return settings_of_now(labels, test_share, recipe.seed).as_json()


def write_run(
    project: Project,
    kind: str,
    base_model: str,
    recipe: AnyRecipe,
    dataset: Dataset | None,
    *,
    labels: dict[str, Any] | None = None,
    report_to: str = "",
    sweep: Sweep | None = None,
    created_by: Any = None,
) -> Run:
    """The row of a run whose recipe has been checked, with its first line of log.

    Raises: ValueError for an unknown tracker; Impossible for labels that do not suit the recipe.
    """
    if report_to and report_to not in TRACKERS:
        raise ValueError(f"report_to is {report_to!r}; it must be one of {', '.join(TRACKERS)}")
    if dataset is not None and (reason := why_not_labels(recipe, dataset.counts)):
        raise Impossible(reason)
    with transaction.atomic():
        run = Run.objects.create(
            project=project,
            kind=kind,
            base_model=base_model,
            recipe=asdict(recipe),
            seed=recipe.seed,
            dataset=dataset,
            labels=labels or {},
            code_version=code_version(),
            report_to=report_to,
            sweep=sweep,
            judge=rating_judge(project, recipe),
            created_by=created_by,
        )
        run.folder = f"runs/{run.pk}"
        run.save(update_fields=["folder"])
        if isinstance(recipe, PPORecipe):
            RunRewardModel.objects.bulk_create(
                RunRewardModel(run=run, model=model, place=place, holds_out=holds_out)
                for place, (model, holds_out) in enumerate(reward_models_of(project, recipe), 1)
            )
        if isinstance(recipe, TextRecipe):
            text = f"Queued on the texts of {recipe.text}."
        elif dataset is None:
            text = "Queued on the labels of now; the worker freezes them."
        else:
            rows = "responses" if dataset.of_ratings else "pairs"
            text = f"Queued on {dataset}: {dataset.counts['train']} training {rows}."
            if isinstance(recipe, PPORecipe):
                text = f"Queued on the prompts of {dataset}: {dataset.counts['train_prompts']} to "
                text += "learn on."
            elif n_ties := dataset.counts.get("ties_kept"):
                text += f" {n_ties} ties stand in its file and train nothing."
        run.events.create(text=text)
    return run


def _named(dataset: Dataset | None) -> str:
    return dataset.sha256[:12] if dataset else ""


def unusual(recipe: AnyRecipe) -> dict[str, Any]:
    """The settings of a recipe that are not the defaults."""
    return {
        field.name: getattr(recipe, field.name)
        for field in fields(recipe)
        if field.name != "base_model" and getattr(recipe, field.name) != field.default
    }


def recipe_of(run: Run) -> AnyRecipe:
    """The run's recipe, its base where it lies now."""
    known = {field.name for field in fields(RECIPES[run.kind])}
    recipe = RECIPES[run.kind](**{k: v for k, v in run.recipe.items() if k in known})
    return with_folders(
        run.project, replace(recipe, base_model=named_model(run.project, run.base_model))
    )


def with_folders(project: Project, recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with folders in the place of the reward models' names.

    Raises: ValueError as `reward_models_of`.
    """
    if not isinstance(recipe, PPORecipe):
        return recipe
    folders: dict[bool, list[str]] = {False: [], True: []}
    for model, holds_out in reward_models_of(project, recipe):
        folders[holds_out].append(version_folder(model))
    return replace(
        recipe,
        reward_models=",".join(folders[False]),
        holdout_reward_model=",".join(folders[True]),
        judge_model=recipe.judge_model and version_folder(judge_of(project, recipe)),
    )


def rating_judge(project: Project, recipe: AnyRecipe) -> Rater | None:
    """The rater behind the judge that a recipe names; None where it names none.

    Raises: ValueError if it is none of the project's, or rates no response by itself.
    """
    if not isinstance(recipe, PPORecipe) or not recipe.judge:
        return None
    known = {rater.name: rater for rater in raters_that_rate(project)}
    if recipe.judge not in known:
        there = f"there are {', '.join(known)}" if known else "make one first"
        raise ValueError(
            f"judge: {recipe.judge} is no judge of this project that rates each response by "
            f'itself (mode "score"); {there}'
        )
    return known[recipe.judge]


def judge_of(project: Project, recipe: PPORecipe) -> ModelVersion:
    """The language model that rates the responses. Raises: ValueError if it is none of the
    project's."""
    kinds = (ModelVersion.Kind.BASE, ModelVersion.Kind.POLICY)
    found = project.models.filter(name=recipe.judge_model, kind__in=kinds).first()
    if found is None:
        raise ValueError(
            f"judge_model: {recipe.judge_model} is no language model of this project; it must be "
            "one of its bases or policies"
        )
    return found


def reward_models_of(project: Project, recipe: PPORecipe) -> list[tuple[ModelVersion, bool]]:
    """The reward models that a recipe names, and whether each holds out: watches, and is never
    learned from.

    Raises: ValueError that begins with the name of the setting to change.
    """
    known = {model.name: model for model in project.models.filter(kind=ModelVersion.Kind.REWARD)}
    there = f"there are {', '.join(known)}" if known else "train one first"
    names = recipe.folders
    if not (names or recipe.judge_model or recipe.judge):
        raise ValueError(f"reward_models: name a reward model of this project; {there}")
    watching = [recipe.holdout_reward_model] if recipe.holdout_reward_model else []
    for setting, asked in (("reward_models", names), ("holdout_reward_model", watching)):
        for name in asked:
            if name not in known:
                raise ValueError(f"{setting}: {name} is no reward model of this project; {there}")
    if len(set(names)) < len(names):
        raise ValueError("reward_models: one is named twice")
    if set(watching) & set(names):
        raise ValueError(
            "holdout_reward_model: the policy learns from this one; what watches over it must be "
            "another"
        )
    return [(known[name], False) for name in names] + [(known[name], True) for name in watching]


def cancel_run(run: Run, by: Any) -> None:
    """Stop a queued run now, and a running one within seconds.

    Args: by: the user.
    """
    with transaction.atomic():
        before = run.status
        run.request_cancel()
        run.events.create(text=f"{by.get_username()} asked to cancel.")
        note_change(run.project, by, gettext_noop("cancel run"), run, before={"status": before})


LIMITS = ("judge_tokens", "judge_cost")
"""Settings that decide nothing but what a run may spend: they may be raised when it is resumed."""


def resume_run(run: Run, by: Any, limits: Mapping[str, Any] | None = None) -> bool:
    """Queue a stopped run again, from its last checkpoint on. False if it is not stopped.

    Args: limits: other values for some of LIMITS.
    Raises: ValueError for one that cannot be.
    """
    changed = dict(limits or {})
    if changed:
        if run.kind != Run.Kind.PPO or set(changed) - set(LIMITS):
            raise ValueError(f"{', '.join(changed)}: this cannot be changed in a run")
        known = {field.name: field.type for field in fields(PPORecipe)}
        changed = {name: typed(name, value, known[name]) for name, value in changed.items()}
        replace(recipe_of(run), **changed)
    with transaction.atomic():
        before = run.status
        resumed = run.resume()
        if resumed:
            run.recipe |= changed
            run.cause = ""
            run.save(update_fields=["recipe", "cause"])
            run.events.create(text=f"{by.get_username()} resumed the run.")
            after = {"status": run.status, "from_step": run.n_done, **changed}
            note_change(
                run.project,
                by,
                gettext_noop("resume run"),
                run,
                before={"status": before},
                after=after,
            )
    return resumed


def keep_model(run: Run) -> ModelVersion:
    """The model that a finished run left, with its base; made once per run."""
    kind = {
        Run.Kind.REWARD: ModelVersion.Kind.REWARD,
        Run.Kind.DPO: ModelVersion.Kind.POLICY,
        Run.Kind.PPO: ModelVersion.Kind.POLICY,
        Run.Kind.SFT: ModelVersion.Kind.POLICY,
        Run.Kind.PRETRAIN: ModelVersion.Kind.POLICY,
        Run.Kind.QUIET_STAR: ModelVersion.Kind.POLICY,
    }[Run.Kind(run.kind)]
    base = base_version(run.project, run.base_model)  # first: it may take the name we would have
    version, _created = ModelVersion.objects.get_or_create(
        run=run,
        defaults={
            "project": run.project,
            "name": free_name(run.project, f"{run.kind}-{run.pk}"),
            "kind": kind,
            "path": f"{run.folder}/model",
            "base": base,
        },
    )
    return version


def base_version(project: Project, name: str) -> ModelVersion:
    """The row of a base model, made on first use."""
    known = project.models.filter(name=name).first()
    if known:
        return known
    folder = model_folder(name)
    same = project.models.filter(kind=ModelVersion.Kind.BASE, path=folder).first()
    if same:
        return same
    short = slugify(name if HUB_ID.fullmatch(name) else Path(name).name)[:80] or "base"
    return project.models.create(
        name=free_name(project, short), kind=ModelVersion.Kind.BASE, path=folder
    )


def free_name(project: Project, wanted: str) -> str:
    """`wanted`, with a number behind it if a model of the project has that name already."""
    name, number = wanted, 1
    while project.models.filter(name=name).exists():
        number += 1
        name = f"{wanted}-{number}"
    return name


def pace(run: Run) -> dict[str, Any]:
    """How fast the run goes and what it holds, by its newest steps: tokens a second (padding not
    counted), seconds a step without measurements, bytes of memory now. Empty before there are any.
    """
    costs = [
        cost
        for cost in run.steps.filter(split="train")
        .order_by("-step")
        .values_list("cost", flat=True)[:STEPS_OF_PACE]
        if cost.get("seconds")
    ]
    if not costs:
        return {}
    seconds = sum(cost["seconds"] for cost in costs)
    return {
        "tokens_per_second": sum(cost["tokens"] for cost in costs) / seconds,
        "seconds_per_step": seconds / len(costs),
        "memory": costs[0].get("memory"),
        "n": len(costs),
    }


def seconds_left(run: Run) -> float | None:
    """Estimate from the steps of this attempt; None before there are two reports of it."""
    if not run.n_total or run.started_at is None or run.status != Run.Status.RUNNING:
        return None
    mine = run.steps.filter(split="train", created_at__gte=run.started_at)
    first, last = mine.order_by("step").first(), mine.order_by("step").last()
    if first is None or last is None or last.step == first.step:
        return None
    pace = (last.created_at - first.created_at).total_seconds() / (last.step - first.step)
    since = (timezone.now() - last.created_at).total_seconds()
    return max(0.0, pace * (run.n_total - last.step) - since)
