"""A project's leaderboard: which source of responses people prefer, by people, judges, and both.

`answers_of` fetches, `leaderboard_report` computes: what the command prints and the page shows.

Decisions, all of them visible in the figures:
- "Both are bad" counts as a tie: it says nothing about which of the two is better.
- Comparisons whose response has no source, or of a source with itself, are left out and counted.
- Verdicts that could not be read are left out and counted.
- Comparisons that a round chose for what their label tells are left out and counted, on every
  board: pairs that a model finds hard say how hard pairs go, not how often one source is better.
  The part of a round that is a uniform draw stays.
- People's labels are a random sample where they came from the random audit stream; all that were
  given at the desk are one too while nothing in the project has a priority, because the queue then
  goes by the same random keys from the other end. Imported labels are where their file says so
  ("audit"), or carries the probability with which they were asked for.
"""

import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from django.db.models import Exists, OuterRef
from django.utils.translation import gettext_noop

from labeling.columns import code_of, places_of, read_columns
from labeling.estimation import (
    FEW_PROMPTS,
    TOO_FEW,
    active_inference,
    labels_to_decide,
    ppi_weight,
    prediction_powered,
    rogan_gladen,
    win_rate,
)
from labeling.intervals import RESAMPLES, Figure, refused
from labeling.models import Comparison, Preference, Project, Rater, Response, message_text
from labeling.ratings import (
    FEW_RESAMPLES,
    MANY_ROWS,
    Games,
    length_feature,
    rating_table,
    style_features,
    win_table,
)
from labeling.shares import CONFIDENCE
from labeling.stopping import sequential_win_rate

MOST_JUDGES = 3  # boards of judges: the first of `Answers.judges`
MOST_PAIRS = 1_000  # pairs of sources whose win rate is kept, those with the most answers
MOST_STYLED = 25_000  # comparisons whose texts are read for their style, a random sample
MOST_UNJUDGED = 0.1  # of random labels, unreadable verdicts among them
MARKS = (
    re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.MULTILINE),  # list items
    re.compile(r"^#{1,6}\s", re.MULTILINE),  # headings
    re.compile(r"\*\*\S.*?\S?\*\*|__\S.*?\S?__"),  # bold
)

NOT_RANDOM = gettext_noop(
    "People's labels here are no random sample, and no probability is recorded with which they "
    "were asked for. Let the random audit stream run: its labels can be joined with the judge's."
)
NOT_JUDGED = gettext_noop(
    "The judge has no verdict on many of the comparisons that people labelled at random, perhaps "
    "because it was given a selection that depends on their answers. Let it judge the rest."
)
NO_JUDGE = gettext_noop("No judge has compared these two.")


@dataclass(frozen=True)
class Answers:
    """What is known of each comparison of two sources; arrays are (comparisons,)."""

    sources: list[str]
    keys: np.ndarray
    """Primary keys, in ascending order."""
    prompt: np.ndarray
    first: np.ndarray
    second: np.ndarray
    length_first: np.ndarray
    length_second: np.ndarray
    people: np.ndarray
    """(3, comparisons) people who said: the first is better, equal, the second."""
    random: np.ndarray
    """(3, comparisons) those of them that are a random sample."""
    probability: np.ndarray
    """With which a label was asked for, as an import recorded it; NaN where it did not."""
    first_answer: np.ndarray
    """The earliest random answer of a person: 1, ½ or 0; NaN without any."""
    first_at: np.ndarray
    """Its place in the order of answers."""
    judges: dict[str, np.ndarray]
    """By name, the calibrated one first, then those with most verdicts: (comparisons,) verdict in
    [0, 1], NaN for none."""
    style: np.ndarray
    """(comparisons, 2, marks) counts in both responses; NaN where the texts were not read."""
    n_left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.first)


# Rows to arrays -----------------------------------------------------------------------------------


