"""The first rows of a file as the import would read them, before anything is written."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from django.utils.translation import gettext as _

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import rows_of
from labeling.imports.importing import form_of
from labeling.imports.interchange import BadRow, Row
from labeling.imports.rated import RatedRow
from labeling.imports.reading import FileProblem, read_records
from labeling.leaks import leaks_of

LOOKED_AT = 50
SHOWN = 5
MAX_PREVIEW_BYTES = 64 * 1024 * 1024


@dataclass
class Preview:
    form: str = ""
    n_records: int = 0  # records looked at; there may be more
    n_rejected: int = 0
    n_preferences: int = 0
    n_verdicts: int = 0
    n_ratings: int = 0
    rows: list[tuple[int, Row | RatedRow]] = field(default_factory=list)  # (line, row)
    reasons: list[tuple[int, str]] = field(default_factory=list)  # (line, reason)
    raters: list[str] = field(default_factory=list)
    n_leaks: int = 0  # comparisons in which a response names a model or its maker
    leaks: list[str] = field(default_factory=list)
    problem: str = ""  # why nothing can be shown


def preview(path: Path, form: str = "auto", labels: Labels | None = None) -> Preview:
    """What the first records of a file would become. Never raises for what is in the file."""
    shown = Preview()
    raters: Counter[str] = Counter()
    leaks: Counter[str] = Counter()
    try:
        records = read_records(path, max_bytes=MAX_PREVIEW_BYTES)
        shown.form, records = form_of(records, form)
        for record in islice(records, LOOKED_AT):
            if not record.line and shown.n_records:
                break  # the preview's own limit on what a file unpacks to
            shown.n_records += 1
            try:
                if record.problem:
                    raise BadRow(record.problem)
                rows, problems = rows_of(record.value, shown.form, labels or Labels())
            except BadRow as problem:
                shown.n_rejected += 1
                shown.reasons.append((record.line, str(problem)))
                continue
            bad = problems + [reason for row in rows for reason in row.bad_votes]
            shown.reasons += [(record.line, reason) for reason in bad]
            for row in rows:
                if isinstance(row, RatedRow):
                    shown.n_ratings += len(row.votes)
                    raters.update(vote.rater for vote in row.votes)
                    if len(shown.rows) < SHOWN:
                        shown.rows.append((record.line, row))
                    continue
                n_people = sum(vote.kind == "person" for vote in row.votes)
                shown.n_preferences += n_people
                shown.n_verdicts += len(row.votes) - n_people
                raters.update(vote.rater for vote in row.votes)
                names = leaks_of(
                    row.prompt, (row.response_a, row.model_a), (row.response_b, row.model_b)
                )
                shown.n_leaks += bool(names)
                leaks.update(names)
                # a list of responses is shown once, not pair by pair
                is_shown = row.response_list is not None and row is not rows[0]
                if len(shown.rows) < SHOWN and not is_shown:
                    shown.rows.append((record.line, row))
    except FileProblem as problem:
        shown.problem = str(problem)
    if not shown.n_records and not shown.problem:
        shown.problem = _("The file is empty: there is no record in it.")
    shown.leaks = [name for name, _n in leaks.most_common(8)]
    shown.raters = [name for name, _n in raters.most_common(8)]
    return shown
