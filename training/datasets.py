"""Preferences become a frozen, hashed dataset of pairs, split by prompt.

One pass reads every comparison with its answers, decides it, and writes it to a file that is named
by its hash once it is whole. What cannot become a pair is counted under the reason. Held in memory
are the prompts' hashes with their sides, never texts, so a million comparisons take a few hundred
megabytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO, Any

from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling import shared
from labeling.aggregation import counted_kind, margin
from labeling.export import Crowd, labeled_by_content, labels_of
from labeling.export_forms import Answer, Label, Labeled
from labeling.judgements import choice_of
from labeling.models import Choice, Comparison, Flag, Preference, Project, Rater
from labeling.personal_files import hashes
from labeling.storage import storage_path
from training.dataset_settings import DatasetSettings
from training.ml.data import Pair, Single
from training.ml.objectives import aspect_count
from training.models import Dataset

MIN_TRAIN_PAIRS = 8
COUNTED = {
    "pairs": _lazy("pairs"),
    "human": _lazy("pairs labeled by people"),
    "ai": _lazy("pairs labeled by AI judges"),
    "demonstrations": _lazy("pairs whose better response a rater wrote"),
    "decided": _lazy("pairs decided by a lead, whatever the votes say"),
    "ties_half": _lazy("ties that train as one half"),
    "graded": _lazy("pairs with a strength"),
    "soft": _lazy("pairs whose label is not certain"),
    "train": _lazy("training pairs"),
    "test": _lazy("test pairs"),
    "test_ties": _lazy("ties on the test side: they measure nothing"),
    "ties_kept": _lazy("ties that stand in the file and train nothing"),
    "ties": _lazy("ties"),
    "disputed": _lazy("disputed: no choice has the most votes"),
    "both_bad": _lazy("both responses bad"),
    "unparsed": _lazy("only unreadable AI verdicts"),
    "unlabeled": _lazy("without a label of this kind"),
    "same_text": _lazy("both responses have the same text"),
    "flagged": _lazy("flagged by a rater"),
    "other_source": _lazy("responses of other sources"),
    "tagged": _lazy("with an excluded tag"),
    "too_long": _lazy("a response longer than allowed"),
    "few_votes": _lazy("fewer votes than asked for"),
    "low_agreement": _lazy("votes that agree less than asked for"),
    "weak": _lazy("preferences weaker than asked for"),
    "weightless": _lazy("of weight 0: the votes balance"),
    "gold": _lazy("kept out of training: control questions with a known answer"),
    "sets": _lazy("kept out of training: training, qualification and check sets of raters"),
    "moved_to_test": _lazy("fixed to training, but their prompt is fixed to the test side"),
    "near_duplicates": _lazy("prompts that share their side with one that says nearly the same"),
}
NO_PAIR = ("ties", "disputed", "both_bad", "unparsed", "same_text", "flagged", "other_source")
NO_PAIR += ("tagged", "too_long", "few_votes", "low_agreement", "weak", "weightless")
NO_PAIR += ("gold", "sets")
COUNTED_RATINGS = {
    "singles": _lazy("rated responses"),
    "good": _lazy("good ones"),
    "bad": _lazy("bad ones"),
    "neutral": _lazy("neither good nor bad: they teach KTO nothing, and ratings something"),
    "on_scale": _lazy("with a value on a scale"),
    "divided": _lazy("on which raters differ: some call them good, some bad"),
    "human": _lazy("rated by people"),
    "ai": _lazy("rated by AI judges"),
    "train": _lazy("training responses"),
    "test": _lazy("test responses"),
    "one_sided": _lazy("prompts with good responses alone, or with bad ones alone"),
    "other_aspect": _lazy("rated in another aspect alone"),
    "unlabeled": _lazy("without a rating of this kind"),
    "other_source": _lazy("responses of other sources"),
    "too_long": _lazy("longer than allowed"),
    "few_votes": _lazy("fewer ratings than asked for"),
    "low_agreement": _lazy("ratings that agree less than asked for"),
    "weightless": _lazy("of weight 0: the ratings balance"),
    "gold": _lazy("kept out of training: responses of control questions and sets of raters"),
    "moved_to_test": _lazy("fixed to training, but their prompt is fixed to the test side"),
    "near_duplicates": _lazy("prompts that share their side with one that says nearly the same"),
}
NO_RATED = ("other_aspect", "unlabeled", "other_source", "too_long", "few_votes", "low_agreement")
NO_RATED += ("weightless", "gold")
NOWHERE: frozenset[str] = frozenset()


def words_of(counts: Mapping[str, int]) -> Mapping[str, Any]:
    """The words for these counts: of pairs, or of single judgements."""
    return COUNTED_RATINGS if "singles" in counts else COUNTED


# Sides --------------------------------------------------------------------------------------------


def side_of(prompt_hash: str, test_share: float, seed: int) -> str:
    """Which side a prompt belongs to: a fixed draw, so it stays there as labels keep coming in."""
    digest = hashlib.sha256(f"{seed}:{prompt_hash}".encode()).digest()
    return "test" if int.from_bytes(digest[:8]) / 2**64 < test_share else "train"


def split_prompts(
    fixed: Mapping[str, set[str] | frozenset[str]],
    test_share: float,
    seed: int,
    first_of: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The side of every prompt; no prompt is on both.

    Args:
        fixed: for each prompt's hash, the sides that the metadata of its comparisons names
            ("split": "train" or "test"); where both are named, the prompt is on the test side.
        first_of: for prompts that say nearly the same as others, the one of them whose side
            they share.
    """
    first_of = first_of or {}
    named_for: dict[str, set[str] | frozenset[str]] = {}
    for prompt, named in fixed.items():
        first = first_of.get(prompt, prompt)
        named_for[first] = named_for.get(first, NOWHERE) | named
    sides = {}
    for first, named in named_for.items():
        if named:
            sides[first] = "test" if "test" in named else "train"
        else:
            sides[first] = side_of(first, test_share, seed)
    # A draw over few prompts may leave a side empty: then the first free prompt changes over.
    for missing in ("test", "train"):
        if len(sides) > 1 and missing not in sides.values() and 0 < test_share < 1:
            free = sorted(first for first, named in named_for.items() if not named)
            if free:
                sides[free[0]] = missing
    del named_for
    for prompt in first_of.keys() & fixed.keys():
        sides[prompt] = sides[first_of[prompt]]
    return sides


