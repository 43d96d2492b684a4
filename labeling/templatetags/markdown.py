"""`{{ text|markdown }}`: untrusted text as safe HTML. `{{ seconds|duration }}`: a time to read."""

from django import template
from django.utils.formats import number_format

from labeling.rendering import render_markdown

register = template.Library()


@register.filter
def markdown(text: str) -> str:
    return render_markdown(text)


@register.filter
def duration(seconds: float | None) -> str:
    """45.2 → "45 s", 130 → "2 min 10 s", 8000 → "2 h 13 min"."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{number_format(f'{seconds:.1f}')} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
