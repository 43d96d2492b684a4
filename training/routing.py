"""Which queue a run waits in: where GPUs of several sizes are at work, one whose GPUs it fits.

PREFLOOP_GPU_CLASSES names the sizes, as 24,48,80 for gigabytes. Runs that are foretold to need no
more wait in `train-24` and so on, all others in `train-more`. Without it there is one queue, `gpu`.
"""

from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from labeling.models import Worker
from labeling.workers import class_queues, queues_for
from training.fitting import error_band, foretold
from training.ml.architecture import read_architecture
from training.models import Run
from training.runs import recipe_of


def queue_for(run: Run) -> str:
    """The queue of the smallest class that the run is foretold to fit, at the upper end of where
    earlier runs say that its peak will lie. What cannot be foretold goes to the largest."""
    if not settings.PREFLOOP_GPU_CLASSES:
        return "gpu"
    try:
        recipe = recipe_of(run)
        arch = read_architecture(recipe.base_model)
        found = foretold(run.kind, recipe, arch, device="cuda", judge=run.judge)
    except ValueError:
        return class_queues()[-1]
    band = error_band(found.peak, "cuda", recipe.method)
    return queues_for(max(found.peak, band.get("high") or 0))[0]


def waiting_words(run: Run) -> str:
    """What a queued run waits for, and whether anybody is there to take it."""
    words = _("Waiting for a worker.")
    if run.sweep_id:
        words = _("Waiting for a worker, or for its turn in %(sweep)s.") % {"sweep": run.sweep}
    size = run.queue.removeprefix("train-")
    if size.isdigit():
        words += " " + _("It needs a GPU of %(size)s GB: queue %(queue)s.") % {
            "size": size,
            "queue": run.queue,
        }
    elif run.queue != "gpu":
        words += " " + _("It needs a GPU of more than %(size)s GB: queue %(queue)s.") % {
            "size": max(settings.PREFLOOP_GPU_CLASSES, default=0),
            "queue": run.queue,
        }
    if not is_served(run.queue):
        words += " " + _(
            "No worker that is there serves the queue %(queue)s: the run waits until one is "
            "started (docs/scaling.md)."
        ) % {"queue": run.queue}
    return words


def is_served(queue: str) -> bool:
    """Whether a worker that was heard of just now takes messages from this queue."""
    # Not every database can look into a JSON list; workers are few.
    served: Any = Worker.objects.present().values_list("queues", flat=True)
    return any(queue in queues for queues in served)