def answers_of(project: Project) -> Answers:
    """Every comparison of two different sources, with its current answers."""
    # The rows of rounds belong to an app that is not known here; a comparison knows its own.
    chosen_for_worth = project.comparisons.work().filter(round_pairs__at_random=False)
    work = project.comparisons.work().exclude(pk__in=chosen_for_worth.values("pk"))
    names = list(
        Response.objects.filter(prompt__project=project)
        .exclude(source="")
        .order_by("source")
        .values_list("source", flat=True)
        .distinct()
    )
    code = {name: place for place, name in enumerate(names)} | {"": -1}
    answered = Exists(Preference.objects.current().filter(comparison=OuterRef("pk")))
    rows = (
        work.filter(answered)
        .order_by("pk")
        .values_list(
            "pk",
            "prompt_id",
            "response_a__source",
            "response_b__source",
            "response_a__n_chars",
            "response_b__n_chars",
            "random_key",
        )
    )
    table = np.fromiter(
        (
            (pk, prompt, code[a], code[b], *rest)
            for pk, prompt, a, b, *rest in rows.iterator(chunk_size=5_000)
        ),
        dtype=[(name, "i8") for name in ("pk", "prompt", "a", "b", "length_a", "length_b")]
        + [("key", "f8")],
    )
    unnamed = (table["a"] < 0) | (table["b"] < 0)
    same = ~unnamed & (table["a"] == table["b"])
    table = table[~unnamed & ~same]
    n = len(table)
    votes, raters = _votes(project)
    place, known = places_of(table["pk"], votes["comparison"])
    votes, place = votes[known], place[known]
    readable = votes["choice"] >= 0
    n_unparsed = int((~readable).sum())
    votes, place = votes[readable], place[readable]
    by_judge = np.array([kind == Rater.Kind.JUDGE for _pk, _name, kind, _i in raters], dtype=bool)
    imported = np.array([i for _pk, _name, _kind, i in raters], dtype=bool)
    judge = by_judge[votes["rater"]] if len(raters) else np.zeros(0, dtype=bool)
    of_person = ~judge
    at_desk = (
        of_person & ~imported[votes["rater"]] & ~np.isnan(votes["probability"])
        if len(raters)
        else judge
    )
    routed = work.exclude(priority=0).exists()
    drawn = of_person & (votes["audit"] | (at_desk & (not routed)))

    def counted(mask: np.ndarray) -> np.ndarray:
        flat = np.bincount(3 * place[mask] + votes["choice"][mask], minlength=3 * n)
        return flat.reshape(n, 3).T.astype(float)

    probability = np.full(n, np.nan)
    told = of_person & ~at_desk & ~votes["audit"] & ~np.isnan(votes["probability"])
    probability[place[told]] = votes["probability"][told]
    first_answer, first_at = np.full(n, np.nan), np.full(n, np.iinfo(np.int64).max)
    backwards = np.flatnonzero(drawn)[::-1]  # so that the earliest is written last
    first_answer[place[backwards]] = 1 - votes["choice"][backwards] / 2
    first_at[place[backwards]] = backwards
    judges = {}
    n_verdicts = np.bincount(votes["rater"][judge], minlength=len(raters))
    # The project's own judge first: it is the one whose probabilities are calibrated.
    chosen = set(
        Rater.objects.filter(project=project)
        .exclude(calibrated_at=None)
        .values_list("pk", flat=True)
    )
    is_chosen = np.array([pk in chosen for pk, *_rest in raters], dtype=bool)
    for rater in np.lexsort((-n_verdicts, ~is_chosen)):
        if not n_verdicts[rater]:
            continue
        mine = votes["rater"] == rater
        verdict = np.full(n, np.nan)
        soft = votes["prob_a"][mine]
        verdict[place[mine]] = np.where(np.isnan(soft), 1 - votes["choice"][mine] / 2, soft)
        judges[raters[rater][1]] = verdict
    people = counted(of_person)
    styled = np.flatnonzero(people.any(axis=0))
    styled = styled[np.argsort(table["key"][styled], kind="stable")][:MOST_STYLED]
    style = np.full((n, 2, len(MARKS)), np.nan)
    for where, marks in _marks(table["pk"], np.sort(styled)):
        style[where] = marks
    return Answers(
        sources=names,
        keys=table["pk"].copy(),
        prompt=table["prompt"].copy(),
        first=table["a"].copy(),
        second=table["b"].copy(),
        length_first=table["length_a"].copy(),
        length_second=table["length_b"].copy(),
        people=people,
        random=counted(drawn),
        probability=probability,
        first_answer=first_answer,
        first_at=first_at,
        judges=judges,
        style=style,
        n_left_out={
            "no_source": int(unnamed.sum()),
            "same_source": int(same.sum()),
            "unparsed": n_unparsed,
            "chosen": chosen_for_worth.filter(answered).distinct().count(),
        },
    )


