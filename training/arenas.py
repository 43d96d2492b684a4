"""Blind arenas: comparisons between models on prompts that none of them was trained on.

Whoever labels sees two responses and no name; which model wrote which stands with the responses,
and comes out in the leaderboard alone. An arena tops up: it makes as many comparisons of each two
models as are still missing.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.imports.interchange import Row
from labeling.imports.rows import RowStore, comparison_hash
from labeling.jobs import Job, JobTaken
from labeling.judge_requests import ask_judges_first
from labeling.models import Comparison, Project, Prompt, content_hash
from training.datasets import pair_rows
from training.models import Arena, Dataset, ModelVersion, Round
from training.playground import writers
from training.rounds import held_out_rule, new_and_previous, sampled, usable_prompts

MOST_MODELS = 12


@dataclass(frozen=True, kw_only=True)
class ArenaSettings:
    """Everything that decides an arena, stored whole with it."""

    models: tuple[str, ...]
    n_pairs: int = 100
    """Comparisons of each two models that there shall be, those of earlier arenas among them."""
    temperature: float = 0.8
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= len(set(self.models)) == len(self.models) <= MOST_MODELS:
            raise ValueError(f"models: two to {MOST_MODELS}, each once")
        for name, low, high in (
            ("n_pairs", 1, 10_000),
            ("temperature", 0.0, 10.0),
            ("max_new_tokens", 1, 100_000),
            ("seed", 0, 2**31 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}")

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "models": list(self.models)}


def settings_of(arena: Arena) -> ArenaSettings:
    known = {field.name for field in fields(ArenaSettings)}
    kept = {name: value for name, value in arena.options.items() if name in known}
    return ArenaSettings(**{**kept, "models": tuple(kept["models"])})


@transaction.atomic
def create_arena(
    project: Project,
    settings: ArenaSettings,
    created_by: Any = None,
    round_: Round | None = None,
) -> Arena:
    """Write the arena's row, queued but not yet sent to a worker.

    Raises: ValueError for a model that is not there.
    """
    known = writers(project)
    for name in settings.models:
        if name not in known:
            raise ValueError(_("There is no model %(name)s that writes.") % {"name": name})
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    if project.arenas.active().exists():
        raise ValueError(_("An arena is on its way already."))
    made = Arena.objects.create(
        project=project, round=round_, options=settings.as_json(), created_by=created_by
    )
    after = {"models": list(settings.models), "comparisons": settings.n_pairs}
    note_change(project, created_by, gettext_noop("begin arena"), made, after=after)
    return made


@transaction.atomic
def start_arena(
    project: Project,
    settings: ArenaSettings,
    created_by: Any = None,
    round_: Round | None = None,
) -> Arena:
    """As create_arena, and wake a worker."""
    made = create_arena(project, settings, created_by, round_)
    made.enqueue()
    return made


def compare_policies(round_: Round, user: Any, n_pairs: int = 100) -> Arena:
    """An arena of the round's new policy and the one before, sampled as the round was.

    Raises: ValueError if there is no new policy yet, or as create_arena.
    """
    pair = new_and_previous(round_)
    if pair is None:
        raise ValueError(_("Train a policy on the labels of this round first."))
    chosen = {k: round_.options[k] for k in ("temperature", "max_new_tokens", "seed")}
    settings = ArenaSettings(models=pair, n_pairs=n_pairs, **chosen)
    return start_arena(round_.project, settings, user, round_)


@dataclass(frozen=True)
class Missing:
    """A comparison that is to be made."""

    prompt: Prompt
    a: str
    b: str


def carry_out_arena(arena: Arena) -> None:
    """Sample, make the comparisons, and end the row.

    Raises: ModelMissing; ValueError if no prompt is held out; JobCancelled, JobTaken.
    """
    began = time.monotonic()
    settings, project = settings_of(arena), arena.project
    prompts = held_out_prompts(project, settings.models)
    if not prompts:
        raise ValueError(
            _("Every prompt of the project was trained on: import prompts that no model has seen.")
        )
    wanted = missing(project, settings, prompts)
    asked = {name: [m.prompt for m in wanted if name in (m.a, m.b)] for name in settings.models}
    asked = {name: list({p.pk: p for p in own}.values()) for name, own in asked.items()}
    arena.report(n_done=0, n_total=sum(map(len, asked.values())))
    counts: dict[str, Any] = {"prompts": len(prompts)}
    said: dict[tuple[str, str], str] = {}
    n_before = 0
    for name, own in asked.items():

        def on_texts(n: int, n_before: int = n_before) -> None:
            arena.report(n_done=n_before + n)

        for answer in sampled(
            arena,
            name,
            own,
            draws=1,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            counts=counts,
            on_texts=on_texts,
        ):
            if answer.texts and answer.texts[0]:
                said[name, answer.prompt.content_hash] = answer.texts[0]
        n_before += len(own)
    rows = _rows(arena, wanted, said, counts)
    counts["seconds"] = round(time.monotonic() - began, 1)
    with transaction.atomic():
        # First: it proves that the arena is this worker's, and locks the row until commit.
        if not arena.finish(Job.Status.SUCCEEDED, result=counts):
            raise JobTaken(f"{arena} went to another worker")
        made = _store(project, rows)
        arena.comparisons.set(made)
        ask_judges_first(project, made)


def held_out_prompts(project: Project, models: Sequence[str]) -> list[Prompt]:
    """Prompts on the test side that none of these models was trained on, nor what they were trained
    from."""
    trained: set[str] = set()
    for dataset in _datasets_under(project, models):
        trained.update(row["prompt_id"] for row in pair_rows(dataset) if row["split"] == "train")
    is_held_out = held_out_rule(project)
    rows = usable_prompts(project).order_by("content_hash")
    return [
        prompt
        for prompt in rows.iterator()
        if prompt.content_hash not in trained and is_held_out(prompt.content_hash)
    ]


def _datasets_under(project: Project, models: Sequence[str]) -> list[Dataset]:
    """The datasets of these models' runs, and of the runs of everything below them."""
    waiting = list(project.models.filter(name__in=models).values_list("pk", flat=True))
    seen: set[int] = set()
    found: dict[int, Dataset] = {}
    while waiting:
        version = ModelVersion.objects.select_related("run__dataset", "merge").get(pk=waiting.pop())
        if version.pk in seen:
            continue
        seen.add(version.pk)
        if version.run and version.run.dataset:
            found[version.run.dataset.pk] = version.run.dataset
        if version.base_id:
            waiting.append(version.base_id)
        if version.merge:
            waiting += version.merge.parts.values_list("model", flat=True)
    return list(found.values())


