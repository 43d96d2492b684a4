"""Which comparisons a worker has in hand, so that no two ask the same question, and what they may
cost at most, so that the run pauses before its budget is spent."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from django.db import transaction
from django.db.models import Exists, Max, OuterRef, QuerySet, Sum
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from judges.engines import sample_of
from judges.jury import members_of
from judges.ml.budget import Budget
from judges.ml.config import ASKING_MODES, JudgeRecipe, ModelUnusable, recipe_from
from judges.ml.modes import requests_for
from judges.ml.questions import draw_principle
from judges.models import Claim, JudgeRun, JudgeServer, JudgeVersion, RunWorker
from judges.workers import RunPaused, let_go_of_the_dead, locked
from labeling.models import Comparison

WINDOW = 256  # comparisons that a worker claims at once, and sorts by length into batches
FIRST_LOOK = 8  # claimed under a budget while nobody knows what one comparison takes
AROUND_THE_TEXT = 128  # tokens of a chat template and of marks made harmless, in one question


@dataclass(frozen=True)
class Window:
    """What a worker got when it asked for comparisons."""

    comparisons: Sequence[Comparison] = ()
    others_hold: bool = False
    """Nothing is free, but colleagues have comparisons in hand that may come back."""


@dataclass(frozen=True)
class Spent:
    """What a run has spent over all its starts, and what its workers have set aside."""

    n_tokens: int
    cost: float
    n_tokens_held: int
    cost_held: float


def spent_by(run: JudgeRun) -> Spent:
    sums = {"n": Sum("n_tokens", default=0), "cost": Sum("cost", default=0.0)}
    own, members, held = (
        rows.aggregate(**sums) for rows in (run.verdicts, run.member_verdicts, run.claims)
    )
    return Spent(own["n"] + members["n"], own["cost"] + members["cost"], held["n"], held["cost"])


def budget_of(run: JudgeRun) -> Budget | None:
    """What a run may still have servers asked for, all of a jury's members together; None where it
    has no limit."""
    if run.most_tokens is None and run.most_cost is None:
        return None
    spent = spent_by(run)
    return Budget(
        run.most_tokens, run.most_cost, spent_tokens=spent.n_tokens, spent_cost=spent.cost
    )


def askers_of(version: JudgeVersion) -> list[JudgeVersion]:
    """The versions that are asked when this one judges: a jury's members, or itself.

    Raises: ModelUnusable for a jury that has lost a member.
    """
    return members_of(version) if version.recipe.get("mode") == "jury" else [version]


def servers_of(version: JudgeVersion) -> list[JudgeServer]:
    """Servers that are asked when this version judges; none of a jury that has lost a member."""
    try:
        askers = askers_of(version)
    except ModelUnusable:
        return []
    return [asker.server for asker in askers if asker.server is not None]


def currency_of(version: JudgeVersion) -> str:
    """Of its servers' prices; "" where it asks none, or they are in several."""
    currencies = {server.currency for server in servers_of(version)}
    return currencies.pop() if len(currencies) == 1 else ""


