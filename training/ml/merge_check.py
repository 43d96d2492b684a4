"""Whether a merged model still says what it was merged from, or at least works."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from training.ml.data import Messages, chat_tokens
from training.ml.loading import load_causal, load_scorer, load_tokenizer, made_by, rope_of
from training.ml.merge_recipe import base_of, scores, with_tokenizer
from training.ml.stored_weights import Files

N_PROMPTS = 32
LAST_POSITIONS = 8
"""Of each prompt, the positions whose logits are compared: all of them would be gigabytes."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far a logit may be off, as a share of the largest: rounding, and nothing else. A weight in
bfloat16 keeps eight bits, so each product is off by up to 1/256, and layers add up."""


class NotTheSame(ValueError):
    """The merged model gives other logits than what it was merged from; nothing was saved."""


def check_rows(model: str, prompts: Sequence[Messages]) -> list[list[int]]:
    """32 rows of word ids: prompts, cut to 128 tokens, and then words drawn at random."""
    tokenizer = load_tokenizer(with_tokenizer(model))
    rows = [chat_tokens(tokenizer, p, open_answer=True)[-128:] for p in prompts[:N_PROMPTS]]
    draw = torch.Generator().manual_seed(0)
    words = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    while len(rows) < N_PROMPTS:
        places = torch.randint(len(words), (16,), generator=draw)
        rows.append([words[place] for place in places])
    return rows


def compare(source: str, merged: str, rows: list[list[int]]) -> dict[str, Any]:
    """How far the logits of a merged model are from those of its adapter over its base.

    Returns: largest (difference), tolerance, both in logits; same_words, of how many positions the
        likeliest word is the same, as {"value", "n"}; n rows.
    Raises: NotTheSame beyond the tolerance.
    """
    wanted = logits_of(source, rows)
    found = logits_of(merged, rows)
    largest = max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))
    dtype = Files(merged).dtype(Files(merged).names[0])
    scale = max(float(a.abs().max()) for a in wanted)
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]) * scale
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(wanted, found, strict=True)]
    n = sum(s.numel() for s in same)
    if not largest <= tolerance:  # also where one of them is no number
        raise NotTheSame(
            f"the merged model's logits are off by up to {largest:.4g} on {len(rows)} prompts, and "
            f"{tolerance:.4g} would be rounding; nothing was saved"
        )
    return {
        "n": len(rows),
        "largest": largest,
        "tolerance": tolerance,
        "same_words": {"value": float(sum(int(s.sum()) for s in same) / n), "n": n},
    }


def works(merged: str, rows: list[list[int]]) -> dict[str, Any]:
    """That a merged model loads and gives numbers. Raises: NotTheSame."""
    found = logits_of(merged, rows)
    if not all(bool(logits.isfinite().all()) for logits in found):
        raise NotTheSame("the merged model gives logits that are no numbers; nothing was saved")
    return {"n": len(rows), "largest_logit": max(float(logits.abs().max()) for logits in found)}


def logits_of(name: str, rows: list[list[int]]) -> list[Tensor]:
    """Logits of each row's last positions, (positions, words) or (1, scores), one row at a time.

    An adapter stays beside its base here, as it was trained: that is what merging is held against.
    """
    model, scored = _load(name).eval(), scores(name)
    where = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row], device=where)).logits
            found.append((logits if scored else logits[0, -LAST_POSITIONS:]).float().cpu())
    return found


def _load(name: str) -> Any:
    load = load_scorer if scores(name) else load_causal
    if not base_of(name):
        return load(name)
    base = load(base_of(name), method=made_by(name), rope=rope_of(name))
    return PeftModel.from_pretrained(base, name)