# What a comparison becomes ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decided:
    """A comparison that goes into the dataset, with one label of it."""

    row: Labeled
    choice: str
    """a, b or tie."""
    source: str
    prob: float
    """Probability that the chosen response is the better one, in [½, 1]."""
    weight: float
    own: list[Answer]
    """The answers behind this label, without unreadable verdicts."""
    counted: list[Answer]
    """All that count on the comparison: the same, except where each vote is a row."""
    decided: bool
    """Whether a lead's decision stands in place of the answers."""
    strength: float | None = None
    """Mean strength of the answers for the chosen side, 0 to 3; None if nobody said one."""
    aspects: dict[str, float] | None = None
    """Of each aspect that was answered, how far it speaks for the chosen side, from −1 to 1."""

    @property
    def votes(self) -> dict[str, int]:
        return dict(sorted(Counter(answer.choice for answer in self.own).items()))

    @property
    def is_demonstration(self) -> bool:
        """Whether a rater wrote the chosen response, as a better answer."""
        author = {Choice.A: self.row.author_a, Choice.B: self.row.author_b}.get(self.choice)
        return author is not None

    @property
    def is_longer_chosen(self) -> bool | None:
        """None for a tie, and where both are equally long."""
        if self.choice == Choice.TIE or self.row.chars_a == self.row.chars_b:
            return None
        return (self.row.chars_a > self.row.chars_b) == (self.choice == Choice.A)


