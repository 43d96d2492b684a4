"""What a rater can answer on each scale, and how an answer reads on the page."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from labeling.models import Choice, Project

ANSWERS: dict[str, tuple[str, int | None]] = {
    **{letter: (letter, None) for letter in "ab"},
    **{f"{letter}-{n}": (letter, n) for letter in "ab" for n in (1, 2, 3)},
    Choice.TIE: (Choice.TIE, None),
    Choice.BOTH_BAD: (Choice.BOTH_BAD, None),
}
"""What a lead's button may send: the choice, and how much better. "a-2": A is clearly better."""

PLACES = ("left", "right")
SAID: dict[str, tuple[str, int | None]] = {
    **{place: (place, None) for place in PLACES},
    **{f"{place}-{n}": (place, n) for place in PLACES for n in (1, 2, 3)},
    Choice.TIE: (Choice.TIE, None),
    Choice.BOTH_BAD: (Choice.BOTH_BAD, None),
}
"""What a rater's button may send. It names the place where they saw a response and never its
letter: in a file that always calls the chosen response A, the letter would be the answer."""


@dataclass(frozen=True)
class Button:
    value: str
    key: str
    label: str  # in full, for screen readers
    words: str  # on the button
    side: str  # "left", "right" or ""


def by_letter(said: str, left: str) -> str:
    """What was said of a place ("left", "right"), said of the response that was shown there; `left`
    is the letter of the one on the left. Other answers are as they are."""
    right = "b" if left == "a" else "a"
    return {"left": left, "right": right}.get(said, said)


def by_place(choice: str, left: str) -> str:
    """The other way round: what was said of a response, said of the place where it was shown."""
    if choice in (Choice.A, Choice.B):
        return "left" if choice == left else "right"
    return choice


def buttons(scale: str) -> list[Button]:
    """The answers of a scale from left to right; keys count from 1."""
    equal = (Choice.TIE, _("Both are equally good"), _("equal"), "")
    if scale == Project.Scale.SEVEN:
        row = [
            ("left-3", _("Left response is much better"), _("much"), "left"),
            ("left-2", _("Left response is clearly better"), _("clearly"), "left"),
            ("left-1", _("Left response is slightly better"), _("slightly"), "left"),
            equal,
            ("right-1", _("Right response is slightly better"), _("slightly"), "right"),
            ("right-2", _("Right response is clearly better"), _("clearly"), "right"),
            ("right-3", _("Right response is much better"), _("much"), "right"),
        ]
    else:
        row = [
            ("left", _("Left response is better"), _("left"), "left"),
            *([equal] if scale == Project.Scale.THREE else []),
            ("right", _("Right response is better"), _("right"), "right"),
        ]
    return [
        Button(str(value), str(key), label, words, side)
        for key, (value, label, words, side) in enumerate(row, start=1)
    ]


def has_both_bad(scale: str) -> bool:
    return scale != Project.Scale.TWO


def answers_on(scale: str) -> set[str]:
    """The values that a project with this scale accepts."""
    values = {button.value for button in buttons(scale)}
    return values | {str(Choice.BOTH_BAD)} if has_both_bad(scale) else values


def answer_value(choice: str, strength: int | None, left: str) -> str:
    """The value of the button that gave this answer; `left` is the letter shown on the left."""
    place = by_place(choice, left)
    return f"{place}-{strength}" if strength else place


def in_words(choice: str, strength: int | None, left: str) -> str:
    """An answer as its rater saw it; `left` is the letter of the response shown on the left."""
    if choice == Choice.TIE:
        return _("both are equally good")
    if choice == Choice.BOTH_BAD:
        return _("both are bad")
    if choice == left:
        return {
            1: _("left is slightly better"),
            2: _("left is clearly better"),
            3: _("left is much better"),
        }.get(strength or 0, _("left is better"))
    return {
        1: _("right is slightly better"),
        2: _("right is clearly better"),
        3: _("right is much better"),
    }.get(strength or 0, _("right is better"))
