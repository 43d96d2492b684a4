"""One process of raters who label until the queue is empty: `python -m tests.labeling.play_raters`.

Run several at once to try assignment under real concurrency. Arguments: a project's slug, the first
rater's number, how many raters. Prints how many answers were kept and refused.
"""

import os
import random
import sys
import threading
import time

import django


def main(slug: str, first: int, n_raters: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from django.db import connection

    from labeling.answering import record_preference, skip_comparison, undo_last
    from labeling.assignment import why_empty, work_for
    from labeling.models import Project, Rater
    from labeling.places import NotYours, release

    project = Project.objects.get(slug=slug)
    counts = {"kept": 0, "refused": 0, "skipped": 0, "undone": 0}
    lock = threading.Lock()

    def play(number: int) -> None:
        chance = random.Random(number)
        rater, _ = Rater.objects.get_or_create(project=project, name=f"player-{number}")
        n_waited = 0
        while n_waited < 100:
            work = work_for(rater, chance.randint(1, 3))
            if not work and why_empty(rater).reason not in ("paused", "disqualified"):
                break
            if not work:  # until a lead lets them go on
                n_waited += 1
                time.sleep(0.02)
                continue
            assignment, event = work[0], "kept"
            if len(work) > 1 and chance.random() < 0.1:
                release(rater, [a.pk for a in work[1:]])
            try:
                if chance.random() < 0.05:
                    skip_comparison(rater, assignment.comparison)
                    event = "skipped"
                else:
                    record_preference(rater, assignment.comparison, chance.choice(["a", "b"]))
                    if chance.random() < 0.2:  # a double click
                        record_preference(rater, assignment.comparison, "tie")
                    elif chance.random() < 0.05 and undo_last(rater) is not None:
                        event = "undone"
            except NotYours:
                with lock:
                    counts["refused"] += 1
            with lock:
                counts[event] += 1
        connection.close()

    threads = [threading.Thread(target=play, args=(first + n,)) for n in range(n_raters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{counts['kept']} {counts['refused']} {counts['skipped']}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
