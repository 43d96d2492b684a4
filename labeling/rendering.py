"""Untrusted text to safe HTML: Markdown with tables, code and mathematics."""

import re
from functools import cache, lru_cache
from html import escape, unescape
from typing import Any

import comrak
import nh3
from django.utils.safestring import SafeString, mark_safe

MATHML_TAGS = {
    "math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "msup", "msub", "msubsup", "mfrac",
    "msqrt", "mroot", "mover", "munder", "munderover", "mtable", "mtr", "mtd", "mstyle", "menclose",
}  # fmt: skip
TAGS = MATHML_TAGS | {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "span",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a", "div",
}  # fmt: skip
ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "code": {"class"},
    "span": {"class"},
    "div": {"class"},
    "th": {"class"},
    "td": {"class"},
    "math": {"display", "xmlns"},
    "mo": {"stretchy", "fence", "separator", "form", "minsize", "maxsize"},
    "mi": {"mathvariant"},
    "mfrac": {"linethickness"},
    "mtable": {"columnalign", "rowspacing"},
    "mover": {"accent"},
    "munder": {"accentunder"},
}
# What the parser makes of tables, code, images and formulas. Text cannot look like it: there, the
# signs of markup are escaped.
ALIGN = re.compile(r' align="(left|right|center)"')
CODE = re.compile(r'<code class="language-([^"]*)">(.*?)</code>', re.DOTALL)
IMAGE = re.compile(r'<img src="([^"]*)" alt="([^"]*)"[^>]*>')
FORMULA = re.compile(r'<span data-math-style="(inline|display)">(.*?)</span>', re.DOTALL)
LONGEST_CODE = 50_000
"""Characters of a code block that are still coloured: a lexer may take seconds on a huge one."""


def render_markdown(text: str) -> SafeString:
    """HTML of a response or prompt: no script, no style, no image, no markup of its own."""
    # Half a surrogate pair is no character, and cannot be written to a page.
    text = text.encode("utf-8", "replace").decode()
    html = comrak.render_markdown(text, extension_options=EXTENSIONS, render_options=OPTIONS)
    html = ALIGN.sub(r' class="align-\1"', html)
    html = CODE.sub(_highlighted, html)
    html = IMAGE.sub(_image_as_text, html)
    html = FORMULA.sub(_mathml, html)
    return mark_safe(  # noqa: S308 - nh3 has just cleaned it
        nh3.clean(html, tags=TAGS, attributes=ATTRIBUTES, url_schemes={"http", "https", "mailto"})
    )


def _extensions() -> Any:
    options = comrak.ExtensionOptions()
    options.table = options.strikethrough = True
    options.math_dollars = options.math_latex = True  # $x$, $$x$$, \\(x\\), \\[x\\]
    return options


def _options() -> Any:
    options = comrak.RenderOptions()
    options.escape = True  # tags in a response are shown as text
    options.hardbreaks = True  # chat models end lines with \n
    return options


EXTENSIONS, OPTIONS = _extensions(), _options()


def _highlighted(block: re.Match[str]) -> str:
    from pygments import highlight

    language, code = unescape(block[1]), unescape(block[2])
    lexer = _lexer(language)
    if lexer is None or len(code) > LONGEST_CODE:
        return block[0]
    coloured = highlight(code, lexer(), _formatter())
    return f'<code class="language-{escape(language)}">{coloured}</code>'


@lru_cache(maxsize=200)  # the names come from models, which invent some
def _lexer(language: str) -> Any:
    """The class that reads this programming language, or None."""
    from pygments.lexers import find_lexer_class_by_name
    from pygments.util import ClassNotFound

    try:
        return find_lexer_class_by_name(language)
    except ClassNotFound:
        return None


@cache
def _formatter() -> Any:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(nowrap=True)


def _mathml(formula: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    source = unescape(formula[2])
    try:
        return convert(source, display="block" if formula[1] == "display" else "inline")
    except Exception:  # any malformed formula of a model: show its source, lose nothing
        return f'<code class="math">{escape(source, quote=False)}</code>'


def _image_as_text(image: re.Match[str]) -> str:
    """An image would contact an outside host: its description and address are shown instead."""
    return f'<span class="image">[image: {image[2]}] ({image[1]})</span>'
