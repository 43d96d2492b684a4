"""Keeping what raters answer, skip, take back and change. What they are given: assignment.py."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.assignment import fill
from labeling.events import answered
from labeling.imports.rows import comparison_hash
from labeling.leaks import leaks_of
from labeling.models import (
    Assignment,
    Choice,
    Comparison,
    Flag,
    Messages,
    Preference,
    Ranking,
    Rater,
    RepeatAnswer,
    Response,
    ResponseSet,
    content_hash,
    message_text,
)
from labeling.places import (
    PAUSED,
    NotYours,
    count_places,
    lease_time,
    refuse_paused,
    take_place,
    takes_places,
)

State, Stream, Purpose = Assignment.State, Assignment.Stream, Comparison.Purpose


def record_preference(
    rater: Rater,
    comparison: Comparison,
    choice: str,
    *,
    assignment_id: int | None = None,
    **given: Any,
) -> Preference | RepeatAnswer:
    """Keep a person's answer to the comparison they hold: `answer`, by the comparison's name.

    With `assignment_id`, to this assignment of it and no other.
    """
    key = given.get("answer_key", "")
    return answer(_in_hand(rater, comparison, assignment_id, key), choice, **given)


@transaction.atomic
def answer(assignment: Assignment, choice: str, **given: Any) -> Preference | RepeatAnswer:
    """Keep the answer to an assignment; `given` is what `_answer` takes.

    An answer that comes after the lease ran out is kept too, as long as a place is still free.

    Raises: NotYours if it was answered or skipped before, if others have taken the places
    meanwhile, or if the rater is paused; nothing changes.
    """
    refuse_paused(assignment.rater_id)
    return _answer(assignment, choice, **given)


def answer_and_go_on(
    assignment: Assignment,
    held: list[Assignment],
    choice: str,
    *,
    n: int,
    have: Collection[int],
    **given: Any,
) -> list[Assignment]:
    """`answer`, then `work_for(rater, n, have)`, when the rater is locked and `held` is `in_hand`.

    The answer and the next lease reach the disk together, and the database is asked less often:
    this is what every label costs.
    """
    rater = assignment.rater
    if rater.paused_at is not None:
        raise NotYours(PAUSED)
    _answer(assignment, choice, **given)
    return fill(rater, [a for a in held if a.pk != assignment.pk], n, have)


def _answer(
    assignment: Assignment,
    choice: str,
    *,
    strength: int | None = None,
    rationale: str = "",
    tags: list[str] | None = None,
    aspects: dict[str, str] | None = None,
    seconds: float | None = None,
    better: str = "",
    answer_key: str = "",
) -> Preference | RepeatAnswer:
    """`answer`, when the rater is locked and not paused.

    The same `answer_key` again is the same answer sent again: it returns what was kept. `better` is
    a better answer of the rater's own: a demonstration, preferred to both responses. The answer to
    a repeat is a RepeatAnswer.
    """
    if _close(assignment, State.ANSWERED, answer_key):
        return _kept(assignment)
    strength = strength if choice in (Choice.A, Choice.B) else None
    if assignment.repeats_id is not None:
        return RepeatAnswer.objects.create(
            assignment=assignment,
            choice=choice,
            strength=strength,
            rationale=rationale,
            tags=tags or [],
            aspects=aspects or {},
            seconds=seconds,
        )
    preference = _keep(
        assignment,
        choice,
        strength=strength,
        rationale=rationale,
        tags=tags or [],
        aspects=aspects or {},
        seconds=seconds,
    )
    if better.strip():
        _keep_better_answer(assignment.rater, assignment.comparison, better.strip())
    return preference


@transaction.atomic
def record_ranking(
    rater: Rater,
    response_set: ResponseSet,
    order: list[list[int]],
    *,
    rationale: str = "",
    seconds: float | None = None,
    answer_key: str = "",
) -> Ranking:
    """Keep a rater's order of a response set and the preferences that it implies.

    `order` holds the ids of the responses, best first; equals share a place.

    Raises: NotYours as in `record_preference`; ValueError if `order` does not name each response
    of the pairs in hand exactly once.
    """
    refuse_paused(rater.pk)
    given = Assignment.objects.filter(
        rater=rater, comparison__response_set=response_set, repeats=None
    ).select_related("comparison")
    assignments = list(given.filter(state__in=[State.LEASED, State.EXPIRED]).order_by("comparison"))
    if not assignments:
        kept = response_set.rankings.filter(rater=rater, superseded_at=None).first()
        same = answer_key and given.filter(state=State.ANSWERED, answer_key=answer_key).exists()
        if kept is not None and same:
            return kept
        raise NotYours(_("This ranking is not yours to give, or you have given it already."))
    choices = _implied_choices(order, [a.comparison for a in assignments])
    for assignment in assignments:
        _close(assignment, State.ANSWERED, answer_key)
    response_set.rankings.filter(rater=rater, superseded_at=None).update(
        superseded_at=timezone.now()
    )
    ranking = Ranking.objects.create(
        response_set=response_set, rater=rater, order=order, rationale=rationale, seconds=seconds
    )
    for assignment in assignments:
        choice = choices[assignment.comparison_id]
        _keep(assignment, choice, rationale=rationale, ranking=ranking)
    return ranking


@transaction.atomic
def revise_ranking(
    rater: Rater, ranking: Ranking, order: list[list[int]], *, rationale: str = ""
) -> Ranking:
    """Change an earlier order of the rater's own; it and what it implied are kept as superseded.

    Raises: NotYours if it is somebody else's or has been replaced, or if the rater is paused;
    ValueError if `order` does not name each of its responses exactly once.
    """
    refuse_paused(rater.pk)
    implied = list(
        rater.preferences.current()
        .filter(ranking=ranking)
        .select_related("comparison")
        .order_by("comparison")
    )
    now = timezone.now()
    own = rater.rankings.filter(pk=ranking.pk, superseded_at=None)
    if not implied or not own.update(superseded_at=now):
        raise NotYours(_("This order is not yours, or you have changed it since."))
    choices = _implied_choices(order, [p.comparison for p in implied])
    rater.preferences.filter(pk__in=[p.pk for p in implied]).update(superseded_at=now)
    revised = Ranking.objects.create(
        response_set_id=ranking.response_set_id,
        rater=rater,
        order=order,
        rationale=rationale,
        seconds=ranking.seconds,
    )
    for preference in implied:
        choice = choices[preference.comparison_id]
        _again(preference, choice, rationale=rationale, ranking=revised)
    return revised


def _implied_choices(order: list[list[int]], comparisons: list[Comparison]) -> dict[int, Choice]:
    """What an order says of each of these comparisons, by their ids.

    Raises: ValueError if it does not name each of their responses exactly once.
    """
    places = {pk: place for place, tied in enumerate(order) for pk in tied}
    wanted = {pk for c in comparisons for pk in (c.response_a_id, c.response_b_id)}
    if places.keys() != wanted or len(places) != sum(map(len, order)):
        raise ValueError("A ranking names each response exactly once.")
    choices = {}
    for comparison in comparisons:
        a, b = places[comparison.response_a_id], places[comparison.response_b_id]
        choices[comparison.pk] = Choice.TIE if a == b else Choice.A if a < b else Choice.B
    return choices


@transaction.atomic
def skip_comparison(
    rater: Rater,
    comparison: Comparison,
    reason: str = "",
    *,
    flag: str = "",
    note: str = "",
    assignment_id: int | None = None,
    answer_key: str = "",
) -> None:
    """Give the place back; this rater is not asked again. With `flag`, say what is wrong with it.

    Raises: NotYours if they do not hold it.
    """
    refuse_paused(rater.pk)
    assignment = _in_hand(rater, comparison, assignment_id, answer_key)
    if _close(assignment, State.SKIPPED, answer_key, reason=reason):
        return
    if flag:
        Flag.objects.get_or_create(
            comparison=comparison, rater=rater, kind=flag, defaults={"note": note}
        )
    count_places([comparison.pk])


@transaction.atomic
def skip_set(
    rater: Rater,
    response_set: ResponseSet,
    reason: str = "",
    *,
    flag: str = "",
    note: str = "",
    answer_key: str = "",
) -> None:
    """Skip a whole response set.

    Raises: NotYours if they do not hold it.
    """
    refuse_paused(rater.pk)
    given = rater.assignments.filter(comparison__response_set=response_set, repeats=None)
    held = given.filter(state=State.LEASED).select_related("comparison")
    assignments = list(held.order_by("comparison"))
    sent_again = answer_key and given.filter(state=State.SKIPPED, answer_key=answer_key).exists()
    if not assignments and not sent_again:
        raise NotYours(_("This comparison is no longer yours."))
    for assignment in assignments:
        skip_comparison(
            rater,
            assignment.comparison,
            reason,
            flag=flag,
            note=note,
            assignment_id=assignment.pk,
            answer_key=answer_key,
        )


@transaction.atomic
def undo_last(rater: Rater) -> Assignment | None:
    """Take back the rater's last answer or skip and give that comparison to them again; None if
    there is nothing to take back.

    A withdrawn answer is kept as superseded. What the rater holds meanwhile stays with them, and
    comes after it. Answers that were graded or explained (training, qualification) stay.

    Raises: NotYours if others have taken the place of a skipped comparison, or if the rater is
    paused; nothing changes.
    """
    refuse_paused(rater.pk)
    last = _last_closed(rater)
    if last is None or (last.stream == Stream.TRAINING and rater.project.training_feedback):
        return None
    of_entrance = last.stream in (Stream.TRAINING, Stream.QUALIFICATION)
    if of_entrance and (rater.qualified_at or rater.disqualified_at):
        return None
    together = [last]
    set_id = last.comparison.response_set_id
    if set_id is not None and last.repeats_id is None:
        closed = rater.assignments.filter(state__in=[State.ANSWERED, State.SKIPPED])
        of_set = closed.filter(comparison__response_set=set_id, repeats=None)
        together = list(of_set.order_by("comparison"))
        Ranking.objects.filter(response_set=set_id, rater=rater, superseded_at=None).update(
            superseded_at=timezone.now()
        )
    now = timezone.now()
    for assignment in together:
        if assignment.repeats_id is not None:
            RepeatAnswer.objects.filter(assignment=assignment).delete()
        else:
            if assignment.state == State.SKIPPED and takes_places(assignment):
                take_place(
                    assignment.comparison_id, _("Others have the comparison that you skipped.")
                )
            if assignment.state == State.SKIPPED:
                # Said of the comparison with the skip, and taken back with it.
                rater.flags.filter(
                    comparison=assignment.comparison_id, created_at__gte=assignment.closed_at
                ).delete()
            _supersede(rater, assignment.comparison, now)
        # `leased_at` stays: what was given out first comes first.
        assignment.state = State.LEASED
        assignment.expires_at = now + lease_time()
        assignment.closed_at = None
        assignment.skip_reason = assignment.answer_key = ""
        assignment.save(
            update_fields=["state", "expires_at", "closed_at", "skip_reason", "answer_key"]
        )
    return min(together, key=lambda a: (a.leased_at, a.pk))


@transaction.atomic
def revise_preference(
    rater: Rater,
    preference: Preference,
    choice: str,
    *,
    strength: int | None = None,
    rationale: str = "",
    tags: list[str] | None = None,
    aspects: dict[str, str] | None = None,
) -> Preference:
    """Change an earlier answer of the rater's own; what it was is kept as superseded.

    Raises: NotYours if it is somebody else's, has been replaced, or was graded or explained, or if
    the rater is paused.
    """
    refuse_paused(rater.pk)
    if preference.ranking_id is not None:
        raise NotYours(_("This answer follows from an order that you gave to several responses."))
    assignment = Assignment.objects.filter(
        comparison=preference.comparison_id, rater=rater, repeats=None
    ).first()
    if assignment is not None and assignment.stream in (Stream.TRAINING, Stream.QUALIFICATION):
        raise NotYours(_("Answers of the training and the qualification stay as they are."))
    replaced = (
        rater.preferences.current().filter(pk=preference.pk).update(superseded_at=timezone.now())
    )
    if not replaced:
        raise NotYours(_("This answer is not yours, or you have changed it since."))
    return _again(
        preference,
        choice,
        strength=strength if choice in (Choice.A, Choice.B) else None,
        rationale=rationale,
        tags=tags or [],
        aspects=aspects or {},
    )


def _in_hand(
    rater: Rater, comparison: Comparison, assignment_id: int | None, answer_key: str
) -> Assignment:
    """The assignment that an answer is meant for: the one it was given to before, or the one that
    is leased, or that ran out, or whatever there is.

    Raises: NotYours if the rater was never given the comparison.
    """
    given = Assignment.objects.filter(comparison=comparison, rater=rater)
    if assignment_id is not None:
        given = given.filter(pk=assignment_id)
    order = [State.LEASED, State.EXPIRED, State.ANSWERED, State.SKIPPED]
    assignments = sorted(given, key=lambda a: order.index(a.state))
    sent_before = [a for a in assignments if answer_key and a.answer_key == answer_key]
    for assignment in [*sent_before, *assignments]:
        return assignment
    raise NotYours(_("This comparison is not yours to answer, or you have answered it already."))


def _close(assignment: Assignment, state: str, answer_key: str, *, reason: str = "") -> bool:
    """Close an assignment that is in hand; True if this very answer has closed it before.

    Raises: NotYours.
    """
    # The state decides, not what was read: of two requests at once one closes it. The other reads
    # again, as does one that came between a lease and its end.
    for _attempt in range(3):
        if assignment.state not in (State.LEASED, State.EXPIRED):
            break
        closed = Assignment.objects.filter(pk=assignment.pk, state=assignment.state).update(
            state=state, closed_at=timezone.now(), answer_key=answer_key, skip_reason=reason
        )
        if not closed:
            assignment.refresh_from_db()
            continue
        if assignment.state == State.EXPIRED:
            if state == State.SKIPPED:
                raise NotYours(_("This comparison is no longer yours."))
            if takes_places(assignment):
                take_place(
                    assignment.comparison_id,
                    _("You held this comparison for too long: others have answered it meanwhile."),
                )
        return False
    if assignment.state == state and answer_key and assignment.answer_key == answer_key:
        return True
    raise NotYours(_("This comparison is not yours to answer, or you have answered it already."))


def _last_closed(rater: Rater) -> Assignment | None:
    """What the rater answered or skipped last. Two queries, each the end of an index; one for both
    states would sort everything they ever did."""
    closed = rater.assignments.exclude(closed_at=None).order_by("-closed_at", "pk")
    states = State.ANSWERED, State.SKIPPED
    last = [a for state in states if (a := closed.filter(state=state).first()) is not None]
    return max(last, key=lambda a: (a.closed_at, -a.pk), default=None)


def _keep(assignment: Assignment, choice: str, **answer: Any) -> Preference:
    preference = Preference.objects.create(
        comparison_id=assignment.comparison_id,
        rater_id=assignment.rater_id,
        choice=choice,
        shown_first=assignment.shown_first,
        inclusion_probability=assignment.inclusion_probability,
        audit=assignment.stream == Stream.AUDIT,
        **answer,
    )
    # Whether anybody listens was read with the rater, where every label pays for a question.
    if getattr(assignment.rater, "has_webhooks", True):
        answered(preference)
    return preference


def _again(preference: Preference, choice: str, **answer: Any) -> Preference:
    """The new version of an answer that was superseded: asked in the same way, and once."""
    return Preference.objects.create(
        comparison_id=preference.comparison_id,
        rater_id=preference.rater_id,
        choice=choice,
        seconds=preference.seconds,
        shown_first=preference.shown_first,
        inclusion_probability=preference.inclusion_probability,
        audit=preference.audit,
        **answer,
    )


def _supersede(rater: Rater, comparison: Comparison, now: datetime) -> None:
    """Withdraw the rater's answer, and what a better answer given with it implied."""
    shown = [comparison.response_a_id, comparison.response_b_id]
    of_prompt = Comparison.objects.filter(prompt=comparison.prompt_id)
    implied = of_prompt.filter(
        Q(response_a__author=rater, response_b__in=shown)
        | Q(response_b__author=rater, response_a__in=shown)
    ).exclude(pk=comparison.pk)
    answers = rater.preferences.current()
    answers.filter(comparison=comparison).update(superseded_at=now)
    answers.filter(comparison__in=implied).update(superseded_at=now)


