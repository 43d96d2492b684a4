"""Studies: reward models trained alike but for one thing, and held against the same pairs.

"Would more labels help?" trains on an eighth, a quarter, half and all of a run's labels. "Which
labels teach best?" trains on the project's votes, made into labels in several ways. Everything else
is the run's own: its base, its settings, its split of prompts. Each training of a study is a cell;
what a cell came to is kept at once, so a study that was stopped goes on with the next cell, and
within a cell from the last checkpoint.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Choice, Comparison, Decision, Project
from labeling.reports import statistics_for
from labeling.storage import storage_path
from training.dataset_settings import DatasetSettings, stored_settings
from training.datasets import freeze, load_pairs, pair_rows
from training.ml.data import Pair
from training.ml.objectives import suiting
from training.models import Run, Study
from training.runs import recipe_of

SHARES = (0.125, 0.25, 0.5, 1.0)
ARMS: dict[str, dict[str, Any]] = {
    "majority": {"aggregate": "majority", "weights": "equal"},
    "soft": {"aggregate": "soft", "weights": "equal"},
    "certainty": {"aggregate": "majority", "weights": "certainty"},
    "dawid-skene": {"aggregate": "dawid-skene", "weights": "equal"},
}
ARM_WORDS = {
    "majority": _lazy("Majority: one hard label"),
    "soft": _lazy("Soft: the share of votes"),
    "certainty": _lazy("Majority, split votes weigh less"),
    "dawid-skene": _lazy("Soft: votes weighed by reliability (Dawid-Skene)"),
}
REFERENCES = {
    "votes": _lazy("Votes on held-out prompts, each by itself"),
    "decided": _lazy("Known answers and decisions of leads; their prompts are not trained on"),
}
MOST_SEEDS = 10
LEAST_HELD_OUT = 10
LEAST_TRAINED_ON = 8
PER_CELL = 1_000
"""Progress is told in thousandths of a training."""

OnProgress = Callable[[int, int], None]


def can_be_studied(run: Run) -> bool:
    """Whether it is a reward model that learned pairs; single judgements have no studies."""
    return run.kind == Run.Kind.REWARD and not (run.dataset and run.dataset.of_ratings)


@transaction.atomic
def start_study(run: Run, kind: str, *, n_seeds: int = 1, reference: str = "", user: Any) -> Study:
    """Queue a study of a finished reward run.

    Args: reference: of REFERENCES, for a study of labels.
    Raises: ValueError in plain words.
    """
    if run.dataset is not None and run.dataset.of_ratings:
        raise ValueError(_("a study is of pairs, and this run learned single judgements"))
    if run.kind != Run.Kind.REWARD or run.status != Run.Status.SUCCEEDED or run.dataset is None:
        raise ValueError(_("a study takes over the settings of a finished reward model"))
    if not 1 <= n_seeds <= MOST_SEEDS:
        raise ValueError(_("seeds must lie between 1 and %(most)s") % {"most": MOST_SEEDS})
    if kind == Study.Kind.LABELS and reference not in REFERENCES:
        raise ValueError(_("a study of labels wants something to be held against"))
    if kind == Study.Kind.LABELS and reference == "decided":
        n = len(list(decided_pairs(run.project)))
        if n < LEAST_HELD_OUT:
            raise ValueError(
                _("only %(n)s comparisons have a known answer or a decision; %(least)s are needed")
                % {"n": n, "least": LEAST_HELD_OUT}
            )
    options: dict[str, Any] = {"n_seeds": n_seeds}
    if kind == Study.Kind.LABELS:
        options |= {"reference": reference, "arms": list(ARMS)}
    study = Study.objects.create(
        project=run.project, run=run, kind=kind, options=options, created_by=user
    )
    study.enqueue()
    return study


def result_of(study: Study, on_progress: OnProgress) -> dict[str, Any]:
    """Train what is not trained yet, and the figures of all of it.

    Raises: StatisticsMissing; ValueError if there is too little to train on or to be held against.
    """
    with statistics_for("Studies"):
        from training import study_figures
    cells, held_out = cells_of(study)
    if len(held_out) < LEAST_HELD_OUT:
        raise ValueError(
            _("only %(n)s pairs to be held against; %(least)s are needed")
            % {"n": len(held_out), "least": LEAST_HELD_OUT}
        )
    recipe = recipe_of(study.run)
    for cell in cells:
        if len(cell.pairs) < LEAST_TRAINED_ON:
            raise ValueError(
                _("too few pairs for “%(name)s”: %(n)s") % {"name": cell.arm, "n": len(cell.pairs)}
            )
        suiting(recipe, cell.pairs)  # not after hours of training on other labels
    for place, cell in enumerate(cells):
        if cell.name in study.cells:
            continue

        def tell(part: float, place: int = place) -> None:
            on_progress(round(PER_CELL * (place + part)), PER_CELL * len(cells))

        found = {
            "n": len(cell.pairs),
            "margins": _train(study, cell, held_out, tell),
            "soft": sum(0.5 < pair.prob < 1 for pair in cell.pairs),
        }
        study.report(
            n_done=PER_CELL * (place + 1),
            n_total=PER_CELL * len(cells),
            cells=study.cells | {cell.name: found},
        )
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    found = {arm: [study.cells[cell.name] for cell in cells if cell.arm == arm] for arm in arms}
    prompts = [pair.prompt_id for pair in held_out]
    if study.kind == Study.Kind.CURVE:
        return study_figures.curve(found, prompts)
    return study_figures.labels(found, prompts)


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    arm: str
    seed: int
    pairs: Sequence[Pair]

    @property
    def name(self) -> str:
        return f"{self.arm} {self.seed}"


def cells_of(study: Study) -> tuple[list[Cell], list[Pair]]:
    """The trainings of a study, and the pairs that all of them are held against."""
    seeds = [study.run.seed + k for k in range(study.options["n_seeds"])]
    if study.kind == Study.Kind.CURVE:
        train, test = load_pairs(study.run.dataset)
        parts = {(s, seed): part_of(train, s, seed) for s in SHARES for seed in seeds}
        return [Cell(str(s), seed, part) for (s, seed), part in parts.items()], test
    by_arm, test = _labels_in_ways(study)
    return [Cell(arm, seed, by_arm[arm]) for seed in seeds for arm in by_arm], test


def part_of(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """The pairs of a share of the prompts; a smaller share is part of every larger one."""

    def drawn(prompt: str) -> bytes:
        return hashlib.sha256(f"part:{seed}:{prompt}".encode()).digest()

    prompts = sorted({pair.prompt_id for pair in pairs}, key=drawn)
    kept = set(prompts[: math.ceil(share * len(prompts))])
    return [pair for pair in pairs if pair.prompt_id in kept]


# Labels in several ways ---------------------------------------------------------------------------


def _labels_in_ways(study: Study) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """(training pairs of each arm, held-out pairs): the labels of now, on the run's sides."""
    project, dataset = study.project, study.run.dataset
    settings = replace(stored_settings(dataset.filters), near_duplicates=0.0)
    sides = {row["prompt_id"]: row["split"] for row in pair_rows(dataset)}
    if study.options["reference"] == "decided":
        held_out = list(decided_pairs(project))
    else:
        of_votes = replace(settings, aggregate="votes", weights="equal", decisions=False)
        held_out = _on_side(project, of_votes, sides, "test")
        held_out = [pair for pair in held_out if pair.prob > 0.5]  # a tie has no right answer
    used = {pair.prompt_id for pair in held_out}
    by_arm = {}
    for arm in study.options["arms"]:
        ties = "dropped" if ARMS[arm]["weights"] == "certainty" else settings.ties
        made = replace(settings, decisions=False, ties=ties, **ARMS[arm])
        pairs = _on_side(project, made, sides, "train")
        by_arm[arm] = [pair for pair in pairs if pair.prompt_id not in used]
    return by_arm, held_out


