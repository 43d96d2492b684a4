"""Untrusted text on our pages."""

import time
from html.parser import HTMLParser

import pytest
from pygments.lexers import get_all_lexers

from labeling.rendering import LANGUAGES, render_markdown


class Tags(HTMLParser):
    """What a browser would see as markup."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes = set(), []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs


def test_tables_code_and_emphasis_are_rendered():
    html = render_markdown("**b**\n\n| x | y |\n|---|--:|\n| 1 | 2 |\n\n```python\nimport os\n```")
    assert "<strong>b</strong>" in html
    assert '<td class="align-right">2</td>' in html
    assert '<span class="kn">import</span>' in html


def test_a_line_break_of_a_chat_model_is_kept():
    assert render_markdown("one\ntwo") == "<p>one<br>\ntwo</p>\n"


def test_mathematics_becomes_mathml():
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in render_markdown("so $x^2$ grows")


@pytest.mark.parametrize(
    ("text", "display"),
    [("\\(x^2\\)", "inline"), ("$$x^2$$", "block"), ("\\[\nx^2\n\\]", "block")],
)
def test_every_way_of_writing_mathematics_is_known(text, display):
    html = render_markdown(f"so {text} grows")
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert f'display="{display}"' in html


def test_what_looks_like_the_markup_of_a_formula_stays_text():
    html = render_markdown('<span data-math-style="inline">x^2</span> `<img src="a" alt="b">`')
    assert "<math" not in html
    assert "[image" not in html


def test_half_a_character_breaks_nothing():
    assert "one" in render_markdown("one \ud83d")


def test_prices_are_not_mathematics():
    assert render_markdown("between $5 and $10") == "<p>between $5 and $10</p>\n"


def test_a_broken_formula_shows_its_source():
    assert "x^2^3" in render_markdown("see $x^2^3$ here")


def test_an_image_contacts_no_host_but_is_told():
    html = render_markdown("![a cat](https://elsewhere.example/cat.png)")
    assert "<img" not in html
    assert "[image: a cat]" in html


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[click](javascript:alert(1))",
        "[click](data:text/html;base64,PHNjcmlwdD4=)",
        "<style>body{display:none}</style>",
        "<form action=/accounts/logout/><button>A</button></form>",
        '<a href="/" style="position:fixed">x</a>',
        '```"><script>alert(1)</script>\nx\n```',
        "$<script>alert(1)</script>$",
        "$\\href{javascript:alert(1)}{x}$",
        "$\\text{<img src=x onerror=alert(1)>}$",
    ],
)
def test_markup_of_a_response_is_shown_and_never_obeyed(attack):
    tags = Tags()
    tags.feed(render_markdown(attack))
    assert not {"script", "img", "style", "form", "button", "iframe"} & tags.names
    assert not any(name == "style" or name.startswith("on") for name, _value in tags.attributes)
    assert not any(
        value.startswith(("javascript:", "data:")) for name, value in tags.attributes if value
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"```rst\n{'a' * 24_000}\n```\n" * 3, ""),
        (f"```php\n{'a<' * 12_000}\n```\n", ""),
        ("```cpp\n" + "\n " * 4_900 + "x\n```", ""),
        ("```python\n" + "\n " * 4_900 + "x\n```", "Not all code is coloured"),
        ("```java\n" + "a " * 4_900 + "\n```", "Not all code is coloured"),
        ("```java\n" + "a\n" * 4_900 + "\n```", "Not all code is coloured"),
        (("```json\n" + "1,\n" * 2_000 + "```\n") * 2, "Not all code is coloured"),
        ("$x^2$ " * 30_000, "Not all formulas are set"),
        (f"${'x' * 9_000}$ " * 30, "Not all formulas are set"),
        (">" * 20_000 + "the end", "nested too deeply"),
        ("*a **b " * 200 + "the end" + "** c*" * 200, "nested too deeply"),
    ],
)
def test_no_text_makes_a_page_take_long_and_what_is_left_plain_is_said(text, said):
    started = time.process_time()
    html = render_markdown(text)
    assert time.process_time() - started < 2  # seconds; it was 112
    assert len(html) < 20 * len(text)
    assert said in html
    assert ("left-plain" in html) == bool(said)
    if "the end" in text:
        assert "the end" in html


def test_every_language_that_may_be_coloured_is_one():
    assert {alias for lexer in get_all_lexers() for alias in lexer[1]} >= LANGUAGES
