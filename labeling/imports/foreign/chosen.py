"""Chosen and rejected responses, as hh-rlhf, TRL, ShareGPT and OpenAI write them.

Such data names the better response by its column. Here that name would give the answer away: the
sides are therefore dealt by a hash of the texts, the same at every import, and the label becomes a
preference of a rater of its own ("imported", unless the file or the caller names one).
"""

from typing import Any

from labeling.imports.foreign.columns import PROMPT_KEYS, Labels, name_in, prompt_in, rest_of
from labeling.imports.foreign.dialogues import TRANSCRIPT_TURN, dialogue, split_dialogues
from labeling.imports.interchange import BadRow, messages_of
from labeling.models import Rater, content_hash


def from_hh(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Two whole transcripts that begin alike."""
    prompt, chosen, rejected = split_dialogues(
        dialogue(record["chosen"]), dialogue(record["rejected"])
    )
    return [pair_of(record, {"chosen", "rejected"}, prompt, chosen, rejected, labels)]


def from_trl(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """TRL's preference sets: texts or chat messages, with a `prompt` or one that both share."""
    chosen, rejected = record["chosen"], record["rejected"]
    used = {"chosen", "rejected", *PROMPT_KEYS}
    if chosen is None or rejected is None:
        raise BadRow("`chosen` or `rejected` is missing")
    prompt = prompt_in(record)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            texts = _split_texts(chosen, rejected)
        else:
            texts = (prompt, _without(prompt, chosen), _without(prompt, rejected))
        return [pair_of(record, used, *texts, labels)]
    chosen_turns = messages_of(chosen, "assistant", "chosen")
    rejected_turns = messages_of(rejected, "assistant", "rejected")
    if prompt is None or chosen_turns[0]["role"] != "assistant":
        # whole dialogues: what both share is the prompt
        turns = split_dialogues(chosen_turns, rejected_turns)
    else:
        turns = (prompt, chosen_turns, rejected_turns)
    return [pair_of(record, used | {"messages"}, *turns, labels)]


def from_sharegpt(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """`conversations` up to the answer, which stands in `chosen` and `rejected`."""
    prompt = messages_of(record["conversations"], "user", "conversations")
    if isinstance(record.get("system"), str) and record["system"].strip():
        prompt = [{"role": "system", "content": record["system"]}, *prompt]
    used = {"conversations", "chosen", "rejected", "system"}
    return [pair_of(record, used, prompt, record["chosen"], record["rejected"], labels)]


def from_openai(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """OpenAI's fine-tuning form: `input`, `preferred_output`, `non_preferred_output`."""
    given = record["input"]
    prompt = given.get("messages") if isinstance(given, dict) else given
    used = {"input", "preferred_output", "non_preferred_output"}
    better, worse = record["preferred_output"], record["non_preferred_output"]
    return [pair_of(record, used, prompt, better, worse, labels)]


def _split_texts(chosen: str, rejected: str) -> tuple[Any, Any, Any]:
    """TRL's implicit prompt: what two texts begin with, cut between words."""
    if TRANSCRIPT_TURN.match(chosen):
        return split_dialogues(dialogue(chosen), dialogue(rejected))
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    n = max(chosen.rfind(" ", 0, n + 1), chosen.rfind("\n", 0, n + 1), 0)
    if not chosen[:n].strip():
        raise BadRow("no `prompt`, and the two texts do not begin alike")
    return chosen[:n], chosen[n:].strip(), rejected[n:].strip()


def _without(prompt: Any, text: str) -> str:
    """A response that repeats its prompt, without it."""
    start = prompt if isinstance(prompt, str) else ""
    return text[len(start) :].strip() if start and text.startswith(start) else text


def pair_of(
    record: dict[str, Any],
    used: set[str],
    prompt: Any,
    chosen: Any,
    rejected: Any,
    labels: Labels,
    choice: str = "chosen",
) -> dict[str, Any]:
    """An interchange record in which chance, not the label, decides which response is A."""
    prompt = messages_of(prompt, "user", "prompt")
    chosen = messages_of(chosen, "assistant", "chosen")
    rejected = messages_of(rejected, "assistant", "rejected")
    models = {
        "chosen": name_in(record, "chosen_model"),
        "rejected": name_in(record, "rejected_model"),
    }
    chosen_is_a = content_hash(prompt, chosen) < content_hash(prompt, rejected)
    a, b = ("chosen", "rejected") if chosen_is_a else ("rejected", "chosen")
    texts = {"chosen": chosen, "rejected": rejected}
    letter = "tie" if choice == "tie" else "a" if a == choice else "b"
    return {
        "id": record.get("id", record.get("prompt_id")),
        "prompt": prompt,
        "response_a": texts[a],
        "response_b": texts[b],
        "model_a": models[a],
        "model_b": models[b],
        "metadata": rest_of(record, used | {"id", "prompt_id", "chosen_model", "rejected_model"}),
        **_label(letter, labels),
    }


def _label(choice: str, labels: Labels) -> dict[str, Any]:
    """One label of an unnamed source, as a preference of people or as a verdict of a model."""
    key = "verdicts" if labels.kind == Rater.Kind.JUDGE else "preferences"
    return {key: [{"rater": labels.rater, "choice": choice}]}


def fits_hh(record: dict[str, Any]) -> bool:
    texts = record.get("chosen"), record.get("rejected")
    return all(
        isinstance(text, str) and TRANSCRIPT_TURN.match(text) for text in texts
    ) and not record.get("prompt")
