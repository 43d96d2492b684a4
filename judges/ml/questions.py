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
A judge that answers at once is not asked the two lines about the rationale. Principles stand after
the preamble, or one of them after the sample; a reference answer stands before the responses; an
aspect's question stands in place of the main one; a judge that scores is shown one response.

What people and models wrote is data here. It stands in fenced sections, and no text contains the
fence: where one would, all title lines of the question carry a tag that none of its texts contains.
Marks that a tokenizer reads as the end of a turn are broken by an invisible character.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from judges.ml.asking import Request, Writing
from judges.ml.config import SCORES, Aspect, Exemplar, JudgeRecipe, Messages

ANSWERS = ("1", "2")
"""What the judge says for the response shown first, and for the one shown second."""

ZERO_WIDTH_SPACE = "\u200b"

# Marks of chat templates in use. A judge's tokenizer adds its own, see engine.control_marks; that
# of a server is not at hand, and these have to do.
TEMPLATE_MARKS = re.compile(
    r"<[|｜][^<>|｜\s]{1,60}[|｜]>|</?s>|<<SYS>>|<</SYS>>"
    r"|<(?:bos|eos|pad|unk|mask|(?:start|end)_of_(?:turn|image)|extra_id_\d+)>"
    r"|</?(?:think|tool_call|tool_response|tools|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\]"
)


@dataclass(frozen=True)
class Sample:
    """A prompt with responses A and B."""

    prompt: Messages
    a: Messages
    b: Messages
    reference: str = ""
    """A right answer to the prompt, where one is known."""


@dataclass(frozen=True)
class Lone:
    """A prompt with one response, which is rated by itself: mode "score"."""

    prompt: Messages
    response: Messages
    reference: str = ""


def ask(
    recipe: JudgeRecipe,
    prompt: Messages,
    first: Messages,
    second: Messages,
    control: Iterable[str] = (),
    *,
    reference: str = "",
    principle: str = "",
) -> Request:
    """The question about a prompt and two responses, in the order in which they are shown.

    Args:
        control: strings that the judge's tokenizer reads as something other than text.
        reference: a right answer to show.
        principle: the one that was drawn, where the recipe has one drawn: see `draw_principle`.
    """
    fence = fence_for(recipe, prompt, first, second, as_messages(reference))
    marks = tuple(control)
    paragraphs = _opening(recipe, fence, marks)
    paragraphs += _sample(recipe, fence, prompt, (first, second), marks, reference)
    if principle:
        paragraphs.append(f"{recipe.principle_lead} {principle}")
    if recipe.ties:
        paragraphs.append(recipe.tie_request)
    if not explains(recipe):
        return Request(
            task="\n".join(paragraphs), ending=recipe.ending, answers=recipe.answers, write=None
        )
    paragraphs.append(recipe.rationale_request)
    sampled = recipe.mode == "sampled"
    return Request(
        task="\n".join(paragraphs),
        lead=recipe.rationale_lead,
        ending=f"\n{recipe.ending}",
        answers=recipe.answers,
        write=Writing(
            max_tokens=recipe.max_rationale_tokens,
            n=recipe.n_samples if sampled else 1,
            temperature=recipe.temperature if sampled else 0.0,
            seed=_number(recipe.seed, prompt, first, second) if sampled else 0,
            stops=stop_marks(recipe),
        ),
    )


def ask_aspect(
    recipe: JudgeRecipe,
    aspect: Aspect,
    prompt: Messages,
    first: Messages,
    second: Messages,
    control: Iterable[str] = (),
    *,
    reference: str = "",
) -> Request:
    """An aspect's question about the same sample, answered at once.

    Up to the end of the sample it is the main question word for word, so that an engine which
    keeps what it has read reads the sample once.
    """
    fence = fence_for(recipe, prompt, first, second, as_messages(reference))
    marks = tuple(control)
    paragraphs = _opening(recipe, fence, marks)
    paragraphs += _sample(recipe, fence, prompt, (first, second), marks, reference)
    paragraphs.append(aspect.question)
    return Request(task="\n".join(paragraphs), ending=recipe.ending, answers=ANSWERS)