def _votes(project: Project) -> tuple[np.ndarray, list[tuple[int, str, str, bool]]]:
    """Current answers in the order in which they came, and the project's raters."""
    raters = list(
        Rater.objects.filter(project=project)
        .order_by("pk")
        .values_list("pk", "name", "kind", "imported")
    )
    rows = (
        Preference.objects.current()
        .filter(comparison__project=project, comparison__purpose=Comparison.Purpose.WORK)
        .values_list(
            "pk",
            "comparison_id",
            "rater_id",
            code_of("choice", {"a": 0, "tie": 1, "both_bad": 1, "b": 2}),
            "audit",
            "prob_a",
            "inclusion_probability",
        )
    )
    kinds = {
        "pk": "i8",
        "comparison": "i8",
        "rater": "i8",
        "choice": "i2",
        "audit": "?",
        "prob_a": "f8",
        "probability": "f8",
    }
    votes = read_columns(rows, kinds)
    keys = np.array([pk for pk, *_rest in raters], dtype=np.int64)
    votes["rater"], known = places_of(keys, votes["rater"])
    votes = votes[known]
    votes = votes[np.argsort(votes["pk"])]
    return votes, raters


def _marks(keys: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(place, (2, marks) counts) of comparisons, by their texts."""
    for begin in range(0, len(places), 500):
        some = places[begin : begin + 500].tolist()
        rows = Comparison.objects.filter(pk__in=[int(keys[place]) for place in some])
        texts = {
            pk: pair
            for pk, *pair in rows.values_list("pk", "response_a__messages", "response_b__messages")
        }
        for place in some:
            pair = [message_text(messages) for messages in texts[int(keys[place])]]
            yield place, np.array([[len(mark.findall(text)) for mark in MARKS] for text in pair])


# Arrays to figures --------------------------------------------------------------------------------


def leaderboard_report(
    answers: Answers, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Every figure of a leaderboard, ready for JSON.

    Args:
        on_progress: told (thousandths done, 1000); raises to stop.
    Returns: "boards" (see `_boards`), "pairs" (see `pair_figures`; most answers first),
        "pairs_left_out", "judge" (the one that joins the people: the first), "sources",
        "n_votes", "n_verdicts", "n_comparisons", "n_left_out", "confidence".
    """
    judge = next(iter(answers.judges), None)
    boards = _boards(answers, judge, lambda n, total: on_progress(int(800 * n / total), 1000))
    keys = _pairs(answers)
    pairs = []
    for number, key in enumerate(keys[:MOST_PAIRS], start=1):
        pairs.append(pair_figures(answers, *divmod(int(key), len(answers.sources)), judge))
        on_progress(800 + 200 * number // min(len(keys), MOST_PAIRS), 1000)
    return {
        "sources": answers.sources,
        "boards": boards,
        "pairs": pairs,
        "pairs_left_out": max(0, len(keys) - MOST_PAIRS),
        "judge": judge,
        "n_votes": int(answers.people.sum()),
        "n_verdicts": sum(int((~np.isnan(v)).sum()) for v in answers.judges.values()),
        "n_comparisons": len(answers),
        "n_left_out": answers.n_left_out,
        "confidence": CONFIDENCE,
    }


def _boards(
    answers: Answers, judge: str | None, on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Boards of people, of judges, and of both: "kind", "name", "parts" (see `rating_table`) or
    "why" not; of people "wins": rows [first, second, answers for the first, ties, for the second];
    of both "n_labels", the people's labels in it."""
    kinds: list[tuple[str, str]] = [("people", "")]
    kinds += [("judge", name) for name in list(answers.judges)[:MOST_JUDGES]]
    kinds += [("combined", judge)] if judge else []
    here = [kind for kind in kinds if kind[0] != "judge"]
    # The judges' boards at the same time: numpy lets go of the interpreter while it works. How far
    # the work is goes to the database, which stays with this thread.
    with ThreadPoolExecutor(max_workers=1) as second:
        found: dict[tuple[str, str], Any] = {
            kind: second.submit(_board, answers, *kind) for kind in kinds if kind not in here
        }
        for number, kind in enumerate(here):

            def on_board(n: int, total: int, number: int = number) -> None:
                on_progress(int(1000 * (number + n / total)), 1000 * len(here))

            found[kind] = _board(answers, *kind, on_board)
        return [found[kind] if kind in here else found[kind].result() for kind in kinds]


def _board(
    answers: Answers,
    kind: str,
    name: str,
    on_board: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """One of `_boards`; name: of the judge."""
    board: dict[str, Any] = {"kind": kind, "name": name, "parts": [], "why": ""}
    length = length_feature(answers.length_first, answers.length_second)[:, None]
    features: dict[str, np.ndarray] = {"length": length}
    if kind == "people":
        games = _games(answers, answers.people)
        read = ~np.isnan(answers.style[:, 0, 0])
        if read.any():
            style = np.full((len(answers), 1 + len(MARKS)), np.nan)
            style[read, 0] = length[read, 0]
            style[read, 1:] = style_features(answers.style[read, 0], answers.style[read, 1])
            features["style"] = style
    elif kind == "judge":
        games = _games(answers, _verdict_counts(answers.judges[name]))
    else:
        found = _joined(answers, answers.judges[name])
        if isinstance(found, str):
            return board | {"why": found}
        games, features = found, {}
        board["n_labels"] = int(answers.random.sum())
    played = (games.wins != 0) | (games.ties != 0) | (games.losses != 0)
    games = games.where(played)
    if not len(games):
        return board | {"why": gettext_noop("Nobody has compared two named sources yet.")}
    if not (games.wins.any() or games.losses.any()):
        return board | {"why": gettext_noop("Every answer is a tie: nothing says who is better.")}
    # A judge's own board comes beside the people's: of very many verdicts, fewer resamples.
    many = kind == "judge" and len(games) > MANY_ROWS
    board["parts"] = rating_table(
        games,
        features={key: columns[played] for key, columns in features.items()},
        prior=kind == "combined",
        most_resamples=FEW_RESAMPLES if many else RESAMPLES,
        on_progress=on_board,
    )
    if kind == "people":
        wins, ties = win_table(games)
        first, second = np.nonzero(np.triu(wins + wins.T + ties))
        board["wins"] = [
            [int(i), int(j), float(wins[i, j]), float(ties[i, j]), float(wins[j, i])]
            for i, j in zip(first, second, strict=True)
        ]
    return board


def _games(answers: Answers, counts: np.ndarray) -> Games:
    return Games(answers.sources, answers.prompt, answers.first, answers.second, *counts)


def _verdict_counts(verdict: np.ndarray) -> np.ndarray:
    """(3, comparisons) a verdict as an answer: shares of "first", "equal" and "second"."""
    known = ~np.isnan(verdict)
    tie = known & (verdict == 0.5)
    soft = np.where(known & ~tie, verdict, 0)
    return np.stack([soft, tie.astype(float), np.where(known & ~tie, 1 - verdict, 0)])


def _joined(answers: Answers, verdict: np.ndarray) -> Games | str:
    """Everybody's answers with the judge's mistakes taken out, or why that cannot be.

    A comparison counts λf + (Y − λf) ξ / π, with people's answers Y where there are some (ξ = 1)
    and π the share of such comparisons: the likelihood of Davidson's model is linear in what was
    answered, so this is prediction-powered inference for it. Counts may be below 0.

    Source: Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453, section 3, with the λ of the mean.
    """
    judged = ~np.isnan(verdict)
    n_random = answers.random.sum(axis=0)
    labelled = judged & (n_random > 0)
    if not judged.any():
        return NO_JUDGE
    if not n_random.any():
        return NOT_RANDOM
    if _is_selected(n_random > 0, judged):
        return NOT_JUDGED
    if len(np.unique(answers.prompt[labelled])) < FEW_PROMPTS:
        return TOO_FEW
    if labelled[judged].all():
        return gettext_noop("People have labelled every comparison: the judge has nothing to add.")
    share = answers.random / np.maximum(n_random, 1)
    of_judge = _verdict_counts(verdict)
    lam = ppi_weight(_answer(share)[labelled], verdict[labelled], verdict[judged & ~labelled])
    scale = np.where(labelled, judged.sum() / labelled.sum(), 0)
    counts = lam * of_judge + (share - lam * of_judge) * scale
    return _games(answers, np.where(judged, counts, 0))


def _is_selected(drawn: np.ndarray, judged: np.ndarray) -> bool:
    """Whether verdicts are missing on more than `MOST_UNJUDGED` of the random labels."""
    return bool(drawn.any() and (drawn & ~judged).sum() > MOST_UNJUDGED * drawn.sum())


def _answer(counts: np.ndarray) -> np.ndarray:
    """(3, …) answers to their mean, NaN where there are none."""
    n = counts.sum(axis=0)
    mean = np.full(counts.shape[1:], np.nan)
    np.divide(counts[0] + counts[1] / 2, n, out=mean, where=n > 0)
    return mean


def _pairs(answers: Answers) -> np.ndarray:
    """Keys (smaller place · sources + larger) of the pairs of sources, most answers first."""
    low = np.minimum(answers.first, answers.second)
    keys = low * len(answers.sources) + np.maximum(answers.first, answers.second)
    distinct, pair = np.unique(keys, return_inverse=True)
    size = np.bincount(pair, 1 + answers.people.sum(axis=0), minlength=len(distinct))
    return distinct[np.argsort(-size, kind="stable")]


def pair_figures(answers: Answers, a: int, b: int, judge: str | None) -> dict[str, Any]:
    """How often A is preferred to B, three ways; a and b are places in the sources.

    Returns: figures "people", "judge", "combined", "corrected" (Rogan-Gladen), "more" (labels that
        decide), "sequential" (an interval for every look); "a", "b" (names).
    """
    one = _between(answers, a, b)
    answer = _answer(one.people)
    labelled = ~np.isnan(answer)
    people = win_rate(answer[labelled], one.prompt[labelled])
    verdict = one.judges.get(judge or "", np.full(len(one), np.nan))
    judged = ~np.isnan(verdict)
    if not judged.any():
        by_judge = combined = corrected = refused(NO_JUDGE, n=0)
    else:
        by_judge = win_rate(verdict[judged], one.prompt[judged])
        combined, corrected = _combined(one, answer, verdict)
    known = ~np.isnan(one.first_answer)
    order = np.argsort(one.first_at[known], kind="stable")
    # One answer a prompt, its first: others of the prompt would not be new evidence.
    _prompts, earliest = np.unique(one.prompt[known][order], return_index=True)
    in_order = one.first_answer[known][order][np.sort(earliest)]
    best = people if combined["value"] is None else combined
    return {
        "a": answers.sources[a],
        "b": answers.sources[b],
        "people": people,
        "judge": by_judge,
        "combined": combined,
        "corrected": corrected,
        "more": labels_to_decide(best),
        "sequential": sequential_win_rate(in_order),
    }


def only(answers: Answers, keys: Collection[int]) -> Answers:
    """Those of the answers that are about these comparisons."""
    mask = np.isin(answers.keys, np.fromiter(keys, dtype=np.int64, count=len(keys)))
    return replace(
        answers,
        keys=answers.keys[mask],
        prompt=answers.prompt[mask],
        first=answers.first[mask],
        second=answers.second[mask],
        length_first=answers.length_first[mask],
        length_second=answers.length_second[mask],
        people=answers.people[:, mask],
        random=answers.random[:, mask],
        probability=answers.probability[mask],
        first_answer=answers.first_answer[mask],
        first_at=answers.first_at[mask],
        judges={name: verdict[mask] for name, verdict in answers.judges.items()},
        style=answers.style[mask],
    )


def _between(answers: Answers, a: int, b: int) -> Answers:
    """The comparisons of A and B, turned so that A is the first."""
    straight = (answers.first == a) & (answers.second == b)
    turned = (answers.first == b) & (answers.second == a)
    mask = straight | turned
    back = turned[mask]

    def counts(all_counts: np.ndarray) -> np.ndarray:
        return np.where(back, all_counts[::-1, mask], all_counts[:, mask])

    def share(values: np.ndarray) -> np.ndarray:
        return np.where(back, 1 - values[mask], values[mask])

    return replace(
        answers,
        keys=answers.keys[mask],
        prompt=answers.prompt[mask],
        first=np.full(mask.sum(), a),
        second=np.full(mask.sum(), b),
        length_first=np.where(back, answers.length_second[mask], answers.length_first[mask]),
        length_second=np.where(back, answers.length_first[mask], answers.length_second[mask]),
        people=counts(answers.people),
        random=counts(answers.random),
        probability=answers.probability[mask],
        first_answer=share(answers.first_answer),
        first_at=answers.first_at[mask],
        judges={name: share(verdict) for name, verdict in answers.judges.items()},
        style=answers.style[mask],
    )


def _combined(one: Answers, answer: np.ndarray, verdict: np.ndarray) -> tuple[Figure, Figure]:
    """Prediction-powered and Rogan-Gladen figures, or the reason why the labels do not allow it."""
    judged = ~np.isnan(verdict)
    random = _answer(one.random)
    labelled, drawn = judged & ~np.isnan(answer), judged & ~np.isnan(random)
    rest = judged & ~drawn
    n = int(labelled.sum())
    if not n:
        why = gettext_noop("No comparison has both a person's label and a verdict.")
        return refused(why, n=0), refused(why, n=0)
    if labelled[judged].all():
        why = gettext_noop("People have labelled every comparison: the judge has nothing to add.")
        return refused(why, n=n), refused(why, n=n)
    if _is_selected(~np.isnan(random), judged):
        return refused(NOT_JUDGED, n=n), refused(NOT_JUDGED, n=n)
    if drawn.any():
        return (
            prediction_powered(
                random[drawn], verdict[drawn], one.prompt[drawn], verdict[rest], one.prompt[rest]
            ),
            rogan_gladen(random[drawn], verdict[drawn], verdict[rest]),
        )
    if not np.isnan(one.probability[labelled]).any():
        figure = active_inference(
            answer[judged], verdict[judged], one.probability[judged], one.prompt[judged]
        )
        return figure, refused(NOT_RANDOM, n=n)
    return refused(NOT_RANDOM, n=n), refused(NOT_RANDOM, n=n)
