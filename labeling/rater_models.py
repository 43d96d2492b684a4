"""What is true, and how far each rater may be believed: Dawid and Skene's model and its kin.

Numbers in, numbers out; needs numpy (the extra `stats`), so callers import it in their bodies.
People and AI judges are raters alike. Labels are encoded relative to the screen: where B stood
first, A and B change places within that rater's table of errors, so that leaning to a side shows
as an asymmetric table and is weighed as the error it is. Where the order of showing is not known,
A counts as shown first, and the rater's side preference is not measured on that vote.

A rater may have voted twice on an item (each vote counts), raters may have skipped most items, and
an item may have one vote: its posterior then rests on what is known of that rater, and the vote
says nothing about the rater (`reliabilities` leaves it out).
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop

from labeling.shares import wilson

Figure = dict[str, Any]
SMOOTHING = 0.01
POOLED = 1.0
MAX_STEPS = 100
TOLERANCE = 1e-5
ENOUGH = 10  # expected answers below which a share of them is not printed
CHECKED_VOTES = 4  # of an item: fewer leave the model free to fit whatever was said
FEWEST_CHECKED, MOST_CHECKED = 200, 20_000  # items with so many votes on which a fit is checked
PAIRED_ITEMS = 50_000  # on which pairs of raters are held against the fit
FEWEST_SHARED = 50  # items of such a pair
TOO_ALIKE = 0.02  # surely so much more agreement than the model explains
MOST_ALIKE = 10  # pairs that are named
WORST_MISFIT = 0.1  # above which the model says nothing about how sure its figures are
SEED = 20_261_121
ERR_TOGETHER = gettext_noop(
    "Raters err together here, which the model does not know: its interval would be too narrow."
)


@dataclass(frozen=True)
class Answers:
    """Votes as columns: row i is one rater's label of one item."""

    item: np.ndarray
    """(votes,) 0 … n_items − 1, rising."""
    rater: np.ndarray
    """(votes,) 0 … n_raters − 1."""
    label: np.ndarray
    """(votes,) 0 … n_classes − 1; of two responses 0 is A and 1 is B."""
    shown_first: np.ndarray
    """(votes,) 0 A, 1 B, −1 where it is not known, or where there are no sides."""
    n_items: int
    n_raters: int
    n_classes: int

    def __len__(self) -> int:
        return len(self.item)

    @classmethod
    def of(
        cls,
        item: Any,
        rater: Any,
        label: Any,
        shown_first: Any = None,
        *,
        n_items: int | None = None,
        n_raters: int | None = None,
        n_classes: int | None = None,
    ) -> "Answers":
        """From columns in any order; what is not said is one more than the greatest code."""
        columns = [np.asarray(column, dtype=np.int64) for column in (item, rater, label)]
        first = np.full(len(columns[0]), -1) if shown_first is None else np.asarray(shown_first)
        order = np.argsort(columns[0], kind="stable")
        counts = [
            int(column.max(initial=-1)) + 1 if n is None else n
            for column, n in zip(columns, (n_items, n_raters, n_classes), strict=True)
        ]
        return cls(*(column[order] for column in columns), first[order], *counts)


@dataclass(frozen=True)
class Parameters:
    """What a fit has learned; enough to begin another one with."""

    prior: np.ndarray
    """(classes,) how common each true class is."""
    confusion: np.ndarray
    """(raters, true class, given label) probabilities, the first two classes by place on the
    screen: first, second. NaN for a rater of whom nothing is known."""


@dataclass(frozen=True)
class Fit:
    posteriors: np.ndarray
    """(items, classes); of an item without votes: the prior."""
    parameters: Parameters
    n_steps: int
    converged: bool
    log_likelihood: float
    """Per item with votes, in nats."""


# The models ---------------------------------------------------------------------------------------