def ask_score(
    recipe: JudgeRecipe,
    prompt: Messages,
    response: Messages,
    control: Iterable[str] = (),
    *,
    reference: str = "",
    principle: str = "",
) -> Request:
    """The question how good one response is, from 1 to 10; the other one is not shown.

    Source: d-RLAIF, Lee et al. 2023, arXiv:2309.00267, section 2.2.2.
    """
    fence = fence_for(recipe, prompt, response, as_messages(reference))
    marks = tuple(control)
    paragraphs = [recipe.score_preamble] if recipe.score_preamble else []
    paragraphs += _constitution(recipe)
    paragraphs += [""] if paragraphs else []
    paragraphs += _sample(recipe, fence, prompt, (response,), marks, reference)
    if principle:
        paragraphs.append(f"{recipe.principle_lead} {principle}")
    paragraphs.append(recipe.score_request)
    return Request(task="\n".join(paragraphs), ending=recipe.score_ending, answers=SCORES)


def draw_principle(recipe: JudgeRecipe, sample: Sample | Lone) -> str:
    """The principle by which this comparison is judged, or "" if the recipe draws none.

    Drawn by the recipe's seed and what the comparison says, so that both orders and every later
    question about it stand under the same one. Responses that are rated alone stand under one
    principle if their prompt is the same: they are held against each other later.
    """
    if recipe.principles_shown != "one" or not recipe.principles:
        return ""
    said = [] if isinstance(sample, Lone) else _sorted(sample.a, sample.b)
    number = _number(recipe.seed, sample.prompt, *said)
    return recipe.principles[number % len(recipe.principles)]


def explains(recipe: JudgeRecipe) -> bool:
    """Whether the judge writes a rationale before its answer."""
    return recipe.mode in ("rationale", "sampled")


def question_text(recipe: JudgeRecipe, prompt: Messages, first: Messages, second: Messages) -> str:
    """The question as plain text: everything that stands before the rationale.

    For a training text, go on with `verdict_text` and one of ANSWERS.
    """
    return plain_text(ask(recipe, prompt, first, second))


def plain_text(request: Request) -> str:
    """What a model without a chat template reads before it writes or answers."""
    return f"{request.task}\n{request.lead}"


def verdict_text(recipe: JudgeRecipe, question: str, rationale: str = "") -> str:
    """The question, its rationale and the ending: the next token is the answer.

    `rationale` is left out where the judge answers at once. Both `question` from `question_text`
    and one rendered by a chat template will do.
    """
    if not explains(recipe):
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
    return neutral(written.replace("\x00", ""), tuple(control)).strip()


def stop_marks(recipe: JudgeRecipe) -> tuple[str, str]:
    """Where one of these stands, the rationale has ended."""
    return recipe.ending, f"\n{recipe.fence}"


def fence_for(recipe: JudgeRecipe, *texts: Messages) -> str:
    """The recipe's fence, or with a tag after it that no text of the question contains.

    The same for both orders of the responses. A text contains the fence also where a tokenizer may
    read it so: written in full-width letters, or with invisible characters in between.
    """
    contents = [message["content"] for messages in texts for message in messages]
    for exemplar in recipe.exemplars:
        for messages in (exemplar.prompt, exemplar.first, exemplar.second):
            contents += [message["content"] for message in messages]
        contents.append(exemplar.rationale)
    contents.sort()
    digest = hashlib.sha256("\x00".join(contents).encode("utf-8", "surrogatepass"))
    searched = contents + [_folded(content) for content in contents]
    fence = recipe.fence
    while any(fence in content for content in searched):
        fence = f"{recipe.fence}{digest.hexdigest()[:8]}"
        digest.update(b"again")
    return fence


