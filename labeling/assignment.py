"""Which comparison a rater sees next. Answers: answering.py; who holds what: places.py.

A rater's work comes in streams. Every comparison has a random key, drawn once: those with a key
below the project's `audit_share` are its **audit stream**, a random sample of the project (Poisson
sampling with permanent random numbers, Ohlsson 1995) which people judge in the order of the keys,
whatever the priorities are. All others are the **queue**. Each time a rater needs work, the stream
is drawn by the same share, so both move forward together. `inclusion_probability` is the
probability with which this design put the comparison into the stream it came from: `audit_share`,
or one minus it. Gold **checks** and **repeats** of the rater's own pairs are mixed in at their
shares; **training** and **qualification** come before real work.
"""

import hashlib
import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone
from django.utils.crypto import salted_hmac

from labeling.models import (
    Assignment,
    Comparison,
    Project,
    Prompt,
    Rater,
    Response,
)
from labeling.places import lease_time, lock_rater, place_taken, take_back_expired
from labeling.progress import n_answers

State, Stream, Purpose = Assignment.State, Assignment.Stream, Comparison.Purpose


REPEAT_AFTER = 20
"""A rater's own pair comes again after at least this many others, so that it is not remembered."""


REPEAT_AMONG = 500
"""Repeats are drawn among this many answers, the newest that are old enough."""


TAKEN_BACK_AT_ONCE = 20
"""The most leases of others that a rater who finds no work takes back; the sweep takes the rest."""


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
    lock_rater(rater)
    return _hold(rater, n, have)


def _hold(rater: Rater, n: int, have: Collection[int]) -> list[Assignment]:
    """`work_for`, when the rater is locked."""
    return fill(rater, in_hand(rater), n, have)


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


def fill(rater: Rater, held: list[Assignment], n: int, have: Collection[int]) -> list[Assignment]:
    """What a locked rater holds, with as much leased as is missing of `n` pieces."""
    if rater.paused_at is not None:
        return []
    now = timezone.now()
    # Nobody else has taken a lease that ran out while its state still says leased.
    if any(a.expires_at < now + lease_time() / 2 for a in held):
        rater.assignments.filter(pk__in=[a.pk for a in held]).update(expires_at=now + lease_time())
        for assignment in held:
            assignment.expires_at = now + lease_time()
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
    if random.random() < project.audit_share:  # noqa: S311 - chance, not a secret
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
# query `open_to(rater)` of labeling/models/comparisons.py with `in_queue_order()`, or in the order
# of the audit stream, written out because it is run for every single label. OFFSET 0 keeps
# PostgreSQL from joining all of the answers of the rater: looked up one by one, the search ends at
# the first fit.
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
    taken |= {c.pk: c.given_before for c in siblings.order_by("pk") if place_taken(c.pk)}
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
        "expires_at": now + lease_time(),
        "answer_key": "",
    }
    # Sides are drawn once and kept: a second try after a lease ran out swaps no sides.
    if given_before:
        earlier = Assignment.objects.filter(comparison=comparison_id, rater=rater, repeats=None)
        earlier.update(**lease)
        return earlier.get()
    shown_first = shown_first or random.choice("ab")  # noqa: S311 - chance, not a secret
    return Assignment.objects.create(
        comparison_id=comparison_id, rater=rater, shown_first=shown_first, **lease
    )


def _entrance(rater: Rater) -> Comparison | None:
    """The next comparison of the training, then the qualification; grades when none is left."""
    entrance = Comparison.objects.of_sets().filter(
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
        Comparison.objects.of_sets()
        .filter(project=rater.project_id, purpose=Purpose.CHECK)
        .not_given_to(rater)
        .order_by("random_key")
    )
    start = random.random()  # noqa: S311 - chance, not a secret
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
    preference_id, comparison_id, shown_first = random.choice(eligible)  # noqa: S311 - chance, not a secret
    now = timezone.now()
    return Assignment.objects.create(
        comparison_id=comparison_id,
        rater=rater,
        stream=Stream.REPEAT,
        repeats_id=preference_id,
        shown_first="b" if shown_first == "a" else "a",
        inclusion_probability=1 / len(eligible),
        leased_at=now,
        expires_at=now + lease_time(),
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
