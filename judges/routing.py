"""The router: what judges may decide alone leaves the human queue, the rest comes in an order.

The random design stays as it was. Which comparisons belong to the audit stream follows from their
random keys alone, and the router never takes one of them away from people, whatever the judges
say. See docs/routing.md for what that means for estimates.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence

from django.db import connection, transaction
from django.db.models import Avg, Count, F, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_noop

from judges.audit import chunks, count, decision, population, verdicts_of
from judges.certificates import Status, issue, policy_of, versions_of
from judges.models import (
    Certificate,
    JudgeVersion,
    RoutedComparison,
    RoutingPolicy,
    RoutingRun,
    Verdict,
)
from labeling.changes import note_change
from labeling.events import notice_more_work
from labeling.jobs import Job, JobTaken, heartbeat
from labeling.models import Comparison, Preference, Project, Rater
from labeling.places import count_places

Kind, Purpose = RoutingRun.Kind, RoutingPolicy.Purpose
CHUNK = 500  # keys in one statement
STEP = 2_000  # rows taken back before others get their turn
TURN_SECONDS = 0.12
"""SQLite has one writer at a time, and who waits asks again every tenth of a second at the most: so
long a run leaves the database alone between two chunks, lest raters wait until it has ended."""
PRIORITIES = range(100)
"""The router's own; other priorities are a lead's, and stay."""


def carry_out(run: RoutingRun) -> None:
    """Do what the run is for. A run that was stopped goes on from its place.

    Raises: JobCancelled, JobTaken; NotReady where no test can be made.
    """
    project = run.project
    with heartbeat(run):
        if run.kind == Kind.WITHDRAW:
            withdraw(run)
        else:
            if run.kind in (Kind.COUNT, Kind.ISSUE):
                _count_and_test(run)
            if run.kind in (Kind.ISSUE, Kind.ROUTE):
                in_force = project.certificates.filter(status=Status.ACTIVE).first()
                if in_force is None or not _route(run, in_force):
                    withdraw(run)
    run.finish(Job.Status.SUCCEEDED, result=run.result)


def _count_and_test(run: RoutingRun) -> None:
    """Count, unless that was done before the run was stopped; then the test, once."""
    project, policy = run.project, policy_of(run.project)
    versions = versions_of(policy)
    if "counted" not in run.result:

        def on_progress(done: int, total: int) -> None:
            run.report(n_done=done, n_total=total)

        counted = count(project, versions, on_progress)
        run.report(result={"counted": counted})
    if run.kind == Kind.ISSUE and "certificate" not in run.result:
        with transaction.atomic():
            certificate = issue(project, policy, versions, run.result["counted"], run.created_by)
            result = run.result | {"certificate": certificate.pk}
            # Not by `report`: what it writes of a run that was cancelled would be rolled back.
            mine = RoutingRun.objects.filter(
                pk=run.pk, status=Job.Status.RUNNING, worker=run.worker
            )
            if not mine.update(result=result):
                raise JobTaken(f"routing run {run.pk} went to another worker")
        run.report(result=result)


# Routing ------------------------------------------------------------------------------------------


def _route(run: RoutingRun, certificate: Certificate) -> bool:
    """Put the whole project in the order that the certificate wants; False if it was revoked
    meanwhile.

    Every chunk is one transaction that holds the certificate's row, so after a revocation nothing
    more is let stand.
    """
    project, policy = run.project, policy_of(run.project)
    share = project.audit_share
    stages = [
        (stage.version, stage.threshold)
        for stage in certificate.stages.select_related("version__rater")
        if stage.threshold is not None
    ]
    first = certificate.stages.select_related("version").first().version
    order = Order(project, policy.purpose, first)
    rows = population(project)
    run.report(n_done=0, n_total=rows.filter(pk__gt=run.routed_to).count())
    moved = {"left_queue": 0, "put_back": 0, "certified": 0, **run.result.get("moved", {})}
    n_done = 0
    for chunk in chunks(rows, run.routed_to):
        pks, last = [row[0] for row in chunk], chunk[-1][0]
        said = [(verdicts_of(version, pks[0], last), low) for version, low in stages]
        decided: dict[int, int] = {}
        for pk in pks:
            found = decision(pk, said) if pk <= certificate.last_comparison else None
            if found is not None:
                decided[pk] = found[0]
        out = {pk for pk, key, _open, _wanted in chunk if pk in decided and key >= share}
        with transaction.atomic():
            locked = Certificate.objects.select_for_update().get(pk=certificate.pk)
            if locked.status != Status.ACTIVE:
                return False
            n_left, n_back = _move(certificate, pks, out)
            moved["left_queue"] += n_left
            moved["put_back"] += n_back
            moved["certified"] += _mark(
                pks, {pk: stages[k][0].rater_id for pk, k in decided.items()}
            )
            order.apply([pk for pk in pks if pk not in out])
        let_others_write()
        n_done += len(chunk)
        run.report(n_done=n_done, routed_to=last, result=run.result | {"moved": moved})
    with transaction.atomic():
        now = timezone.now()
        Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        standing = Certificate.objects.filter(pk=certificate.pk, status=Status.ACTIVE)
        if not standing.update(routed_share=share):
            return False
        Project.objects.filter(pk=project.pk).update(certificate_in_force=True)
        project.certificates.filter(status=Status.REVOKED, withdrawn_at=None).update(
            withdrawn_at=now
        )
        note_change(
            project, run.created_by, gettext_noop("route comparisons"), certificate, after=moved
        )
    if moved["put_back"]:
        notice_more_work(project.pk)
    return True


def _move(certificate: Certificate, pks: Sequence[int], out: set[int]) -> tuple[int, int]:
    """Let comparisons leave the queue, and others of these return to it; how many each.

    What somebody holds stays in their hands and counts as wanted. A comparison that left before and
    for which a lead wants labels again is left to people.
    """
    routed = RoutedComparison.objects.filter(comparison__gte=pks[0], comparison__lte=pks[-1])
    here = set(pks)
    known = {pk for pk in routed.values_list("comparison", flat=True) if pk in here}
    n_left = 0
    for part in _parts(sorted(out - known)):
        rows = Comparison.objects.filter(pk__in=part, open_places__gt=0)
        locked = rows.select_for_update(no_key=True).order_by("pk")
        open_now = list(locked.values_list("pk", flat=True))
        _remember(certificate, open_now)
        Comparison.objects.filter(pk__in=open_now).update(
            labels_wanted=F("labels_wanted") - F("open_places"), open_places=0
        )
        n_left += len(open_now)
    for part in _parts(sorted(out & known)):
        RoutedComparison.objects.filter(comparison__in=part).update(certificate=certificate)
    return n_left, put_back(sorted(known - out))


def _remember(certificate: Certificate, pks: Sequence[int]) -> None:
    """Write down what these comparisons want and will want. In SQL, because the ORM takes longer to
    make the rows than the database to keep them."""
    if not pks:
        return
    routed, compared = RoutedComparison._meta.db_table, Comparison._meta.db_table
    marks = ", ".join(["%s"] * len(pks))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {routed} (certificate_id, comparison_id, wanted_before, wanted_now) "  # noqa: S608 - our own names alone
            f"SELECT %s, id, labels_wanted, labels_wanted - open_places FROM {compared} "
            f"WHERE id IN ({marks})",
            [certificate.pk, *pks],
        )


def put_back(pks: Sequence[int]) -> int:
    """Let comparisons want the labels again that they wanted before they left the queue, unless
    somebody has changed that since; how many rows were taken away."""
    n = 0
    for part in _parts(pks):
        with transaction.atomic():
            locked = Comparison.objects.filter(pk__in=part).select_for_update(no_key=True)
            wanted = dict(locked.order_by("pk").values_list("pk", "labels_wanted"))
            rows = list(RoutedComparison.objects.filter(comparison__in=part))
            by_wanted: dict[int, list[int]] = {}
            for row in rows:
                if wanted[row.comparison_id] == row.wanted_now:
                    by_wanted.setdefault(row.wanted_before, []).append(row.comparison_id)
            for before, some in by_wanted.items():
                Comparison.objects.filter(pk__in=some).update(labels_wanted=before)
            RoutedComparison.objects.filter(pk__in=[row.pk for row in rows]).delete()
            count_places(pk for some in by_wanted.values() for pk in some)
            n += len(rows)
    return n


def _mark(pks: Sequence[int], rater_of: dict[int, int]) -> int:
    """Let the answers of these raters to these comparisons stand alone, and no other answers to
    any of `pks`; how many stand."""
    n = 0
    for part in _parts(pks):
        # By the comparison alone: asked for a rater too, SQLite would read all that they ever said.
        answers = Preference.objects.filter(comparison__in=part)
        rows = answers.values_list("pk", "comparison", "rater", "superseded_at", "certified")
        stand, fallen = [], []
        for pk, comparison, rater, superseded_at, is_certified in rows:
            if superseded_at is None and rater_of.get(comparison) == rater:
                n += 1
                if not is_certified:
                    stand.append(pk)
            elif is_certified:
                fallen.append(pk)
        Preference.objects.filter(pk__in=fallen).update(certified=False)
        Preference.objects.filter(pk__in=stand).update(certified=True)
    return n


def withdraw(run: RoutingRun) -> None:
    """Take back what certificates let stand: no answer is certified any more, and comparisons
    return to people. Chunk by chunk; called again, it goes on."""
    project = run.project
    # By one certificate and one judge at a time: the next ones then come in the order of an index,
    # without all that is left being read and sorted for every chunk.
    routed = [
        RoutedComparison.objects.filter(certificate=certificate).order_by("comparison")
        for certificate in project.certificates.all()
    ]
    marked = [
        Preference.objects.filter(rater=rater, certified=True).order_by("pk")
        for rater in project.raters.filter(kind=Rater.Kind.JUDGE)
    ]
    run.report(n_done=0, n_total=sum(rows.count() for rows in (*routed, *marked)))
    taken = {"put_back": 0, "no_longer_certified": 0}
    # The answers first: what people have not decided yet is then nobody's, instead of a judge's.
    for answers in marked:
        for pks in _in_steps(answers, "pk"):
            taken["no_longer_certified"] += Preference.objects.filter(pk__in=pks).update(
                certified=False
            )
            let_others_write()
            run.report(n_done=sum(taken.values()))
    for comparisons in routed:
        for pks in _in_steps(comparisons, "comparison"):
            taken["put_back"] += put_back(pks)
            let_others_write()
            run.report(n_done=sum(taken.values()))
    with transaction.atomic():
        project.certificates.filter(status=Status.REVOKED, withdrawn_at=None).update(
            withdrawn_at=timezone.now()
        )
        if any(taken.values()):
            action = gettext_noop("withdraw certified labels")
            note_change(project, run.created_by, action, project, after=taken)
    if taken["put_back"]:
        notice_more_work(project.pk)
    run.report(result=run.result | {"withdrawn": taken})


def let_others_write() -> None:
    """After a chunk, where the database has one writer at a time."""
    if connection.vendor == "sqlite":
        time.sleep(TURN_SECONDS)


# The order of what is left ------------------------------------------------------------------------


class Order:
    """Priorities for comparisons that people decide, by what the first judge says of them."""

    def __init__(self, project: Project, purpose: str, version: JudgeVersion) -> None:
        self.purpose, self.version = purpose, version
        self.open_questions = (
            undecided_pairs(project, version) if purpose == Purpose.EVALUATION else {}
        )

    def apply(self, pks: Sequence[int]) -> None:
        """Give the open ones of these their place; those with a lead's own priority keep it."""
        if not self.purpose:
            return
        # By what they become: a statement for each priority, where one that names each row's own
        # takes the ORM longer to write than the database to carry out.
        moved: dict[int, list[int]] = {}
        for part in _parts(pks):
            rows = Comparison.objects.filter(
                pk__in=part,
                open_places__gt=0,
                priority__range=(PRIORITIES[0], PRIORITIES[-1]),
            )
            locked = rows.select_for_update(no_key=True).order_by("pk")
            present = dict(locked.values_list("pk", "priority"))
            sources = self._sources(present)
            for verdict in Verdict.objects.filter(
                version=self.version, comparison__in=list(present), parsed=True
            ).only("comparison", "prob_a", "standard_error", *LOGPS):
                pk = verdict.comparison_id
                priority = round(PRIORITIES[-1] * self.urgency(verdict, sources.get(pk)))
                if present[pk] != priority:
                    moved.setdefault(priority, []).append(pk)
        for priority, some in moved.items():
            Comparison.objects.filter(pk__in=some).update(priority=priority)

    def _sources(self, pks: Iterable[int]) -> dict[int, frozenset[str]]:
        """The two models of each comparison, where the purpose asks for them."""
        if self.purpose != Purpose.EVALUATION:
            return {}
        rows = Comparison.objects.filter(pk__in=list(pks))
        found = rows.values_list("pk", "response_a__source", "response_b__source")
        return {pk: frozenset(pair) for pk, *pair in found}

    def urgency(self, verdict: Verdict, sources: frozenset[str] | None) -> float:
        """How much a person's answer would be worth, from 0 to 1: see docs/routing.md."""
        if self.purpose == Purpose.REWARD_MODEL:
            return near_tie(verdict.prob_a)
        if self.purpose == Purpose.DPO:
            return uncertain_gap(verdict)
        return 2 * spread(verdict.prob_a) * self.open_questions.get(sources, 1.0)