def answers_that_count(settings: DatasetSettings) -> QuerySet:
    """The current answers that a dataset may rest on, of every project."""
    answers = Preference.objects.current()
    of_people = Q(rater__kind=Rater.Kind.PERSON)
    if settings.ai_labels == "certified":
        answers = answers.filter(
            of_people | Q(certified=True, comparison__project__certificate_in_force=True)
        )
    elif settings.ai_labels == "calibrated":
        answers = answers.filter(of_people | Q(rater__calibrated_at__isnull=False))
    first, end = settings.period
    if first:
        answers = answers.filter(created_at__gte=first)
    if end:
        answers = answers.filter(created_at__lt=end)
    return answers


def decided_rows(
    row: Labeled, settings: DatasetSettings, crowd: Crowd | None, flagged: set[int]
) -> Iterator[Decided | str]:
    """What becomes of a comparison: rows of the dataset, or the reasons (of COUNTED) why not."""
    if row.gold:  # and so every set: the database holds no set without a known answer
        yield "gold" if row.purpose == Comparison.Purpose.WORK else "sets"
        return
    row.answers.sort(key=lambda answer: (answer.kind, answer.rater))  # not by ids
    if row.decision and not _holds(row.decision, settings):
        row.decision = None
    kind = counted_kind((answer.kind for answer in row.answers), settings.labels)
    counted = [a for a in row.answers if a.kind == kind and a.choice != Choice.UNPARSED]
    if reason := _kept_out(row, counted, settings, flagged):
        yield reason
        return
    is_soft = kind == Rater.Kind.JUDGE and settings.ai_labels == "calibrated"
    rule = "soft" if is_soft and settings.aggregate != "votes" else settings.aggregate
    for label in labels_of(row, settings.labels, rule, crowd):
        own = [a for a in counted if a.rater == label.rater] if label.rule == "votes" else counted
        yield _decided(row, label, own, counted, settings, is_soft)


def _holds(decision: dict[str, Any], settings: DatasetSettings) -> bool:
    """Whether a lead's decision counts: wanted, and of the time that is asked for."""
    first, end = settings.period
    made_at = datetime.fromisoformat(decision["created_at"])
    in_time = (first is None or made_at >= first) and (end is None or made_at < end)
    return settings.decisions and settings.labels != "ai" and in_time


def _kept_out(
    row: Labeled, counted: list[Answer], settings: DatasetSettings, flagged: set[int]
) -> str:
    """The reason why a labeled comparison is not asked for; "" if it is, or bears no label."""
    if not counted and not row.decision:
        return ""
    models = {row.model_a, row.model_b}
    if row.pk in flagged:
        return "flagged"
    if settings.sources and not models <= set(settings.sources):
        return "other_source"
    if models & set(settings.sources_excluded):
        return "other_source"
    if any(set(answer.tags or ()) & set(settings.tags_excluded) for answer in counted):
        return "tagged"
    if settings.longest_response and max(row.chars_a, row.chars_b) > settings.longest_response:
        return "too_long"
    return ""


def _decided(
    row: Labeled,
    label: Label,
    own: list[Answer],
    counted: list[Answer],
    settings: DatasetSettings,
    is_soft: bool,
) -> Decided | str:
    """Args: own: the answers behind this label; counted: all that count on the comparison."""
    is_decision = label.rule == "decision"
    choice = label.choice
    if is_soft and label.rule == "votes" and choice in (Choice.A, Choice.B, Choice.TIE):
        choice = choice_of(label.prob_a)  # a corrected probability may speak for the other side
    if choice == Choice.TIE and settings.ties == "dropped":
        return "ties"
    if choice not in (Choice.A, Choice.B, Choice.TIE):
        return choice
    if row.text_a == row.text_b:
        return "same_text"
    if not is_decision:
        votes = Counter(answer.choice for answer in counted)
        if len(counted) < settings.least_votes:
            return "few_votes"
        if max(votes.values()) < settings.least_agreement * len(counted):
            return "low_agreement"
    strength = None
    if choice != Choice.TIE:
        said = row.decision or {}
        strengths = [(a.choice, a.strength) for a in own]
        strengths = [(choice, said.get("strength"))] if is_decision else strengths
        if any(said for _choice, said in strengths):
            strength = round(3 * margin(choice, strengths), 6)
        if settings.least_strength and (strength or 0.0) < settings.least_strength - 1e-6:
            return "weak"
    of_chosen = label.prob_a if choice != Choice.B else 1 - label.prob_a
    is_hard = label.rule in ("decision", "majority") or (label.rule == "votes" and not is_soft)
    prob = 0.5 if choice == Choice.TIE else 1.0 if is_hard else max(0.5, of_chosen)
    if settings.weights == "certainty" and choice != Choice.TIE:
        weight = max(0.0, 2 * of_chosen - 1)
        if weight < 1e-9:
            return "weightless"
    else:
        weight = max(1, len(own)) if settings.weights == "votes" else 1.0
    return Decided(
        row=row,
        choice=choice,
        source=label.source,
        prob=round(prob, 6),
        weight=round(float(weight), 6),
        own=own,
        counted=counted,
        decided=is_decision,
        strength=strength,
        aspects=_aspects(choice, own),
    )


