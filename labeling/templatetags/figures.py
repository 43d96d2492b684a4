"""Figures for reading: `{{ 0.5322|percent }}` → 53 %, `{{ 0.29059|decimals }}` → 0.29.

Pictures are drawn here too: SVG with plain attributes, coloured by the stylesheet.
"""

from collections.abc import Sequence
from typing import Any

from django import template
from django.utils.formats import number_format

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
