"""The forms of files that are understood, recognised by their keys and made interchange records.

Our own stands here; those of other tools in foreign/, a file for each kind of source.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labeling.imports.foreign.argilla import (
    fits_argilla,
    fits_argilla_ratings,
    from_argilla,
    from_argilla_ratings,
)
from labeling.imports.foreign.battles import from_alpaca_eval, from_arena, from_arena_table
from labeling.imports.foreign.chosen import fits_hh, from_hh, from_openai, from_sharegpt, from_trl
from labeling.imports.foreign.columns import Labels, find_response_keys
from labeling.imports.foreign.label_studio import (
    fits_rated_tasks,
    from_label_studio,
    from_label_studio_min,
    from_rated_tasks,
)
from labeling.imports.foreign.ranked import (
    LIST_KEYS,
    fits_set,
    from_ranked,
    from_scored,
    join_as_set,
    read_ranked,
)
from labeling.imports.foreign.ratings import (
    HELPSTEER,
    fits_ratings,
    from_helpsteer,
    from_ratings,
    from_trl_kto,
)
from labeling.imports.foreign.tables import fits_votes, from_pairs, from_votes
from labeling.imports.interchange import BadRow, Row, check_storable, parse_row, parse_votes
from labeling.imports.rated import RatedRow, parse_rated
from labeling.imports.sets import rows_of_set
from labeling.models import Rater


@dataclass(frozen=True)
class Form:
    name: str
    fits: Callable[[dict[str, Any]], bool]
    convert: Callable[[dict[str, Any], Labels], list[dict[str, Any]]]


def recognise(values: list[Any]) -> str:
    """The form that fits most of these records; "unknown" if none fits any."""
    found: Counter[str] = Counter()
    for value in values:
        name = form_name(value) if isinstance(value, dict) else None
        if name:
            found[name] += 1
    return found.most_common(1)[0][0] if found else "unknown"


def form_name(record: dict[str, Any]) -> str | None:
    """The first form whose keys are in the record."""
    return next((form.name for form in FORMS if form.fits(record)), None)


def rows_of(value: Any, form: str, labels: Labels) -> tuple[list[Row] | list[RatedRow], list[str]]:
    """A record of the named form as rows, and reasons for parts of it that were left out.

    Raises: BadRow if nothing of it can be used.
    """
    if not isinstance(value, dict):
        raise BadRow("no JSON object: one object per comparison is wanted")
    check_storable(value)
    converter = _BY_NAME.get(form)
    if converter is None:
        keys = ", ".join(sorted(map(str, value))[:8]) or "none"
        raise BadRow(f"no known form of comparison; its keys are: {keys}")
    if form not in _LENIENT and not converter.fits(value):
        raise BadRow(f"this is no record of the form {form}")
    if form == "interchange" and "responses" in value:
        return rows_of_set(value), []
    try:
        records = converter.convert(value, labels)
    except KeyError as missing:
        raise BadRow(f"`{missing.args[0]}` is missing") from missing
    if form in RATED_FORMS:
        of_nobody = (labels.rater, labels.kind, labels.scale)
        return [parse_rated(record, *of_nobody) for record in records], []
    if form == "votes":
        return [parse_votes(record) for record in records], []
    if len(records) == 1:
        return [parse_row(records[0])], []
    rows, problems = [], []
    for record in records:
        try:
            rows.append(parse_row(record))
        except BadRow as problem:
            problems.append(str(problem))
    if not rows:
        raise BadRow(problems[0] if problems else "no two responses in it")
    if form == "ranked" and not problems:
        join_as_set(rows, read_ranked(value, labels))
    return rows, problems


def _from_interchange(record: dict[str, Any], _labels: Labels) -> list[dict[str, Any]]:
    """As it is; a table has one vote a row, in columns of its own."""
    has_lists = record.get("preferences") or record.get("verdicts")
    if has_lists or record.get("rater") in (None, "") or record.get("choice") in (None, ""):
        return [record]
    key = "verdicts" if record.get("kind") == Rater.Kind.JUDGE else "preferences"
    return [record | {key: [{name: record.get(name) for name in _VOTE_COLUMNS}]}]


_VOTE_COLUMNS = ("rater", "choice", "strength", "prob_a", "prob_a_ab", "prob_a_ba", "seconds")
_VOTE_COLUMNS += ("shown_first", "rationale", "tags", "aspects", "audit", "inclusion_probability")
_VOTE_COLUMNS += ("created_at",)


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


# The first that fits is taken: the more particular ones stand first.
FORMS = (
    Form("label-studio-ratings", fits_rated_tasks, from_rated_tasks),
    Form("argilla-ratings", fits_argilla_ratings, from_argilla_ratings),
    Form(
        "label-studio",
        lambda r: isinstance(r.get("data"), dict) and ("annotations" in r or "predictions" in r),
        from_label_studio,
    ),
    Form(
        "label-studio-min",
        lambda r: {"annotation_id", "annotator"} <= r.keys() and find_response_keys(r) is not None,
        from_label_studio_min,
    ),
    Form("argilla", fits_argilla, from_argilla),
    Form(
        "arena",
        lambda r: _are_turns(r.get("conversation_a")) and _are_turns(r.get("conversation_b")),
        from_arena,
    ),
    Form("arena-table", lambda r: "winner_model_a" in r and "response_a" in r, from_arena_table),
    Form(
        "interchange",
        lambda r: {"prompt", "response_a", "response_b"} <= r.keys() or fits_set(r),
        _from_interchange,
    ),
    Form(
        "alpaca-eval",
        lambda r: {"instruction", "output_1", "output_2", "preference"} <= r.keys(),
        from_alpaca_eval,
    ),
    Form(
        "sharegpt",
        lambda r: (
            {"conversations", "chosen", "rejected"} <= r.keys()
            and isinstance(r["conversations"], list)
        ),
        from_sharegpt,
    ),
    Form("hh-rlhf", fits_hh, from_hh),
    Form(
        "openai",
        lambda r: {"input", "preferred_output", "non_preferred_output"} <= r.keys(),
        from_openai,
    ),
    Form("trl", lambda r: {"chosen", "rejected"} <= r.keys(), from_trl),
    Form(
        "scored",
        lambda r: isinstance(r.get("text"), list) and isinstance(r.get("score"), list),
        from_scored,
    ),
    Form(
        "ranked",
        lambda r: any(isinstance(r.get(key), list) for key in LIST_KEYS),
        from_ranked,
    ),
    Form("pairs", lambda r: find_response_keys(r) is not None, from_pairs),
    Form("trl-kto", lambda r: {"completion", "label"} <= r.keys(), from_trl_kto),
    Form("ratings", fits_ratings, from_ratings),
    Form(
        "helpsteer",
        lambda r: {"prompt", "response", *HELPSTEER[:2]} <= r.keys(),
        from_helpsteer,
    ),
    Form("votes", fits_votes, from_votes),
)
# These say themselves what a record lacks.
_LENIENT = ("interchange", "hh-rlhf", "trl", "trl-kto")
FORM_NAMES = tuple(form.name for form in FORMS)
# Forms of judgements of single responses.
RATED_FORMS = ("ratings", "trl-kto", "helpsteer", "label-studio-ratings", "argilla-ratings")
# Forms that may bring labels without saying whose they are.
UNNAMED_LABELS = ("sharegpt", "hh-rlhf", "openai", "trl", "scored", "ranked", "pairs", "votes")
UNNAMED_LABELS += ("ratings", "trl-kto", "helpsteer")
_BY_NAME = {form.name: form for form in FORMS}