def _kept(assignment: Assignment) -> Preference | RepeatAnswer:
    """What was kept when this assignment was answered."""
    if assignment.repeats_id is not None:
        return assignment.repeat_answer
    return (
        Preference.objects.filter(comparison=assignment.comparison_id, rater=assignment.rater_id)
        .order_by("-pk")
        .first()
    )


def _keep_better_answer(rater: Rater, comparison: Comparison, text: str) -> None:
    """A response by the rater, and the rater's preference for it over both responses."""
    messages: Messages = [{"role": "assistant", "content": text}]
    response, _created = Response.objects.get_or_create(
        prompt_id=comparison.prompt_id,
        content_hash=content_hash(messages),
        source=f"rater {rater.pk}",
        defaults={
            "messages": messages,
            "author": rater,
            "n_chars": len(message_text(messages)),
        },
    )
    for worse in (comparison.response_a, comparison.response_b):
        implied, _created = Comparison.objects.get_or_create(
            project_id=comparison.project_id,
            # as an import would make it, so that an export which comes back finds it
            content_hash=comparison_hash(
                comparison.prompt.content_hash,
                (response.content_hash, response.source),
                (worse.content_hash, worse.source),
            ),
            defaults={
                "prompt_id": comparison.prompt_id,
                "response_a": response,
                "response_b": worse,
                "leaks": leaks_of(
                    comparison.prompt.messages,
                    (response.messages, response.source),
                    (worse.messages, worse.source),
                ),
                "labels_wanted": 0,
                "open_places": 0,
            },
        )
        if not implied.preferences.current().filter(rater=rater).exists():
            is_a = implied.response_a_id == response.pk  # an import may have named it B
            choice = Choice.A if is_a else Choice.B
            Preference.objects.create(comparison=implied, rater=rater, choice=choice)
