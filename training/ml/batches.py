"""Which rows each step of a run learns from, and how they pass through the model in parts.

Rows of like length share a step and a part, so that little of what is computed is padding. What a
step learns does not depend on how it is divided: its loss is the sum over its rows, divided by
their number.
"""

import random
from collections.abc import Sequence

WINDOW = 16
"""Steps whose rows are put in order of length together: the more, the less padding, and the less
chance decides which rows share a step."""

SAVED_SHARE, SAVED_POSITIONS = 0.1, 512
"""What a second pass through the model has to save: of what would be computed, and in positions.
Below it the pass itself costs as much (tests/bench/padding.py)."""


def steps_of(
    lengths: Sequence[int], rows_per_step: int, n_steps: int, seed: int, *, by_length: bool
) -> list[list[int]]:
    """Places of the rows of every step of a run; the same for the same seed.

    Every pass draws a new order in which each row stands once. By length: within windows of that
    order the rows are sorted, cut into steps, and the steps are drawn anew.
    """
    steps: list[list[int]] = []
    epoch = 0
    while len(steps) < n_steps:
        draw = random.Random(f"{seed}:{epoch}")  # noqa: S311 - an order, not a secret
        order = list(range(len(lengths)))
        draw.shuffle(order)
        if by_length:
            window = WINDOW * rows_per_step
            for start in range(0, len(order), window):
                part = order[start : start + window]
                order[start : start + window] = sorted(part, key=lambda at: -lengths[at])
        of_epoch = [
            order[start : start + rows_per_step] for start in range(0, len(order), rows_per_step)
        ]
        if by_length:
            draw.shuffle(of_epoch)
        steps += of_epoch
        epoch += 1
    return steps[:n_steps]


def parts_of(
    lengths: Sequence[int], *, most_rows: int, most_tokens: int = 0, each: int = 1
) -> list[list[int]]:
    """Places of rows that pass through the model together, the longest first.

    Args:
        most_tokens: of a part, padding included; 0: `most_rows` rows, whatever their length. A row
            that is longer goes alone.
        each: sequences that a row brings: two of a pair.
    """
    parts: list[list[int]] = []
    room = 0
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if not parts or len(parts[-1]) >= room:
            parts.append([])
            tokens = each * lengths[at]  # of the longest, which the others are padded to
            room = max(1, most_tokens // max(1, tokens)) if most_tokens else most_rows
        parts[-1].append(at)
    return parts


def passes_of(lengths: Sequence[int]) -> list[list[int]]:
    """Places of the texts of a part that pass through the model in one go, the longest first: in
    one pass, or in two, each padded to its own longest, where enough padding is saved."""
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    if not order:
        return []
    whole = len(order) * lengths[order[0]]

    def computed(cut: int) -> int:
        return cut * lengths[order[0]] + (len(order) - cut) * lengths[order[cut]]

    cut = min(range(1, len(order)), key=computed, default=0)
    saved = whole - computed(cut) if cut else 0
    if saved < max(SAVED_POSITIONS, SAVED_SHARE * whole):
        return [order]
    return [order[:cut], order[cut:]]


def useful_share(lengths: Sequence[Sequence[int]], parts: Sequence[Sequence[int]]) -> float:
    """Share of the computed positions that are tokens, not padding.

    Args: lengths: of the texts of each row; parts: places of the rows of each part.
    """
    useful = padded = 0
    for part in parts:
        texts = [length for at in part for length in lengths[at]]
        useful += sum(texts)
        padded += sum(len(one) * texts[one[0]] for one in passes_of(texts))
    return useful / padded if padded else 1.0