def dawid_skene(
    answers: Answers,
    *,
    alpha: float = SMOOTHING,
    pooled: float = POOLED,
    max_steps: int = MAX_STEPS,
    tolerance: float = TOLERANCE,
    start: Parameters | None = None,
    possible: np.ndarray | None = None,
) -> Fit:
    """A table of errors for each rater and the true class of each item, by EM.

    The M step counts each rater's labels l where the truth is k, θ_kl ∝ Σ_j q_j(k) 1[l_ij = l] + α;
    the E step is q_j(k) ∝ π_k Π_i θ_k,l_ij. It begins with the shares of votes, or with `start`.

    Each row of a table also gets `pooled` votes that go as all raters' do. Without them a rater of
    a dozen votes is fitted until they make no error at all: on 3,787 raters of 17 votes each the
    labels agree with the reference on 85 % with none, 88 % with one; where raters have hundreds of
    votes it changes nothing to speak of (docs/benchmarks.md).

    Args: alpha: added to every count, so that nothing becomes impossible; max_steps, tolerance:
        the end, when the log-likelihood per item (nats) rises by less than this; possible:
        (classes,) bool, what may be true of an item (None: everything that raters may say).
    Source: Dawid & Skene 1979, Applied Statistics 28(1), eq. 2.3 to 2.5; with pooled = 0 as
        crowdkit.aggregation.DawidSkene, but for the places. Pooling in part, as the hierarchical
        model of Paun et al. 2018, TACL 6, does with more machinery.
    """

    def confusions(counts: np.ndarray) -> np.ndarray:
        crowd = counts.sum(axis=0) + alpha
        smoothed = counts + alpha + pooled * crowd / crowd.sum(axis=1, keepdims=True)
        return smoothed / smoothed.sum(axis=2, keepdims=True)

    return _em(answers, confusions, alpha, max_steps, tolerance, start, possible)


def weighed(answers: Answers, start: Parameters | None = None) -> tuple[Fit, np.ndarray]:
    """Dawid and Skene's model of votes on two responses, and (classes,) what it lets be true.

    Nothing in the model ties a true class to the label of that name. Where some comparisons are
    hard for everybody and hardly anybody ever says "equal", the class that began as "equal" ends
    as that of hard comparisons, on which raters say A or B: then all who take a side there seem
    to be wrong. So a class beside A and B whose own label is not the commonest answer where it is
    true is no longer let be true, and the model is fitted again. Its label remains an answer.

    Source: that labels are recovered only where raters, on the whole, call each class by its name:
        Zhang, Chen, Zhou & Jordan 2016, JMLR 17, §3 (assumption on the diagonal).
    """
    k = answers.n_classes
    said = np.bincount(answers.label, minlength=k) > 0
    possible = np.ones(k, dtype=bool)
    fit = dawid_skene(answers, start=start)
    while True:
        table = np.zeros((k, k))  # true, given: by name
        for given in np.flatnonzero(said):
            table[:, given] = fit.posteriors[answers.item[answers.label == given]].sum(axis=0)
        named = (table.diagonal() >= table.max(axis=1)) | ~said | (np.arange(k) < 2)
        if not (possible & ~named).any():
            return fit, possible
        possible &= named
        fit = dawid_skene(answers, possible=possible)


def one_coin(
    answers: Answers,
    *,
    alpha: float = SMOOTHING,
    max_steps: int = MAX_STEPS,
    tolerance: float = TOLERANCE,
    start: Parameters | None = None,
) -> Fit:
    """One accuracy for each rater, errors spread evenly: for raters of few votes.

    Source: Zhang, Chen, Zhou & Jordan 2016, JMLR 17, §2.3, arXiv:1406.3824;
        crowdkit.aggregation.OneCoinDawidSkene.
    """
    k = answers.n_classes

    def confusions(counts: np.ndarray) -> np.ndarray:
        right = np.trace(counts, axis1=1, axis2=2) + alpha
        accuracy = right / (counts.sum(axis=(1, 2)) + alpha * k)
        wrong = (1 - accuracy) / max(1, k - 1)
        return np.where(np.eye(k, dtype=bool), accuracy[:, None, None], wrong[:, None, None])

    return _em(answers, confusions, alpha, max_steps, tolerance, start)