def as_messages(text: str) -> Messages:
    """A reference answer as the conversation it is part of; "" is none."""
    return [{"role": "assistant", "content": text}] if text else []


def _opening(recipe: JudgeRecipe, fence: str, control: tuple[str, ...]) -> list[str]:
    """What is the same for every comparison: preamble, principles, exemplars."""
    paragraphs = [recipe.preamble] if recipe.preamble else []
    paragraphs += _constitution(recipe)
    paragraphs += [""] if paragraphs else []
    for exemplar in recipe.exemplars:
        paragraphs += _exemplar(recipe, exemplar, fence, control)
    return paragraphs


def _constitution(recipe: JudgeRecipe) -> list[str]:
    if recipe.principles_shown != "all" or not recipe.principles:
        return []
    return [recipe.principles_lead, *(f"- {principle}" for principle in recipe.principles)]


def _exemplar(
    recipe: JudgeRecipe, exemplar: Exemplar, fence: str, control: tuple[str, ...]
) -> list[str]:
    shown = (exemplar.first, exemplar.second)
    paragraphs = _sample(recipe, fence, exemplar.prompt, shown, control)
    if recipe.ties:
        paragraphs.append(recipe.tie_request)
    if explains(recipe):
        paragraphs.append(recipe.rationale_request)
        paragraphs.append(f"{recipe.rationale_lead} {neutral(exemplar.rationale, control)}")
    answer = recipe.tie_answer if exemplar.answer == "tie" else exemplar.answer
    return [*paragraphs, f"{recipe.ending}{answer}", ""]


def _sample(
    recipe: JudgeRecipe,
    fence: str,
    prompt: Messages,
    responses: tuple[Messages, ...],
    control: tuple[str, ...],
    reference: str = "",
) -> list[str]:
    """The prompt's turns, a right answer if there is one, and the responses, each in a section of
    its own."""
    lines = []
    for message in prompt:
        lines += [_title(fence, _role(message["role"])), neutral(message["content"], control)]
    if reference:
        lines += [_title(fence, recipe.reference_title), neutral(reference, control)]
    for number, response in enumerate(responses, start=1):
        title = f"{recipe.response_title} {number}" if len(responses) > 1 else recipe.response_title
        for message in response:
            # A response is one message as a rule; with tool calls it may be several.
            whose = f": {_role(message['role'])}" if len(response) > 1 else ""
            lines += [_title(fence, title + whose), neutral(message["content"], control)]
        if not response:
            lines += [_title(fence, title), ""]
    return [*lines, _title(fence, "END")]


def _title(fence: str, title: str) -> str:
    return f"{fence} {title} {fence}"


def _role(role: str) -> str:
    """A role comes from a file as well: letters only, so that it cannot look like a title line."""
    return re.sub(r"[^A-Z_]", "", role.upper())[:20] or "OTHER"


def neutral(text: str, control: tuple[str, ...]) -> str:
    """The text with every control mark broken after its first character; looks the same."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be tokenised
    marks = sorted((mark for mark in control if len(mark) > 1), key=len, reverse=True)
    pattern = TEMPLATE_MARKS
    if marks:
        pattern = re.compile("|".join([*map(re.escape, marks), TEMPLATE_MARKS.pattern]))
    while pattern.search(text):  # again, because marks may overlap
        text = pattern.sub(lambda mark: mark[0][0] + ZERO_WIDTH_SPACE + mark[0][1:], text)
    return text


def _folded(text: str) -> str:
    """As a tokenizer that normalises may read it: compatibility forms folded, invisible characters
    gone."""
    folded = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")


def _sorted(*responses: Messages) -> list[Messages]:
    return sorted(responses, key=_written)


def _written(messages: Messages) -> str:
    return json.dumps([dict(message) for message in messages], sort_keys=True)


def _number(seed: int, *texts: Messages) -> int:
    """A number that follows from a seed and the texts alone."""
    words = "\x00".join([str(seed), *map(_written, texts)])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4])
