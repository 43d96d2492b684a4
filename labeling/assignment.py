"""Which comparison a rater sees next, and keeping the answer.

A comparison gives out one place per label it wants (`open_places`). Taking a place is one
conditional UPDATE, so no two raters ever take the last one, on SQLite and PostgreSQL alike.

A rater's work comes in streams. Every comparison has a random key, drawn once: those with a key
below the project's `audit_share` are its **audit stream**, a random sample of the project (Poisson
sampling with permanent random numbers, Ohlsson 1995) which people judge in the order of the keys,
whatever the priorities are. All others are the **queue**. Each time a rater needs work, the stream
is drawn by the same share, so both move forward together. `inclusion_probability` is the
probability with which this design put the comparison into the stream it came from: `audit_share`,
or one minus it. Gold **checks** and **repeats** of the rater's own pairs are mixed in at their
shares; **training** and **qualification** come before real work.

Locks are taken in one order, so that two requests never wait for each other: the **rater**, whose
row stands for everything they hold, then their **assignments**, then **comparisons** by their keys.
Whoever comes from elsewhere (`take_back_expired`) takes what is free and leaves the rest.
"""

import hashlib
import json
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import gettext_noop

from labeling.changes import note_change
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
    Project,
    Prompt,
    Ranking,
    Rater,
    RepeatAnswer,
    Response,
    ResponseSet,
    content_hash,
    message_text,
)
from labeling.progress import n_answers

State, Stream, Purpose = Assignment.State, Assignment.Stream, Comparison.Purpose

REPEAT_AFTER = 20
"""A rater's own pair comes again after at least this many others, so that it is not remembered."""
REPEAT_AMONG = 500
"""Repeats are drawn among this many answers, the newest that are old enough."""
TAKEN_BACK_AT_ONCE = 20
"""The most leases of others that a rater who finds no work takes back; the sweep takes the rest."""


PAUSED = _lazy("You are paused in this project; what you held went back to the queue.")


class NotYours(Exception):
    """The answer came too late, twice, or for a comparison that this rater does not hold."""


@dataclass(frozen=True)
class EmptyQueue:
    """Why a rater has nothing to do.

    `reason` is "paused", "disqualified", "limit", "day_limit", "nothing" (the project has no
    comparisons), "held" (by others), "seen" (open, but this rater had them) or "done".
    """

    reason: str
    n_open: int = 0  # still want a label that nobody holds
    n_held: int = 0  # want a label that another rater holds now
    held_until: datetime | None = None  # the first of those leases to run out


def next_comparison(rater: Rater) -> Assignment | None:
    """Give the rater a comparison to judge, or the one they hold; None when nothing is left."""
    return next(iter(work_for(rater, 1)), None)


@transaction.atomic
def work_for(rater: Rater, n: int = 1, have: Collection[int] = ()) -> list[Assignment]:
    """Up to `n` pieces of work that the rater holds, leasing what is missing; to do in this order.

    Each is held until `expires_at`, then its place returns by itself. A piece is one comparison,
    or a set of responses to rank, of which the first assignment stands for all (`set_assignments`).
    The texts of those in `have`, which the page shows already, are not read.
    """
    # Two tabs of one rater must not both lease; and a lead may have paused the rater since the
    # request began.
    _lock(rater)
    return _hold(rater, n, have)


def _hold(rater: Rater, n: int, have: Collection[int]) -> list[Assignment]:
    """`work_for`, when the rater is locked."""
    return _fill(rater, in_hand(rater), n, have)


# Written out, because it is asked for every single label: see labeling/access.py. A union, because
# SQLite would look through everything the rater ever did for an OR.
IN_HAND = """
    SELECT held.*, comparison.response_set_id AS set_id FROM labeling_assignment AS held
    JOIN labeling_comparison AS comparison ON comparison.id = held.comparison_id
    WHERE held.rater_id = %(rater)s AND held.state = 'leased'
    UNION ALL
    SELECT named.*, comparison.response_set_id FROM labeling_assignment AS named
    JOIN labeling_comparison AS comparison ON comparison.id = named.comparison_id
    WHERE named.id = %(named)s AND named.rater_id = %(rater)s AND named.state <> 'leased'
    ORDER BY leased_at, id
"""