def _on_side(
    project: Project, settings: DatasetSettings, sides: Mapping[str, str], side: str
) -> list[Pair]:
    """The pairs of now whose prompts are on this side of the run's dataset; of prompts that it did
    not hold, since all votes on them were divided, those that the same draw puts there."""
    train, test = load_pairs(freeze(project, settings, for_study=True))
    return [
        pair
        for own, pairs in (("train", train), ("test", test))
        for pair in pairs
        if sides.get(pair.prompt_id, own) == side
    ]


def decided_pairs(project: Project) -> Iterator[Pair]:
    """Comparisons with a side that is known: a known answer, else a lead's decision."""
    sides = (Choice.A, Choice.B)
    current = Decision.objects.filter(
        comparison__project=project, superseded_at=None, choice__in=sides
    )
    decisions = dict(current.values_list("comparison_id", "choice"))
    rows = project.comparisons.filter(Q(gold__in=sides) | Q(pk__in=current.values("comparison")))
    for row in rows.select_related("prompt", "response_a", "response_b").order_by("content_hash"):
        yield _pair(row, row.gold if row.gold in sides else decisions[row.pk])


def _pair(row: Comparison, choice: str) -> Pair:
    sides = (row.response_a.messages, row.response_b.messages)
    chosen, rejected = sides if choice == Choice.A else reversed(sides)
    return Pair(
        prompt=row.prompt.messages,
        chosen=chosen,
        rejected=rejected,
        prompt_id=row.prompt.content_hash,
        comparison=row.content_hash,
    )


# One training -------------------------------------------------------------------------------------


def _train(
    study: Study, cell: Cell, held_out: Sequence[Pair], tell: Callable[[float], None]
) -> list[float | None]:
    """The margins of the held-out pairs, None where one is too long; the weights are not kept."""
    # These import torch: only workers pay for it.
    from training.ml import reward_model
    from training.ml.config import RewardRecipe
    from training.ml.peaks import give_memory_back
    from training.ml.scoring import rewards

    recipe = recipe_of(study.run)
    assert isinstance(recipe, RewardRecipe)  # start_study takes no other run
    recipe = replace(recipe, seed=cell.seed)
    folder = (
        storage_path("studies")
        / str(study.pk)
        / hashlib.sha256(f"{cell.name} {sorted(asdict(recipe).items())}".encode()).hexdigest()[:16]
    )
    folder.mkdir(parents=True, exist_ok=True)
    give_memory_back()
    reward_model.train(
        recipe,
        cell.pairs,
        [],  # measured below, pair by pair
        folder,
        lambda report: tell(0.9 * report.step / report.n_steps),
    )
    scored = rewards(
        folder / "model",
        held_out,
        max_length=recipe.max_length,
        batch_size=recipe.batch_size,
        dtype=recipe.dtype,
        on_progress=lambda done, total: tell(0.9 + 0.1 * done / total),
    )
    shutil.rmtree(folder)
    margins = {id(one.pair): round(one.chosen - one.rejected, 6) for one in scored}
    return [margins.get(id(pair)) for pair in held_out]
