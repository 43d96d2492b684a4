"""One batch of texts through a model: read, write, answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from judges.ml.drawing import Drawing
from judges.ml.plain_reading import read_whole, write_plainly
from judges.ml.rows import Rows
from judges.ml.wording import STOP_EVERY, Text, Wording

MIN_COMMON = 8  # tokens: less than this in common is not worth a reading of its own
LEAVE_SHARE = 4  # when one in so many texts has ended, they are answered and leave


def ask_with_rows(
    model: Any, wording: Wording, batch: Sequence[Text], shared: Rows | None, read_tokens: int
) -> None:
    """Have every text of the batch written and its answers said, reading nothing twice.

    Args:
        shared: what all of the texts begin with, read.
        read_tokens: about how many tokens are read at once.
    """
    # Those that write come first: they go on side by side, neighbours of like length.
    texts = sorted(batch, key=lambda t: (t.asked.request.write is None, -len(t.asked.ids)))
    writing = [text for text in texts if text.asked.request.write is not None]
    # What was written may come out as more tokens when it is read again. Room costs no time.
    slack = max((text.writing.max_tokens for text in writing), default=0)
    n_slots = max(len(text.asked.ids) + text.asked.n_needed for text in texts) + slack
    n_slots = min(n_slots, wording.max_context) - (shared.n_slots if shared else 0)
    rows = Rows(model, len(texts), n_slots, shared)
    logits = _open(rows, texts, read_tokens)
    at_once = range(len(writing), len(texts))
    if at_once:
        for text in texts[len(writing) :]:
            wording.finish(text)
        _answer(rows, at_once, texts[len(writing) :], logits[len(writing) :])
    if writing:
        _write(rows, wording, writing, logits[: len(writing)])


def ask_plainly(model: Any, wording: Wording, batch: Sequence[Text]) -> None:
    """The same for a model that reads every text as a whole."""
    writing = [text for text in batch if text.asked.request.write is not None]
    if writing:

        def all_ended(tokens: list[int]) -> bool:
            for text, token in zip(writing, tokens, strict=True):
                wording.take(text, [token])
            return all(text.ended for text in writing)

        drawing = _drawing(writing, model.device)
        write_plainly(model, [text.asked.ids for text in writing], drawing.choose, all_ended)
    for text in batch:
        wording.finish(text)
    _answer_plainly(model, batch)


def n_common(texts: Sequence[list[int]]) -> int:
    """How many tokens all of them begin with; at least one of each is left over."""
    first, last = min(texts), max(texts)  # what these two share, all share
    limit = min(map(len, texts)) - 1
    return next((n for n in range(limit) if first[n] != last[n]), limit)


def _open(rows: Rows, texts: Sequence[Text], read_tokens: int) -> torch.Tensor:
    """Read all texts up to where they are written on or answered; logits, (texts, vocabulary).

    What several requests have in common (the prompt, in both orders) is read in the row of the
    first of them and copied; so is all of a request that is written on several times.
    """
    copies: dict[int, list[int]] = {}  # of every request, its places
    for place, text in enumerate(texts):
        copies.setdefault(text.asked.index, []).append(place)
    firsts = sorted((places[0] for places in copies.values()), key=lambda p: texts[p].asked.ids)
    begun = dict.fromkeys(firsts, rows.n_shared)
    common = {}
    for family in families([texts[place].asked.ids for place in firsts], rows.n_shared):
        members = [firsts[place] for place in family]
        n = n_common([texts[place].asked.ids for place in members])
        if len(members) > 1 and n - rows.n_shared >= MIN_COMMON:
            common[members[0]] = (n, members)
            begun |= dict.fromkeys(members, n)
    _keep(
        rows,
        dict.fromkeys(common, 0),
        {place: texts[place].asked.ids[rows.n_shared : n] for place, (n, _) in common.items()},
        read_tokens,
    )
    for first, (n, members) in common.items():
        for place in members[1:]:
            rows.copy(first, place, n - rows.n_shared)
    _keep(
        rows,
        {place: n - rows.n_shared for place, n in begun.items()},
        {place: texts[place].asked.ids[n:-1] for place, n in begun.items()},
        read_tokens,
    )
    lengths = [len(text.asked.ids) - rows.n_shared for text in texts]
    for first, *others in copies.values():
        for place in others:
            rows.copy(first, place, lengths[first] - 1)
    # Only the last tokens' logits are wanted, and all texts read them side by side.
    last = torch.tensor([text.asked.ids[-1] for text in texts], device=rows.device)
    return rows.step(last, torch.tensor(lengths, device=rows.device) - 1, lengths)


def families(texts: Sequence[list[int]], n_shared: int) -> list[list[int]]:
    """Places of sorted texts that begin alike beyond what all share.

    A text joins the one before it while the family keeps half of what it has in common.
    """
    found: list[list[int]] = []
    n_family = 0
    for place, text in enumerate(texts):
        n = n_common([texts[place - 1], text]) - n_shared if place else 0
        if n >= MIN_COMMON and (len(found[-1]) == 1 or 2 * n >= n_family):
            n_family = n if len(found[-1]) == 1 else min(n, n_family)
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _keep(
    rows: Rows, starts: Mapping[int, int], tokens: Mapping[int, Sequence[int]], read_tokens: int
) -> None:
    """Read each place's tokens, so many at once, whosever they are."""
    piece: list[tuple[int, int, Sequence[int]]] = []  # places, starts, tokens
    n_free = read_tokens
    for place, rest in tokens.items():
        start = starts[place]
        while rest:
            part, rest = rest[:n_free], rest[n_free:]
            piece.append((place, start, part))
            start, n_free = start + len(part), n_free - len(part)
            if not n_free:
                rows.keep(*zip(*piece, strict=True))
                piece, n_free = [], read_tokens
    if piece:
        rows.keep(*zip(*piece, strict=True))


