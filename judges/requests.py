"""What other apps want judged before people see it: taken up by the minute's sweep."""

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_noop

from judges.certificates import live_certificate
from judges.runs import RunActive, new_run
from judges.selection import selection_of_set
from labeling.changes import note_change
from labeling.models import JudgeRequest

NO_CERTIFICATE = "no certificate in force: people decide"


def take_requests() -> int:
    """Start a judge run for every request that waits, where a certificate is in force; how many.

    The run's verdicts are routed when it ends. A certificate speaks of the comparisons that were
    there when it was issued, so those decide nothing before the next test: people's labels of the
    audit stream and the judge's verdicts are both there for it. While the judge is at work on
    something else, the request waits.
    """
    n = 0
    for request in JudgeRequest.objects.filter(taken_at=None).select_related("project"):
        certificate = live_certificate(request.project)
        if certificate is None:
            _taken(request, NO_CERTIFICATE)
            continue
        stage = certificate.stages.select_related("version").order_by("position").first()
        assert stage is not None  # every certificate names its judges
        try:
            with transaction.atomic():
                selection = selection_of_set(request.comparisons)
                run = new_run(stage.version, selection=selection)
                note_change(
                    request.project,
                    None,
                    gettext_noop("ask judge first"),
                    stage.version,
                    after={"comparisons": len(request.comparisons), "run": run.pk},
                )
                _taken(request, f"judge run {run.pk}")
                run.enqueue()
        except RunActive:
            continue
        n += 1
    return n


def _taken(request: JudgeRequest, outcome: str) -> None:
    waiting = JudgeRequest.objects.filter(pk=request.pk, taken_at=None)
    waiting.update(taken_at=timezone.now(), outcome=outcome)
