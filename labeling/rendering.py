"""Untrusted text to safe HTML: Markdown with tables, code and mathematics."""

import re
from functools import lru_cache
from html import escape
from typing import Any

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

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
ALIGN = re.compile(r'style="text-align:(left|right|center)"')


def render_markdown(text: str) -> SafeString:
    """HTML of a response or prompt: no script, no style, no image, no markup of its own."""
    html = ALIGN.sub(r'class="align-\1"', _parser().render(text))
    return mark_safe(  # noqa: S308 - nh3 has just cleaned it
        nh3.clean(html, tags=TAGS, attributes=ATTRIBUTES, url_schemes={"http", "https", "mailto"})
    )


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt(
        "commonmark",
        # html off: tags in a response are shown as text. breaks on: chat models end lines with \n.
        {"html": False, "breaks": True, "highlight": _highlight},
    ).enable(["table", "strikethrough"])
    parser.use(
        dollarmath_plugin,
        renderer=_mathml,
        allow_space=False,
        allow_digits=False,
        double_inline=True,
    )
    # An image would contact an outside host: its description and address are shown instead.
    parser.add_render_rule("image", _image_as_text)
    return parser


def _highlight(code: str, language: str, _attributes: Any) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    if lexer is None or len(code) > 50_000:  # a lexer may take seconds on a huge block
        return escape(code, quote=False)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


def _mathml(source: str, options: dict[str, Any]) -> str:
    from latex2mathml.converter import convert

    try:
        return convert(source, display="block" if options["display_mode"] else "inline")
    except Exception:  # any malformed formula of a model: show its source, lose nothing
        return f'<code class="math">{escape(source, quote=False)}</code>'


def _image_as_text(self: Any, tokens: Any, index: int, _options: Any, _environment: Any) -> str:
    token = tokens[index]
    return (
        f'<span class="image">[image: {escape(token.content)}] '
        f"({escape(str(token.attrs.get('src', '')))})</span>"
    )
