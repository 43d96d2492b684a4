"""Transcripts of conversations, and where two of them part: what both share is the prompt."""

import re
from typing import Any

from labeling.imports.interchange import BadRow
from labeling.models import Messages


def dialogue(text: Any) -> Messages:
    """An hh-rlhf transcript as messages. Turns of one speaker in a row are one message, since some
    transcripts hold a doubled marker and no chat template takes two answers in a row.

    Raises: BadRow if it does not begin with "Human:".
    """
    if not isinstance(text, str):
        raise BadRow("a dialogue is not text")
    parts = TRANSCRIPT_TURN.split(text)
    if len(parts) < 3 or parts[0].strip() or parts[1] != "Human":
        raise BadRow('a dialogue does not begin with "Human:"')
    turns: Messages = []
    for speaker, words in zip(parts[1::2], parts[2::2], strict=True):
        role, words = "user" if speaker == "Human" else "assistant", words.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = "\n\n".join(filter(None, (turns[-1]["content"], words)))
        else:
            turns.append({"role": role, "content": words})
    return turns


TRANSCRIPT_TURN = re.compile(r"(?:\A|\n\n)\s*(?:## )?(Human|Assistant):")


def split_dialogues(first: Messages, second: Messages) -> tuple[Messages, Messages, Messages]:
    """(prompt, rest of the first, rest of the second): the prompt is what both share, as whole
    turns, and both rests begin with an answer.

    Where they part in the middle of a turn, that whole turn belongs to the rests.
    Raises: BadRow if they share no prompt.
    """
    n = 0
    while n < min(len(first), len(second)) - 1 and first[n] == second[n]:
        n += 1
    while n and not first[n]["role"] == second[n]["role"] == "assistant":
        n -= 1
    if not n:
        raise BadRow("the two dialogues share no prompt")
    return first[:n], first[n:], second[n:]