def _write(rows: Rows, wording: Wording, writing: list[Text], logits: torch.Tensor) -> None:
    """Write side by side; texts that have ended say their answers and leave."""
    drawing = _drawing(writing, rows.device)
    lengths = [len(text.asked.ids) - rows.n_shared for text in writing]
    slots = torch.tensor(lengths, device=rows.device)
    chosen: list[torch.Tensor] = []
    n_steps = 0
    while True:
        tokens = drawing.choose(logits, n_steps)  # (rows,)
        chosen.append(tokens)
        n_steps += 1
        # Looking at every token would have the device wait for us.
        if n_steps % STOP_EVERY == 0 or any(t.writing.max_tokens == n_steps for t in writing):
            for text, more in zip(writing, torch.stack(chosen, 1).tolist(), strict=True):
                wording.take(text, more)
            chosen = []
            leaving = [place for place, text in enumerate(writing) if text.ended]
            if leaving and len(leaving) * LEAVE_SHARE >= len(writing):
                _answer_ended(rows, wording, leaving, [writing[p] for p in leaving], n_steps - 1)
                staying = rows.drop(len(writing), leaving)
                if not staying:
                    return
                writing = [writing[place] for place in staying]
                lengths = [lengths[place] for place in staying]
                tokens, slots = tokens[staying], slots[staying]
                drawing.keep(staying)
        # A text that has ended but not left may overrun its room; what it writes there is lost.
        n_seen = [min(length + n_steps, rows.n_slots) for length in lengths]
        logits = rows.step(tokens, slots.clamp(max=rows.n_slots), n_seen)
        slots = slots + 1


def _drawing(writing: Sequence[Text], device: torch.device) -> Drawing:
    return Drawing([(text.asked.text, text.writing, text.number) for text in writing], device)


def _answer_ended(
    rows: Rows, wording: Wording, places: Sequence[int], ended: Sequence[Text], n_steps: int
) -> None:
    """Read the endings on from where the texts are in memory, and say the answers.

    A row keeps of its memory what the whole text, read in one piece, has in common with what was
    read and written, token by token.

    Args:
        n_steps: so many of the tokens that each row wrote are in memory.
    """
    read_on, apart = [], []
    starts, rest = [], []
    for place, text in zip(places, ended, strict=True):
        wording.finish(text)
        in_memory = text.asked.ids + text.written[:n_steps]
        # At least the last token is read: its logits are what we want.
        n_kept = n_common([[*in_memory, -1], text.ids])
        n_all = len(text.ids) + text.asked.spelled.n_longest - 1
        if n_kept < rows.n_shared or n_all > rows.n_shared + rows.n_slots:
            apart.append(text)  # its tokens came out quite different
            continue
        read_on.append((place, text))
        starts.append(n_kept - rows.n_shared)
        rest.append(text.ids[n_kept:])
    if read_on:
        rows_read = [place for place, _text in read_on]
        logits = rows.read(rows_read, starts, rest)
        _answer(rows, rows_read, [text for _place, text in read_on], logits)
    if apart:
        _answer_plainly(rows.model, apart)


def _answer(rows: Rows, places: Sequence[int], texts: Sequence[Text], logits: torch.Tensor) -> None:
    """Say the answers of texts that are in memory, from the logits after them."""
    for spelled, mine in _by_spelling(texts).items():
        after = {(): logits[mine].float().log_softmax(-1)}
        for begun in spelled.begun:
            starts = [len(texts[i].ids) - rows.n_shared for i in mine]
            next_logits = rows.read([places[i] for i in mine], starts, [begun] * len(mine))
            after[begun] = next_logits.float().log_softmax(-1)
        for i, logps in zip(mine, spelled.logps(after).tolist(), strict=True):
            texts[i].logps = tuple(logps)


def _answer_plainly(model: Any, texts: Sequence[Text]) -> None:
    """The same, reading everything."""
    for spelled, mine in _by_spelling(texts).items():
        after = {
            begun: read_whole(model, [[*texts[i].ids, *begun] for i in mine])
            .float()
            .log_softmax(-1)
            for begun in ((), *spelled.begun)
        }
        for i, logps in zip(mine, spelled.logps(after).tolist(), strict=True):
            texts[i].logps = tuple(logps)


def _by_spelling(texts: Sequence[Text]) -> "dict[Any, list[int]]":
    """Places of the texts, by how their answers are spelled."""
    found: dict[Any, list[int]] = {}
    for place, text in enumerate(texts):
        found.setdefault(text.asked.spelled, []).append(place)
    return found
