"""Several responses to one prompt, with an order or a score for each."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from labeling.imports.foreign.chosen import pair_of
from labeling.imports.foreign.columns import PROMPT_KEYS, Labels, prompt_in
from labeling.imports.foreign.dialogues import dialogue, split_dialogues
from labeling.imports.interchange import BadRow, GivenRanking, ResponseList, Row, messages_of
from labeling.imports.sets import MAX_SET
from labeling.models import content_hash

MAX_RANKED = 16  # 120 implied comparisons


def from_scored(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """`text`: whole dialogues that begin alike; `score`: a number for each, higher is better."""
    texts, scores = record["text"], record["score"]
    if not all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in scores):
        raise BadRow("`score` holds something that is no number")
    _check_ranked(texts, scores)
    records = []
    for i, j in combinations(range(len(texts)), 2):
        better, worse = (i, j) if scores[i] >= scores[j] else (j, i)
        turns = split_dialogues(dialogue(texts[better]), dialogue(texts[worse]))
        choice = "tie" if scores[i] == scores[j] else "chosen"
        pair = pair_of(record, {"text", "score"}, *turns, labels, choice)
        pair["metadata"]["scores"] = [scores[better], scores[worse]]
        records.append(pair)
    return records


@dataclass(frozen=True)
class Ranked:
    """K responses in an order, as other tools list them."""

    key: str  # the column of the list
    prompt: Any
    responses: list[Any]
    models: list[str]
    ranks: list[float]
    labels: Labels


def read_ranked(record: dict[str, Any], labels: Labels) -> Ranked:
    """The list of a record and its order. Raises: BadRow if they do not fit each other."""
    prompt = prompt_in(record)
    if prompt is None:
        raise BadRow("`prompt` is missing")
    key = next(key for key in LIST_KEYS if isinstance(record.get(key), list))
    items = record[key]
    responses = [_item_part(item, _TEXT_KEYS) for item in items]
    if any(response is None for response in responses):
        raise BadRow(f"one of `{key}` has no text")
    models = [_item_part(item, ("model", "source", "generator")) or "" for item in items]
    ranks = _ranks(record, items)
    _check_ranked(responses, ranks)
    if isinstance(record.get("rater"), (str, int)) and str(record["rater"]).strip():
        labels = Labels(str(record["rater"]), labels.kind)
    return Ranked(key, prompt, responses, [str(m).strip() for m in models], ranks, labels)


def from_ranked(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """K responses in an order imply K(K-1)/2 comparisons; the ranking stays in the metadata."""
    ranked = read_ranked(record, labels)
    ranks, responses = ranked.ranks, ranked.responses
    used = {ranked.key, "rater", "ranks", "ranking", "scores", *PROMPT_KEYS}
    group = content_hash(messages_of(ranked.prompt, "user", "prompt"), responses)[:16]
    records = []
    for i, j in combinations(range(len(responses)), 2):
        better, worse = (i, j) if ranks[i] <= ranks[j] else (j, i)
        choice = "tie" if ranks[i] == ranks[j] else "chosen"
        models = {
            "chosen_model": ranked.models[better],
            "rejected_model": ranked.models[worse],
        }
        pair = pair_of(
            record | models,
            used,
            ranked.prompt,
            responses[better],
            responses[worse],
            ranked.labels,
            choice,
        )
        pair["metadata"]["ranking"] = {"group": group, "ranks": ranks, "pair": [better, worse]}
        if pair["id"] not in (None, ""):
            pair["id"] = f"{pair['id']}#{better}-{worse}"
        records.append(pair)
    return records


def join_as_set(rows: list[Row], ranked: Ranked) -> None:
    """Make the pairs of a list one set, as far as a person can rank so many, and keep its order."""
    if len(ranked.responses) > MAX_SET:
        return
    texts = [messages_of(response, "assistant", ranked.key) for response in ranked.responses]
    listed = ResponseList(list(zip(texts, ranked.models, strict=True)))
    order = [
        [k for k, rank in enumerate(ranked.ranks) if rank == place]
        for place in sorted(set(ranked.ranks))
    ]
    ranking = GivenRanking(listed, ranked.labels.rater, ranked.labels.kind, order)
    for row in rows:
        row.response_list = listed
        for vote in row.votes:
            vote.ranking = ranking


def _ranks(record: dict[str, Any], items: list[Any]) -> list[float]:
    """The rank of each response, 1 for the best; equal ranks are ties."""
    ranks = record.get("ranks") or [_item_part(item, ("rank",)) for item in items]
    if _are_numbers(ranks):
        return ranks
    scores = record.get("scores") or [_item_part(item, _SCORE_KEYS) for item in items]
    if _are_numbers(scores):
        order = sorted(set(scores), reverse=True)
        return [order.index(score) + 1 for score in scores]
    ranking = record.get("ranking")  # numbers of the responses, the best first
    if _are_numbers(ranking):
        start = 0 if 0 in ranking else 1
        if sorted(ranking) == list(range(start, start + len(items))):
            return [ranking.index(start + i) + 1 for i in range(len(items))]
        raise BadRow("`ranking` does not name each response once")
    raise BadRow("the responses have no `ranks`, `scores` or `ranking`")


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    )


def _check_ranked(responses: list[Any], ranks: list[Any]) -> None:
    if len(responses) != len(ranks):
        raise BadRow(f"{len(ranks)} ranks or scores for {len(responses)} responses")
    if not 2 <= len(responses) <= MAX_RANKED:
        raise BadRow(f"{len(responses)} responses: it may be 2 to {MAX_RANKED}")


def _item_part(item: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(item, dict):
        return next((item[key] for key in keys if item.get(key) is not None), None)
    return item if keys is _TEXT_KEYS and isinstance(item, (str, list)) else None


LIST_KEYS = ("responses", "completions", "answers", "candidates", "outputs")
_TEXT_KEYS = ("response", "text", "answer", "content", "completion", "output", "messages")
_SCORE_KEYS = ("score", "overall_score", "rating")


def fits_set(record: dict[str, Any]) -> bool:
    """A list to be ranked, or ranked by raters with names; not one that brings bare ranks."""
    responses = record.get("responses")
    if not isinstance(responses, list) or "prompt" not in record:
        return False
    has_order = any(record.get(key) is not None for key in ("ranks", "scores", "ranking"))
    return not has_order and not any(
        _item_part(item, ("rank", *_SCORE_KEYS)) is not None for item in responses
    )