def _aspects(choice: str, answers: list[Answer]) -> dict[str, float]:
    """For each aspect the mean over who answered it: 1 for the chosen side (of a tie, for A), −1
    for the other, 0 for a tie."""
    chosen, other = (Choice.B, Choice.A) if choice == Choice.B else (Choice.A, Choice.B)
    value = {chosen: 1.0, other: -1.0, Choice.TIE: 0.0}
    said: dict[str, list[float]] = {}
    for answer in answers:
        for name, side in (answer.aspects or {}).items():
            if side in value:
                said.setdefault(name, []).append(value[side])
    return {name: round(sum(values) / len(values), 6) for name, values in sorted(said.items())}


# A dataset before it is written -------------------------------------------------------------------


@dataclass
class Plan:
    """What a dataset will hold."""

    counts: Counter[str] = field(default_factory=Counter)
    raters: list[dict[str, Any]] = field(default_factory=list)
    sides: dict[str, str] = field(default_factory=dict)
    """The side of every prompt, by its hash."""


def plan(
    project: Project,
    settings: DatasetSettings,
    *,
    with_texts: bool = False,
    on_row: Callable[[Decided], None] = lambda row: None,
    first_of: Callable[[], Mapping[str, str]] = dict,
    on_progress: Callable[[int], None] = lambda n_comparisons: None,
) -> Plan:
    """Decide and count every comparison; writes nothing, so a form can show it before a launch.

    Args:
        with_texts: read prompts and responses for `on_row`, which is told every row of the dataset.
        first_of: asked after the last row: see `split_prompts`.
    """
    made = Plan()
    counts = made.counts
    counts.update(dict.fromkeys((*COUNTED, "comparisons"), 0))
    answers = answers_that_count(settings)
    is_weighed = settings.aggregate == "dawid-skene"
    crowd = Crowd(project, settings.labels, answers) if is_weighed else None
    flagged: set[int] = set()
    if settings.flagged_excluded:
        flags = Flag.objects.filter(comparison__project=project, resolved_at=None)
        flagged = set(flags.values_list("comparison_id", flat=True))
    fixed: dict[str, frozenset[str]] = {}
    n_pairs: Counter[str] = Counter()  # by prompt
    n_half: Counter[str] = Counter()  # by prompt: those of them that are ties
    n_for_training: Counter[str] = Counter()  # by prompt: fixed there by metadata
    votes: Counter[tuple[str, str]] = Counter()
    for chunk in labeled_by_content(
        project,
        answers,
        with_texts=with_texts,
        with_tags=bool(settings.tags_excluded),
        with_aspects=bool(project.aspects),
    ):
        for row in chunk:
            counts["comparisons"] += 1
            for found in decided_rows(row, settings, crowd, flagged):
                if isinstance(found, str):
                    counts[found] += 1
                    continue
                split = row.metadata.get("split")
                named = frozenset([split]) if split in ("train", "test") else NOWHERE
                fixed[row.prompt_hash] = fixed.get(row.prompt_hash, NOWHERE) | named
                if found.choice == Choice.TIE and settings.ties == "kept":
                    counts["ties_kept"] += 1
                else:
                    counts["pairs"] += 1
                    counts[found.source] += 1
                    counts["decided"] += found.decided
                    counts["demonstrations"] += found.is_demonstration
                    counts["ties_half"] += found.choice == Choice.TIE
                    counts["graded"] += found.strength is not None
                    for name in found.aspects or ():
                        counts[aspect_count(name)] += 1
                    counts["soft"] += 0 < found.prob < 1
                    n_pairs[row.prompt_hash] += 1
                    if found.choice == Choice.TIE:
                        n_half[row.prompt_hash] += 1
                    if split == "train":
                        n_for_training[row.prompt_hash] += 1
                if not found.decided:
                    votes.update((answer.kind, answer.rater) for answer in found.own)
                on_row(found)
        on_progress(counts["comparisons"])
    shared = first_of()
    made.sides = split_prompts(fixed, settings.test_share, settings.seed, shared)
    counts["near_duplicates"] = sum(prompt in shared for prompt in fixed)
    counts["train_prompts"] = counts["test_prompts"] = 0
    for prompt, side in made.sides.items():
        n_ties = n_half[prompt] if side == "test" else 0
        counts[side] += n_pairs[prompt] - n_ties
        counts["test_ties"] += n_ties
        counts[f"{side}_prompts"] += prompt in n_pairs
        counts["moved_to_test"] += n_for_training[prompt] if side == "test" else 0
    # Without ids, and in an order that no database's collation changes: they go into the file.
    made.raters = sorted(
        ({"rater": name, "kind": kind, "n": n} for (kind, name), n in votes.items()),
        key=itemgetter("kind", "rater", "n"),
    )
    return made


