"""Watching over a policy that learns from rewards: what it writes to held-out prompts, and when it
is time to stop.

A reward model is right about language like that of its labels. So beside what scores say there is a
careful score: of a response with a token that the start would hardly have written it believes only
the worst. A policy that drifts out of what its reward models know loses by it at once, while they,
the hold-out among them, are still fooled.

A look is taken every few steps, always with the same prompts and the same random numbers, so that
two looks differ by the policy alone and are compared prompt by prompt. No torch in here.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.ml.data import Messages
from training.ml.evaluation import mean_figure, share_right
from training.ml.ppo_config import ALARMS, FALLS, REPEATS, TOO_FAR, UNCONFIRMED, PPORecipe

N_GRAM = 4
FURTHER = 3.0
"""Standard deviations of the start's responses beyond which a habit is a new one."""
LEAST_CHANGE = 0.05
"""Change of a share that is worth a word, however steady the start was in it."""
LEAST_REPEATED = 0.15
"""Rise in the share of repeated n-grams that is worth a stop: longer texts repeat a little more."""
IN_A_ROW = 2
"""Looks in a row that must find a score wanting: of many looks the best one is good by luck
too, and a single later one would often lie below it."""
PAIRS = 20
"""Comparisons that people are given after an alarm."""

CONFIRMED = 0.5
"""Share of the score's gain that the careful score is to have gained too, both in deviations of the
start. A reward model of other labels that is right as often gains about their correlation of it."""

CLEARLY = 2.576
"""Standard errors (99 %) by which the careful score may lack that share at one look alone: the
start, unlike the best look, was not chosen for its luck."""

IN_A_ROW_ONLY = (FALLS, UNCONFIRMED)
LONGER, ENDLESS, LISTS, BOLD = "longer", "endless", "lists", "bold"
SIGNS = {
    LONGER: "responses have another length than those of the start",
    ENDLESS: "more responses come to no end",
    LISTS: "lists are more frequent or rarer",
    BOLD: "bold words are more frequent or rarer",
}
"""What is worth a line in the log."""
LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
BOLD_WORDS = re.compile(r"\*\*\S[^*\n]*\*\*")


@dataclass
class Look:
    """The responses to the held-out prompts after a step, and one number for each of them, of every
    kind: score, kl, length, finished, entropy, rarest (log-probability of the least likely token
    under the start), repeated, lists, bold; with several reward models spread, with a hold-out one
    holdout; once it was seen, careful and unknown."""

    step: int
    texts: list[str]
    numbers: dict[str, list[float]]

    def mean(self, name: str) -> float:
        return float(np.mean(self.numbers[name]))

    def minus(self, other: "Look", name: str) -> list[float]:
        """Prompt by prompt."""
        mine, theirs = np.array(self.numbers[name]), np.array(other.numbers[name])
        found: list[float] = (mine - theirs).tolist()
        return found


@dataclass(frozen=True)
class Alarm:
    """What a look found. `stops`: the run is to stop or to pause; else it is worth a word.
    `clear`: where looks in a row are asked for, this one is enough."""

    kind: str
    stops: bool
    words: str
    clear: bool = False


def take_look(
    step: int,
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]],
    numbers: Mapping[str, Sequence[float]],
) -> Look:
    """A look, with what can be seen of the responses themselves.

    Args: tokens: of each response, its end left out; numbers: what only models can tell.
    """
    seen = {
        "repeated": [repeated(row) for row in tokens],
        "lists": [float(bool(LIST_LINE.search(text))) for text in texts],
        "bold": [float(bool(BOLD_WORDS.search(text))) for text in texts],
    }
    found = {name: [float(value) for value in row] for name, row in numbers.items()} | seen
    return Look(step, list(texts), found)


