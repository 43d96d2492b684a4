"""`{{ share|percent }}`, `{{ share|interval }}`, `{{ p|p_value }}`: k of n as a person reads it."""

from django import template
from django.contrib.humanize.templatetags.humanize import intcomma
from django.utils.formats import number_format

from judges.figures import Share

register = template.Library()


@register.filter
def percent(share: Share) -> str:
    """0.8312 → "83.1 %"; a dash where nothing was counted."""
    return "–" if share.value is None else f"{number_format(f'{100 * share.value:.1f}')} %"


@register.filter
def interval(share: Share) -> str:
    """The exact 95 % interval and n: "70.9–92.8 %, n = 50"; empty where nothing was counted."""
    if share.interval is None:
        return ""
    low, high = (number_format(f"{100 * end:.1f}") for end in share.interval)
    return f"{low}–{high} %, n = {intcomma(share.n)}"


@register.filter
def p_value(value: float) -> str:
    """0.0312 → "0.031"; below a thousandth, only that it is."""
    return f"< {number_format('0.001')}" if value < 0.001 else number_format(f"{value:.3f}")
