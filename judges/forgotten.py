"""Work that has no row of a job, and whose message may be lost: sent again by the minute's sweep.

Done twice, it does no harm.
"""

from datetime import timedelta

from django.core.cache import cache
from django.utils import timezone

from judges.models import ChosenJudge, JudgeServer

REMIND_AFTER = timedelta(seconds=30)
AGAIN_AFTER_SECONDS = 300


def remind() -> int:
    """Wake workers for chosen judges that are not settled and servers that nobody has tried; how
    many messages were sent."""
    from judges.tasks import settle_judge, try_server

    before = timezone.now() - REMIND_AFTER
    waiting = [
        (settle_judge, version, "settle")
        for version in ChosenJudge.objects.filter(
            settled_at=None, chosen_at__lt=before
        ).values_list("version", flat=True)
    ] + [
        (try_server, server, "try")
        for server in JudgeServer.objects.filter(
            trial__waits=True, tried_at__lt=before
        ).values_list("pk", flat=True)
    ]
    n = 0
    for task, pk, what in waiting:
        if cache.add(f"reminded-{what}-{pk}", True, timeout=AGAIN_AFTER_SECONDS):
            task.delay(pk)
            n += 1
    return n