def _em(
    answers: Answers,
    confusions: Callable[[np.ndarray], np.ndarray],
    alpha: float,
    max_steps: int,
    tolerance: float,
    start: Parameters | None,
    possible: np.ndarray | None = None,
) -> Fit:
    """Args: confusions: (raters, true, given) expected counts -> probabilities."""
    k = answers.n_classes
    some = np.ones(k, dtype=bool) if possible is None else possible
    if not len(answers):
        prior = np.full(k, 1 / max(1, k))
        confusion = np.full((answers.n_raters, k, k), np.nan)
        rows = np.tile(prior, (answers.n_items, 1))
        return Fit(rows, Parameters(prior, confusion), 0, True, 0.0)
    voted, begin = np.unique(answers.item, return_index=True)
    of_vote = np.repeat(np.arange(len(voted)), np.diff(np.append(begin, len(answers))))
    # What a vote is worth depends on these three alone: one number for them is one look-up.
    code = (answers.rater * 2 + (answers.shown_first == 1)) * k + answers.label
    q = np.zeros((len(voted), k))
    prior, likelihood, n_steps, converged = np.full(k, 1 / k), -np.inf, 0, False
    if start is None:
        flat = np.bincount(of_vote * k + answers.label, minlength=len(voted) * k).reshape(-1, k)
        # Where only what cannot be true was said, nothing is known yet.
        flat = flat * some + 1e-9 * some
        q = flat / flat.sum(axis=1, keepdims=True)
        confusion = np.empty((answers.n_raters, k, k))
    else:
        prior, confusion = start.prior, start.confusion
        q, _likelihood = _expected(code, begin, prior, confusion)
    for _step in range(max_steps):
        n_steps += 1
        prior = (q.sum(axis=0) + alpha) * some
        prior = prior / prior.sum()
        confusion = confusions(_counts(code, q, of_vote, answers.n_raters))
        q, now = _expected(code, begin, prior, confusion)
        rise, likelihood = now - likelihood, now
        if rise < tolerance:
            converged = True
            break
    posteriors = np.tile(prior, (answers.n_items, 1))
    posteriors[voted] = q
    silent = np.bincount(answers.rater, minlength=answers.n_raters) == 0
    confusion = np.where(silent[:, None, None], np.nan, confusion)
    return Fit(posteriors, Parameters(prior, confusion), n_steps, converged, float(likelihood))


def _swap(k: int) -> np.ndarray:
    """The classes as they are called when B stands first."""
    return np.array([1, 0, *range(2, k)])[:k] if k > 1 else np.arange(k)


def _counts(code: np.ndarray, q: np.ndarray, of_vote: np.ndarray, n_raters: int) -> np.ndarray:
    """(raters, true, given) expected counts by place, from posteriors (items, classes) by name."""
    k = q.shape[1]
    sums = np.empty((n_raters, 2, k, k))  # rater, turned, given, true: by name
    for true in range(k):
        sums[..., true] = np.bincount(
            code, np.ascontiguousarray(q[:, true])[of_vote], minlength=n_raters * 2 * k
        ).reshape(n_raters, 2, k)
    swap = _swap(k)
    return sums[:, 0].transpose(0, 2, 1) + sums[:, 1][:, swap][:, :, swap].transpose(0, 2, 1)


def _weights(confusion: np.ndarray) -> np.ndarray:
    """(codes of votes, true class by name) log-likelihoods; 0 for a rater not known yet."""
    n_raters, k, _k = confusion.shape
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(np.isnan(confusion), 1.0, confusion))
    swap = _swap(k)
    by_name = np.stack([logs, logs[:, swap][:, :, swap]], axis=1)  # rater, turned, true, given
    return by_name.transpose(0, 1, 3, 2).reshape(n_raters * 2 * k, k)


def _expected(
    code: np.ndarray, begin: np.ndarray, prior: np.ndarray, confusion: np.ndarray
) -> tuple[np.ndarray, float]:
    """The E step: posteriors of the items with votes, and the log-likelihood per item."""
    with np.errstate(divide="ignore"):  # what cannot be true
        log_prior = np.log(prior)
    logs = log_prior + np.add.reduceat(_weights(confusion)[code], begin, axis=0)
    top = logs.max(axis=1, keepdims=True)
    parts = np.exp(logs - top)
    total = parts.sum(axis=1, keepdims=True)
    return parts / total, float((top + np.log(total)).mean())


