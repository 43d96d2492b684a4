"""K responses to one prompt, ranked at once: a record of the interchange form to its pairs.

    {"prompt": …, "responses": ["…", {"content": "…", "model": "…"}, …],
     "rankings": [{"rater": "ann", "order": [[0], [2, 1]]}],
     "pairs": [{"a": 0, "b": 2, "verdicts": […]}]}

`order` numbers the responses from 0, the best first; equals share a place. `pairs` is for what
belongs to two of them alone: votes, verdicts, an id of their own.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from labeling.imports.interchange import (
    MAX_VOTES,
    BadRow,
    GivenRanking,
    ResponseList,
    Row,
    Vote,
    messages_of,
    parse_row,
    short_text,
    vote_of,
)
from labeling.models import Choice, Comparison, Rater

MAX_SET = 9  # one key each
OF_A_PAIR = ("id", "gold", "metadata", "labels_wanted", "priority")
OF_A_PAIR += ("preferences", "verdicts", "decision")


def rows_of_set(record: dict[str, Any]) -> list[Row]:
    """The K(K-1)/2 rows of a list of responses, with the votes that its rankings imply; a ranking
    that makes no sense is left out with a reason. Its values have passed `check_storable`.

    Raises: BadRow.
    """
    if record.get("prompt") is None:
        raise BadRow("`prompt` is missing")
    for key in ("ranks", "scores", "ranking"):
        if record.get(key) is not None:
            raise BadRow(f"`{key}` in a list of responses: say who ranked them, in `rankings`")
    if record.get("gold") not in (None, ""):
        raise BadRow("`gold` of a list of responses: give it to a pair, in `pairs`")
    if record.get("purpose") not in (None, "", Comparison.Purpose.WORK):
        raise BadRow("`purpose` of a list of responses: only a single pair can have another")
    listed = _responses(record["responses"])
    n = len(listed.responses)
    pairs = _pairs(record.get("pairs"), n)
    rankings, problems = _rankings(record.get("rankings"), listed)
    rows = []
    for i, j in combinations(range(n), 2):
        entry = pairs.pop((i, j), None) or pairs.pop((j, i), None) or {"a": i, "b": j}
        a, b = entry["a"], entry["b"]
        row = parse_row(_record_of_pair(record, listed, a, b) | _given(entry))
        row.response_list = listed
        for ranking in rankings:
            if ranking.implies is None or (i, j) in ranking.implies:
                _add_implied(row.votes, _implied(ranking, a, b))
        rows.append(row)
    rows[0].bad_votes += problems
    return rows


def _responses(items: Any) -> ResponseList:
    if not isinstance(items, list):
        raise BadRow("`responses` is no list")
    if not 2 <= len(items) <= MAX_SET:
        raise BadRow(f"{len(items)} responses: it may be 2 to {MAX_SET}")
    responses: list[tuple[Any, str]] = []
    authors = []
    for number, item in enumerate(items):
        name, text, model, author = f"responses[{number}]", item, "", ""
        if isinstance(item, dict):
            text = next((item[k] for k in ("messages", "content", "text") if item.get(k)), "")
            model = short_text(item, "model")
            author = short_text(item, "author")
        response = (messages_of(text, "assistant", name), model)
        if response in responses:
            raise BadRow(f"`{name}` and `responses[{responses.index(response)}]` are the same")
        responses.append(response)
        authors.append(author)
    return ResponseList(responses, authors)


def _record_of_pair(record: dict[str, Any], listed: ResponseList, a: int, b: int) -> dict[str, Any]:
    identity = short_text(record, "id")
    return {
        "id": f"{identity}#{a}-{b}" if identity else "",
        "prompt": record["prompt"],
        "response_a": listed.responses[a][0],
        "response_b": listed.responses[b][0],
        "model_a": listed.responses[a][1],
        "model_b": listed.responses[b][1],
        "author_a": listed.authors[a],
        "author_b": listed.authors[b],
        "metadata": record.get("metadata"),
        "labels_wanted": record.get("labels_wanted"),
        "priority": record.get("priority"),
    }


def _given(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in OF_A_PAIR if entry.get(key) is not None}


def _pairs(entries: Any, n: int) -> dict[tuple[int, int], dict[str, Any]]:
    pairs: dict[tuple[int, int], dict[str, Any]] = {}
    for number, entry in enumerate(_listed(entries, "pairs"), 1):
        ab = (entry.get("a"), entry.get("b")) if isinstance(entry, dict) else (None, None)
        if not all(_is_number(k, n) for k in ab) or ab[0] == ab[1]:
            raise BadRow(f"`pairs[{number}]` does not name two of the {n} responses")
        if ab in pairs or (ab[1], ab[0]) in pairs:
            raise BadRow(f"`pairs[{number}]` is there twice")
        pairs[ab] = entry
    return pairs


def _rankings(entries: Any, listed: ResponseList) -> tuple[list[GivenRanking], list[str]]:
    rankings: dict[tuple[str, str], GivenRanking] = {}
    problems = []
    for number, entry in enumerate(_listed(entries, "rankings"), 1):
        try:
            kind = entry.get("kind") if isinstance(entry, dict) else None
            if kind not in (None, "", *Rater.Kind.values):
                raise BadRow(f"`kind` may be {', '.join(Rater.Kind.values)}")
            vote = vote_of(entry, kind or Rater.Kind.PERSON)
            if (vote.kind, vote.rater) in rankings:
                raise BadRow(f"rater {vote.rater!r} ranks twice here")
            rankings[vote.kind, vote.rater] = GivenRanking(
                of=listed,
                rater=vote.rater,
                kind=vote.kind,
                order=_order(entry.get("order"), len(listed.responses)),
                implies=_implies(entry.get("implies"), len(listed.responses)),
                rationale=vote.rationale,
                seconds=vote.seconds,
                created_at=vote.created_at,
            )
        except BadRow as problem:
            problems.append(f"rankings[{number}]: {problem}")
    return list(rankings.values()), problems


def _order(value: Any, n: int) -> list[list[int]]:
    places = value if isinstance(value, list) else []
    order = [place if isinstance(place, list) else [place] for place in places]
    named = [number for place in order for number in place]
    if not all(_is_number(k, n) for k in named) or sorted(named) != list(range(n)):
        raise BadRow(f"`order` does not name each of the responses 0 to {n - 1} once")
    return [place for place in order if place]


def _implies(value: Any, n: int) -> set[tuple[int, int]] | None:
    """The pairs that were not answered otherwise since; without a list all of them."""
    if value in (None, ""):
        return None
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(_is_number(k, n) for k in pair)):
            raise BadRow(f"`implies` does not name pairs of the responses 0 to {n - 1}")
    return {(min(pair), max(pair)) for pair in pairs}


def _is_number(value: Any, n: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n


def _listed(value: Any, key: str) -> Iterator[Any]:
    if value in (None, ""):
        return iter(())
    if not isinstance(value, list):
        raise BadRow(f"`{key}` is no list")
    if len(value) > MAX_VOTES:
        raise BadRow(f"more than {MAX_VOTES} `{key}`")
    return iter(value)


def _add_implied(votes: list[Vote], implied: Vote) -> None:
    """Where the rater's own vote on the pair says the same, it stands for both. Where
    it says otherwise, the ranking comes first."""
    for vote in votes:
        if (vote.kind, vote.rater, vote.choice) == (implied.kind, implied.rater, implied.choice):
            vote.ranking = implied.ranking
            vote.created_at = vote.created_at or implied.created_at
            return
    votes.insert(0, implied)


def _implied(ranking: GivenRanking, a: int, b: int) -> Vote:
    place = {k: number for number, tied in enumerate(ranking.order) for k in tied}
    choice = Choice.TIE if place[a] == place[b] else Choice.A if place[a] < place[b] else Choice.B
    return Vote(
        rater=ranking.rater,
        kind=ranking.kind,
        choice=choice,
        rationale=ranking.rationale,
        created_at=ranking.created_at,
        ranking=ranking,
    )
