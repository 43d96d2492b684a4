"""Pictures of training: SVG with plain attributes, coloured by the stylesheet."""

import math
from typing import Any

from django import template

from labeling.templatetags.figures import decimals, percent

register = template.Library()

WIDTH, HEIGHT, LEFT, TOP, FOOT = 420, 210, 44, 8, 20
"""As the other plots: the picture, and the room for what stands beside it."""
LINES = 5
"""Lines across at most."""


@register.filter
def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign: 0.0123 → "+1.2"."""
    if value is None:
        return "–"
    text = decimals(100 * value, 1)
    return f"+{text}" if 100 * value >= 0.05 else text


@register.inclusion_tag("training/line_plot.html")
def line_plot(plot: dict[str, Any], title: str) -> dict[str, Any]:
    """Lines through points, each with its interval where it has one.

    Args: plot: {"series": [{"name", "points": [{"x", "y", "low", "high", "words"}]}],
        "marks": [(x, label)], "as_percent"}.
    """
    points = [point for one in plot["series"] for point in one["points"]]
    ys = [v for p in points for v in (p["y"], p.get("low"), p.get("high")) if v is not None]
    low, high = min(ys), max(ys)
    room = (high - low) or abs(high) or 1.0
    low, high = low - 0.08 * room, high + 0.08 * room
    xs = [point["x"] for point in points]
    first, last = min(xs), max(xs)
    right = WIDTH - 12

    def across(x: float) -> float:
        return round(LEFT + 8 + (right - LEFT - 16) * (x - first) / ((last - first) or 1), 1)

    def up(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - FOOT) * (1 - (y - low) / (high - low)), 1)

    step = _round_step((high - low) / LINES)
    values = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    as_percent = plot.get("as_percent", False)
    places = max(0, -math.floor(math.log10(step)) - (2 if as_percent else 0))
    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "top": TOP,
        "right": right,
        "bottom": HEIGHT - FOOT,
        "room": right - LEFT,
        "rise": HEIGHT - TOP - FOOT,
        "marks_x": [{"at": across(x), "label": label} for x, label in plot["marks"]],
        "marks_y": [
            {"at": up(v), "label": percent(v, places) if as_percent else decimals(v, places)}
            for v in values
        ],
        "zero": up(0) if low < 0 < high else None,
        "series": [
            {
                "name": one.get("name", ""),
                "kind": place + 1,
                "line": " ".join(f"{across(p['x'])},{up(p['y'])}" for p in one["points"]),
                "points": [
                    {
                        "x": across(p["x"]),
                        "y": up(p["y"]),
                        "low": None if p.get("low") is None else up(p["low"]),
                        "high": None if p.get("high") is None else up(p["high"]),
                        "words": p["words"],
                    }
                    for p in one["points"]
                ],
            }
            for place, one in enumerate(plot["series"])
        ],
    }


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, … (times a power of ten) that is no smaller than this."""
    power = 10.0 ** math.floor(math.log10(least))
    return power * next(step for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))
