"""Certificates: issued by one test, and revoked by themselves when what they rest on changes."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Max
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from judges.audit import audit_labels, since, sources_of, stages_of
from judges.guarantee import contradicted, level_of_test
from judges.models import (
    Certificate,
    CertificateStage,
    ChosenJudge,
    DriftCheck,
    JudgeVersion,
    RoutingPolicy,
    RoutingRun,
)
from labeling.changes import note_change
from labeling.jobs import Job
from labeling.models import Notice, Preference, Project, content_hash
from labeling.notices import tell_leads

Status, Reason = Certificate.Status, Certificate.Reason
PAUSE_MINUTES = 10
"""The sweep leaves a run that was stopped alone for so long."""
MOST_JUDGES = 3
"""Each judge of a cascade has its own part of the audit labels and of δ."""


class NotReady(Exception):
    """No test can be made; the message says what is missing. Nothing of δ is spent."""


class RoutingActive(Exception):
    """A run of the project's routing waits or works."""


# What a lead wants --------------------------------------------------------------------------------


def policy_of(project: Project) -> RoutingPolicy:
    """The project's policy; one with the defaults, not saved, if none was set."""
    found = RoutingPolicy.objects.filter(project=project).first()
    return found or RoutingPolicy(project=project)


@transaction.atomic
def set_policy(project: Project, user: Any, **values: Any) -> RoutingPolicy:
    """Change the policy, and note what it was."""
    policy = RoutingPolicy.objects.select_for_update().filter(project=project).first()
    policy = policy or RoutingPolicy(project=project)
    before = {name: getattr(policy, name) for name in values}
    for name, value in values.items():
        setattr(policy, name, value)
    policy.save()
    by = user if user is not None and user.is_authenticated else None
    action = gettext_noop("set routing policy")
    note_change(project, by, action, project, before=before, after=values)
    return policy


def versions_of(policy: RoutingPolicy) -> list[JudgeVersion]:
    """The judges that decide, in their order: those of the policy, else the project's judge."""
    rows = JudgeVersion.objects.select_related("judge", "rater", "server")
    if policy.versions:
        found = rows.filter(judge__project=policy.project_id).in_bulk(policy.versions)
        return [found[pk] for pk in policy.versions if pk in found]
    chosen = ChosenJudge.objects.filter(project=policy.project_id).values("version")
    return list(rows.filter(pk__in=chosen))


def next_number(project: Project) -> int:
    """The number of the project's next test, which decides how much of δ it may use."""
    return (project.certificates.aggregate(last=Max("number"))["last"] or 0) + 1


# Issuing ------------------------------------------------------------------------------------------


@transaction.atomic
def issue(
    project: Project,
    policy: RoutingPolicy,
    versions: Sequence[JudgeVersion],
    counted: dict[str, Any],
    user: Any = None,
) -> Certificate:
    """Test what was counted, and keep the outcome: a certificate in force, or one not given.

    One in force takes the place of an earlier one. One not given leaves an earlier one standing:
    that rests on a test of its own.

    Raises: NotReady where no threshold has labels enough to be tried; such a look sees no answer
        and is no test.
    """
    Project.objects.select_for_update().get(pk=project.pk)  # one number for one test
    number = next_number(project)
    level = level_of_test(policy.delta, number)
    stages = stages_of(counted, policy.alpha, level, policy.starts)
    if all(step.state == "few" for stage in stages for step in stage.test.steps):
        least = stages[0].test.least
        raise NotReady(
            _(
                "Too few labels of the audit stream: a threshold needs %(least)s on what the judge "
                "is that sure of, and there are %(n)s in all."
            )
            % {"least": least, "n": counted["n_labels"]}
        )
    n_decided = sum(stage.n_decided for stage in stages)
    by = user if user is not None and user.is_authenticated else None
    if n_decided:
        for earlier in project.certificates.filter(status=Status.ACTIVE):
            revoke(earlier, Reason.REPLACED, user=by)
    certificate = Certificate.objects.create(
        project=project,
        number=number,
        status=Status.ACTIVE if n_decided else Status.REFUSED,
        alpha=policy.alpha,
        delta=policy.delta,
        level=level,
        starts=policy.starts,
        n_labels=counted["n_labels"],
        n_comparisons=counted["n_comparisons"],
        n_decided=n_decided,
        last_comparison=counted["last_comparison"],
        last_preference=counted["last_preference"],
        guidelines_hash=content_hash(project.guidelines),
        sources=sorted(sources_of(project, last=counted["last_comparison"])),
        looked_to=counted["last_comparison"],
        audited_to=counted["last_preference"],
        issued_by=by,
    )
    calibrations = dict(
        ChosenJudge.objects.filter(project=project).values_list("version", "calibration")
    )
    for position, (version, stage) in enumerate(zip(versions, stages, strict=True)):
        chosen = stage.test.chosen
        CertificateStage.objects.create(
            certificate=certificate,
            position=position,
            version=version,
            calibration_id=calibrations.get(version.pk),
            threshold=chosen.threshold if chosen else None,
            n=chosen.n if chosen else 0,
            errors=chosen.errors if chosen else 0,
            bound=chosen.bound if chosen else None,
            n_decided=stage.n_decided,
            steps=[vars(step) for step in stage.test.steps],
        )
    note_change(
        project,
        by,
        gettext_noop("test for a certificate"),
        certificate,
        after={
            "status": certificate.status,
            "alpha": policy.alpha,
            "delta": policy.delta,
            "judges": [str(version) for version in versions],
            "decided": n_decided,
        },
    )
    return certificate