def majority(answers: Answers) -> np.ndarray:
    """(items,) the label with the most votes, −1 where several share the first place or none is."""
    counts = np.bincount(
        answers.item * answers.n_classes + answers.label,
        minlength=answers.n_items * answers.n_classes,
    ).reshape(answers.n_items, answers.n_classes)
    top = counts.max(axis=1, initial=0)
    untied = (top > 0) & ((counts == top[:, None]).sum(axis=1) == 1)
    return np.where(untied, counts.argmax(axis=1), -1)


def by_crowd_kit(answers: Answers, method: str) -> np.ndarray:
    """(items,) labels by crowd-kit's MACE or GLAD, −1 where an item has no votes.

    They do not know of places. MACE: with some probability a rater spams, from a favourite mix of
    labels; GLAD: one ability for each rater and one easiness for each item.

    Args: method: "MACE" or "GLAD".
    Raises: ModuleNotFoundError where crowd-kit (the extra `crowd`) is not installed.
    Source: Hovy et al. 2013, N13-1132; Whitehill et al. 2009, NIPS 22.
    """
    import pandas as pd
    from crowdkit import aggregation

    models = {"MACE": lambda: aggregation.MACE(random_state=0), "GLAD": aggregation.GLAD}
    table = pd.DataFrame({"task": answers.item, "worker": answers.rater, "label": answers.label})
    found = models[method]().fit_predict(table)
    labels = np.full(answers.n_items, -1)
    labels[found.index.to_numpy()] = found.to_numpy()
    return labels


# What the posteriors say of items -----------------------------------------------------------------


def entropies(posteriors: np.ndarray) -> np.ndarray:
    """(items,) how open each label still is, in bits: 0 where it is sure, 1 where two are even."""
    logs = np.log2(posteriors, out=np.zeros_like(posteriors), where=posteriors > 0)
    return -(posteriors * logs).sum(axis=1) + 0.0


# Whether the model fits ---------------------------------------------------------------------------


