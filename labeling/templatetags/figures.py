"""Figures for reading: `{{ 0.5322|percent }}` → 53 %, `{{ 0.29059|decimals }}` → 0.29."""

from django import template

register = template.Library()


@register.filter
def percent(value: float | None, places: int = 0) -> str:
    """A share as per cent, with a space that does not break; a dash for None."""
    return "–" if value is None else f"{100 * value:.{places}f}\u00a0%"


@register.filter
def decimals(value: float | None, places: int = 2) -> str:
    """A coefficient with a true minus sign; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{places}f}"
