"""Figures for reading: `{{ 0.5322|percent }}` → 53 %, `{{ 0.29059|decimals }}` → 0.29.

Pictures are drawn here too: SVG with plain attributes, coloured by the stylesheet.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from django import template
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _

register = template.Library()


@register.filter
def percent(value: float | None, places: int = 0) -> str:
    """A share as per cent, with a space that does not break; a dash for None."""
    return "–" if value is None else f"{number_format(f'{100 * value:.{places}f}')}\u00a0%"


@register.filter
def percent_right(errors: float) -> str:
    """What a share of errors leaves, as per cent: 0.1 → 90 %."""
    return percent(1 - errors, 0 if round(100 * errors, 6) % 1 == 0 else 1)


@register.filter
def decimals(value: float | None, places: int = 2) -> str:
    """A coefficient with a true minus sign; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{places}f}"
    text = text if float(text) else f"{0:.{places}f}"
    return str(number_format(text)).replace("-", "−")


BAR_SPACE, BARS_HEIGHT = 40, 90


@register.inclusion_tag("labeling/bars.html")
def bars(rows: Sequence[Any], title: str, labels: str = "all") -> dict[str, Any]:
    """Columns for rows with `label`, `n` and `height` (0 … 1); `labels="ends"`: the first and last
    alone are named below, the others when one points at them."""
    width = BAR_SPACE if labels == "all" else 14
    drawn = [
        {
            "row": row,
            "x": i * width + width * 0.1,
            "y": BARS_HEIGHT * (1 - row.height) + 14,
            "width": width * 0.8,
            "height": BARS_HEIGHT * row.height,
            "middle": (i + 0.5) * width,
            "named": labels == "all",
        }
        for i, row in enumerate(rows)
    ]
    return {
        "bars": drawn,
        "title": title,
        "width": width * len(rows),
        "height": BARS_HEIGHT + (32 if labels == "all" else 16),
        "foot": BARS_HEIGHT + 14,
        "labels": labels,
    }


SPAN_WIDTH = 160


