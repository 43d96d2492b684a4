"""The playground: two models answer the same prompt, side by side; a pair worth judging goes to
people."""

import time
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.imports.interchange import Row
from labeling.imports.rows import RowStore, comparison_hash
from labeling.jobs import Job, JobTaken
from labeling.models import Comparison, Messages, Project, content_hash
from training.ml.data import storable
from training.models import ModelVersion, SideBySide
from training.runs import known_models, named_model

MOST_WAITING = 4
"""Answers of a project that wait or are being written; more would wait for minutes."""
LONGEST_PROMPT = 20_000
SECONDS_BETWEEN_REPORTS = 0.4


class QueueFull(ValueError):
    """Too many pairs wait already."""


def writers(project: Project) -> list[str]:
    """Names of models that write: bases, policies and learned prompts, then stored folders."""
    kinds = [ModelVersion.Kind.BASE, ModelVersion.Kind.POLICY]
    names = list(project.models.filter(kind__in=kinds).values_list("name", flat=True))
    return names + [name for name in known_models(project, "dpo") if name not in names]


def start_pair(
    project: Project,
    *,
    prompt: Messages,
    model_a: str,
    model_b: str,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    created_by: Any,
) -> SideBySide:
    """Queue a prompt for two models.

    Raises: QueueFull; ValueError for a model that is not there.
    """
    known = writers(project)
    for name in (model_a, model_b):
        if name not in known:
            raise ValueError(_("There is no model %(name)s that writes.") % {"name": name})
    with transaction.atomic():
        # Counted under the project's lock, or two people would fill the last place.
        Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        if project.sides_by_side.active().count() >= MOST_WAITING:
            raise QueueFull(
                _("%(n)s pairs wait for a worker already. Try again when one is done.")
                % {"n": MOST_WAITING}
            )
        pair = SideBySide.objects.create(
            project=project,
            prompt=prompt,
            model_a=model_a,
            model_b=model_b,
            sampling={
                "temperature": temperature,
                "seed": seed,
                "max_new_tokens": max_new_tokens,
            },
            created_by=created_by,
        )
    pair.enqueue()
    return pair


def carry_out_pair(pair: SideBySide) -> None:
    """Let both models answer in this process, and end the row.

    Raises: ModelMissing, ValueError for a prompt without room; JobCancelled, JobTaken.
    """
    from training.ml.serving import Sampling, of_process

    sampling = Sampling(**pair.sampling)
    pair.report(n_done=0, n_total=2 * sampling.max_new_tokens)
    found: dict[str, Any] = {}
    done = 0
    for side, name in (("a", pair.model_a), ("b", pair.model_b)):
        began, reported_at = time.monotonic(), 0.0

        def on_text(text: str, n_tokens: int, side: str = side, done: int = done) -> None:
            nonlocal reported_at
            if time.monotonic() - reported_at >= SECONDS_BETWEEN_REPORTS:
                pair.report(**{f"text_{side}": storable(text), "n_done": done + n_tokens})
                reported_at = time.monotonic()

        try:
            answer = of_process().answer(
                named_model(pair.project, name), pair.prompt, sampling, on_text
            )
        except (MemoryError, RuntimeError):  # torch's are RuntimeErrors: the next one wants room
            of_process().forget()
            raise
        seconds = time.monotonic() - began
        done += sampling.max_new_tokens
        found[side] = {
            "tokens": answer.n_tokens,
            "prompt_tokens": answer.n_prompt_tokens,
            "ended": answer.ended,
            "seconds": round(seconds, 2),
        }
        pair.report(**{f"text_{side}": storable(answer.text), "n_done": done, "result": found})
    if not pair.finish(Job.Status.SUCCEEDED):
        raise JobTaken(f"pair {pair.pk} went to another worker")


def send_to_people(pair: SideBySide, by: Any) -> Comparison:
    """Make the pair a comparison of the project, with the models as its sources; once.

    Raises: ValueError for a pair that is not done, or with nothing to compare.
    """
    if pair.comparison is not None:
        return pair.comparison
    if pair.status != Job.Status.SUCCEEDED:
        raise ValueError(_("Both models have to be done first."))
    if not pair.text_a or not pair.text_b:
        raise ValueError(_("One of the responses is empty: there is nothing to compare."))
    if pair.text_a == pair.text_b:
        raise ValueError(_("Both responses are the same: there is nothing to compare."))
    said = [[{"role": "assistant", "content": text}] for text in (pair.text_a, pair.text_b)]
    row = Row(
        prompt=pair.prompt,
        response_a=said[0],
        response_b=said[1],
        model_a=pair.model_a,
        model_b=pair.model_b,
        metadata={"playground": pair.pk, **pair.sampling},
    )
    with transaction.atomic():
        RowStore(pair.project).store([row])
        key = comparison_hash(
            content_hash(pair.prompt),
            (content_hash(said[0]), pair.model_a),
            (content_hash(said[1]), pair.model_b),
        )
        comparison = pair.project.comparisons.get(content_hash=key)
        pair.comparison = comparison
        pair.save(update_fields=["comparison"])
        note_change(
            pair.project,
            by,
            gettext_noop("send pair to people"),
            comparison,
            after={"models": [pair.model_a, pair.model_b]},
        )
    return comparison