def refuse_too_few(counts: Mapping[str, int], labels: str) -> None:
    """Raises: ValueError saying in words what a run would lack."""
    if "singles" in counts:
        _refuse_too_few_ratings(counts)
        return
    if not counts["pairs"]:
        whom = {
            "human": _("no pair to train on: no clear preference by people yet"),
            "ai": _("no pair to train on: no clear preference by AI judges yet"),
            "mixed": _("no pair to train on: no clear preference by people or AI judges yet"),
        }[labels]
        others = [f"{counts[name]} {COUNTED[name]}" for name in NO_PAIR if counts[name]]
        detail = f" ({'; '.join(others)})" if others else ""
        raise ValueError(f"{whom}{detail}")
    if counts["train"] < MIN_TRAIN_PAIRS:
        raise ValueError(
            _("too few pairs: %(n)s for training, at least %(least)s are needed")
            % {"n": counts["train"], "least": MIN_TRAIN_PAIRS}
        )
    if not counts["test"]:
        raise ValueError(_("no test pair: at least two prompts are needed, one on the test side"))


def _refuse_too_few_ratings(counts: Mapping[str, int]) -> None:
    if not counts["singles"]:
        others = [f"{counts[name]} {COUNTED_RATINGS[name]}" for name in NO_RATED if counts[name]]
        detail = f" ({'; '.join(others)})" if others else ""
        raise ValueError(_("no rated response to train on yet: import some first") + detail)
    if counts["train"] < MIN_TRAIN_PAIRS:
        raise ValueError(
            _("too few rated responses: %(n)s for training, at least %(least)s are needed")
            % {"n": counts["train"], "least": MIN_TRAIN_PAIRS}
        )
    if not counts["test"]:
        raise ValueError(
            _("no test response: at least two prompts are needed, one on the test side")
        )


# The file -----------------------------------------------------------------------------------------


def freeze(
    project: Project, settings: DatasetSettings | None = None, *, for_study: bool = False
) -> Dataset:
    """Write the dataset and its row; the same labels and settings give the same dataset.

    Prompts that say nearly the same are not looked for: `training.previews.build` does.

    Raises: ValueError if there are too few pairs, or none on the test side.
    """
    settings = settings or DatasetSettings(near_duplicates=0.0)
    with rows_file() as rows:
        made = plan(project, settings, with_texts=True, on_row=lambda row: write_row(rows, row))
        return keep(project, settings, made, rows, for_study=for_study)


