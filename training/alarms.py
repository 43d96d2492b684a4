"""What follows from the alarm of a PPO run: comparisons for people, and words for the log."""

from typing import Any

from django.urls import reverse

from labeling.imports.interchange import Row
from labeling.imports.rows import RowStore
from labeling.models import Notice
from labeling.notices import tell_leads
from training.ml.data import storable
from training.models import Run

FIRST = 10
"""Priority of these comparisons in the queue: somebody waits for the answer."""


def heed(run: Run, alarm: dict[str, Any]) -> dict[str, Any]:
    """Give the alarm's pairs to people, and note the alarm in the log. Done twice, it adds nothing.

    Args: alarm: as training.ml.ppo.train tells it.
    Returns: the alarm, with the number of comparisons in the place of their texts.
    """
    old, new = (_name(run, alarm[step]) for step in ("kept_step", "step"))
    rows = [
        Row(
            prompt=pair["prompt"],
            response_a=[{"role": "assistant", "content": storable(pair["old"])}],
            response_b=[{"role": "assistant", "content": storable(pair["new"])}],
            model_a=old,
            model_b=new,
            priority=FIRST,
            metadata={"alarm_of_run": run.pk, "split": "test"},
        )
        for pair in alarm["pairs"]
    ]
    stored = RowStore(run.project).store(rows)
    n = stored.created + stored.duplicates
    told = {name: value for name, value in alarm.items() if name != "pairs"}
    run.events.get_or_create(
        text=f"Alarm at step {alarm['step']}: {'; '.join(alarm['words'])}. The best weights are "
        f"those of step {alarm['kept_step']}. {n} comparisons of {old} with {new} wait for people."
    )
    tell_leads(
        run.project,
        Notice.Kind.ALARM,
        reverse("training:run", args=[run.project.slug, run.pk]),
        str(run),
        f"{'; '.join(alarm['words'])}.",
    )
    return told | {"n_comparisons": n, "old": old, "new": new}


def _name(run: Run, step: int) -> str:
    """What the policy of a step is called beside its responses; the start by its own name."""
    return f"{run.kind}-{run.pk}-step-{step}" if step else run.base_model
