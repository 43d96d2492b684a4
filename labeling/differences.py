"""Where two responses differ, word by word."""

import re
from difflib import SequenceMatcher

MAX_WORDS = 10_000
"""Of each text. The time grows with the square of the length in the worst case."""

Part = tuple[bool, str]
"""(stands here alone, text)"""


class TooLong(Exception):
    """A text has more words than a request may spend its time on."""


def word_difference(left: str, right: str) -> tuple[list[Part], list[Part]]:
    """Both texts in parts, each marked by whether the other text lacks it; nothing is lost.

    Raises: TooLong.
    """
    # White space goes with the word before it: two tokens a word would be four times the work.
    left_words, right_words = (re.findall(r"\s*\S+\s*", text) for text in (left, right))
    n_words = max(len(left_words), len(right_words))
    if n_words > MAX_WORDS:
        raise TooLong(f"{n_words:,} words; at most {MAX_WORDS:,}")
    # Words at the end of a line and inside it are the same words.
    matcher = SequenceMatcher(
        None, [word.strip() for word in left_words], [word.strip() for word in right_words]
    )
    left_parts: list[Part] = []
    right_parts: list[Part] = []
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        alone = kind != "equal"
        if i1 < i2:
            left_parts.append((alone, "".join(left_words[i1:i2])))
        if j1 < j2:
            right_parts.append((alone, "".join(right_words[j1:j2])))
    return left_parts, right_parts
