"""Untrusted text to safe HTML: Markdown with tables, code and mathematics."""

import re
import time
from collections.abc import Iterable, Iterator
from functools import cache
from html import escape, unescape
from typing import Any

import comrak
import nh3
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

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
BLOCK = re.compile(r"<(/?)(blockquote|ul|ol|em|strong|s)\b")
# Whoever writes a text chooses its languages. These lexers get on from token to token, whatever
# stands there; others (reStructuredText, PHP, C++) spend seconds to minutes on one of them.
LANGUAGES = {
    "bash", "c", "c#", "csharp", "css", "diff", "go", "haskell", "html", "java",
    "javascript", "js", "json", "jsx", "kotlin", "lua", "py", "python", "python3", "r", "ruby",
    "rust", "scala", "sh", "shell", "sql", "swift", "toml", "ts", "typescript", "xml", "yaml",
}  # fmt: skip
# What one text may cost, so that a page cannot be made to take minutes.
UNLIKE_CODE = re.compile(r"\s{200}|[^\n]{1000}")
"""What no person writes, and what patterns of lexers take longest for."""
LONGEST_CODE = 10_000
"""Characters of code that are coloured."""
LONGEST_COLOURING = 0.2
"""Seconds of computing that colouring may take: a lexer's effort may grow with the square."""
MOST_FORMULAS = 300
LONGEST_FORMULAS = 10_000
"""Characters of all formulas together."""
DEEPEST = 50
"""Quotes, lists and emphasis within each other."""


class _Text:
    """One text on its way to HTML, and what is left of its bounds."""

    def __init__(self) -> None:
        self.code, self.formulas, self.in_formulas = LONGEST_CODE, MOST_FORMULAS, LONGEST_FORMULAS
        self.ends: float | None = None
        self.left_plain: set[str] = set()

    def highlighted(self, block: re.Match[str]) -> str:
        from pygments import format as formatted

        language, code = unescape(block[1]), unescape(block[2])
        lexer = _lexer(language.lower()) if language.lower() in LANGUAGES else None
        if lexer is None:
            return block[0]
        if len(code) > self.code or UNLIKE_CODE.search(code):
            self.left_plain.add("code")
            return block[0]
        self.code -= len(code)
        tokens = lexer().get_tokens(code)  # the first of its kind compiles its patterns: not timed
        if self.ends is None:
            self.ends = time.thread_time() + LONGEST_COLOURING
        try:
            coloured = formatted(self._in_time(tokens), _formatter())
        except TimeoutError:
            self.left_plain.add("code")
            return block[0]
        return f'<code class="language-{escape(language)}">{coloured}</code>'

    def _in_time(self, tokens: Iterable[Any]) -> Iterator[Any]:
        for token in tokens:
            if self.ends is not None and time.thread_time() > self.ends:
                raise TimeoutError
            yield token

    def mathml(self, formula: re.Match[str]) -> str:
        from latex2mathml.converter import convert

        source = unescape(formula[2])
        plain = f'<code class="math">{escape(source, quote=False)}</code>'
        if not self.formulas or len(source) > self.in_formulas:
            self.left_plain.add("formulas")
            return plain
        self.formulas -= 1
        self.in_formulas -= len(source)
        try:
            return convert(source, display="block" if formula[1] == "display" else "inline")
        except Exception:  # any malformed formula of a model: show its source, lose nothing
            return plain

    def notes(self) -> str:
        """What was left as it is, in words."""
        words = {
            "code": _("Not all code is coloured: there is very much of it."),
            "formulas": _("Not all formulas are set: there are very many. Their source is shown."),
            "depth": _("Shown as it was written: its parts are nested too deeply to be laid out."),
        }
        return "".join(
            f'<div class="left-plain">{escape(words[what])}</div>'
            for what in sorted(self.left_plain)
        )


def render_markdown(text: str) -> SafeString:
    """HTML of a response or prompt: no script, no style, no image, no markup of its own.

    What goes beyond the bounds above is shown as plain text, with a line that says so.
    """
    # Half a surrogate pair is no character, and cannot be written to a page.
    text = text.encode("utf-8", "replace").decode()
    html = comrak.render_markdown(text, extension_options=EXTENSIONS, render_options=OPTIONS)
    bounds = _Text()
    if _depth(html) > DEEPEST:
        bounds.left_plain.add("depth")
        html = f"<pre>{escape(text, quote=False)}</pre>"
    else:
        html = ALIGN.sub(r' class="align-\1"', html)
        html = CODE.sub(bounds.highlighted, html)
        html = IMAGE.sub(_image_as_text, html)
        html = FORMULA.sub(bounds.mathml, html)
    return mark_safe(  # noqa: S308 - nh3 has just cleaned it
        nh3.clean(
            html + bounds.notes(),
            tags=TAGS,
            attributes=ATTRIBUTES,
            url_schemes={"http", "https", "mailto"},
        )
    )


def _depth(html: str) -> int:
    """How many elements that may nest stand within each other at most."""
    deepest = depth = 0
    for tag in BLOCK.finditer(html):
        depth += -1 if tag[1] else 1
        deepest = max(deepest, depth)
    return deepest


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


@cache  # of names in LANGUAGES alone
def _lexer(language: str) -> Any:
    """The class that reads this programming language."""
    from pygments.lexers import find_lexer_class_by_name

    return find_lexer_class_by_name(language)


@cache
def _formatter() -> Any:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(nowrap=True)


def _image_as_text(image: re.Match[str]) -> str:
    """An image would contact an outside host: its description and address are shown instead."""
    return f'<span class="image">[image: {image[2]}] ({image[1]})</span>'
