"""What people differ on: the topics whose comparisons get the most unequal votes.

Numbers in, numbers out; figures as in `labeling/agreement.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labeling.agreement import CHOICES, Votes
from labeling.intervals import divide, share_of

MIN_COMPARISONS = 10  # with two votes or more, below which a topic is not spoken of
N_TOPICS, N_PROMPTS = 20, 10


def disputed_topics(
    votes: Votes, topics: Mapping[str, Sequence[int]], by: str = "prompt"
) -> dict[str, Any]:
    """Topics by the share of pairs of votes that differ; without topics, prompts.

    Args:
        votes: of people.
        topics: for each topic the keys of its comparisons; a comparison may have several.
        by: what the topics are: "topic" or "category" (metadata), "tag", or "prompt".
    Returns: "by"; "all", the share over all comparisons; "rows", the most disputed first: "topic"
        (of a prompt: empty), "comparison" (key of its most disputed one), a share with "n"
        comparisons, "n_pairs", and "stands_out" where its interval lies above the share of all;
        "n_topics" with enough comparisons.
    """
    n_items = len(votes.comparisons) if votes.comparisons is not None else 0
    k = len(CHOICES)
    flat = np.bincount(votes.item * k + votes.choice, minlength=n_items * k)
    counts = flat.reshape(n_items, k)
    n = counts.sum(axis=1)
    pairs = n * (n - 1) // 2
    unequal = pairs - (counts * (counts - 1)).sum(axis=1) // 2
    prompt = np.zeros(n_items, dtype=np.int64)
    prompt[votes.item] = votes.prompt
    if not pairs.sum():
        return {"by": by, "all": None, "rows": [], "n_topics": 0}
    keys = votes.comparisons
    everything = float(unequal.sum() / pairs.sum())
    rows = []
    for topic, comparisons in topics.items():
        place = np.searchsorted(keys, np.unique(np.asarray(comparisons, dtype=np.int64)))
        inside = place[place < n_items]
        own = inside[np.isin(keys[inside], comparisons) & (pairs[inside] > 0)]
        if len(own) >= MIN_COMPARISONS:
            figure = share_of(prompt[own], unequal[own], pairs[own])
            low = figure["low"]
            rows.append(
                figure
                | {
                    "topic": topic,
                    "n": len(own),
                    "n_pairs": figure["n"],
                    "comparison": _most_disputed(keys, unequal, pairs, own),
                    "stands_out": low is not None and low > everything,
                }
            )
    if len(rows) >= 2:
        rows.sort(key=lambda row: (-row["value"], -row["n"]))
        return {"by": by, "all": everything, "rows": rows[:N_TOPICS], "n_topics": len(rows)}
    return {
        "by": "prompt",
        "all": everything,
        "rows": _prompts(keys, prompt, unequal, pairs),
        "n_topics": len(np.unique(prompt[pairs > 0])),
    }


def _prompts(
    keys: np.ndarray, prompt: np.ndarray, unequal: np.ndarray, pairs: np.ndarray
) -> list[dict[str, Any]]:
    """The prompts with the most unequal pairs for their number, by the lower end of its interval:
    ten of ten says more than one of one."""
    prompts, code = np.unique(prompt, return_inverse=True)
    of_prompt = np.bincount(code, pairs, minlength=len(prompts))
    differing = np.bincount(code, unequal, minlength=len(prompts))
    share = np.nan_to_num(divide(differing, of_prompt))
    # Wilson's lower end, for all prompts at once; the pairs of a few votes are no independent
    # evidence, so it orders the list and is not shown as an interval.
    z2 = 1.959964**2
    lower = (differing + z2 / 2) / (of_prompt + z2) - np.sqrt(
        z2 * (of_prompt * share * (1 - share) + z2 / 4)
    ) / (of_prompt + z2)
    rows = []
    for i in np.argsort(-lower, kind="stable")[:N_PROMPTS].tolist():
        if not differing[i]:
            break
        own = np.flatnonzero((code == i) & (pairs > 0))
        rows.append(
            {
                "topic": "",
                "comparison": _most_disputed(keys, unequal, pairs, own),
                "value": float(share[i]),
                "low": None,
                "high": None,
                "n": len(own),
                "n_pairs": int(of_prompt[i]),
                "stands_out": False,
            }
        )
    return rows


def _most_disputed(
    keys: np.ndarray, unequal: np.ndarray, pairs: np.ndarray, own: np.ndarray
) -> int:
    """The key of the comparison with the largest share of unequal pairs; of equals the fullest."""
    order = np.lexsort((-pairs[own], -unequal[own] / pairs[own]))
    return int(keys[own[order[0]]])