@register.inclusion_tag("labeling/span.html")
def span(
    share: Any, mark: float | None = None, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """A share's interval on the line from 0 to 100 %, with a mark or a band to hold it against."""
    if share.value is None:
        return {"empty": True}
    band = {"band_x": SPAN_WIDTH * low, "band_width": SPAN_WIDTH * (high - low)} if high else {}
    return {
        "width": SPAN_WIDTH,
        "x": SPAN_WIDTH * share.low,
        "span": max(1, SPAN_WIDTH * (share.high - share.low)),
        "value": SPAN_WIDTH * share.value,
        "mark": None if mark is None else SPAN_WIDTH * mark,
        **band,
    }


PLOT_WIDTH, PLOT_HEIGHT, PLOT_LEFT, PLOT_TOP, PLOT_FOOT = 420, 210, 44, 8, 20


@register.inclusion_tag("labeling/scatter.html")
def speed_plot(rows: Sequence[dict[str, Any]], title: str) -> dict[str, Any]:
    """Raters by their median seconds (each line twice the one before) and their reliability."""
    seconds = [row["seconds"] for row in rows]
    low, high = (
        2.0 ** math.floor(math.log2(min(seconds))),
        2.0 ** math.ceil(math.log2(max(seconds))),
    )
    high = max(high, 2 * low)
    axis = _axis([row["reliability"]["low"] for row in rows])

    def across(value: float) -> float:
        return math.log(value / low) / math.log(high / low)

    points = [
        {
            "across": across(row["seconds"]),
            "kind": "judge" if row["is_judge"] else "",
            "words": _("%(rater)s: %(value)s right, %(seconds)s seconds")
            % {
                "rater": row["rater"],
                "value": percent(row["reliability"]["value"]),
                "seconds": number_format(f"{row['seconds']:.0f}"),
            },
            **row["reliability"],
        }
        for row in rows
    ]
    n_lines = round(math.log2(high / low))
    step = max(1, math.ceil(n_lines / 7))
    marks = [(across(low * 2**i), f"{low * 2**i:g} s") for i in range(0, n_lines + 1, step)]
    return _plot(title, points, axis, marks)


@register.inclusion_tag("labeling/scatter.html")
def time_plot(over_time: dict[str, Any], title: str) -> dict[str, Any]:
    """Agreement in bins of equally many votes, with the levels between changes."""
    bins, changes = over_time["bins"], over_time["changes"]
    days = [date_format(_moment(row["start"]), "Y-m-d") for row in bins]
    points = [
        {
            "across": (i + 0.5) / len(bins),
            "kind": "",
            "words": f"{day}: {percent(row['value'])}",
            **row,
        }
        for i, (row, day) in enumerate(zip(bins, days, strict=True))
    ]
    axis = _axis([row["low"] for row in bins])
    named = sorted({0, len(bins) // 2})
    plot = _plot(title, points, axis, [((i + 0.5) / len(bins), days[i]) for i in named])
    if changes:
        ends = [0, *(change["bin"] for change in changes), len(bins)]
        levels = [changes[0]["before"], *(change["after"] for change in changes)]
        plot["cuts"] = [_x(end / len(bins)) for end in ends[1:-1]]
        plot["steps"] = [
            {"from": _x(a / len(bins)), "to": _x(b / len(bins)), "y": _y(level, axis)}
            for (a, b), level in zip(pairwise(ends), levels, strict=True)
        ]
    return plot


@register.filter
def day(seconds: float) -> str:
    """Seconds since 1970 as a day (UTC)."""
    return date_format(_moment(seconds), "Y-m-d")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _axis(lows: Sequence[float]) -> float:
    """Where the axis of shares begins: at a whole tenth below all of them, at most one half."""
    return min(0.5, math.floor(10 * min(lows)) / 10)


def _x(share: float) -> float:
    return round(PLOT_LEFT + share * (PLOT_WIDTH - PLOT_LEFT - 12), 1)


def _y(value: float, axis: float) -> float:
    rise = PLOT_HEIGHT - PLOT_TOP - PLOT_FOOT
    return round(PLOT_TOP + rise * (1 - (value - axis) / (1 - axis)), 1)


def _plot(
    title: str, points: list[dict[str, Any]], axis: float, marks: list[tuple[float, str]]
) -> dict[str, Any]:
    step = 0.1 if axis > 0.4 else 0.2
    n_marks = math.floor((1 - axis) / step + 1e-9)
    return {
        "title": title,
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
        "left": PLOT_LEFT,
        "right": _x(1),
        "top": PLOT_TOP,
        "bottom": PLOT_HEIGHT - PLOT_FOOT,
        "room": round(_x(1) - PLOT_LEFT, 1),
        "rise": PLOT_HEIGHT - PLOT_TOP - PLOT_FOOT,
        "points": [
            {
                "x": _x(point["across"]),
                "y": _y(point["value"], axis),
                "low": _y(point["low"], axis),
                "high": _y(point["high"], axis),
                "kind": point["kind"],
                "words": point["words"],
            }
            for point in points
        ],
        "marks_y": [
            {"at": _y(1 - i * step, axis), "label": percent(1 - i * step)}
            for i in range(n_marks + 1)
        ],
        "marks_x": [{"at": _x(across), "label": label} for across, label in marks],
    }


RATING_WIDTH = 240


@register.inclusion_tag("labeling/rating_span.html")
def rating_span(figure: dict[str, Any], lowest: float, highest: float) -> dict[str, Any]:
    """A rating and its interval on a scale that all rows of a table share; a line at the mean."""
    room = max(highest - lowest, 1)

    def place(points: float) -> float:
        return round(4 + (RATING_WIDTH - 8) * (points - lowest) / room, 1)

    drawn = {"width": RATING_WIDTH, "mean": place(1000), "value": place(figure["value"])}
    if figure["low"] is not None:
        drawn |= {"x": place(figure["low"])}
        drawn["span"] = max(1, place(figure["high"]) - drawn["x"])
    return drawn


SIZE, ROOM = 180, 26
"""The square of a reliability diagram, and the room for what stands beside it."""
LOWEST = 0.5
"""The confidence in the response that is named is never below one half."""


@register.inclusion_tag("labeling/reliability.html")
def reliability(figures: dict[str, Any], title: str) -> dict[str, Any]:
    """Share right against confidence, a point and an exact bar for each bin; on the diagonal
    it is right as often as it says."""
    rows = []
    for row in figures.get("bins", []):
        rows.append(
            {
                "x": ROOM + _along(row["confidence"]),
                "y": SIZE - SIZE * row["right"] + 8,
                "top": SIZE - SIZE * row["high"] + 8,
                "bottom": SIZE - SIZE * row["low"] + 8,
                "words": _("said %(said)s, right %(right)s [%(low)s, %(high)s], n = %(n)s")
                % {
                    "said": percent(row["confidence"]),
                    "right": percent(row["right"]),
                    "low": percent(row["low"]),
                    "high": percent(row["high"]),
                    "n": row["n"],
                },
            }
        )
    return {
        "title": title,
        "rows": rows,
        "left": ROOM,
        "right": ROOM + SIZE,
        "top": 8,
        "bottom": SIZE + 8,
        "middle": SIZE / 2 + 8,
        "centre": ROOM + SIZE / 2,
        "width": SIZE + ROOM + 8,
        "height": SIZE + 36,
        "size": SIZE,
    }


def _along(confidence: float) -> float:
    return SIZE * (confidence - LOWEST) / (1 - LOWEST)
