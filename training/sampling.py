"""Responses of a trained model become comparisons, and the loop begins again."""

from collections.abc import Callable
from itertools import combinations

from labeling.imports.interchange import Row
from labeling.imports.rows import RowStore
from labeling.models import Messages, Project
from training.models import ModelVersion
from training.runs import named_model

PROMPTS_AT_ONCE = 64


def sample_comparisons(
    project: Project,
    model_name: str,
    *,
    n: int = 2,
    limit: int | None = None,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Let a model answer the project's prompts `n` times; every pair of answers is a comparison.

    Args: limit: take so many prompts, the oldest first; show: is told (prompts done, all prompts).
    Returns: prompts, responses, created and duplicates (comparisons), same (pairs of equal
        answers) and empty (responses) and too_long (prompts), which make no comparison.
    Raises: ValueError for a reward model, fewer than two answers, or no prompt; ModelMissing.
    """
    from training.ml.data import chat_tokens
    from training.ml.generation import sample
    from training.ml.loading import load_policy, longest_allowed

    if n < 2:
        raise ValueError("a comparison needs at least two responses to each prompt")
    if project.models.filter(name=model_name, kind=ModelVersion.Kind.REWARD).exists():
        raise ValueError(f"{model_name} is a reward model: it scores responses and writes none")
    prompts: list[Messages] = list(
        project.prompts.order_by("pk").values_list("messages", flat=True)[:limit]
    )
    if not prompts:
        raise ValueError("the project has no prompt")
    folder = named_model(project, model_name)
    model, tokenizer = load_policy(folder)
    room = longest_allowed(folder, 1 << 20) - max_new_tokens
    counts = dict.fromkeys(
        ("prompts", "responses", "created", "duplicates", "same", "empty", "too_long"), 0
    )
    store = RowStore(project)
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        fitting = [p for p in part if len(chat_tokens(tokenizer, p, open_answer=True)) <= room]
        counts["prompts"] += len(fitting)
        counts["too_long"] += len(part) - len(fitting)
        answers = [
            sample(
                model,
                tokenizer,
                fitting,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                # Each draw has a seed of its own, or all answers to a prompt would be the same.
                seed=seed + 1_000_003 * draw + start,
                batch_size=batch_size,
            )
            for draw in range(n)
        ]
        rows = []
        for prompt, texts in zip(fitting, zip(*answers, strict=True), strict=True):
            written = [text for text in texts if text]
            counts["responses"] += len(written)
            counts["empty"] += len(texts) - len(written)
            for first, second in combinations(written, 2):
                if first == second:
                    counts["same"] += 1
                    continue
                rows.append(_row(prompt, first, second, model_name, seed))
        stored = store.store(rows)
        counts["created"] += stored.created
        counts["duplicates"] += stored.duplicates
        show(min(start + PROMPTS_AT_ONCE, len(prompts)), len(prompts))
    return counts


def _row(prompt: Messages, first: str, second: str, model_name: str, seed: int) -> Row:
    return Row(
        prompt=prompt,
        response_a=[{"role": "assistant", "content": first}],
        response_b=[{"role": "assistant", "content": second}],
        model_a=model_name,
        model_b=model_name,
        metadata={"sampled_from": model_name, "seed": seed},
    )