def missing(project: Project, settings: ArenaSettings, prompts: Sequence[Prompt]) -> list[Missing]:
    """The comparisons that every two models still lack, on prompts that they were not compared on.

    Models share their prompts as far as possible: one response then serves several comparisons.
    """
    order = list(prompts)
    random.Random(f"arena {settings.seed}").shuffle(order)  # noqa: S311 - a sample, not a secret
    found = []
    for a, b in combinations(settings.models, 2):
        done = prompts_compared(project, a, b)
        free = [prompt for prompt in order if prompt.pk not in done]
        found += [Missing(prompt, a, b) for prompt in free[: max(0, settings.n_pairs - len(done))]]
    return found


def prompts_compared(project: Project, a: str, b: str) -> set[int]:
    """Prompts on which an arena has set these two against each other."""
    rows = Comparison.objects.filter(arenas__project=project)
    both = rows.filter(response_a__source=a, response_b__source=b) | rows.filter(
        response_a__source=b, response_b__source=a
    )
    return set(both.values_list("prompt", flat=True))


def _rows(
    arena: Arena,
    wanted: Sequence[Missing],
    said: dict[tuple[str, str], str],
    counts: dict[str, Any],
) -> list[Row]:
    rng = random.Random(f"sides {arena.pk}")  # noqa: S311 - which of the two is called A
    counts |= {"same": 0, "unanswered": 0}
    rows = []
    for one in wanted:
        key = one.prompt.content_hash
        if (one.a, key) not in said or (one.b, key) not in said:
            counts["unanswered"] += 1
            continue
        sides = [(said[one.a, key], one.a), (said[one.b, key], one.b)]
        if sides[0][0] == sides[1][0]:
            counts["same"] += 1  # a tie that nobody needs to read; told beside the comparisons
            continue
        rng.shuffle(sides)
        texts = [[{"role": "assistant", "content": text}] for text, _model in sides]
        rows.append(
            Row(
                prompt=one.prompt.messages,
                response_a=texts[0],
                response_b=texts[1],
                model_a=sides[0][1],
                model_b=sides[1][1],
                metadata={"arena": arena.pk},
            )
        )
    counts["created"] = len(rows)
    return rows


def _store(project: Project, rows: Sequence[Row]) -> list[int]:
    """The comparisons in the queue; their keys."""
    RowStore(project).store(list(rows))
    keys = [
        comparison_hash(
            content_hash(row.prompt),
            (content_hash(row.response_a), row.model_a),
            (content_hash(row.response_b), row.model_b),
        )
        for row in rows
    ]
    found: list[int] = []
    for start in range(0, len(keys), 500):
        part = project.comparisons.filter(content_hash__in=keys[start : start + 500])
        found += part.values_list("pk", flat=True)
    return found


# What the page shows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far the comparisons of the arenas are, models taken together: who wins is not told."""

    n_comparisons: int
    n_done: int


def progress_of(project: Project) -> Progress:
    rows = Comparison.objects.filter(arenas__project=project).distinct()
    return Progress(rows.count(), rows.filter(open_places=0).count())