def in_hand(rater: Rater, named: int | None = None) -> list[Assignment]:
    """What the rater holds, in the order of their work; and the assignment of theirs that is
    `named`, if it is held no longer. Each knows the response set of its comparison (`set_id`)."""
    held = list(Assignment.objects.raw(IN_HAND, {"rater": rater.pk, "named": named}))
    for assignment in held:
        assignment.rater = rater
    return held


def _fill(rater: Rater, held: list[Assignment], n: int, have: Collection[int]) -> list[Assignment]:
    """What a locked rater holds, with as much leased as is missing of `n` pieces."""
    if rater.paused_at is not None:
        return []
    now = timezone.now()
    # Nobody else has taken a lease that ran out while its state still says leased.
    if any(a.expires_at < now + _lease() / 2 for a in held):
        rater.assignments.filter(pk__in=[a.pk for a in held]).update(expires_at=now + _lease())
        for assignment in held:
            assignment.expires_at = now + _lease()
    pieces = _pieces(held)
    while len(pieces) < n:
        leased = _lease_next(rater, rater.project, n_held=len(pieces))
        if not leased:
            break
        pieces.append(leased[0])
    _read_texts([a for a in pieces if a.pk not in have])
    return pieces


def set_assignments(assignment: Assignment) -> list[Assignment]:
    """The rater's leased assignments of a whole response set, by the one that stands for it."""
    return list(
        Assignment.objects.filter(
            rater=assignment.rater_id,
            state=State.LEASED,
            comparison__response_set=assignment.comparison.response_set_id,
        )
        .select_related("comparison__prompt", "comparison__response_a", "comparison__response_b")
        .order_by("pk")
    )


def ranking_places(rater_id: int, responses: Collection[int]) -> list[int]:
    """The ids of responses to rank in the order in which this rater sees them.

    A hash of rater and response deals the places: by chance from rater to rater, and the same for
    one rater whenever and in whatever company a response comes. Each assignment of a set
    therefore says truly in `shown_first` which of its two stood first.
    """
    return sorted(
        responses, key=lambda pk: hashlib.sha256(f"{rater_id} ranks {pk}".encode()).digest()
    )


def response_name(rater_id: int, response_id: int) -> str:
    """What a response to rank is called to this rater: ids follow the file, hence the models."""
    return salted_hmac("prefloop.ranking", f"{rater_id} {response_id}").hexdigest()[:12]


def responses_in_hand(assignment: Assignment) -> dict[str, int]:
    """The responses that are to be ranked, by their names; of a ranking that is sent again, those
    it had."""
    given = Assignment.objects.filter(
        rater=assignment.rater_id,
        comparison__response_set=assignment.comparison.response_set_id,
        repeats=None,
    )
    in_hand = given.filter(state__in=[State.LEASED, State.EXPIRED]) or given
    pairs = in_hand.values_list("comparison__response_a", "comparison__response_b")
    return {response_name(assignment.rater_id, pk): pk for pair in pairs for pk in pair}