LOGPS = ("logp_ab_first", "logp_ab_second", "logp_ba_first", "logp_ba_second")


def near_tie(prob_a: float) -> float:
    """1 where the judge cannot tell, 0 where it is certain."""
    return 1 - abs(2 * prob_a - 1)


def uncertain_gap(verdict: Verdict) -> float:
    """How large the difference could be: |s| + u, squeezed to [0, 1), where s is the logit over
    both orders and u how far it may be off, i.e. half the difference of the orders' logits, or the
    standard error where rationales are drawn.

    Source: an upper confidence bound of the gap, as in DeltaUCB for choosing pairs for DPO.
    """
    prob = min(max(verdict.prob_a, 1e-6), 1 - 1e-6)
    off = 0.0
    if verdict.logp_ab_first is not None and verdict.logp_ba_second is not None:
        ab = verdict.logp_ab_first - verdict.logp_ab_second
        ba = verdict.logp_ba_second - verdict.logp_ba_first
        off = abs(ab - ba) / 2
    if verdict.standard_error:
        off = max(off, verdict.standard_error / (prob * (1 - prob)))
    if not off:
        return 0.0  # certain of its gap, as far as anybody can see
    return math.tanh((abs(math.log(prob / (1 - prob))) + off) / 4)


def spread(prob_a: float) -> float:
    """√(p (1 − p)), to which the best probability of asking people is proportional.

    Source: active statistical inference, Zrnic & Candès, arXiv:2403.03208.
    """
    return math.sqrt(prob_a * (1 - prob_a))