def repeated(tokens: Sequence[int], n: int = N_GRAM) -> float:
    """Share of a response's n-grams that stand in it before: 1 − distinct / all; 0 of fewer than
    two. [1, 2, 1, 2, 1, 2] has 3 of length 4, of which 1 is a repetition.

    Source: Li et al. 2016, arXiv:1510.03055, distinct-n, within one response.
    """
    grams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def careful(look: Look, start: Look, doubt: float) -> tuple[list[float], list[float]]:
    """(careful score, 1.0 where a response is unknown language else 0.0), one for each response.

    Unknown is a response whose least likely token under the start is less likely than that of all
    but the share `doubt` of the start's own responses. It counts as what the hold-out (else the
    score) gave to the worst such share of them, or less where it was given less; every other one as
    it was given.

    Source: pessimism outside of the support of the labels, as of offline learning (Jin et al. 2021,
    arXiv:2012.15085; for rewards learned from comparisons Zhu et al. 2023, arXiv:2301.11270), with
    the start's own likelihood as the measure of support.
    """
    judged = "holdout" if "holdout" in look.numbers else "score"
    given, first = np.array(look.numbers[judged]), np.array(start.numbers[judged])
    rarest, usual = np.array(look.numbers["rarest"]), np.array(start.numbers["rarest"])
    unknown = rarest < np.quantile(usual, doubt) if doubt else np.zeros(len(given), dtype=bool)
    worst = np.quantile(first, doubt)
    found: list[float] = np.where(unknown, np.minimum(given, worst), given).tolist()
    return found, unknown.astype(float).tolist()


def values_of(look: Look, start: Look) -> dict[str, float]:
    """What a report of a step holds: means; of score and hold-out with the ends of their 95 %
    intervals; win, the share of responses that the hold-out (else the score) finds better than the
    start's, with its ends. Intervals that could not be told are left out."""
    found = {name: look.mean(name) for name in look.numbers}
    judged = "holdout" if "holdout" in look.numbers else "score"
    figures = {name: mean_figure(look.numbers[name]) for name in ("score", judged, "careful")}
    figures["win"] = share_right(look.minus(start, judged))
    found["win"] = float(figures["win"]["value"])
    for name, figure in figures.items():
        for end in ("low", "high"):
            if figure[end] is not None:
                found[f"{name}_{end}"] = float(figure[end])
    return found


def alarms(recipe: PPORecipe, now: Look, start: Look, best: Look) -> list[Alarm]:
    """What this look finds, against the start and against the best look so far.

    The careful score falls where the 95 % interval of its difference to the best look, paired by
    prompt, lies below 0, while the score that is learned from is above what it was then. The
    hold-out confirms too little where the interval of its gain over the start less CONFIRMED times
    the score's lies below 0.
    """
    found = []
    if now.step > best.step:
        fall = mean_figure(now.minus(best, "careful"))
        rise = now.mean("score") - best.mean("score")
        if fall["high"] is not None and fall["high"] < 0 < rise:
            words = (
                f"the careful score has fallen by {-fall['value']:.2f} [{-fall['high']:.2f}, "
                f"{-fall['low']:.2f}] since step {best.step}, and the score has risen by "
                f"{rise:.2f}; {now.mean('unknown'):.0%} of the responses hold a token that the "
                "start would hardly have written"
            )
            found.append(Alarm(FALLS, True, words))
    if "holdout" in now.numbers:
        gains = {name: np.array(now.minus(start, name)) for name in ("score", "holdout", "careful")}
        rests = gains["careful"] - CONFIRMED * gains["score"]
        rest = mean_figure(rests.tolist())
        if rest["high"] is not None and rest["high"] < 0 < gains["score"].mean():
            words = (
                f"the score has risen by {gains['score'].mean():.2f} since the start, the hold-out "
                f"by {gains['holdout'].mean():.2f}, of which {gains['careful'].mean():.2f} can be "
                "believed"
            )
            error = float(rests.std(ddof=1)) / np.sqrt(len(rests))
            clear = bool(rest["value"] + CLEARLY * error < 0)
            found.append(Alarm(UNCONFIRMED, True, words, clear))
    if recipe.kl_budget and now.mean("kl") > recipe.kl_budget:
        words = f"a response is {now.mean('kl'):.1f} nats from the start; the budget is "
        found.append(Alarm(TOO_FAR, True, f"{words}{recipe.kl_budget:g}"))
    for kind, name, stops in (
        (REPEATS, "repeated", True),
        (LONGER, "length", False),
        (ENDLESS, "finished", False),
        (LISTS, "lists", False),
        (BOLD, "bold", False),
    ):
        was, sd = start.mean(name), float(np.std(start.numbers[name]))
        # Of shares the mean is what moves; of length, as much as a single response's may.
        of_mean = FURTHER * sd / (1 if name == "length" else np.sqrt(len(start.texts)))
        least = {"length": 1.0, "repeated": LEAST_REPEATED}.get(name, LEAST_CHANGE)
        change = now.mean(name) - was
        worse = {REPEATS: change, ENDLESS: -change}.get(kind, abs(change))
        if worse > max(of_mean, least):
            words = {**ALARMS, **SIGNS}[kind]
            found.append(Alarm(kind, stops, f"{words}: {now.mean(name):.2f}, at first {was:.2f}"))
    return found


