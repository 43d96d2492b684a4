"""What follows in a round by itself: where a policy by PPO was asked for, it is trained as soon as
the reward model is there, and the arena opens as soon as the policy is."""

from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _

from labeling.jobs import Job
from training.arenas import compare_policies
from training.fleet import bring
from training.models import ModelVersion, Round, Run
from training.rounds import policy_by_ppo, train_on_labels


def start_training(round_: Round, kind: str, user: Any) -> Run:
    """Start what makes a model of this kind from the round's labels: a run, or for PPO the reward
    model first, if the round has none yet.

    Raises: ValueError as train_on_labels.
    """
    if kind != Run.Kind.PPO:
        return train_on_labels(round_, kind, user)
    scored_by = _reward_model(round_)
    with transaction.atomic():
        if scored_by is None:
            run = train_on_labels(round_, Run.Kind.REWARD, user)
            _then(round_, Round.Then.POLICY)
        else:
            run = policy_by_ppo(round_, scored_by, user)
            _then(round_, Round.Then.ARENA)
    return run


def go_on_after(run: Run) -> str:
    """Begin what follows a run that has ended well, in the rounds that wait for it; a line for its
    log says what, or why not. Empty where nothing follows."""
    said = []
    waits = Q(reward_run=run, then=Round.Then.POLICY) | Q(policy_run=run, then=Round.Then.ARENA)
    for round_ in Round.objects.filter(waits):
        try:
            bring(round_)  # the next run's launch reads the models
            said.append(_next(round_, run.created_by))
        except (ValueError, OSError) as problem:
            said.append(
                _("%(round)s does not go on by itself: %(problem)s")
                % {"round": str(round_).capitalize(), "problem": problem}
            )
    return " ".join(said)


def _next(round_: Round, user: Any) -> str:
    with transaction.atomic():
        if round_.then == Round.Then.POLICY:
            scored_by = _reward_model(round_)
            if scored_by is None:
                raise ValueError(_("its reward model is gone"))
            run = policy_by_ppo(round_, scored_by, user)
            _then(round_, Round.Then.ARENA)
            said = _("%(round)s goes on: %(run)s learns from %(model)s.")
            return said % {
                "round": str(round_).capitalize(),
                "run": run,
                "model": scored_by,
            }
        arena = compare_policies(round_, user)
        _then(round_, "")
    said = _(
        "%(round)s goes on: %(arena)s gives people pairs of the new policy and the one before."
    )
    return said % {"round": str(round_).capitalize(), "arena": arena}


def _then(round_: Round, what: str) -> None:
    round_.then = what
    round_.save(update_fields=["then"])


def _reward_model(round_: Round) -> ModelVersion | None:
    """The reward model that the round's run left."""
    run = round_.reward_run
    if run is None or run.status != Job.Status.SUCCEEDED:
        return None
    return ModelVersion.objects.filter(run=run).first()
