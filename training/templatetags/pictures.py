"""Pictures of training: SVG with plain attributes, coloured by the stylesheet."""

from typing import Any

from django import template

from labeling.templatetags.figures import decimals, percent

register = template.Library()

WIDTH, HEIGHT, LEFT, TOP, FOOT = 420, 210, 44, 8, 20
"""As the other plots: the picture, and the room for what stands beside it."""
LINES = 4
"""Steps between the lowest and the highest mark of the upright axis."""


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

    values = [low + (high - low) * i / LINES for i in range(LINES + 1)]
    as_percent = plot.get("as_percent", False)
    places = 0 if high - low > 0.08 else 1
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
            {"at": up(v), "label": percent(v, places) if as_percent else decimals(v, 1)}
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