class Watch:
    """The looks of a run, its best one, and what follows from them. Kept in every checkpoint, so
    that a resumed run decides as an unbroken one."""

    def __init__(self, recipe: PPORecipe) -> None:
        self.recipe = recipe
        by_models = recipe.reward_models or recipe.judge_model or recipe.holdout_reward_model
        self.doubt = recipe.doubt if by_models else 0.0
        """A function is right about any language."""
        self.start: Look | None = None
        self.best: Look | None = None
        self.now: Look | None = None
        self.wanting = 0
        """Looks in a row that found the careful score or the hold-out wanting."""
        self.known: list[str] = []
        """Alarms that people have been told of: these stop the run no second time."""

    def see(self, look: Look) -> list[Alarm]:
        """Take the look of now, the best one so far perhaps. What it found comes back: of careful
        score and hold-out only what is clear or what enough looks in a row have found."""
        self.now = look
        told = careful(look, self.start or look, self.doubt)
        look.numbers["careful"], look.numbers["unknown"] = told
        if self.start is None or self.best is None:
            self.start = self.best = look
            return []
        found = alarms(self.recipe, look, self.start, self.best)
        wanting = any(alarm.kind in IN_A_ROW_ONLY for alarm in found)
        self.wanting = self.wanting + 1 if wanting else 0
        if self.wanting < IN_A_ROW:
            found = [a for a in found if a.clear or a.kind not in IN_A_ROW_ONLY]
        # Where scores are wanting, their highest look is still the best there is.
        in_bounds = not any(a.stops and a.kind not in IN_A_ROW_ONLY for a in found)
        if in_bounds and self._goes_on_well(look):
            self.best = look
        return [alarm for alarm in found if alarm.kind not in self.known]

    def _goes_on_well(self, look: Look) -> bool:
        """Whether a look takes the best one's place: by the hold-out, if it is higher; without one,
        whose own score rises by being learned, unless the careful score has clearly fallen."""
        assert self.best is not None
        if "holdout" in look.numbers:
            return look.mean("careful") > self.best.mean("careful")
        fall = mean_figure(look.minus(self.best, "careful"))
        return fall["high"] is None or fall["high"] >= 0

    def pairs(self, prompts: Sequence[Messages]) -> list[dict[str, Any]]:
        """Prompts with the response of the best look ("old") and of now ("new"), for people: PAIRS
        of those that differ, by the run's seed."""
        assert self.best is not None  # there has been an alarm
        assert self.now is not None
        both = zip(prompts, self.best.texts, self.now.texts, strict=True)
        differ = [
            {"prompt": prompt, "old": old, "new": new}
            for prompt, old, new in both
            if old and new and old != new
        ]
        draw = random.Random(f"alarm {self.recipe.seed}")  # noqa: S311 - a sample, not a secret
        return draw.sample(differ, min(PAIRS, len(differ)))

    def as_json(self) -> dict[str, Any]:
        looks = {name: getattr(self, name) for name in ("start", "best", "now")}
        kept = {name: None if look is None else asdict(look) for name, look in looks.items()}
        return kept | {"wanting": self.wanting, "known": self.known}

    def restore(self, kept: Mapping[str, Any]) -> None:
        for name in ("start", "best", "now"):
            setattr(self, name, None if kept[name] is None else Look(**kept[name]))
        self.wanting, self.known = int(kept["wanting"]), list(kept["known"])


def end_figures(watch: Watch) -> dict[str, Any]:
    """What the kept weights are worth, each figure over the held-out prompts with its interval.

    Returns: n; score_start, score, gain (paired by prompt), win, with a hold-out holdout_start,
        holdout and holdout_gain; kl, length, finished (means); kept_step.
    """
    start, kept = watch.start, watch.best
    if start is None or kept is None:
        return {"n": 0, "why": "no test prompts"}
    judged = "holdout" if "holdout" in kept.numbers else "score"
    found: dict[str, Any] = {"n": len(kept.texts), "kept_step": kept.step}
    for name in dict.fromkeys(("score", judged)):
        found |= {
            f"{name}_start": mean_figure(start.numbers[name]),
            name: mean_figure(kept.numbers[name]),
            "gain" if name == "score" else f"{name}_gain": mean_figure(kept.minus(start, name)),
        }
    found["win"] = share_right(kept.minus(start, judged))
    return found | {name: kept.mean(name) for name in ("kl", "length", "finished")}