# In force or not ----------------------------------------------------------------------------------


def live_certificate(project: Project) -> Certificate | None:
    """The certificate in force, if nothing it rests on has changed.

    Whoever relies on a certificate asks here: the sweep, which writes a revocation down and counts
    the running audit, comes once a minute.
    """
    certificate = project.certificates.filter(status=Status.ACTIVE).first()
    return certificate if certificate is not None and not why_void(certificate) else None


def why_void(certificate: Certificate) -> str:
    """The reason for which a certificate in force should not be; "" if there is none. A few
    queries; sources and the running audit are left to `tend`."""
    project = certificate.project
    stages = list(certificate.stages.all())
    if content_hash(project.guidelines) != certificate.guidelines_hash:
        return str(Reason.GUIDELINES)
    decide = [version.pk for version in versions_of(policy_of(project))]
    if decide != [stage.version_id for stage in stages]:
        return str(Reason.JUDGE)
    for stage in stages:
        checks = DriftCheck.objects.filter(
            probe__version=stage.version_id,
            status=Job.Status.SUCCEEDED,
            finished_at__gt=certificate.issued_at,
        )
        newest = checks.order_by("-pk").first()
        if newest is not None and newest.result.get("drifted"):
            return str(Reason.DRIFT)
    return ""


@transaction.atomic
def revoke(certificate: Certificate, reason: str, *, user: Any = None, note: str = "") -> bool:
    """End a certificate now; False if it was not in force.

    What it let stand is taken back by a worker: see `withdraw_if_due`.
    """
    project = Project.objects.select_for_update(no_key=True).get(pk=certificate.project_id)
    ended = Certificate.objects.filter(pk=certificate.pk, status=Status.ACTIVE).update(
        status=Status.REVOKED,
        revoked_at=timezone.now(),
        revoked_by=user if user is not None and user.is_authenticated else None,
        reason=reason,
        note=note[:500],
    )
    if ended:
        Project.objects.filter(pk=project.pk).update(certificate_in_force=False)
        certificate.refresh_from_db()
        note_change(
            project,
            certificate.revoked_by,
            gettext_noop("revoke certificate"),
            certificate,
            before={"status": str(Status.ACTIVE), "reason": "", "note": ""},
            after={
                "status": str(Status.REVOKED),
                "reason": str(Reason(reason).label),
                "note": note,
            },
        )
        if reason != Reason.REPLACED and certificate.revoked_by is None:
            tell_leads(
                project,
                Notice.Kind.REVOKED,
                reverse("judges:routing", args=[project.slug]),
                str(certificate),
                ": ".join(part for part in (str(Reason(reason).label), note) if part),
            )
    return bool(ended)


def tend(certificate: Certificate) -> bool:
    """Look at everything a certificate in force rests on, and revoke it if something has changed;
    whether it was revoked."""
    reason, note = why_void(certificate), ""
    if not reason:
        reason, note = _new_sources(certificate)
    if not reason:
        reason, note = _running_audit(certificate)
    return bool(reason) and revoke(certificate, reason, note=note)