def why_empty(rater: Rater) -> EmptyQueue:
    """What the project still holds when `work_for` found nothing for this rater."""
    rater.refresh_from_db()
    if rater.paused_at is not None:
        return EmptyQueue("paused")
    if rater.disqualified_at is not None:
        return EmptyQueue("disqualified")
    limit = _limit_reached(rater, rater.project, n_held=0)
    if limit is not None:
        return EmptyQueue(limit)
    comparisons = Comparison.objects.filter(project=rater.project_id)
    leases = Assignment.objects.filter(
        comparison__project=rater.project_id, state=State.LEASED, repeats=None
    ).exclude(rater=rater)
    n_held = leases.count()
    n_open = comparisons.filter(open_places__gt=0).count()
    if n_held:
        first = leases.order_by("expires_at").values_list("expires_at", flat=True).first()
        return EmptyQueue("held", n_open, n_held, first)
    if n_open:
        return EmptyQueue("seen", n_open)
    return EmptyQueue("done" if comparisons.exists() else "nothing")


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
    _refuse_paused(assignment.rater_id)
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
    return _fill(rater, [a for a in held if a.pk != assignment.pk], n, have)


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
    _refuse_paused(rater.pk)
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
    _refuse_paused(rater.pk)
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
    _refuse_paused(rater.pk)
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
    _refuse_paused(rater.pk)
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
    _refuse_paused(rater.pk)
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
            if assignment.state == State.SKIPPED and _takes_places(assignment):
                _take_place(
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
        assignment.expires_at = now + _lease()
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
    _refuse_paused(rater.pk)
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


@transaction.atomic
def release(rater: Rater, assignment_ids: Iterable[int] | None = None) -> int:
    """Give back what the rater holds, or these of it; how many. They may come to them again."""
    _lock(rater)
    held = rater.assignments.filter(state=State.LEASED)
    if assignment_ids is not None:
        named = Q(pk__in=list(assignment_ids))
        # One assignment stands for its whole response set.
        sets = held.filter(named).values_list("comparison__response_set", flat=True)
        of_sets = Q(comparison__response_set__in=[pk for pk in sets if pk is not None])
        held = held.filter(named | of_sets)
    return _give_back(held)


@transaction.atomic
def count_places(comparison_ids: Iterable[int]) -> None:
    """Count the open places of these comparisons from the rows, after something else changed them.

    Counting instead of adding, because an imported vote may have filled a place while it was held,
    and two requests at once may both believe that they give it back.
    """
    work = Comparison.objects.filter(pk__in=list(comparison_ids), purpose=Purpose.WORK)
    # Locked first, and in one order: who takes a place now waits until it is counted. Then one
    # statement, hence one moment: an answer that arrives meanwhile is either still a lease or
    # already a preference, never neither.
    pks = list(work.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
    answered = Preference.objects.current().filter(
        comparison=OuterRef("pk"), rater__kind=Rater.Kind.PERSON
    )
    held = Assignment.objects.filter(comparison=OuterRef("pk"), state=State.LEASED, repeats=None)
    Comparison.objects.filter(pk__in=pks).update(
        open_places=Greatest(F("labels_wanted") - _n_rows(answered) - _n_rows(held), 0)
    )


def take_back_expired(project_id: int | None = None, most: int | None = None) -> int:
    """Return the places of leases that ran out to their comparisons; how many.

    The first `most` of them, if given. What somebody else is changing at this moment stays for the
    next time.
    """
    expired = Assignment.objects.filter(state=State.LEASED, expires_at__lte=timezone.now())
    concerned = expired if project_id is None else expired.filter(comparison__project=project_id)
    # What a rater holds of a response set goes back in one step, or somebody gets a part of it.
    together: dict[tuple[int, object], dict[int, int]] = {}
    rows = concerned.order_by("expires_at", "pk").values_list(
        "pk", "comparison", "repeats", "rater", "comparison__response_set"
    )
    for pk, comparison_id, repeats, rater_id, set_id in rows[:most]:
        whole = ("alone", pk) if set_id is None or repeats is not None else set_id
        together.setdefault((rater_id, whole), {})[pk] = comparison_id
    n_returned = 0
    for held in together.values():
        with transaction.atomic():
            leases = expired.filter(pk__in=held)
            comparisons = Comparison.objects.filter(pk__in=held.values())
            if _all_free(leases, len(held)) and _all_free(comparisons, len(set(held.values()))):
                n_returned += _give_back(leases)
    return n_returned


@transaction.atomic
def pause_rater(rater: Rater, actor: Any) -> None:
    """Give the rater no more work, and put what they hold back into the queue."""
    # The update locks the rater: an answer on its way is kept first or refused.
    if Rater.objects.filter(pk=rater.pk, paused_at=None).update(paused_at=timezone.now()):
        n_returned = release(rater)
        note_change(
            rater.project, actor, gettext_noop("pause rater"), rater, after={"returned": n_returned}
        )
    rater.refresh_from_db()


@transaction.atomic
def resume_rater(rater: Rater, actor: Any) -> None:
    """Let a paused rater work again."""
    if Rater.objects.filter(pk=rater.pk).exclude(paused_at=None).update(paused_at=None):
        note_change(rater.project, actor, gettext_noop("resume rater"), rater)
    rater.refresh_from_db()


@transaction.atomic
def requalify(rater: Rater, actor: Any) -> None:
    """Ask the rater the training and qualification sets again; earlier answers are superseded."""
    _lock(rater)
    entrance = Purpose.TRAINING, Purpose.QUALIFICATION
    rater.preferences.current().filter(comparison__purpose__in=entrance).update(
        superseded_at=timezone.now()
    )
    rater.assignments.filter(comparison__purpose__in=entrance).update(state=State.EXPIRED)
    Rater.objects.filter(pk=rater.pk).update(qualified_at=None, disqualified_at=None)
    release(rater)
    rater.refresh_from_db()
    note_change(rater.project, actor, gettext_noop("ask for qualification again"), rater)


@transaction.atomic
def let_in(rater: Rater, actor: Any) -> None:
    """Give the rater real work, whatever the qualification says."""
    Rater.objects.filter(pk=rater.pk).update(qualified_at=timezone.now(), disqualified_at=None)
    rater.refresh_from_db()
    note_change(rater.project, actor, gettext_noop("let rater in"), rater)


@transaction.atomic
def delete_rater(rater: Rater) -> None:
    """Delete a rater with all their answers; the places of those are open again."""
    _lock(rater)
    concerned = Comparison.objects.filter(assignments__rater=rater) | Comparison.objects.filter(
        preferences__rater=rater
    )
    pks = list(concerned.values_list("pk", flat=True).distinct())
    rater.delete()
    count_places(pks)


@transaction.atomic
def set_purpose(
    project: Project, comparison_ids: Iterable[int], purpose: str, actor: Any
) -> tuple[int, int]:
    """Put comparisons to another purpose: (how many were, how many were not for want of `gold`).

    Comparisons of a set want no labels. A larger training or qualification set is asked of
    everybody again, as far as they have not answered it.
    """
    if purpose in (Purpose.TRAINING, Purpose.QUALIFICATION):
        lock_people(project)
    chosen = project.comparisons.filter(pk__in=list(comparison_ids)).exclude(purpose=purpose)
    list(chosen.order_by("pk").select_for_update(no_key=True).values_list("pk"))
    n_without_gold = 0
    if purpose == Purpose.WORK:
        pks = list(chosen.values_list("pk", flat=True))
        chosen.update(purpose=purpose, labels_wanted=project.labels_per_comparison)
        count_places(pks)
    else:
        n_without_gold = chosen.filter(gold="").count()
        with_gold = chosen.exclude(gold="")
        pks = list(with_gold.values_list("pk", flat=True))
        with_gold.update(purpose=purpose, labels_wanted=0, open_places=0)
        if pks and purpose in (Purpose.TRAINING, Purpose.QUALIFICATION):
            project.raters.filter(kind=Rater.Kind.PERSON).update(qualified_at=None)
    if pks:
        note_change(
            project,
            actor,
            gettext_noop("change purpose"),
            f"{len(pks)} comparisons",
            after={"purpose": purpose, "comparisons": pks[:100]},
        )
    return len(pks), n_without_gold


def lock_people(project: Project) -> None:
    """Lock the project's people before comparisons, for a change that needs both."""
    people = project.raters.filter(kind=Rater.Kind.PERSON).order_by("pk")
    list(people.select_for_update(no_key=True).values_list("pk"))


def _lock(rater: Rater) -> None:
    """Lock the rater until the transaction ends, and read anew what a lead may have changed."""
    locked = Rater.objects.select_for_update(no_key=True).filter(pk=rater.pk)
    rater.paused_at, rater.qualified_at, rater.disqualified_at = locked.values_list(
        "paused_at", "qualified_at", "disqualified_at"
    ).get()


def _lease_next(rater: Rater, project: Project, *, n_held: int) -> list[Assignment]:
    """One more piece of work for the rater, leased; [] when there is none."""
    if rater.qualified_at is None:
        entrance = _entrance(rater)
        if entrance is not None:
            return [_assign_known(rater, entrance, Stream(entrance.purpose))]
        if rater.qualified_at is None:
            return []
    if _limit_reached(rater, project, n_held) is not None:
        return []
    draw = random.random()  # noqa: S311 - a sampling design, not a secret
    is_extra = draw < project.check_share + project.repeat_share
    if is_extra and Comparison.objects.open_to(rater).exists():  # extras alone are no work
        if draw < project.check_share:
            check = _unseen_check(rater)
            extra = check and _assign_known(rater, check, Stream.CHECK)
        else:
            extra = _repeat(rater)
        if extra is not None:
            return [extra]
    streams = [Stream.QUEUE, Stream.AUDIT]
    if random.random() < project.audit_share:  # noqa: S311
        streams.reverse()
    leased = _lease_from(rater, project, streams)
    # The sweep takes expired leases back too; a rater who would wait does not wait for it.
    if not leased and take_back_expired(project.pk, most=TAKEN_BACK_AT_ONCE):
        leased = _lease_from(rater, project, streams)
    return leased


def _lease_from(rater: Rater, project: Project, streams: list[Stream]) -> list[Assignment]:
    """The next of the first stream that has one, with the rest of its response set if any."""
    for stream in streams:
        share = project.audit_share
        probability = share if stream == Stream.AUDIT else 1 - share
        taken = _take_next(rater, share, stream) if probability else None
        if taken is None:
            continue
        comparison, given_before = taken
        set_id = comparison.response_set_id
        if set_id is not None:
            return _lease_set(rater, set_id, {comparison.pk: given_before}, stream, probability)
        leased = _assign(rater, comparison.pk, stream, probability, given_before=given_before)
        leased.comparison = comparison
        return [leased]
    return []


# One statement finds the next comparison and takes its place: nobody comes between. It is the
# query `open_to(rater)` of labeling/models.py with `in_queue_order()`, or in the order of the audit
# stream, written out because it is run for every single label. OFFSET 0 keeps PostgreSQL from
# joining all of the answers of the rater: looked up one by one, the search ends at the first fit.
# Of a response set it takes the first that is open: raters who came to a set by different pairs
# would each get a part of it.
TAKE_NEXT = """
    UPDATE labeling_comparison SET open_places = open_places - 1
    WHERE open_places > 0 AND id = (
        SELECT c.id FROM labeling_comparison AS c
        WHERE c.project_id = %(project)s AND c.open_places > 0 AND {in_stream}
            AND NOT EXISTS (
                SELECT 1 FROM labeling_assignment AS given
                WHERE given.comparison_id = c.id AND given.rater_id = %(rater)s
                    AND given.repeats_id IS NULL AND given.state <> 'expired'
                LIMIT 1 OFFSET 0)
            AND NOT EXISTS (
                SELECT 1 FROM labeling_preference AS judged
                WHERE judged.comparison_id = c.id AND judged.rater_id = %(rater)s
                    AND judged.superseded_at IS NULL
                LIMIT 1 OFFSET 0)
            AND (c.response_set_id IS NULL OR c.id = (
                SELECT MIN(first.id) FROM labeling_comparison AS first
                WHERE first.response_set_id = c.response_set_id AND first.open_places > 0))
        ORDER BY {order} LIMIT 1 {lock})
    RETURNING id, response_set_id, EXISTS (
        SELECT 1 FROM labeling_assignment AS given
        WHERE given.comparison_id = labeling_comparison.id AND given.rater_id = %(rater)s
            AND given.repeats_id IS NULL),
        prompt_id, (SELECT messages FROM labeling_prompt WHERE id = prompt_id),
        response_a_id, (SELECT messages FROM labeling_response WHERE id = response_a_id),
        response_b_id, (SELECT messages FROM labeling_response WHERE id = response_b_id)
"""


def _take_next(rater: Rater, share: float, stream: str) -> tuple[Comparison, bool] | None:
    """Take a place of the stream's next comparison: it with its texts, and whether the rater had it
    before and gave it back; None if there is none."""
    is_audit = stream == Stream.AUDIT
    # Others may be taking the same rows right now. PostgreSQL skips rows that are locked; on
    # SQLite this transaction already holds the only write lock.
    may_skip = connection.features.has_select_for_update_skip_locked
    sql = TAKE_NEXT.format(
        # The plus keeps SQLite from reading the index of the audit stream, and then sorting, for
        # the queue too.
        in_stream="c.random_key < %(share)s" if is_audit else "+c.random_key >= %(share)s",
        order="c.random_key" if is_audit else "c.priority DESC, c.open_places, c.random_key DESC",
        lock="FOR NO KEY UPDATE SKIP LOCKED" if may_skip else "",
    )
    values = {"project": rater.project_id, "rater": rater.pk, "share": share}
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        row = cursor.fetchone()
    if row is None:
        return None
    pk, set_id, given_before, *texts = row
    # The columns that were not read are read when somebody asks for them.
    comparison = Comparison.from_db(
        connection.alias,
        ["id", "project_id", "prompt_id", "response_a_id", "response_b_id", "response_set_id"],
        [pk, rater.project_id, *texts[::2], set_id],  # in the order of the model's fields
    )
    names = ["id", "messages"]
    for name, model, number, messages in (
        ("prompt", Prompt, *texts[:2]),
        ("response_a", Response, *texts[2:4]),
        ("response_b", Response, *texts[4:]),
    ):
        text = model.from_db(connection.alias, names, [number, json.loads(messages)])
        setattr(comparison, name, text)
    return comparison, bool(given_before)


def _lease_set(
    rater: Rater, set_id: int, taken: dict[int, bool], stream: str, probability: float
) -> list[Assignment]:
    """The comparison that was taken ({its id: whether the rater had it before}) together with the
    others of its response set that are open to the rater."""
    siblings = Comparison.objects.open_to(rater).filter(response_set=set_id).exclude(pk__in=taken)
    taken |= {c.pk: c.given_before for c in siblings.order_by("pk") if _place_taken(c.pk)}
    pairs = (
        Comparison.objects.filter(pk__in=taken)
        .order_by("pk")
        .values_list("pk", "response_a", "response_b")
    )
    now = timezone.now()  # one for all: they run out together
    leased = [
        _assign(
            rater,
            pk,
            stream,
            probability,
            given_before=taken[pk],
            shown_first="a" if ranking_places(rater.pk, (a, b))[0] == a else "b",
            now=now,
        )
        for pk, a, b in pairs
    ]
    return sorted(leased, key=lambda assignment: assignment.pk)


def _assign(
    rater: Rater,
    comparison_id: int,
    stream: str,
    probability: float,
    *,
    given_before: bool,
    shown_first: str = "",
    now: datetime | None = None,
) -> Assignment:
    now = now or timezone.now()
    lease = {
        "state": State.LEASED,
        "stream": stream,
        "inclusion_probability": probability,
        "leased_at": now,
        "expires_at": now + _lease(),
        "answer_key": "",
    }
    # Sides are drawn once and kept: a second try after a lease ran out swaps no sides.
    if given_before:
        earlier = Assignment.objects.filter(comparison=comparison_id, rater=rater, repeats=None)
        earlier.update(**lease)
        return earlier.get()
    shown_first = shown_first or random.choice("ab")  # noqa: S311
    return Assignment.objects.create(
        comparison_id=comparison_id, rater=rater, shown_first=shown_first, **lease
    )


def _entrance(rater: Rater) -> Comparison | None:
    """The next comparison of the training, then the qualification; grades when none is left."""
    entrance = Comparison.objects.filter(
        project=rater.project_id, purpose__in=[Purpose.TRAINING, Purpose.QUALIFICATION]
    )
    if rater.disqualified_at is not None:
        return None
    comparison = entrance.not_given_to(rater).order_by("-purpose", "random_key").first()
    if comparison is not None:
        in_training = rater.assignments.filter(state=State.LEASED, stream=Stream.TRAINING)
        if comparison.purpose == Purpose.QUALIFICATION and in_training.exists():
            return None  # the last feedback comes first
        return comparison
    if rater.assignments.filter(
        state=State.LEASED, stream__in=[Stream.TRAINING, Stream.QUALIFICATION]
    ).exists():
        return None
    _grade(rater)
    return None


def _grade(rater: Rater) -> None:
    """Let the rater to real work, or not; a skipped comparison counts as not right."""
    asked = rater.assignments.filter(comparison__purpose=Purpose.QUALIFICATION, repeats=None)
    n_asked = asked.count()
    n_right = (
        rater.preferences.current()
        .filter(comparison__purpose=Purpose.QUALIFICATION, choice=F("comparison__gold"))
        .count()
    )
    if n_right >= rater.project.qualification_pass * n_asked:
        rater.qualified_at = timezone.now()
    else:
        rater.disqualified_at = timezone.now()
    rater.save(update_fields=["qualified_at", "disqualified_at"])


def _assign_known(rater: Rater, comparison: Comparison, stream: str) -> Assignment:
    """Give one of a set with known answers: it takes no place, and every rater gets it."""
    return _assign(rater, comparison.pk, stream, 1.0, given_before=comparison.given_before)


def _unseen_check(rater: Rater) -> Comparison | None:
    """A gold comparison that is new to the rater, from a random place of the set."""
    checks = (
        Comparison.objects.filter(project=rater.project_id, purpose=Purpose.CHECK)
        .not_given_to(rater)
        .order_by("random_key")
    )
    start = random.random()  # noqa: S311
    return checks.filter(random_key__gte=start).first() or checks.first()


def _repeat(rater: Rater) -> Assignment | None:
    """An earlier pair of the rater's own with sides exchanged, leased once."""
    answered = rater.assignments.filter(
        state=State.ANSWERED, stream__in=[Stream.QUEUE, Stream.AUDIT], repeats=None
    )
    old_enough = set(
        answered.order_by("-closed_at").values_list("comparison", flat=True)[
            REPEAT_AFTER : REPEAT_AFTER + REPEAT_AMONG
        ]
    )
    repeated = rater.assignments.exclude(repeats=None).values_list("comparison", flat=True)
    eligible = list(
        rater.preferences.current()
        .filter(comparison__in=old_enough.difference(repeated), comparison__response_set=None)
        .values_list("pk", "comparison", "shown_first")
    )
    if not eligible:
        return None
    preference_id, comparison_id, shown_first = random.choice(eligible)  # noqa: S311
    now = timezone.now()
    return Assignment.objects.create(
        comparison_id=comparison_id,
        rater=rater,
        stream=Stream.REPEAT,
        repeats_id=preference_id,
        shown_first="b" if shown_first == "a" else "a",
        inclusion_probability=1 / len(eligible),
        leased_at=now,
        expires_at=now + _lease(),
    )


def _limit_reached(rater: Rater, project: Project, n_held: int) -> str | None:
    """ "limit" or "day_limit" if the rater may not be given more, else None.

    A ranking is one label here, whatever its pairs. Checks and repeats are no labels.
    """
    limit = rater.label_limit or project.labels_per_rater
    if limit is None and project.labels_per_day is None:
        return None
    answered = rater.assignments.filter(
        state=State.ANSWERED, stream__in=[Stream.QUEUE, Stream.AUDIT]
    )
    if limit is not None and _reach(answered, limit - n_held):
        return "limit"
    if project.labels_per_day is not None:
        midnight = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
        if _reach(answered.filter(closed_at__gte=midnight), project.labels_per_day - n_held):
            return "day_limit"
    return None


def _reach(answered: Any, n: int) -> bool:
    """Whether these are `n` answers. Their pairs are counted by the index alone; only where those
    reach it, rankings are told apart."""
    return answered.count() >= n and n_answers(answered) >= n


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
            if _takes_places(assignment):
                _take_place(
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


def _refuse_paused(rater_id: int) -> None:
    """Lock the rater, whose answers come one by one. Raises: NotYours if a lead paused them."""
    rater = Rater.objects.select_for_update(no_key=True).filter(pk=rater_id)
    if rater.values_list("paused_at").first() != (None,):
        raise NotYours(PAUSED)


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


def _pieces(held: list[Assignment]) -> list[Assignment]:
    """One assignment for each comparison or response set (`set_id`)."""
    first: dict[object, Assignment] = {}
    for assignment in held:
        is_alone = assignment.set_id is None or assignment.repeats_id is not None
        first.setdefault(("alone", assignment.pk) if is_alone else assignment.set_id, assignment)
    return list(first.values())


def _read_texts(assignments: list[Assignment]) -> None:
    """Put comparison, prompt and responses on the assignments that lack them: one query for all."""
    assignments = [a for a in assignments if not _has_texts(a)]
    if not assignments:
        return
    comparisons = Comparison.objects.select_related("prompt", "response_a", "response_b").in_bulk(
        [a.comparison_id for a in assignments]
    )
    for assignment in assignments:
        assignment.comparison = comparisons[assignment.comparison_id]


def _has_texts(assignment: Assignment) -> bool:
    comparison = assignment._state.fields_cache.get("comparison")
    return comparison is not None and "prompt" in comparison._state.fields_cache


def _give_back(leases: Any) -> int:
    """Give these back in one step; how many there were."""
    held = list(leases.order_by("pk").values_list("pk", "comparison", "repeats"))
    n_returned, freed = 0, []
    for pk, comparison_id, repeats in held:
        # The rater may have answered between the reading and now: the state decides.
        if not leases.filter(pk=pk).update(state=State.EXPIRED):
            continue
        if repeats is not None:
            Assignment.objects.filter(pk=pk, state=State.EXPIRED).delete()
        else:
            freed.append(comparison_id)
        n_returned += 1
    if freed:
        count_places(freed)
    return n_returned


def _all_free(rows: Any, n: int) -> bool:
    """Lock these rows without waiting; whether that got all `n` of them."""
    free = rows.order_by("pk").select_for_update(skip_locked=True, no_key=True)
    return len(free.values_list("pk", flat=True)) == n


def _takes_places(assignment: Assignment) -> bool:
    return assignment.repeats_id is None and assignment.comparison.purpose == Purpose.WORK


def _place_taken(comparison_id: int) -> bool:
    """Take one place by one conditional statement; False if none is left."""
    places = Comparison.objects.filter(pk=comparison_id, open_places__gt=0)
    return bool(places.update(open_places=F("open_places") - 1))


def _n_rows(rows: Any) -> Coalesce:
    """The number of rows of a correlated queryset, as an expression."""
    of_one = rows.order_by().values("comparison").annotate(n=Count("pk")).values("n")
    return Coalesce(Subquery(of_one), 0)


def _take_place(comparison_id: int, otherwise: str) -> None:
    if not _place_taken(comparison_id):
        raise NotYours(otherwise)


def _lease() -> timedelta:
    return timedelta(minutes=settings.PREFLOOP_LEASE_MINUTES)
