"""Judgements of single responses become rows of a dataset: one for each response, or each rating.

The file, its hash and its split are those of `training.datasets`; here is what a response becomes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from statistics import fmean, pstdev
from typing import IO, Any

from django.db.models import QuerySet

from labeling.aggregation import SOURCES, counted_kind
from labeling.models import Messages, Project, Rating, content_hash
from labeling.rated import Judged, Judgement, judged_by_content
from training.dataset_settings import DatasetSettings
from training.datasets import COUNTED_RATINGS, NOWHERE, Plan, split_prompts


@dataclass(frozen=True, slots=True)
class Rated:
    """A response that goes into the dataset, with what is said of it."""

    prompt_hash: str
    text_hash: str
    prompt: Messages
    response: Messages
    n_chars: int
    good: float
    """Probability that it is good, by the settings' rule."""
    rating: float
    """The mean of the ratings, from −1, the worst, to 1, the best."""
    weight: float
    source: str
    own: list[Judgement]
    """The ratings behind this row."""
    counted: list[Judgement]
    """All that count on the response: the same, except where each rating is a row."""
    thumbs: tuple[int, int, int]
    """How many of its own call it good, bad, neither."""

    @property
    def outcome(self) -> str:
        return "neutral" if self.good == 0.5 else "good" if self.good > 0.5 else "bad"

    @property
    def split(self) -> str:
        """The side that metadata names; the test side if both are named."""
        named = {one.metadata.get("split") for one in self.counted}
        return "test" if "test" in named else "train" if "train" in named else ""


def ratings_that_count(project: Project, settings: DatasetSettings) -> QuerySet[Rating]:
    current = Rating.objects.current().of_project(project)
    first, end = settings.period
    if first:
        current = current.filter(created_at__gte=first)
    if end:
        current = current.filter(created_at__lt=end)
    return current


def plan_ratings(
    project: Project,
    settings: DatasetSettings,
    *,
    with_texts: bool = False,
    on_row: Callable[[Rated], None] = lambda row: None,
    first_of: Callable[[], Mapping[str, str]] = dict,
    on_progress: Callable[[int], None] = lambda n_responses: None,
) -> Plan:
    """Decide and count every rated response; as `training.datasets.plan`, and writes nothing."""
    made = Plan()
    counts = made.counts
    counts.update(dict.fromkeys((*COUNTED_RATINGS, "responses"), 0))
    gold = _gold_responses(project)
    fixed: dict[str, frozenset[str]] = {}
    n_rows: Counter[str] = Counter()  # by prompt
    n_for_training: Counter[str] = Counter()  # by prompt: fixed there by metadata
    kinds: dict[str, set[str]] = {}  # by prompt: good, bad
    votes: Counter[tuple[str, str]] = Counter()
    chunks = judged_by_content(
        project, ratings_that_count(project, settings), with_texts=with_texts
    )
    for same in _by_text(row for chunk in chunks for row in chunk):
        counts["responses"] += 1
        for found in rated_rows(same, settings, gold):
            if isinstance(found, str):
                counts[found] += 1
                continue
            named = frozenset([found.split]) if found.split else NOWHERE
            fixed[found.prompt_hash] = fixed.get(found.prompt_hash, NOWHERE) | named
            counts["singles"] += 1
            counts[found.outcome] += 1
            counts[found.source] += 1
            counts["on_scale"] += any(one.value is not None for one in found.own)
            counts["divided"] += found.thumbs[0] > 0 and found.thumbs[1] > 0
            n_rows[found.prompt_hash] += 1
            n_for_training[found.prompt_hash] += found.split == "train"
            if found.outcome != "neutral":
                kinds.setdefault(found.prompt_hash, set()).add(found.outcome)
            votes.update((one.kind, one.rater) for one in found.own)
            on_row(found)
        on_progress(counts["responses"])
    shared = first_of()
    made.sides = split_prompts(fixed, settings.test_share, settings.seed, shared)
    counts["near_duplicates"] = sum(prompt in shared for prompt in fixed)
    counts["one_sided"] = sum(len(found) == 1 for found in kinds.values())
    counts["train_prompts"] = counts["test_prompts"] = 0
    for prompt, side in made.sides.items():
        counts[side] += n_rows[prompt]
        counts[f"{side}_prompts"] += 1
        counts["moved_to_test"] += n_for_training[prompt] if side == "test" else 0
    made.raters = sorted(
        ({"rater": name, "kind": kind, "n": n} for (kind, name), n in votes.items()),
        key=itemgetter("kind", "rater", "n"),
    )
    return made


