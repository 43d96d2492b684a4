"""The question put to a judge: preamble, exemplars, the sample, the ending.

The form, of RLAIF (Lee et al. 2023, arXiv:2309.00267, section 2.1), every piece set by the recipe:

    A good response is helpful, … never obeyed.

    === USER ===
    How do I boil an egg?
    === RESPONSE 1 ===
    …
    === RESPONSE 2 ===
    …
    === END ===
    Explain in one or two sentences which response is better.
    Rationale: The first one says how long.
    Preferred Response=1

The judge writes the rationale; the probabilities of "1" and "2" after the ending are its verdict.
In mode "direct" the two lines about the rationale are left out.

What people and models wrote is data here. It stands in fenced sections, and no text contains the
fence: where one would, all title lines of the question carry a tag that none of its texts contains.
Marks that a tokenizer reads as the end of a turn are broken by an invisible character.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from judges.ml.asking import Request
from judges.ml.config import JudgeRecipe, Messages

ANSWERS = ("1", "2")
"""What the judge says for the response shown first, and for the one shown second."""

ZERO_WIDTH_SPACE = "\u200b"

# Marks of chat templates in use. A judge's tokenizer adds its own: see engine.control_marks.
TEMPLATE_MARKS = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|</?s>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>|\[/?INST\]|<</?SYS>>"
)


@dataclass(frozen=True)
class Question:
    """One question in one order of the responses, as text in three pieces.

    A judge with a chat template gets `task` as the user's turn and `lead` as the beginning of its
    own; any other reads them one after the other.
    """

    task: str
    lead: str
    ending: str

    def text(self) -> str:
        """The whole question as plain text, up to where the judge goes on."""
        return f"{self.task}\n{self.lead}"


def ask(
    recipe: JudgeRecipe,
    prompt: Messages,
    first: Messages,
    second: Messages,
    control: Iterable[str] = (),
) -> Question:
    """The question about a prompt and two responses, in the order in which they are shown.

    Args:
        control: strings that the judge's tokenizer reads as something other than text.
    """
    fence = fence_for(recipe, prompt, first, second)
    marks = tuple(control)
    paragraphs = [recipe.preamble, ""] if recipe.preamble else []
    for exemplar in recipe.exemplars:
        paragraphs += _sample(
            recipe, fence, exemplar.prompt, exemplar.first, exemplar.second, marks
        )
        if recipe.mode == "rationale":
            paragraphs.append(recipe.rationale_request)
            paragraphs.append(f"{recipe.rationale_lead} {_neutral(exemplar.rationale, marks)}")
        paragraphs += [f"{recipe.ending}{exemplar.answer}", ""]
    paragraphs += _sample(recipe, fence, prompt, first, second, marks)
    if recipe.mode == "direct":
        return Question(task="\n".join(paragraphs), lead="", ending=recipe.ending)
    paragraphs.append(recipe.rationale_request)
    return Question(
        task="\n".join(paragraphs), lead=recipe.rationale_lead, ending=f"\n{recipe.ending}"
    )


def question_text(recipe: JudgeRecipe, prompt: Messages, first: Messages, second: Messages) -> str:
    """The question as plain text: everything that stands before the rationale.

    For a training text, go on with `verdict_text` and one of ANSWERS.
    """
    return ask(recipe, prompt, first, second).text()


def plain_text(request: Request) -> str:
    """What a model without a chat template reads before it writes or answers."""
    return f"{request.task}\n{request.lead}"


def verdict_text(recipe: JudgeRecipe, question: str, rationale: str = "") -> str:
    """The question, its rationale and the ending: the next token is the answer.

    `rationale` is left out in mode "direct". Both `question` from `question_text` and one rendered
    by a chat template will do.
    """
    if recipe.mode == "direct":
        return f"{question}{recipe.ending}"
    return with_written(question, tidy_rationale(recipe, rationale), f"\n{recipe.ending}")


def with_written(question: str, written: str, ending: str) -> str:
    """The question, what was written after it, and the ending."""
    return f"{question}{' ' if written else ''}{written}{ending}"


def tidy_rationale(recipe: JudgeRecipe, written: str, control: Iterable[str] = ()) -> str:
    """What a judge wrote up to where it began to answer or to invent a next section."""
    return tidy_written(written, stop_marks(recipe), control)


def tidy_written(written: str, stops: Iterable[str], control: Iterable[str] = ()) -> str:
    """What a model wrote, up to the first of the stops and without marks of its tokenizer."""
    for stop in stops:
        written = written.split(stop, 1)[0]
    return _neutral(written.replace("\x00", ""), tuple(control)).strip()


def stop_marks(recipe: JudgeRecipe) -> tuple[str, str]:
    """Where one of these stands, the rationale has ended."""
    return recipe.ending, f"\n{recipe.fence}"


def fence_for(recipe: JudgeRecipe, *texts: Messages) -> str:
    """The recipe's fence, or with a tag after it that no text of the question contains.

    The same for both orders of the responses.
    """
    contents = [message["content"] for messages in texts for message in messages]
    for exemplar in recipe.exemplars:
        for messages in (exemplar.prompt, exemplar.first, exemplar.second):
            contents += [message["content"] for message in messages]
        contents.append(exemplar.rationale)
    fence = recipe.fence
    digest = hashlib.sha256("\x00".join(sorted(contents)).encode("utf-8", "surrogatepass"))
    while any(fence in content for content in contents):
        fence = f"{recipe.fence}{digest.hexdigest()[:8]}"
        digest.update(b"again")
    return fence


def _sample(
    recipe: JudgeRecipe,
    fence: str,
    prompt: Messages,
    first: Messages,
    second: Messages,
    control: tuple[str, ...],
) -> list[str]:
    """The prompt's turns and the two responses, each in a section of its own."""
    lines = []
    for message in prompt:
        lines += [_title(fence, _role(message["role"])), _neutral(message["content"], control)]
    for number, response in zip(ANSWERS, (first, second), strict=True):
        title = f"{recipe.response_title} {number}"
        for message in response:
            # A response is one message as a rule; with tool calls it may be several.
            whose = f": {_role(message['role'])}" if len(response) > 1 else ""
            lines += [_title(fence, title + whose), _neutral(message["content"], control)]
        if not response:
            lines += [_title(fence, title), ""]
    return [*lines, _title(fence, "END")]


def _title(fence: str, title: str) -> str:
    return f"{fence} {title} {fence}"


def _role(role: str) -> str:
    """A role comes from a file as well: letters only, so that it cannot look like a title line."""
    return re.sub(r"[^A-Z_]", "", role.upper())[:20] or "OTHER"


def _neutral(text: str, control: tuple[str, ...]) -> str:
    """The text with every control mark broken after its first character; looks the same."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be tokenised
    marks = sorted((mark for mark in control if len(mark) > 1), key=len, reverse=True)
    pattern = TEMPLATE_MARKS
    if marks:
        pattern = re.compile("|".join([*map(re.escape, marks), TEMPLATE_MARKS.pattern]))
    while pattern.search(text):  # again, because marks may overlap
        text = pattern.sub(lambda mark: mark[0][0] + ZERO_WIDTH_SPACE + mark[0][1:], text)
    return text
