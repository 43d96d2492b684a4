"""Is the judge still the one that was chosen? A few fixed questions, asked again.

A server may change its model without a word, and a folder its weights. So the chosen judge's
answers to a small set of comparisons are kept (the probe), together with a fingerprint of what gave
them. When the fingerprint changes, or when somebody asks, the probe is asked again; a test that is
stated with its numbers decides whether the answers differ more than they may.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from math import comb
from pathlib import Path
from typing import Any

from django.db import transaction

from judges.engines import model_place, opened
from judges.ml.verdict import read_both_orders
from judges.models import ChosenJudge, DriftCheck, JudgeVersion, Probe, Verdict
from labeling.jobs import Job, heartbeat
from labeling.models import Comparison, Project

PROBES = 50
MOVED = 0.05
"""A probability that differs by more than this has moved; less is the arithmetic of another machine
or another batch."""
EXPECTED = 0.02
"""Share of probes that may move for such reasons."""
RATE = 0.01
"""How often a judge that has not changed may be called changed."""
WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def keep_probe(version: JudgeVersion, comparisons: Sequence[int] | None = None) -> Probe | None:
    """The version's probe, made now if there is none; None while it has no readable verdict.

    Args:
        comparisons: take probes from these first, such as an experiment's.
    """
    found = Probe.objects.filter(version=version).first()
    if found is not None:
        return found
    said = Verdict.objects.filter(version=version, parsed=True)
    preferred = list(said.filter(comparison__in=(comparisons or [])[:500]).order_by("pk")[:PROBES])
    if len(preferred) < PROBES:
        more = said.exclude(pk__in=[verdict.pk for verdict in preferred]).order_by("pk")
        preferred += list(more[: PROBES - len(preferred)])
    if not preferred:
        return None
    answers = [
        {
            "comparison": verdict.comparison_id,
            "probs": [
                verdict.prob_a,
                *_in_each_order(
                    (verdict.logp_ab_first, verdict.logp_ab_second, verdict.logp_ab_tie),
                    (verdict.logp_ba_first, verdict.logp_ba_second, verdict.logp_ba_tie),
                ),
            ],
            "standard_error": verdict.standard_error,
        }
        for verdict in preferred
    ]
    return Probe.objects.create(
        version=version,
        answers=answers,
        fingerprint=fingerprint_of(version),
        told=sorted({one for verdict in preferred for one in verdict.raw.get("server_told", ())}),
    )


def fingerprint_of(version: JudgeVersion) -> str:
    """What tells one state of the model's files from another; "" where there are none on this
    machine, as behind a jury. What a server tells of its model comes with the answers: see
    `check_if_told_anew`."""
    if version.server is not None or not version.model:
        return ""
    folder = Path(model_place(version.judge.project, version.model))
    return folder_fingerprint(folder) if folder.is_dir() else ""


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the model's files. Files of the same size and time as at the last look are not
    read again: gigabytes take seconds."""
    files = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    if not files:
        return ""
    parts = []
    for path in files:
        stat = path.stat()
        seen = (str(path), stat.st_size, stat.st_mtime_ns)
        if seen not in _HASHES:
            with path.open("rb") as file:
                _HASHES[seen] = hashlib.file_digest(file, "sha256").hexdigest()
        parts.append((path.name, _HASHES[seen]))
    return "files:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


_HASHES: dict[tuple[str, int, int], str] = {}
"""Of files that this process has read."""


@transaction.atomic
def new_check(
    probe: Probe, *, reason: str = "asked", user: Any = None, told: Collection[str] = ()
) -> DriftCheck:
    """A queued check, or the one that waits or works already. The caller wakes a worker.

    Args: told: by the judge's server; known once the check has succeeded.
    """
    Probe.objects.select_for_update().get(pk=probe.pk)
    active = probe.checks.active().first()
    if active is not None:
        active.told = sorted({*active.told, *told})
        active.save(update_fields=["told"])
        return active
    return DriftCheck.objects.create(
        probe=probe,
        reason=reason,
        told=sorted(told),
        n_total=len(probe.answers),
        created_by=user if user is not None and user.is_authenticated else None,
    )


def check_if_changed(version: JudgeVersion) -> DriftCheck | None:
    """A queued check if the model of a project's judge is not what it was when last looked at. The
    caller wakes a worker."""
    probe = Probe.objects.filter(version=version, version__pk__in=_chosen()).first()
    if probe is None:
        return None
    fingerprint = fingerprint_of(version)
    last = probe.checks.filter(status=Job.Status.SUCCEEDED).order_by("-pk").first()
    known = last.fingerprint if last else probe.fingerprint
    if not fingerprint or fingerprint == known:
        return None
    return new_check(probe, reason=DriftCheck.Reason.CHANGED)


def check_if_told_anew(version: JudgeVersion, told: Collection[str]) -> DriftCheck | None:
    """A queued check if the server of a project's judge tells something of its model that it did
    not tell with the probe, nor at a check since; the caller wakes a worker. None where a check
    waits or works already.

    A server may have several machines, each with words of its own: what was known once, stays
    known. Where nothing is known of what gave the probe, the first word is news.
    """
    probe = Probe.objects.filter(version=version, version__pk__in=_chosen()).first()
    if probe is None:
        return None
    known = set(probe.told)
    for row in probe.checks.filter(status=Job.Status.SUCCEEDED).values_list("told", flat=True):
        known.update(row)
    news = set(told) - known
    if not news:
        return None
    at_work = probe.checks.active().exists()
    check = new_check(probe, reason=DriftCheck.Reason.CHANGED, told=news)
    return None if at_work else check