def rows_file() -> IO[bytes]:
    """A file without a name, where there is room for the dataset itself."""
    folder = storage_path("datasets")
    folder.mkdir(parents=True, exist_ok=True)
    return TemporaryFile(dir=folder)


def write_row(file: IO[bytes], row: Decided) -> None:
    """A line that still wants its side: the prompt's hash, a tab, the row."""
    comparison, is_b = row.row, row.choice == Choice.B
    a, b = comparison.response_a, comparison.response_b
    chars = (comparison.chars_a, comparison.chars_b)
    record: dict[str, Any] = {
        "comparison": comparison.content_hash,
        "prompt_id": comparison.prompt_hash,
        "outcome": row.choice,
        "prob": row.prob,
        "weight": row.weight,
        "source": row.source,
        "votes": row.votes,
        "decided": row.decided,
        "demonstration": row.is_demonstration,
        "lengths": {"chosen": chars[is_b], "rejected": chars[not is_b]},
        "prompt": comparison.prompt,
        "chosen": b if is_b else a,
        "rejected": a if is_b else b,
    }
    if row.strength is not None:
        record["strength"] = row.strength
    if row.aspects:
        record["aspects"] = row.aspects
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    file.write(f"{comparison.prompt_hash}\t{text}\n".encode())


def keep(
    project: Project,
    settings: DatasetSettings,
    made: Plan,
    rows: IO[bytes],
    preview: Mapping[str, Any] | None = None,
    *,
    for_study: bool = False,
) -> Dataset:
    """Give every written row its side, and the file its name: the SHA-256 of all of it.

    The file's first line says what made it and what was left out; every further line is a row, in
    the order of the comparisons' hashes, so that equal labels give an equal file in every database.

    Raises: ValueError as `refuse_too_few`.
    """
    refuse_too_few(made.counts, settings.labels)
    told = {"filters": settings.as_json(), "counts": dict(made.counts)}
    # People by their number of answers alone: the file is known by its hash and cannot be changed
    # when one of them is erased. Who they are stands in the row.
    nameless = [
        rater if rater["kind"] == Rater.Kind.JUDGE else {"kind": rater["kind"], "n": rater["n"]}
        for rater in made.raters
    ]
    head = told | {
        "raters": sorted(nameless, key=lambda r: (r["kind"], r.get("rater", ""), r["n"]))
    }
    digest = hashlib.sha256()
    rows.seek(0)
    with NamedTemporaryFile(dir=storage_path("datasets"), suffix=".part", delete=False) as file:
        try:
            for line in _lines(head, rows, made.sides):
                digest.update(line)
                file.write(line)
        except BaseException:  # a key pressed or a full disk: nobody else would remove it
            Path(file.name).unlink()
            raise
    sha256 = digest.hexdigest()
    path = Path("datasets") / f"{sha256}.jsonl"
    Path(file.name).replace(storage_path(path))
    shared.put(path)
    dataset, _created = Dataset.objects.get_or_create(
        project=project,
        sha256=sha256,
        defaults={
            **told,
            "path": str(path),
            "raters": made.raters,
            "preview": preview or {},
            "for_study": for_study,
        },
    )
    if dataset.for_study and not for_study:  # somebody else wants it too: it is listed from now on
        dataset.for_study = False
        dataset.save(update_fields=["for_study"])
    if preview and not dataset.preview:  # frozen before by the quick way
        dataset.preview = dict(preview)
        dataset.save(update_fields=["preview"])
    return dataset


def _lines(head: dict[str, Any], rows: IO[bytes], sides: Mapping[str, str]) -> Iterator[bytes]:
    yield json.dumps(head, ensure_ascii=False, sort_keys=True).encode() + b"\n"
    for line in rows:
        prompt, _tab, row = line.partition(b"\t")
        yield b'{"split": "%s", %s' % (sides[prompt.decode()].encode(), row[1:])