@transaction.atomic
def claim_window(
    run: JudgeRun,
    worker: RunWorker,
    left: deque[int],
    waiting: Callable[[], QuerySet[Comparison]],
) -> Window:
    """Take the next comparisons of `left` that are still waiting and that nobody holds.

    A worker alone takes WINDOW at once; several take less towards the end, so that they end
    together.

    Raises: JobTaken, JobCancelled or RunPaused when the run does not go on, the latter also with
    the line for its page when the budget does not suffice for one more comparison.
    """
    row = locked(run)
    if row.pause_requested:
        raise RunPaused(_("Paused."))
    let_go_of_the_dead(row)
    # Taken for dead while it waited or loaded, it holds nothing that could be wrong: it is back.
    RunWorker.objects.filter(pk=worker.pk).update(
        heartbeat_at=timezone.now(), left_at=None, problem=""
    )
    n_held = row.claims.count()
    n_workers = row.workers.filter(left_at=None).count()
    size = WINDOW if n_workers < 2 else max(1, min(WINDOW, len(left) // (2 * n_workers)))
    if row.limit is not None:
        size = min(size, row.limit - row.n_done - n_held)
    rows: list[Comparison] = []
    while left and size > 0 and not rows:
        # A stretch at a time: most of it may have been judged by others since `left` was read.
        chunk = [left.popleft() for _place in range(min(size, len(left)))]
        held = Exists(Claim.objects.filter(run=row, comparison=OuterRef("pk")))
        rows = list(
            waiting()
            .filter(~held, pk__in=chunk)
            .select_related("prompt", "response_a", "response_b")
        )
    if not rows:
        return Window(others_hold=n_held > 0)
    claims = [Claim(run=row, worker=worker, comparison=comparison) for comparison in rows]
    n_fitting = _within_budget(row, claims)
    if n_fitting < len(rows):
        left.extendleft(comparison.pk for comparison in reversed(rows[n_fitting:]))
    if not n_fitting:
        if n_held:
            return Window(others_hold=True)  # they may need less than they have set aside
        raise RunPaused(_budget_line(row, claims[0]))
    Claim.objects.bulk_create(claims[:n_fitting])
    return Window(rows[:n_fitting])


@transaction.atomic
def give_back(run: JudgeRun, worker: RunWorker) -> list[int]:
    """Let go of what a worker holds, so that colleagues get their share of it; which ones."""
    locked(run)
    held = Claim.objects.filter(worker=worker)
    pks = list(held.values_list("comparison_id", flat=True))
    held.delete()
    return pks


def _within_budget(run: JudgeRun, claims: Sequence[Claim]) -> int:
    """How many of the claims the budget allows, one after the other; writes what each may take."""
    if run.most_tokens is None and run.most_cost is None:
        return len(claims)
    version = JudgeVersion.objects.select_related("judge", "server").get(pk=run.version_id)
    spent = spent_by(run)
    n_tokens, cost = spent.n_tokens + spent.n_tokens_held, spent.cost + spent.cost_held
    askers = [_Asker.of(one, claims, sits=one.pk != version.pk) for one in askers_of(version)]
    known = all(asker.n_tokens is not None for asker in askers)
    for place, claim in enumerate(claims if known else claims[:FIRST_LOOK]):
        takes = [asker.takes(claim.comparison) for asker in askers]
        claim.n_tokens = sum(n for n, _cost in takes)
        claim.cost = sum(cost for _n, cost in takes)
        n_tokens, cost = n_tokens + claim.n_tokens, cost + claim.cost
        if run.most_tokens is not None and n_tokens > run.most_tokens:
            return place
        if run.most_cost is not None and cost > run.most_cost:
            return place
    return len(claims) if known else min(FIRST_LOOK, len(claims))


@dataclass(frozen=True)
class _Asker:
    """A version that is asked, and the most that it took for one comparison so far."""

    recipe: JudgeRecipe
    price: float
    n_tokens: int | None
    cost: float
    judged: frozenset[int]
    """Comparisons that a member of a jury is not asked about any more."""

    @classmethod
    def of(cls, version: JudgeVersion, claims: Sequence[Claim], *, sits: bool) -> Self:
        dearest = version.verdicts.aggregate(n_tokens=Max("n_tokens"), cost=Max("cost"))
        wanted = [claim.comparison.pk for claim in claims] if sits else []
        judged = version.verdicts.filter(comparison__in=wanted)
        return cls(
            recipe_from(version.recipe),
            price_of_a_token(version.server) or 0.0,
            dearest["n_tokens"],
            dearest["cost"] or 0.0,
            frozenset(judged.values_list("comparison", flat=True)),
        )

    def takes(self, comparison: Comparison) -> tuple[int, float]:
        """(tokens, cost) at most, for all questions about the comparison."""
        if comparison.pk in self.judged:
            return 0, 0.0
        n_tokens = max(most_tokens_of(self.recipe, comparison), self.n_tokens or 0)
        return n_tokens, max(n_tokens * self.price, self.cost)


def most_tokens_of(recipe: JudgeRecipe, comparison: Comparison) -> int:
    """An upper bound of what all questions about a comparison take, read and written.

    No tokenizer in use makes more tokens of a text than it has bytes.
    """
    sample = sample_of(comparison)
    if recipe.mode not in ASKING_MODES:  # a reward model reads either response after the prompt
        words = [turn["content"] for texts in (sample.prompt, sample.a, sample.b) for turn in texts]
        return 2 * (sum(map(_n_bytes, words)) + AROUND_THE_TEXT)
    n_tokens = 0
    for request in requests_for(recipe, sample, principle=draw_principle(recipe, sample)):
        read = _n_bytes(request.task) + _n_bytes(request.lead) + _n_bytes(request.ending)
        read += sum(map(_n_bytes, request.answers)) + AROUND_THE_TEXT
        written, times = (request.write.max_tokens, request.write.n) if request.write else (0, 1)
        n_tokens += times * (read + written)
    return n_tokens


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def price_of_a_token(server: JudgeServer | None) -> float | None:
    """The most that one token costs, read or written; None where no price is known."""
    prices = (server.price_read, server.price_written) if server else (None, None)
    if any(price is None for price in prices):
        return None
    return max(prices) / 1e6


def _budget_line(run: JudgeRun, claim: Claim) -> str:
    spent = spent_by(run)
    if run.most_tokens is not None and spent.n_tokens + claim.n_tokens > run.most_tokens:
        return _(
            "Paused before its limit of %(most)s tokens: %(spent)s are spent, and the next "
            "comparison may take up to %(next)s. Raise the limit to go on."
        ) % {
            "most": number_format(run.most_tokens, force_grouping=True),
            "spent": number_format(spent.n_tokens, force_grouping=True),
            "next": number_format(claim.n_tokens, force_grouping=True),
        }
    return _(
        "Paused before its limit of %(most)s %(currency)s: %(spent)s are spent, and the next "
        "comparison may cost up to %(next)s. Raise the limit to go on."
    ) % {
        "most": number_format(run.most_cost, 2),
        "currency": currency_of(run.version),
        "spent": number_format(spent.cost, 4),
        "next": number_format(claim.cost, 4),
    }