def misfit(answers: Answers, fit: Fit) -> Figure:
    """The share of items whose votes split otherwise than the fitted model says they would.

    The model lets raters err each for themselves. Where some items are hard for everybody, or one
    rater copies another, more items end in full agreement and more in a tie than it expects. Four
    votes of each item, drawn at random, make a pattern (4-0, 3-1, 2-2, 2-1-1, 1-1-1-1); the value
    is half the sum of the differences between the shares of patterns seen and expected, less what
    chance makes of it. It is the least share of items that follow another law.

    Returns: "value", "p_value" (how often chance alone would differ as much), "n" items; "value"
        None where there are too few items with four votes: three can be fitted to anything.
    Source: a posterior predictive check, Gelman, Meng & Stern 1996, Statistica Sinica 6.
    """
    rng = np.random.default_rng(SEED)
    n_votes = np.bincount(answers.item, minlength=answers.n_items)
    items = np.flatnonzero(n_votes >= CHECKED_VOTES)
    if len(items) < FEWEST_CHECKED:
        why = gettext_noop(
            "Whether raters err each for themselves shows on comparisons with four votes or more, "
            "and there are fewer than 200: these intervals take it for granted."
        )
        return {"value": None, "low": None, "high": None, "n": len(items), "why": why}
    if len(items) > MOST_CHECKED:
        items = np.sort(rng.choice(items, MOST_CHECKED, replace=False))
    begin = np.cumsum(n_votes) - n_votes
    shuffled = np.lexsort((rng.random(len(answers)), answers.item))
    drawn = shuffled[begin[items][:, None] + np.arange(CHECKED_VOTES)]  # (items, votes)
    k = answers.n_classes
    weights = np.exp(_weights(fit.parameters.confusion))
    turned = answers.shown_first[drawn] == 1
    code = (answers.rater[drawn] * 2 + turned) * k  # (items, votes)
    pattern = _patterns(np.indices((k,) * CHECKED_VOTES).reshape(CHECKED_VOTES, -1), k)
    expected = np.zeros(pattern.max() + 1)
    for some in np.array_split(np.arange(len(items)), 1 + len(items) // 2_000):
        joint = fit.parameters.prior[None, :, None]  # (items, true, what was said so far)
        for vote in range(CHECKED_VOTES):
            rows = weights[code[some, vote][:, None] + np.arange(k)]  # (items, given, true)
            joint = joint[..., None] * rows.transpose(0, 2, 1)[:, :, None]
            joint = joint.reshape(len(some), k, -1)
        expected += np.bincount(pattern, joint.sum(axis=(0, 1)), minlength=len(expected))
    expected /= expected.sum()
    seen = np.bincount(_patterns(answers.label[drawn].T, k), minlength=len(expected))

    def apart(counts: np.ndarray) -> Any:
        return np.abs(counts / len(items) - expected).sum(axis=-1) / 2

    by_chance = apart(rng.multinomial(len(items), expected, size=1_000))
    return {
        "value": float(max(0.0, apart(seen) - by_chance.mean())),
        "low": None,
        "high": None,
        "p_value": float((1 + (by_chance >= apart(seen)).sum()) / (1 + len(by_chance))),
        "n": len(items),
    }


def too_alike(answers: Answers, fit: Fit) -> list[dict[str, Any]]:
    """Pairs of raters who give the same label far more often than the fitted model explains.

    The model has them agree with P = Σ_k π_k Σ_l θ_kl θ'_kl. Who copies another, or is the same
    person twice, agrees more. Where that is common, the model takes the copied answers for the
    truth, and the others agree more than it expects of raters so bad: a pair that is named here
    says that there are groups, not which of them is right. Named are pairs whose agreement is
    surely (normal approximation, 1 % divided by the pairs) more than `TOO_ALIKE` above it.

    Returns: the furthest first: "rater_1", "rater_2" (places), "n" items, "same" (share),
        "expected".
    Source: residuals of pairs in latent class models, Qu, Tan & Kutner 1996, Biometrics 52.
    """
    k = answers.n_classes
    drawn = distinct(answers.item)
    if len(drawn) > PAIRED_ITEMS:
        drawn = np.random.default_rng(SEED).choice(drawn, PAIRED_ITEMS, replace=False)
    inside = np.zeros(answers.n_items, dtype=bool)
    inside[drawn] = True
    kept = np.flatnonzero(inside[answers.item])
    kept = kept[np.lexsort((answers.rater[kept], answers.item[kept]))]  # the lower rater first
    one, two = (kept[side] for side in pairs_within(answers.item[kept]))
    others = answers.rater[one] != answers.rater[two]
    one, two = one[others], two[others]
    # Which rater, and whether B stood first: all that the expected agreement depends on.
    code = answers.rater * 2 + (answers.shown_first == 1)
    n_codes = 2 * answers.n_raters
    keys, kind = np.unique(code[one] * n_codes + code[two], return_inverse=True)
    n = np.bincount(kind)
    same = np.bincount(kind, answers.label[one] == answers.label[two])
    weights = np.exp(_weights(fit.parameters.confusion)).reshape(n_codes, k, k)  # code, given, true
    joint = (weights[keys // n_codes] * weights[keys % n_codes]).sum(axis=1)
    expected = joint @ fit.parameters.prior
    rater_1, rater_2 = keys // n_codes // 2, keys % n_codes // 2
    names, pair = np.unique(rater_1 * answers.n_raters + rater_2, return_inverse=True)
    n_shared, n_same = np.bincount(pair, n), np.bincount(pair, same)
    n_expected = np.bincount(pair, n * expected)
    error = np.sqrt(np.bincount(pair, n * expected * (1 - expected)))
    tested = n_shared >= FEWEST_SHARED
    reach = NormalDist().inv_cdf(1 - 0.01 / max(1, int(tested.sum())))
    surely = (n_same - n_expected - reach * error) / np.maximum(n_shared, 1)
    found = np.flatnonzero(tested & (surely > TOO_ALIKE))
    return [
        {
            "rater_1": int(names[i] // answers.n_raters),
            "rater_2": int(names[i] % answers.n_raters),
            "n": int(n_shared[i]),
            "same": float(n_same[i] / n_shared[i]),
            "expected": float(n_expected[i] / n_shared[i]),
        }
        for i in found[np.argsort(-surely[found], kind="stable")][:MOST_ALIKE].tolist()
    ]


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct whole numbers (0 or more) among `values`, rising. Counted or sorted, where
    numpy's `unique` hashes, which takes five times as long for a million."""
    if len(values) and values.max() < 4 * len(values):
        return np.flatnonzero(np.bincount(values))
    ordered = np.sort(values)
    return ordered[np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))]


def pairs_within(item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every two places of the same item, the earlier first; item: (votes,) rising."""
    _, start, size = np.unique(item, return_index=True, return_counts=True)
    left, right = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for m in np.unique(size[size >= 2]).tolist():
        rows = start[size == m][:, None] + np.arange(m)  # (items with m votes, m)
        i, j = np.triu_indices(m, k=1)
        left.append(rows[:, i].ravel())
        right.append(rows[:, j].ravel())
    return np.concatenate(left), np.concatenate(right)


def _patterns(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """(…) a number for how labels (votes, …) split, whatever they are: 3-1 or 2-2."""
    counts = np.stack([(labels == label).sum(axis=0) for label in range(n_classes)])
    return (counts**2).sum(axis=0)  # of four votes: 16, 10, 8, 6, 4


# What the posteriors say of raters ----------------------------------------------------------------


def reliabilities(
    answers: Answers,
    fit: Fit,
    prompt: np.ndarray | None = None,
    misfit: Figure | None = None,
    alike: bool = False,
) -> list[Figure]:
    """How often each rater gives the true label, and to which place they err.

    Only votes on items that somebody else has judged too: on the others the posterior is but the
    echo of the vote. "reliability" is the expected share of true labels, Σ_j q_j(l_j) / n. Its
    interval is Wilson's, with as many trials as the votes are worth (`_information`), and takes the
    other raters' tables as known. "side" is P(says first | second is true) − P(says second | first
    is true), 0 for who leans to no place, with Newcombe's interval, from votes whose order of
    showing is known.

    Where the model does not fit, both ends of the interval of a reliability move outwards by the
    misfit, since on so many items the rater may do as they like; above `WORST_MISFIT`, and where
    raters are `too_alike`, there is no interval.

    Args: prompt: (items,) their prompts; None: a prompt of its own for each; misfit: of `misfit`;
        alike: some raters are too alike.
    Returns: for each rater a dict "reliability", "side" (figures), "n" votes, "n_alone" votes on
        items that nobody else judged.
    Source: the diagonal of the tables in Dawid & Skene 1979; Wilson 1927; Newcombe 1998,
        Statistics in Medicine 17, method 10.
    """
    k, n_raters = answers.n_classes, answers.n_raters
    wider = (misfit or {}).get("value") or 0.0
    per_rater = np.bincount(answers.rater, minlength=n_raters)
    shared = _judged_by_others(answers)
    item, rater = answers.item[shared], answers.rater[shared]
    label, first = answers.label[shared], answers.shown_first[shared]
    turned = first == 1
    q = fit.posteriors[item]
    right = q[np.arange(len(label)), label]
    n = np.bincount(rater, minlength=n_raters)
    hits = np.bincount(rater, right, minlength=n_raters)
    worth = _information(rater, right, item if prompt is None else prompt[item], n_raters)
    # By place: what was true and what was said, where it is known which stood first.
    known = first >= 0
    swap = _swap(k)
    true_first = np.where(turned, q[:, swap[0]], q[:, 0])[known] if k > 1 else right[known]
    true_second = np.where(turned, q[:, 0], q[:, swap[0]])[known] if k > 1 else right[known]
    said = np.where(turned, swap[label], label)[known]
    of = rater[known]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(of, values, minlength=n_raters)

    n_first, n_second = total(true_first), total(true_second)
    as_first, as_second = total(true_second * (said == 0)), total(true_first * (said == 1))
    return [
        {
            "n": int(per_rater[i]),
            "n_alone": int(per_rater[i] - n[i]),
            "reliability": _share(hits[i], n[i], worth[i], np.inf if alike else wider),
            "side": _leaning(as_first[i], n_second[i], as_second[i], n_first[i], worth[i]),
        }
        for i in range(n_raters)
    ]


def _judged_by_others(answers: Answers) -> np.ndarray:
    """(votes,) bool: another rater has a vote on the item."""
    own = distinct(answers.item * answers.n_raters + answers.rater)
    n_judges = np.bincount(own // max(1, answers.n_raters), minlength=answers.n_items)
    return n_judges[answers.item] >= 2


def _information(
    rater: np.ndarray, right: np.ndarray, prompt: np.ndarray, n_raters: int
) -> np.ndarray:
    """(raters,) the share of each rater's votes that they are worth as evidence on the rater.

    A vote of whose truth nothing is known says nothing about its rater, and two votes on one prompt
    may say the same twice. The score of a vote is (r − p) / p (1 − p), r the posterior that it is
    right and p the rater's mean of r. The variance of p is that of sums of scores over prompts,
    over the square of the observed information: [Σ_c (Σ_j∈c (r_j − p))²] [p (1 − p)]² /
    [Σ_j (r_j − p)²]²; p (1 − p) over it is the number of known truths that would be worth as much.
    With one vote a prompt and truths known for sure that is the number of votes.
    Source: Louis 1982, JRSS B 44, eq. 3.2 (information in incomplete data); Huber's sandwich.
    """
    n = np.bincount(rater, minlength=n_raters)
    p = np.bincount(rater, right, minlength=n_raters) / np.maximum(n, 1)
    codes = np.unique(prompt, return_inverse=True)[1]
    n_prompts = int(codes.max(initial=-1)) + 1
    own, place = np.unique(rater * n_prompts + codes, return_inverse=True)
    apart = right - p[rater]
    sums = np.bincount(place, apart, minlength=len(own))
    together = np.bincount(own // max(1, n_prompts), sums**2, minlength=n_raters)
    alone = np.bincount(rater, apart**2, minlength=n_raters)
    prompts_of = np.bincount(own // max(1, n_prompts), minlength=n_raters)
    # Where every truth is sure and every vote right there is no spread to go by: prompts count.
    worth = np.divide(
        alone**2, p * (1 - p) * together, out=prompts_of.astype(float), where=together > 1e-9
    )
    return np.minimum(worth / np.maximum(n, 1), 1)


def _share(hits: float, n: int, worth: float, wider: float) -> Figure:
    """Args: worth: of a vote, as evidence; 0 … 1; wider: the misfit."""
    if n < ENOUGH:
        why = gettext_noop("Fewer than 10 votes on comparisons that others judged too.")
        return {"value": None, "low": None, "high": None, "n": int(n), "why": why}
    value = float(min(1.0, hits / n))
    low, high = wilson(value * n * worth, n * worth)
    if wider > WORST_MISFIT:
        nothing = {"low": None, "high": None, "why_no_interval": ERR_TOGETHER}
        return {"value": value, **nothing, "n": int(n)}
    return {
        "value": value,
        "low": max(0.0, low - wider),
        "high": min(1.0, high + wider),
        "n": int(n),
    }


def _leaning(hits_1: float, n_1: float, hits_2: float, n_2: float, worth: float) -> Figure:
    """hits_1 / n_1 − hits_2 / n_2, of expected counts."""
    n = round(n_1 + n_2)
    if min(n_1, n_2) < ENOUGH:
        why = gettext_noop("Too few votes for a side whose order of showing is known.")
        return {"value": None, "low": None, "high": None, "n": n, "why": why}
    one, other = float(min(1, hits_1 / n_1)), float(min(1, hits_2 / n_2))
    low_1, high_1 = wilson(one * n_1 * worth, n_1 * worth)
    low_2, high_2 = wilson(other * n_2 * worth, n_2 * worth)
    value = one - other
    return {
        "value": value,
        "low": value - float(np.hypot(one - low_1, high_2 - other)),
        "high": value + float(np.hypot(high_1 - one, other - low_2)),
        "n": n,
    }