def tend_all() -> None:
    """The sweep: tend certificates in force, and send workers for what is to be taken back."""
    for certificate in Certificate.objects.filter(status=Status.ACTIVE).select_related("project"):
        tend(certificate)
        certificate.refresh_from_db()
        share = certificate.project.audit_share
        if certificate.status == Status.ACTIVE and certificate.routed_share not in (None, share):
            _start_again(certificate.project, RoutingRun.Kind.ROUTE)
    waiting = Certificate.objects.filter(status=Status.REVOKED, withdrawn_at=None)
    for project in Project.objects.filter(pk__in=waiting.values("project")):
        if not project.certificates.filter(status=Status.ACTIVE).exists():
            _start_again(project, RoutingRun.Kind.WITHDRAW)


def _start_again(project: Project, kind: str) -> None:
    """`start`, for the sweep: not right after such a run was cancelled or failed."""
    stopped = project.routing_runs.filter(kind=kind).exclude(status=Job.Status.SUCCEEDED)
    lately = timezone.now() - timedelta(minutes=PAUSE_MINUTES)
    if not stopped.filter(finished_at__gt=lately).exists():
        start(project, kind)


def withdraw_if_due(project: Project) -> RoutingRun | None:
    """Send a worker for what revoked certificates let stand, unless one in force took their place
    (its own run puts everything in order)."""
    certificates = project.certificates
    if certificates.filter(status=Status.ACTIVE).exists():
        return None
    if not certificates.filter(status=Status.REVOKED, withdrawn_at=None).exists():
        return None
    return start(project, RoutingRun.Kind.WITHDRAW)


def start(project: Project, kind: str, user: Any = None) -> RoutingRun | None:
    """`new_run`, with a worker woken; None while another run is at work, after which the sweep
    comes again."""
    try:
        with transaction.atomic():
            run = new_run(project, kind, user)
            run.enqueue()
    except RoutingActive:
        return None
    return run


@transaction.atomic
def new_run(project: Project, kind: str, user: Any = None) -> RoutingRun:
    """A queued run. The caller wakes a worker.

    Raises: RoutingActive when one waits or works; NotReady for a test without a judge.
    """
    Project.objects.select_for_update().get(pk=project.pk)
    active = project.routing_runs.active().first()
    if active is not None:
        raise RoutingActive(
            _("Routing is at work already: %(kind)s, %(status)s.")
            % {"kind": active.get_kind_display(), "status": active.get_status_display().lower()}
        )
    wants_judges = kind in (RoutingRun.Kind.COUNT, RoutingRun.Kind.ISSUE)
    if wants_judges and not versions_of(policy_of(project)):
        raise NotReady(
            _("No judge is chosen: choose one in the laboratory, or name the judges here.")
        )
    by = user if user is not None and user.is_authenticated else None
    return RoutingRun.objects.create(project=project, kind=kind, created_by=by)


def _new_sources(certificate: Certificate) -> tuple[str, str]:
    """Whether comparisons that came since hold responses of models that were not there."""
    project = certificate.project
    last = project.comparisons.aggregate(last=Max("pk"))["last"] or 0
    if last <= certificate.looked_to:
        return "", ""
    new = sources_of(project, after=certificate.looked_to) - set(certificate.sources)
    if new:
        return str(Reason.SOURCES), ", ".join(sorted(new))
    Certificate.objects.filter(pk=certificate.pk).update(looked_to=last)
    return "", ""


def _running_audit(certificate: Certificate) -> tuple[str, str]:
    """Whether people's labels since contradict the certificate, at level δ however often asked."""
    newest = audit_labels(certificate.project).filter(pk__gt=certificate.audited_to)
    last = newest.aggregate(last=Max("pk"))["last"]
    if last is None:
        return "", ""
    n, errors = since(certificate)
    Certificate.objects.filter(pk=certificate.pk).update(
        audit_n=n, audit_errors=errors, audited_to=last
    )
    certificate.audit_n, certificate.audit_errors = n, errors
    if contradicted(errors, n, certificate.alpha, certificate.delta):
        return str(Reason.AUDIT), _("%(errors)s errors in %(n)s labels since") % {
            "errors": errors,
            "n": n,
        }
    return "", ""


def certified(project: Project) -> Any:
    """Judges' answers that stand alone, while the certificate in force is live."""
    certificate = live_certificate(project)
    if certificate is None:
        return Preference.objects.none()
    raters = [stage.version.rater_id for stage in certificate.stages.select_related("version")]
    return Preference.objects.current().filter(rater__in=raters, certified=True)
