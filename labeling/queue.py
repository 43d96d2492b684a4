"""The lead's view of the comparisons: filters, pages of a large project, changes to many at once.

A filter may match one comparison in a million, so nothing here asks the database for "the next
fifty matches": it looks at the project's comparisons in the order of their keys, a stretch at a
time, until the page is full or the time is up. Then it says how far it looked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

from django.db import connection, transaction
from django.db.models import (
    Count,
    Exists,
    F,
    FloatField,
    IntegerField,
    Max,
    Min,
    OuterRef,
    Q,
    Subquery,
)
from django.db.models.functions import Abs, Cast, Coalesce, Greatest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.changes import comparisons_of, note_change
from labeling.models import (
    Assignment,
    Change,
    Choice,
    Comparison,
    ComparisonQuerySet,
    Decision,
    Flag,
    Preference,
    Project,
    Rater,
)
from labeling.places import count_places
from labeling.search import Holds, Words
from labeling.sets import set_purpose

State = Assignment.State
PAGE = 50
COUNTED = 1_000
"""A list counts its matches up to here and then says "more than"."""
CHANGED_AT_ONCE = 10_000
"""The most comparisons that one change takes: it is one transaction, and others wait for it."""
SECONDS = 2.0
"""How long a page looks for matches before it shows what it has."""
FIRST_STRETCH, LONGEST_STRETCH = 1_000, 64_000
CHUNK = 500  # keys in one statement


class TooMany(Exception):
    """More comparisons than one change takes, or too many to find in time."""


@dataclass(frozen=True)
class Found:
    pks: list[int]
    looked_to: int | None = None  # where time ran out; None: all were looked at, or enough found


@dataclass(frozen=True)
class Page:
    """A page of comparisons that a filter lets through."""

    rows: list[Comparison]
    n: int  # matches in all, counted up to COUNTED
    more_than_counted: bool = False
    counted_to: int | None = None  # the key at which the time to count was up
    before: int | None = None  # the page before this one ends before this key
    after: int | None = None  # the next page begins after this key
    time_was_up: bool = False  # the page is not full, because looking took too long


def filtered(
    project: Project,
    *,
    state: str = "",
    disagreement: str = "",
    flag: str = "",
    judge: str = "",
    length_min: float | None = None,
    length_max: float | None = None,
    tag: str = "",
    purpose: str = "",
    leak: str = "",
    decision: str = "",
    rater: Rater | None = None,
    text: str = "",
) -> ComparisonQuerySet:
    """The project's comparisons that pass every filter given; `forms.FilterForm` names the values.

    Lengths are the difference as a share of the longer response, in per cent.
    """
    rows = project.comparisons.all()
    preferences = Preference.objects.current().filter(comparison=OuterRef("pk"))
    people = preferences.filter(rater__kind=Rater.Kind.PERSON)
    given = Assignment.objects.filter(comparison=OuterRef("pk"), repeats=None)
    held = Exists(given.filter(state=State.LEASED))
    if state == "open":
        rows = rows.filter(open_places__gt=0)
    elif state == "held":
        rows = rows.filter(held)
    elif state == "done":
        rows = rows.work().filter(~held, open_places=0)
    elif state == "skipped":
        rows = rows.filter(Exists(given.filter(state=State.SKIPPED)))
    if disagreement:
        votes = people if disagreement == "people" else preferences.exclude(choice=Choice.UNPARSED)
        rows = rows.filter(Exists(_differing(votes)))
    if flag:
        rows = rows.filter(_flagged(flag))
    if judge:
        rows = _judge_and_people(rows, preferences, judge)
    if length_min is not None or length_max is not None:
        rows = rows.annotate(length_difference=_length_difference())
        if length_min is not None:
            rows = rows.filter(length_difference__gte=length_min / 100)
        if length_max is not None:
            rows = rows.filter(length_difference__lte=length_max / 100)
    if tag:
        rows = rows.filter(Exists(preferences.filter(Holds("tags", tag))))
    if purpose == "gold":
        rows = rows.exclude(gold="")
    elif purpose:
        rows = rows.filter(purpose=purpose)
    if leak:
        rows = rows.filter(leaks=[]) if leak == "no" else rows.exclude(leaks=[])
    if decision:
        decided = Exists(Decision.objects.filter(comparison=OuterRef("pk"), superseded_at=None))
        rows = rows.filter(decided if decision == "yes" else ~decided)
    if rater is not None:
        rows = rows.filter(Exists(preferences.filter(rater=rater)))
    if text:
        rows = rows.alias(
            prompt_words=Words("prompt__messages"),
            a_words=Words("response_a__messages"),
            b_words=Words("response_b__messages"),
        ).filter(
            Q(external_id__icontains=text)
            | Q(prompt_words__icontains=text)
            | Q(a_words__icontains=text)
            | Q(b_words__icontains=text)
        )
    return rows


def with_majority_of_people(rows: ComparisonQuerySet) -> ComparisonQuerySet:
    """The rows with what people said most: `people_choice`, given `n_most` times, and the answer
    after it `n_next` times. Without an answer `n_most` is null."""
    people = Preference.objects.current().filter(
        comparison=OuterRef("pk"), rater__kind=Rater.Kind.PERSON
    )
    by_choice = people.order_by().values("choice").annotate(n=Count("pk")).order_by("-n", "choice")
    n_of_people = by_choice.values("n")
    return rows.alias(
        people_choice=Subquery(by_choice.values("choice")[:1]),
        n_most=Subquery(n_of_people[:1], output_field=IntegerField()),
        n_next=Coalesce(Subquery(n_of_people[1:2], output_field=IntegerField()), 0),
    )


def find(
    project: Project,
    rows: ComparisonQuerySet,
    n: int,
    *,
    after: int = 0,
    seconds: float | None = None,
) -> Found:
    """Up to `n` keys of `rows` above `after`, in order, as far as the time allows."""
    return _find(project, rows, n, after, seconds, backwards=False)


def find_before(
    project: Project,
    rows: ComparisonQuerySet,
    n: int,
    *,
    before: int,
    seconds: float | None = None,
) -> Found:
    """Up to `n` keys of `rows` below `before`, the nearest first."""
    return _find(project, rows, n, before, seconds, backwards=True)


def page_of(
    project: Project, rows: ComparisonQuerySet, *, after: int = 0, before: int | None = None
) -> Page:
    """The page after or before a key, with what the list shows of each comparison."""
    counted = find(project, rows, COUNTED + 1)
    if before is not None:
        found = find_before(project, rows, PAGE + 1, before=before)
        pks = found.pks[:PAGE][::-1]
        to_before = pks[0] if len(found.pks) > PAGE else found.looked_to
        to_after = pks[-1] if pks else before - 1
    else:
        # What was counted begins with the first page.
        found = counted if not after else find(project, rows, PAGE + 1, after=after)
        pks = found.pks[:PAGE]
        to_before = (pks[0] if pks else after + 1) if after else None
        to_after = pks[-1] if len(found.pks) > PAGE else found.looked_to
    return Page(
        rows=with_marks(project.comparisons.filter(pk__in=pks)),
        n=min(len(counted.pks), COUNTED),
        more_than_counted=len(counted.pks) > COUNTED,
        counted_to=counted.looked_to,
        before=to_before,
        after=to_after,
        time_was_up=found.looked_to is not None and len(pks) < PAGE,
    )


def with_marks(rows: ComparisonQuerySet) -> list[Comparison]:
    """The comparisons in the order of their keys, with `labels`, `n_held`, `n_flags`, `decided`
    (the choice) and the lengths of their responses."""
    held = Assignment.objects.filter(
        comparison=OuterRef("pk"), state=State.LEASED, repeats=None
    ).values("comparison")
    flags = Flag.objects.filter(comparison=OuterRef("pk"), resolved_at=None).values("comparison")
    decision = Decision.objects.filter(comparison=OuterRef("pk"), superseded_at=None)
    comparisons = list(
        rows.select_related("prompt")
        .annotate(
            n_held=Coalesce(Subquery(held.annotate(n=Count("pk")).values("n")), 0),
            n_flags=Coalesce(Subquery(flags.annotate(n=Count("pk")).values("n")), 0),
            decided=Subquery(decision.values("choice")[:1]),
            n_chars_a=F("response_a__n_chars"),
            n_chars_b=F("response_b__n_chars"),
        )
        .order_by("pk")
    )
    labels: dict[int, Counter[str]] = {}
    votes = (
        Preference.objects.current()
        .filter(comparison__in=[c.pk for c in comparisons])
        .values_list("comparison_id", "rater__kind", "choice")
    )
    for pk, kind, choice in votes:
        labels.setdefault(pk, Counter())[f"{kind}_{choice}"] += 1
    for comparison in comparisons:
        comparison.labels = labels.get(comparison.pk, Counter())
        people = [name for name in comparison.labels if name.startswith("person_")]
        comparison.people_differ = len(people) > 1
    return comparisons


def selected(project: Project, rows: ComparisonQuerySet) -> list[int]:
    """The keys of all that a filter lets through, for a change.

    Raises: TooMany.
    """
    found = find(project, rows, CHANGED_AT_ONCE + 1, seconds=20)
    if len(found.pks) > CHANGED_AT_ONCE or found.looked_to is not None:
        raise TooMany
    return found.pks


@transaction.atomic
def set_priority(project: Project, pks: Iterable[int], priority: int, actor: Any) -> int:
    """Give comparisons a place in the queue; higher comes first. How many changed."""
    return _set(project, pks, "priority", priority, actor, gettext_noop("set priority"))


@transaction.atomic
def set_gold(project: Project, pks: Iterable[int], gold: str, actor: Any) -> tuple[int, int]:
    """Say what the right answer is, or with "" that none is known.

    Returns: (how many changed, how many keep theirs because their set needs one).
    """
    chosen = _chosen(project, pks)
    kept = []
    if not gold:
        kept = [c.pk for c in chosen if c.purpose != Comparison.Purpose.WORK]
    changing = [c.pk for c in chosen if c.pk not in set(kept)]
    return _set(project, changing, "gold", gold, actor, gettext_noop("set gold")), len(kept)


@transaction.atomic
def set_labels_wanted(
    project: Project, pks: Iterable[int], wanted: int, actor: Any
) -> tuple[int, int]:
    """Ask more people, or fewer; what was given or is held stays.

    Returns: (how many changed, how many were left because they belong to a set of raters, which
    wants no labels).
    """
    chosen = _chosen(project, pks)
    work = [c.pk for c in chosen if c.purpose == Comparison.Purpose.WORK]
    n = _set(project, work, "labels_wanted", wanted, actor, gettext_noop("set labels wanted"))
    count_places(work)
    return n, len(chosen) - len(work)


@transaction.atomic
def take_out(project: Project, pks: Iterable[int], actor: Any, note: str = "") -> int:
    """Want no more labels than were given; how many comparisons were open.

    Whoever holds one is told that it is no longer theirs: most are taken out because nobody should
    read them.
    """
    work = [c for c in _chosen(project, pks) if c.purpose == Comparison.Purpose.WORK]
    before, no_more = {}, {}
    for chunk in _chunks([c.pk for c in work]):
        _expire_leases(chunk)
        no_more |= _given_or_held(chunk)
    by_wanted: dict[int, list[int]] = {}
    for comparison in work:
        wanted = no_more.get(comparison.pk, 0)
        if comparison.labels_wanted > wanted:
            before[comparison.pk] = comparison.labels_wanted
            by_wanted.setdefault(wanted, []).append(comparison.pk)
    for wanted, some in by_wanted.items():
        for chunk in _chunks(some):
            project.comparisons.filter(pk__in=chunk).update(labels_wanted=wanted, open_places=0)
    if before:
        _note(project, actor, TAKE_OUT, "labels_wanted", before, {"note": note} if note else {})
    return len(before)


@transaction.atomic
def put_back(project: Project, pks: Iterable[int], actor: Any) -> int:
    """Want as many labels again as before `take_out`; how many comparisons were put back."""
    work = [c for c in _chosen(project, pks) if c.purpose == Comparison.Purpose.WORK]
    wanted = wanted_before_taken_out(project, [c.pk for c in work])
    before = {c.pk: c.labels_wanted for c in work if c.pk in wanted}
    for pk in before:
        project.comparisons.filter(pk=pk).update(labels_wanted=wanted[pk])
    if before:
        count_places(before)
        _note(project, actor, PUT_BACK, "labels_wanted", before, {})
    return len(before)


@dataclass(frozen=True)
class Changed:
    """What became of a change to many comparisons."""

    n: int
    n_left: int = 0
    why_left: str = ""  # with `n_left` put in


def change_many(
    project: Project, pks: list[int], action: str, value: Any, actor: Any, note: str = ""
) -> Changed:
    """Carry out one change: "priority", "labels_wanted", "purpose" or "gold" ("": not known) set to
    `value`, "take_out" or "put_back"."""
    n_left, why = 0, ""
    match action:
        case "priority":
            n = set_priority(project, pks, value, actor)
        case "labels_wanted":
            n, n_left = set_labels_wanted(project, pks, value, actor)
            why = _("%(n)s left as they are: sets of raters want no labels.")
        case "purpose":
            n, n_left = set_purpose(project, pks, value, actor)
            why = _("%(n)s left as they are: a set needs a known answer. Set it first.")
        case "gold":
            n, n_left = set_gold(project, pks, value, actor)
            why = _("%(n)s keep their answer: their set needs one. Change the purpose first.")
        case "take_out":
            n = take_out(project, pks, actor, note)
        case "put_back":
            n = put_back(project, pks, actor)
        case _:
            raise ValueError(f"no change of comparisons: {action}")
    return Changed(n, n_left, why % {"n": n_left} if n_left else "")


TAKE_OUT, PUT_BACK = gettext_noop("take out of the queue"), gettext_noop("put back into the queue")
WANTED_CHANGES = (
    TAKE_OUT,
    PUT_BACK,
    gettext_noop("set labels wanted"),
    gettext_noop("change purpose"),
)


def wanted_before_taken_out(project: Project, pks: Iterable[int]) -> dict[int, int]:
    """How many labels each wanted that was taken out of the queue and did not come back since."""
    wanted, unknown = {}, set(pks)
    changes = project.changes.filter(action__in=WANTED_CHANGES).order_by("-pk")
    for change in changes.iterator(chunk_size=100):
        about = unknown.intersection(comparisons_of(change))
        unknown -= about
        if change.action == TAKE_OUT:
            before = change.before["labels_wanted"]
            wanted |= {pk: before[str(pk)] if isinstance(before, dict) else before for pk in about}
        if not unknown:
            break
    return wanted


def changes_of(comparison: Comparison) -> Any:
    """What was changed about this comparison, newest first."""
    about = Holds("after__comparisons", comparison.pk)
    return Change.objects.filter(about, project=comparison.project_id).order_by("-pk")


def _find(
    project: Project,
    rows: ComparisonQuerySet,
    n: int,
    start: int,
    seconds: float | None,
    *,
    backwards: bool,
) -> Found:
    seconds = SECONDS if seconds is None else seconds
    until = monotonic() + seconds
    here, stretch, pks = start, FIRST_STRETCH, []
    while True:
        began = monotonic()
        if backwards:
            part = project.comparisons.filter(pk__lt=here).order_by("-pk")[:stretch]
            end = part.aggregate(end=Min("pk"))["end"]
            span, order = Q(pk__lt=here, pk__gte=end), "-pk"
        else:
            part = project.comparisons.filter(pk__gt=here).order_by("pk")[:stretch]
            end = part.aggregate(end=Max("pk"))["end"]
            span, order = Q(pk__gt=here, pk__lte=end), "pk"
        if end is None:
            return Found(pks)
        pks += rows.filter(span).order_by(order).values_list("pk", flat=True)[: n - len(pks)]
        if len(pks) == n:
            return Found(pks)
        here = end
        now = monotonic()
        if now > until:
            return Found(pks, looked_to=here)
        if now - began < seconds / 20:
            stretch = min(4 * stretch, LONGEST_STRETCH)


def _differing(votes: Any) -> Any:
    by_comparison = votes.order_by().values("comparison")
    return by_comparison.annotate(n=Count("choice", distinct=True)).filter(n__gt=1)


def _flagged(which: str) -> Any:
    flags = Flag.objects.filter(comparison=OuterRef("pk"))
    unresolved = flags.filter(resolved_at=None)
    if which == "any":
        return Exists(flags)
    if which == "resolved":
        return Exists(flags) & ~Exists(unresolved)
    return Exists(unresolved if which == "unresolved" else unresolved.filter(kind=which))


def _judge_and_people(rows: Any, preferences: Any, which: str) -> Any:
    """Where a judge's choice is, or is not, the one that most people made; a shared first place of
    people is held against no judge."""
    verdicts = preferences.of_judges().exclude(choice=Choice.UNPARSED)
    majority = OuterRef("people_choice")
    same = verdicts.filter(choice=majority)
    other = verdicts.exclude(choice=majority)
    return with_majority_of_people(rows).filter(
        Exists(verdicts),  # first, because it is cheap
        Exists(other) if which == "differs" else Exists(same) & ~Exists(other),
        n_most__gt=F("n_next"),
    )


def _length_difference() -> Any:
    a, b = F("response_a__n_chars"), F("response_b__n_chars")
    longer = Cast(Greatest(a, b, 1), FloatField())  # two empty responses do not differ
    return Cast(Abs(a - b), FloatField()) / longer


def _chosen(project: Project, pks: Iterable[int]) -> list[Comparison]:
    """Those of the project, locked in one order, so that two changes at once never deadlock."""
    rows = project.comparisons.order_by("pk").select_for_update(no_key=True)
    return [c for chunk in _chunks(sorted(set(pks))) for c in rows.filter(pk__in=chunk)]


def _chunks(pks: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(pks), CHUNK):
        yield pks[start : start + CHUNK]


def _expire_leases(pks: list[int]) -> None:
    """Take comparisons back from whoever holds them, except where an answer is on its way in this
    very moment: its request holds the lease's lock and may come to wait for the comparison's."""
    held = Assignment.objects.filter(comparison__in=pks, state=State.LEASED, repeats=None)
    if connection.features.has_select_for_update_skip_locked:
        free = held.select_for_update(skip_locked=True, no_key=True)
        held = held.filter(pk__in=list(free.values_list("pk", flat=True)))
    held.update(state=State.EXPIRED)


def _given_or_held(pks: list[int]) -> Counter[int]:
    """How many labels people gave or still hold, by comparison."""
    given = Preference.objects.current().filter(comparison__in=pks, rater__kind=Rater.Kind.PERSON)
    held = Assignment.objects.filter(comparison__in=pks, state=State.LEASED, repeats=None)
    return Counter(given.values_list("comparison_id", flat=True)) + Counter(
        held.values_list("comparison_id", flat=True)
    )


def _set(
    project: Project, pks: Iterable[int], name: str, value: Any, actor: Any, action: str
) -> int:
    before = {c.pk: getattr(c, name) for c in _chosen(project, pks) if getattr(c, name) != value}
    for chunk in _chunks(list(before)):
        project.comparisons.filter(pk__in=chunk).update(**{name: value})
    if before:
        _note(project, actor, action, name, before, {name: value})
    return len(before)


def _note(
    project: Project,
    actor: Any,
    action: str,
    name: str,
    before: dict[int, Any],
    after: dict[str, Any],
) -> None:
    """One change for all of them. What they had before is one value if it was the same, else it is
    kept by their keys."""
    values = set(before.values())
    if len(before) == 1:
        subject = str(project.comparisons.get(pk=next(iter(before))))
    else:
        subject = f"{len(before)} comparisons"
    note_change(
        project,
        actor,
        action,
        subject,
        before={name: values.pop() if len(values) == 1 else {str(k): v for k, v in before.items()}},
        after={**after, "comparisons": list(before)},
    )
