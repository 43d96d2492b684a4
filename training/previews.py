"""What a lead sees of a dataset before it is frozen: counts, agreement, lengths, duplicates, leaks.

A worker computes it on the very rows that it writes. The statistics (extra `stats`) are imported
where they are needed.
"""

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from django.utils.translation import gettext_noop

from labeling.models import Choice, Comparison, Project, message_text
from labeling.reports import StatisticsMissing, libraries_missing
from labeling.storage import storage_path
from training.dataset_settings import DatasetSettings
from training.datasets import (
    Decided,
    Plan,
    keep,
    plan,
    refuse_too_few,
    rows_file,
    side_of,
    write_row,
)
from training.models import Dataset
from training.near_duplicates import Sketches, clusters
from training.rated_datasets import Rated, plan_ratings, ratings_that_count, write_rated

LOOKED_FOR = 0.8
"""Likeness of prompts that is told of where the settings keep none together."""
EXAMPLES = 5
SHOWN_CHARS = 240
DATASETS_LOOKED_AT = 20
"""The newest frozen datasets whose test sides are held against the training prompts."""
LENGTHS = (0, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Where the bins of the length histograms begin, in characters."""
PLACES = 5
"""Bins of a histogram of ratings, from the worst to the best."""
CHOICES = [choice for choice in Choice.values if choice != Choice.UNPARSED]
_TEST_ROW = re.compile(rb'"prompt_id": "([0-9a-f]{64})"')

Progress = Callable[[int, int], None]


def build(
    project: Project,
    settings: DatasetSettings,
    *,
    freezing: bool,
    on_progress: Progress = lambda done, total: None,
) -> tuple[dict[str, Any], Dataset | None]:
    """The preview of a dataset, and with `freezing` the dataset itself, both of one reading.

    Args: on_progress: told (done, total) now and then; may raise to stop.
    Raises: ValueError in plain words: too few pairs.
        StatisticsMissing.
    """
    if missing := libraries_missing():
        raise StatisticsMissing("Previews of datasets", missing[0])
    of_ratings = settings.kind == "ratings"
    n_comparisons = project.comparisons.count()
    if of_ratings:
        rated = ratings_that_count(project, settings)
        n_comparisons = rated.values("response").distinct().count()
    total = n_comparisons + n_comparisons // 4 + 2  # the rest is what follows the reading
    sketches = Sketches(settings.near_duplicates or LOOKED_FOR)
    seen: Seen | SeenRatings = SeenRatings(sketches) if of_ratings else Seen(sketches)
    pairs: list[tuple[str, str, float]] = []

    def texts_of(prompts: Iterable[str]) -> dict[str, str]:
        on_progress(min(n_comparisons, total), total)
        return prompt_texts(project, prompts)

    def first_of() -> dict[str, str]:
        pairs.extend(sketches.alike(texts_of))
        if not settings.near_duplicates:
            return {}
        return clusters((one, other) for one, other, _likeness in pairs)

    with rows_file() as rows:

        def on_row(row: Any) -> None:
            seen.add(row)
            if freezing:
                (write_rated if of_ratings else write_row)(rows, row)

        made = (plan_ratings if of_ratings else plan)(
            project,
            settings,
            with_texts=True,
            on_row=on_row,
            first_of=first_of,
            on_progress=lambda done: on_progress(min(done, n_comparisons), total),
        )
        preview = {
            "counts": dict(made.counts),
            "raters": made.raters,
            "problem": _problem(made, settings),
            **seen.figures(),
            "duplicates": _duplicates(project, settings, made, pairs, sketches.threshold),
            "leaks": _leaks(project, made, sketches, texts_of),
        }
        dataset = keep(project, settings, made, rows, preview) if freezing else None
    on_progress(total, total)
    return preview, dataset


def _problem(made: Plan, settings: DatasetSettings) -> str:
    try:
        refuse_too_few(made.counts, settings.labels)
    except ValueError as error:
        return str(error)
    return ""


class Seen:
    """What is gathered row by row: numbers, and each new prompt's sketch."""

    def __init__(self, sketches: Sketches) -> None:
        self.sketches = sketches
        self.prompts: dict[str, int] = {}
        self.lengths = {name: [0] * len(LENGTHS) for name in ("prompt", "chosen", "rejected")}
        self.pair_prompts, self.longer = array("l"), array("b")
        self.item_prompts, self.votes = array("l"), array("i")
        self.comparison = 0  # the key of the last one
        self.kinds: Counter[str] = Counter()

    def add(self, row: Decided) -> None:
        comparison = row.row
        number = self.prompts.setdefault(comparison.prompt_hash, len(self.prompts))
        text = message_text(comparison.prompt)
        if number == len(self.sketches.keys):
            self.sketches.add(comparison.prompt_hash, text)
        a_chosen = row.choice != Choice.B
        chars = (comparison.chars_a, comparison.chars_b)
        for name, n in (
            ("prompt", len(text)),
            ("chosen", chars[not a_chosen]),
            ("rejected", chars[a_chosen]),
        ):
            self.lengths[name][bisect_right(LENGTHS, n) - 1] += 1
        if row.is_longer_chosen is not None:
            self.pair_prompts.append(number)
            self.longer.append(row.is_longer_chosen)
        if comparison.pk != self.comparison:
            self.comparison = comparison.pk
            given = Counter(answer.choice for answer in row.counted)
            self.item_prompts.append(number)
            self.votes.extend(given[choice] for choice in CHOICES)
        self.kinds["decision" if row.decided else row.source] += 1

    def figures(self) -> dict[str, Any]:
        import numpy as np

        from labeling.agreement import krippendorff_alpha, percent_agreement
        from labeling.intervals import refused, share_of

        counts = np.array(self.votes, dtype=np.int64).reshape(-1, len(CHOICES))
        prompt = np.array(self.item_prompts, dtype=np.int64)
        voted = counts.sum(axis=1) > 0
        if self.longer:
            longer = share_of(np.array(self.pair_prompts), np.array(self.longer))
        else:
            longer = refused(gettext_noop("No pair whose responses differ in length."), n=0)
        return {
            "labels": dict(self.kinds),
            "percent_agreement": percent_agreement(counts[voted], prompt[voted]),
            "alpha": krippendorff_alpha(counts[voted], prompt[voted]),
            "lengths": self.lengths,
            "longer_chosen": longer,
        }


class SeenRatings:
    """The same of single judgements: how far raters agree on good and bad, and on the value."""

    def __init__(self, sketches: Sketches) -> None:
        self.sketches = sketches
        self.prompts: dict[str, int] = {}
        self.lengths = {name: [0] * len(LENGTHS) for name in ("prompt", "response")}
        self.row_prompts, self.good, self.chars = array("l"), array("d"), array("l")
        self.item_prompts, self.votes = array("l"), array("i")
        self.text = ("", "")
        self.places = [0] * PLACES
        self.kinds: Counter[str] = Counter()

    def add(self, row: Rated) -> None:
        number = self.prompts.setdefault(row.prompt_hash, len(self.prompts))
        text = message_text(row.prompt)
        if number == len(self.sketches.keys):
            self.sketches.add(row.prompt_hash, text)
        for name, n in (("prompt", len(text)), ("response", row.n_chars)):
            self.lengths[name][bisect_right(LENGTHS, n) - 1] += 1
        self.row_prompts.append(number)
        self.good.append(row.good)
        self.chars.append(row.n_chars)
        if self.text != (row.prompt_hash, row.text_hash):
            self.text = (row.prompt_hash, row.text_hash)
            self.item_prompts.append(number)
            goods = [one.good() for one in row.counted]
            self.votes.extend(goods.count(kind) for kind in (1.0, 0.0, 0.5))
        self.places[min(PLACES - 1, int((row.rating + 1) / 2 * PLACES))] += 1
        self.kinds[row.source] += 1

    def figures(self) -> dict[str, Any]:
        import numpy as np

        from labeling.agreement import krippendorff_alpha, percent_agreement
        from labeling.intervals import refused, share_of

        counts = np.array(self.votes, dtype=np.int64).reshape(-1, 3)
        prompt = np.array(self.item_prompts, dtype=np.int64)
        good, of_row = np.array(self.good), np.array(self.row_prompts, dtype=np.int64)
        share = refused(gettext_noop("No rated response."), n=0)
        if len(good):
            share = share_of(of_row, (good > 0.5).astype(np.int64))
        return {
            "labels": dict(self.kinds),
            "percent_agreement": percent_agreement(counts, prompt),
            "alpha": krippendorff_alpha(counts, prompt),
            "lengths": self.lengths,
            "places": self.places,
            "good_share": share,
        }


def prompt_texts(project: Project, prompts: Iterable[str]) -> dict[str, str]:
    """The texts of some prompts by their hashes."""
    found = project.prompts.filter(content_hash__in=list(prompts))
    return {
        content_hash: message_text(messages)
        for content_hash, messages in found.values_list("content_hash", "messages")
    }


# Prompts that say nearly the same -----------------------------------------------------------------


def _duplicates(
    project: Project,
    settings: DatasetSettings,
    made: Plan,
    pairs: list[tuple[str, str, float]],
    threshold: float,
) -> dict[str, Any]:
    """How many prompts say the same as another, and how many such groups the split divides."""
    group_of = clusters((one, other) for one, other, _likeness in pairs)
    apart = {prompt: side_of(prompt, settings.test_share, settings.seed) for prompt in group_of}
    divided = _divided(group_of, made.sides)
    across = [pair for pair in pairs if made.sides[pair[0]] != made.sides[pair[1]]]
    shown = sorted(across or pairs, key=lambda pair: (-pair[2], pair[0]))[:EXAMPLES]
    texts = prompt_texts(project, {key for one, other, _likeness in shown for key in (one, other)})
    return {
        "threshold": threshold,
        "kept_together": settings.near_duplicates > 0,
        "n_prompts": len(made.sides),
        "n_alike": len(group_of),
        "n_groups": len(set(group_of.values())),
        "largest": max(Counter(group_of.values()).values(), default=0),
        "n_same_words": sum(likeness == 1 for _one, _other, likeness in pairs),
        "n_divided": len(divided),
        "n_divided_by_draw": len(_divided(group_of, apart)),
        "examples": [
            {
                "one": texts[other][:SHOWN_CHARS],
                "other": texts[one][:SHOWN_CHARS],
                "likeness": likeness,
                "sides": [made.sides[other], made.sides[one]],
            }
            for one, other, likeness in shown
        ],
    }


def _divided(group_of: Mapping[str, str], sides: Mapping[str, str]) -> set[str]:
    """The groups that are on both sides."""
    seen: dict[str, set[str]] = {}
    for prompt, group in group_of.items():
        seen.setdefault(group, set()).add(sides[prompt])
    return {group for group, both in seen.items() if len(both) > 1}


# Training prompts that others are measured on -----------------------------------------------------


def _leaks(
    project: Project,
    made: Plan,
    sketches: Sketches,
    texts_of: Callable[[Iterable[str]], Mapping[str, str]],
) -> dict[str, Any]:
    """Training prompts that occur, exactly or nearly, in what raters or models are measured on."""
    evaluation: dict[str, set[str]] = {}
    for prompt, where in _evaluation_prompts(project):
        evaluation.setdefault(prompt, set()).add(where)
    training = {prompt for prompt, side in made.sides.items() if side == "train"}
    exact = sorted(training & evaluation.keys())
    near: dict[str, tuple[str, float]] = {}
    # What is no more in the project has no text to be held against; exact hits need none.
    outside = [prompt for prompt in sorted(evaluation) if prompt not in made.sides]
    for start in range(0, len(outside), 500):
        for prompt, text in texts_of(outside[start : start + 500]).items():
            sketches.add(prompt, text)
    if evaluation:
        for prompt, other, likeness in sketches.alike_to(evaluation, texts_of):
            if prompt in training and likeness > near.get(prompt, ("", 0.0))[1]:
                near[prompt] = (other, likeness)
    by_set: dict[str, Counter[str]] = {}
    for prompt in exact:
        for where in evaluation[prompt]:
            by_set.setdefault(where, Counter())["exact"] += 1
    for other, _likeness in near.values():
        for where in evaluation[other]:
            by_set.setdefault(where, Counter())["near"] += 1
    shown = [(prompt, prompt, 1.0) for prompt in exact]
    shown += sorted((p, o, s) for p, (o, s) in near.items())
    shown = shown[:EXAMPLES]
    texts = prompt_texts(project, {key for prompt, other, _s in shown for key in (prompt, other)})
    return {
        "n_evaluation_prompts": len(evaluation),
        "n_training_prompts": len(training),
        "n_exact": len(exact),
        "n_near": len(near),
        "threshold": sketches.threshold,
        "datasets_looked_at": min(DATASETS_LOOKED_AT, project.datasets.listed().count()),
        "by_set": [
            {"name": name, "exact": hits["exact"], "near": hits["near"]}
            for name, hits in sorted(by_set.items())
        ],
        "examples": [
            {
                "one": texts[prompt][:SHOWN_CHARS],
                "other": texts[other][:SHOWN_CHARS],
                "likeness": likeness,
                "sets": sorted(evaluation[other]),
            }
            for prompt, other, likeness in shown
        ],
    }


def _evaluation_prompts(project: Project) -> Iterator[tuple[str, str]]:
    """(prompt's hash, name of the set): gold and rater sets, test sides of earlier datasets."""
    known = project.comparisons.exclude(gold="").values_list("prompt__content_hash", "purpose")
    for prompt, purpose in known.iterator(chunk_size=5_000):
        yield prompt, "gold" if purpose == Comparison.Purpose.WORK else purpose
    for dataset in project.datasets.listed().order_by("-pk")[:DATASETS_LOOKED_AT]:
        path = storage_path(dataset.path)
        if path.exists():
            with path.open("rb") as file:
                # A quote inside a text is escaped, so no text can look like this key.
                for line in file:
                    if b'"split": "test"' in line and (found := _TEST_ROW.search(line)):
                        yield found[1].decode(), dataset.sha256[:12]
