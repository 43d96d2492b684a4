"""Everything that decides a dataset: whose labels, how votes become one label, what is left out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.utils.translation import gettext_lazy as _lazy

KINDS = {
    "pairs": _lazy("Pairs, from comparisons"),
    "ratings": _lazy("Ratings and thumbs of single responses"),
}
LABELS = {
    "mixed": _lazy("People, else AI judges"),
    "human": _lazy("People only"),
    "ai": _lazy("AI judges only"),
}
AI_LABELS = {
    "any": _lazy("Any AI judge"),
    "certified": _lazy("Only answers that a certificate lets stand alone"),
    "calibrated": _lazy("Only calibrated judges, by their probability"),
}
AGGREGATES = {
    "majority": _lazy("Majority: one hard label"),
    "votes": _lazy("Votes: each answer a row"),
    "soft": _lazy("Soft: the share of votes, or the mean probability"),
    "dawid-skene": _lazy("Dawid-Skene: votes weighed by each rater's reliability"),
}
TIES = {
    "dropped": _lazy("Left out and counted"),
    "half": _lazy("One half: the model learns that both are equal"),
    "kept": _lazy("In the file as ties; recipes on pairs leave them out"),
}
WEIGHTS = {
    "equal": _lazy("All equal"),
    "certainty": _lazy("Certainty |2q − 1|: split votes weigh less"),
    "votes": _lazy("Number of votes"),
}
CHOICES = {
    "kind": KINDS,
    "labels": LABELS,
    "ai_labels": AI_LABELS,
    "aggregate": AGGREGATES,
    "ties": TIES,
    "weights": WEIGHTS,
}
SHARES = ("least_agreement", "good_above", "near_duplicates")
OF_PAIRS = ("ai_labels", "decisions", "ties", "least_strength", "tags_excluded", "flagged_excluded")
"""Settings that say something of comparisons alone."""
OF_RATINGS = ("aspect", "good_above")
"""Settings that say something of single judgements alone."""
LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Stored whole with its dataset, so that it can be made again."""

    kind: str = "pairs"
    """pairs, from comparisons; or ratings: judgements of single responses."""
    aspect: str = ""
    """Of single judgements: what was rated; empty: the whole."""
    good_above: float = 0.5
    """Of single judgements: from which part of its scale on a value speaks for the response."""
    labels: str = "mixed"
    """human, ai, or mixed: where a person answered a comparison, people alone decide it."""
    ai_labels: str = "any"
    """Which answers of AI judges count: any, certified, or calibrated (then as probabilities)."""
    aggregate: str = "majority"
    decisions: bool = True
    """A lead's decision stands in place of the votes, except where AI labels alone are wanted."""
    ties: str = "dropped"
    weights: str = "equal"
    least_votes: int = 1
    least_agreement: float = 0.0
    """Smallest share of the votes that the most frequent answer must have."""
    least_strength: float = 0.0
    """Smallest mean strength, 0 to 3; an answer without one adds nothing."""
    sources: tuple[str, ...] = ()
    """Both responses must come from one of these; empty: from anywhere."""
    sources_excluded: tuple[str, ...] = ()
    tags_excluded: tuple[str, ...] = ()
    """Left out if an answer that counts bears one of these tags."""
    flagged_excluded: bool = False
    since: str = ""
    """Answers from this day on (YYYY-MM-DD, UTC); empty: from the beginning."""
    until: str = ""
    """Answers up to this day, with it."""
    longest_response: int = 0
    """Characters of the longer response at most; 0: no limit."""
    test_share: float = 0.1
    seed: int = 0
    near_duplicates: float = 0.8
    """Prompts whose texts are alike to this Jaccard index stay on one side; 0: not looked for."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}"
                )
        if not 0 < self.test_share < 1:
            raise ValueError("test_share must lie between 0 and 1")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1")
        if 0 < self.near_duplicates < 0.5:
            raise ValueError("near_duplicates must be 0, or lie between 0.5 and 1")
        if not 0 <= self.least_strength <= 3:
            raise ValueError("least_strength must lie between 0 and 3")
        for name, least in (("least_votes", 1), ("longest_response", 0), ("seed", 0)):
            if not least <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must lie between {least} and {LARGEST}")
        first, end = self.period
        if first and end and first >= end:
            raise ValueError("since must not be later than until")
        if both := set(self.sources) & set(self.sources_excluded):
            raise ValueError(
                f"sources_excluded names {', '.join(sorted(both))}, which sources asks for"
            )
        if self.ties == "half" and self.weights == "certainty":
            raise ValueError(
                "ties as one half would have the weight 0: leave ties out, or take other weights"
            )
        self._check_kind()
        if self.labels == "human" and self.ai_labels != "any":
            raise ValueError(
                "ai_labels chooses among the answers of AI judges, and labels asks for people only"
            )

    def _check_kind(self) -> None:
        """Raises: ValueError for a setting of the other kind of dataset."""
        foreign = OF_PAIRS if self.kind == "ratings" else OF_RATINGS
        for field in fields(self):
            if field.name in foreign and getattr(self, field.name) != field.default:
                other = "pairs" if self.kind == "ratings" else "ratings"
                raise ValueError(
                    f"{field.name} is a setting of datasets of {other}, and this one is of "
                    f"{self.kind}: leave it as it is"
                )
        if self.kind == "ratings" and self.aggregate == "dawid-skene":
            raise ValueError(
                "aggregate: dawid-skene weighs votes on comparisons; take majority, soft or votes"
            )
        if not 0 < self.good_above < 1:
            raise ValueError("good_above must lie between 0 and 1")

    @property
    def period(self) -> tuple[datetime | None, datetime | None]:
        """From when on, and before when, answers count."""
        first, last = _day("since", self.since), _day("until", self.until)
        return first, last + timedelta(days=1) if last else None

    def as_json(self) -> dict[str, Any]:
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}


def stored_settings(filters: Mapping[str, Any]) -> DatasetSettings:
    """The settings that a dataset was made with; one that was frozen before a setting existed has
    what was done then."""
    known = {field.name for field in fields(DatasetSettings)}
    given = {name: value for name, value in filters.items() if name in known}
    return make_settings({"near_duplicates": 0.0} | given)


def settings_of_now(labels: str, test_share: float, seed: int) -> DatasetSettings:
    """A run's quick way, without a dataset that was built before: the majority of all labels."""
    return DatasetSettings(labels=labels, test_share=test_share, seed=seed, near_duplicates=0.0)


def settings_again(filters: Mapping[str, Any]) -> DatasetSettings:
    """An earlier dataset's settings for the labels of now: made alike, of all models and days, and
    without the search for prompts that are nearly alike, since prompts stay on their sides."""
    return replace(
        stored_settings(filters),
        sources=(),
        sources_excluded=(),
        since="",
        until="",
        near_duplicates=0.0,
    )


def make_settings(given: Mapping[str, Any]) -> DatasetSettings:
    """Settings from values that may be text, as a form, a program or a command line gives them.

    Raises: ValueError for an unknown setting or a value that does not fit.
    """
    defaults = {field.name: field.default for field in fields(DatasetSettings)}
    values = {}
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"a dataset has no setting {name!r}; it has {', '.join(defaults)}")
        values[name] = _typed(name, value, type(defaults[name]))
    return DatasetSettings(**values)


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is bool:
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return text in ("true", "1", "yes", "on")
    if kind is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
            raise ValueError(f"{name} must be a list of names, not {value!r}")
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {value!r}")
        return value
    try:
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what}, not {value!r}") from None


def _day(name: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        raise ValueError(f"{name} must be a day such as 2026-01-31, not {text!r}") from None