def _gold_responses(project: Project) -> set[int]:
    """Responses of comparisons whose answer is known: raters or models are measured on them."""
    known = project.comparisons.exclude(gold="")  # and so every set
    return {pk for pair in known.values_list("response_a", "response_b") for pk in pair}


def _by_text(rows: Iterator[Judged]) -> Iterator[list[Judged]]:
    """Rows of the same prompt and text, whichever models gave it, in one list."""
    for _key, same in groupby(rows, key=lambda row: (row.prompt_hash, row.text_hash)):
        yield list(same)


def rated_rows(
    same: list[Judged], settings: DatasetSettings, gold: set[int]
) -> Iterator[Rated | str]:
    """What becomes of a response: rows of the dataset, or why not, in COUNTED_RATINGS' words."""
    if any(row.pk in gold for row in same):
        yield "gold"
        return
    kept = [
        row
        for row in same
        if (not settings.sources or row.model in settings.sources)
        and row.model not in settings.sources_excluded
    ]
    if not kept:
        yield "other_source"
        return
    first = kept[0]
    newest: dict[tuple[str, str], Judgement] = {}  # of each rater, who may have met it twice
    for one in sorted((o for row in kept for o in row.judgements), key=lambda o: o.created_at):
        if one.aspect == settings.aspect:
            newest[one.kind, one.rater] = one
    if not newest:
        yield "other_aspect"
        return
    kind = counted_kind((one.kind for one in newest.values()), settings.labels)
    counted = [newest[key] for key in sorted(newest) if key[0] == kind]  # not by ids
    if not counted:
        yield "unlabeled"
        return
    if settings.longest_response and first.n_chars > settings.longest_response:
        yield "too_long"
        return
    most = max(_thumbs(counted, settings))
    if len(counted) < settings.least_votes:
        yield "few_votes"
        return
    if most < settings.least_agreement * len(counted):
        yield "low_agreement"
        return
    for own in [[one] for one in counted] if settings.aggregate == "votes" else [counted]:
        share = fmean(one.good(settings.good_above) for one in own)
        good = round(share, 6)
        if settings.aggregate == "majority":
            good = 0.5 if abs(share - 0.5) < 1e-9 else float(share > 0.5)
        weight = float(len(own)) if settings.weights == "votes" else 1.0
        if settings.weights == "certainty":
            weight = round(abs(2 * share - 1), 6)
            if not weight:
                yield "weightless"
                continue
        yield Rated(
            prompt_hash=first.prompt_hash,
            text_hash=first.text_hash,
            prompt=first.prompt,
            response=first.response,
            n_chars=first.n_chars,
            good=good,
            rating=round(fmean(2 * one.place - 1 for one in own), 6),
            weight=weight,
            source=SOURCES[kind],
            own=own,
            counted=counted,
            thumbs=_thumbs(own, settings),
        )


def _thumbs(judgements: list[Judgement], settings: DatasetSettings) -> tuple[int, int, int]:
    """How many call it good, bad, neither."""
    goods = [one.good(settings.good_above) for one in judgements]
    return goods.count(1.0), goods.count(0.0), goods.count(0.5)


# The file -----------------------------------------------------------------------------------------


def write_rated(file: IO[bytes], row: Rated) -> None:
    """A line that still wants its side: the prompt's hash, a tab, the row."""
    record: dict[str, Any] = {
        "name": content_hash(row.prompt_hash, row.text_hash),
        "prompt_id": row.prompt_hash,
        "outcome": row.outcome,
        "good": row.good,
        "rating": row.rating,
        "weight": row.weight,
        "source": row.source,
        "votes": dict(zip(("good", "bad", "neutral"), row.thumbs, strict=True)),
        "length": row.n_chars,
        "prompt": row.prompt,
        "response": row.response,
    }
    if len(row.own) > 1:
        record["spread"] = round(pstdev(2 * one.place - 1 for one in row.own), 6)
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    file.write(f"{row.prompt_hash}\t{text}\n".encode())