def _chosen() -> Any:
    return ChosenJudge.objects.values("version")


def carry_out_check(check: DriftCheck, *, device: str = "") -> None:
    """Ask the probe again and store how far the answers moved; see `drift_test` for the result.

    Raises: JobCancelled, JobTaken; ModelUnusable, EngineStopped when the judge cannot be asked.
    """
    version = check.probe.version
    before = {row["comparison"]: row for row in check.probe.answers}
    rows = Comparison.objects.filter(pk__in=list(before)).select_related(
        "prompt", "response_a", "response_b"
    )
    comparisons = list(rows)
    fingerprint = fingerprint_of(version)
    told: set[str] = set()
    pairs = []
    with heartbeat(check):
        for batch in opened(version, device=device, anew=True)(comparisons):
            for place, outcome in batch:
                kept = before[comparisons[place].pk]
                told.update(outcome.raw.get("server_told", ()))
                pairs.append(
                    {
                        "comparison": kept["comparison"],
                        "before": kept["probs"],
                        "after": [
                            outcome.prob_a,
                            *_in_each_order(outcome.logp_ab, outcome.logp_ba),
                        ]
                        if outcome.parsed
                        else None,
                        "standard_error": max(
                            kept["standard_error"] or 0.0, outcome.standard_error or 0.0
                        ),
                    }
                )
            check.report(n_done=len(pairs))
    check.refresh_from_db(fields=["told"])  # a run may have been told something meanwhile
    check.finish(
        Job.Status.SUCCEEDED,
        fingerprint=fingerprint,
        told=sorted(told.union(check.told)),
        result=drift_test(pairs),
    )


def _in_each_order(
    logp_ab: Sequence[float | None], logp_ba: Sequence[float | None]
) -> tuple[float, ...]:
    """The probability of A with A shown first, and with B shown first; nothing from judges that are
    not shown both. A change of the leaning to a place moves these, and not their mean."""
    ab, ba = (tuple(logp for logp in one if logp is not None) for one in (logp_ab, logp_ba))
    if len(ab) < 2 or len(ba) < 2:
        return ()
    reading = read_both_orders(ab, ba)
    return reading.prob_a_ab, reading.prob_a_ba


def drift_test(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Do answers differ more than they may?

    An answer has moved if it cannot be read any more, or if a probability of it, over both orders
    or in one of them, differs by more than `MOVED` (and, where rationales are drawn, by more than
    three standard errors of a difference).
    The judge has drifted if so many moved that, were the chance of it `EXPECTED` each, it would
    happen less often than `RATE`: the exact binomial test, one-sided.

    Args:
        pairs: {"comparison", "before", "after", "standard_error"} each; before and after are the
            probability that A is better, then those of each order if there are any; after is None
            where it cannot be read any more.
    Returns: {"n", "n_moved", "n_turned" (name the other response now), "p_value", "drifted",
        "mean_shift" (mean absolute difference), "moved": the furthest of them}.
    """
    rows = []
    for pair in pairs:
        gone = pair["after"] is None
        before, after = pair["before"], pair["after"] or [None]
        shift = 1.0 if gone else max(abs(x - y) for x, y in zip(before, after, strict=False))
        allowed = max(MOVED, 3 * 2**0.5 * pair["standard_error"])
        turned = not gone and (after[0] - 0.5) * (before[0] - 0.5) < 0
        rows.append(
            {
                "comparison": pair["comparison"],
                "before": before[0],
                "after": after[0],
                "shift": shift,
                "moved": shift > allowed,
                "turned": turned,
            }
        )
    n, n_moved = len(rows), sum(row["moved"] for row in rows)
    readable = [row["shift"] for row in rows if row["after"] is not None]
    p_value = chance_of_more(n_moved, n, EXPECTED)
    furthest = sorted((row for row in rows if row["moved"]), key=lambda row: -row["shift"])
    return {
        "n": n,
        "n_moved": n_moved,
        "n_turned": sum(row["turned"] for row in rows),
        "p_value": p_value,
        "drifted": p_value < RATE,
        "mean_shift": sum(readable) / len(readable) if readable else None,
        "moved": [
            {name: row[name] for name in ("comparison", "before", "after")} for row in furthest[:10]
        ],
    }


def chance_of_more(k: int, n: int, p: float) -> float:
    """P(k or more of n), each with chance p."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def notice_of(project: Project) -> DriftCheck | None:
    """The newest finished check of the project's judge, if it says that the judge has drifted and
    nobody has said that this is known."""
    checks = DriftCheck.objects.filter(
        probe__version__in=ChosenJudge.objects.filter(project=project).values("version"),
        status=Job.Status.SUCCEEDED,
    )
    newest = checks.select_related("probe__version__judge").order_by("-pk").first()
    if newest is None or not newest.result.get("drifted") or newest.known_at is not None:
        return None
    return newest