def load_rows(
    dataset: Dataset,
) -> tuple[list[Pair], list[Pair]] | tuple[list[Single], list[Single]]:
    """(train, test) of a frozen dataset: its pairs, or its judgements of single responses.

    Raises: as `pair_rows`.
    """
    if not dataset.of_ratings:
        return load_pairs(dataset)
    sides: dict[str, list[Single]] = {"train": [], "test": []}
    for row in pair_rows(dataset):
        sides[row["split"]].append(single_of(row))
    return sides["train"], sides["test"]


def load_pairs(dataset: Dataset) -> tuple[list[Pair], list[Pair]]:
    """(train, test) pairs of a frozen dataset.

    Raises: as `pair_rows`; ValueError for a dataset of single judgements.
    """
    if dataset.of_ratings:
        raise ValueError(f"{dataset} holds judgements of single responses, and no pairs")
    sides: dict[str, list[Pair]] = {"train": [], "test": []}
    for row in pair_rows(dataset):
        sides[row["split"]].append(pair_of(row))
    return sides["train"], sides["test"]


def pair_of(row: Mapping[str, Any]) -> Pair:
    """A row of a dataset's file as what recipes learn from."""
    return Pair(
        prompt=row["prompt"],
        chosen=row["chosen"],
        rejected=row["rejected"],
        prompt_id=row["prompt_id"],
        comparison=row["comparison"],
        prob=row.get("prob", 1.0),
        weight=row.get("weight", 1.0),
        demonstration=row.get("demonstration", False),
        strength=row.get("strength"),
        aspects=row.get("aspects"),
    )


def single_of(row: Mapping[str, Any]) -> Single:
    """A row of such a dataset's file as what recipes learn from."""
    return Single(
        prompt=row["prompt"],
        response=row["response"],
        good=row["good"],
        weight=row["weight"],
        rating=row["rating"],
        prompt_id=row["prompt_id"],
        name=row["name"],
    )


def pair_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a frozen dataset's file that are pairs, as `write_row` wrote them; of one of
    single judgements all of them.

    Ties that are kept in the file are no pairs, and ties that train as one half measure nothing:
    they are not on the test side.

    Raises: ValueError if the file is gone or is no longer what was frozen.
    """
    if dataset.redacted_at:  # a copy on this machine may be the one of before
        shared.fetch(dataset.path)
    shared.fetch_missing(dataset.path)
    path = storage_path(dataset.path)
    if not path.exists():
        raise ValueError(f"the dataset's file {dataset.path} is gone from the storage folder")
    whole, body = hashes(path)
    if (body if dataset.body_sha256 else whole) != (dataset.body_sha256 or dataset.sha256):
        raise ValueError(f"the dataset's file {dataset.path} was changed after it was frozen")
    ties_are_kept = dataset.filters.get("ties") == "kept"
    with path.open("rb") as file:
        next(file)
        for line in file:
            row = json.loads(line)
            is_tie = row.get("outcome") == Choice.TIE
            if not (is_tie and (ties_are_kept or row["split"] == "test")):
                yield row


def dataset_named(project: Project, sha256: str) -> Dataset | None:
    """A frozen dataset by its SHA-256 or the beginning of it; None for no name at all.

    Raises: ValueError if there is none, or more than one that begins so.
    """
    if not sha256:
        return None
    found = list(project.datasets.filter(sha256__startswith=sha256)[:2])
    if len(found) != 1:
        raise ValueError(
            f"dataset: {'several begin' if found else 'none begins'} with {sha256[:64]!r}"
        )
    return found[0]


def first_rows(dataset: Dataset, n: int) -> list[dict[str, Any]]:
    """The first rows of the file, for a page; none if it is gone."""
    path = storage_path(dataset.path)
    if not path.exists():
        return []
    with path.open("rb") as file:
        next(file)
        return [json.loads(line) for _number, line in zip(range(n), file, strict=False)]