def undecided_pairs(project: Project, version: JudgeVersion) -> dict[frozenset[str], float]:
    """{two models: how open it is which of them is better}: 1 where the judge's win rate is one
    half, near 0 where it is many standard errors away (the two-sided normal p-value)."""
    verdicts = Verdict.objects.filter(
        version=version, parsed=True, comparison__project=project, comparison__purpose="work"
    )
    sums: dict[frozenset[str], list[float]] = {}
    by_pair = verdicts.order_by().values_list(
        "comparison__response_a__source", "comparison__response_b__source"
    )
    for a, b, n, mean in by_pair.annotate(n=Count("pk"), mean=Avg("prob_a")):
        pair = sums.setdefault(frozenset((a, b)), [0.0, 0.0])
        pair[0] += n
        pair[1] += n * (mean - 0.5) * (1 if a <= b else -1)
    return {
        pair: math.erfc(abs(total) / math.sqrt(max(n, 1) / 4) / math.sqrt(2))
        for pair, (n, total) in sums.items()
    }


def _in_steps(rows: QuerySet, key: str) -> Iterator[list[int]]:
    """The keys of rows that lose their place here as they are dealt with, a chunk at a time. After
    the last one: from the beginning, PostgreSQL would walk over all that were there before."""
    last = 0
    while pks := list(rows.filter(**{f"{key}__gt": last}).values_list(key, flat=True)[:STEP]):
        yield pks
        last = pks[-1]


def _parts(keys: Sequence[int]) -> list[Sequence[int]]:
    return [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
