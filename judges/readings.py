"""What a judge's figures mean in words, and what to do next. Plain Python: pages call it."""

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from labeling.templatetags.figures import decimals, percent

MANY_UNPARSED = 0.05
LOW_MASS = 0.8
SIGNIFICANT = 0.05

Figure = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """One sentence on one figure; level is "ok", "warn", "bad" or "info"."""

    subject: str
    level: str
    said: str
    what_next: str = ""


def readings_of(cell: dict[str, Any], ceiling: dict[str, Figure]) -> list[Reading]:
    """What stands in a cell of an experiment's result, in the order in which one asks."""
    mode = cell["mode"]
    found = [
        _alignment(cell["alignment"]["decided"], ceiling["without_ties"], mode),
        _places(cell, mode),
        _calibration(cell["calibration"]),
        _length(cell["length"], mode),
        _family(cell["self"]),
        _readable(cell),
        _stand_in(cell["alt_test"]),
    ]
    return [reading for reading in found if reading is not None]


def best_method(calibration: dict[str, Any]) -> str:
    """The correction with the least cross-fitted log-loss; "" where none is better than none."""
    losses = {
        name: calibration[part]["log_loss"]["value"]
        for name, part in (("", "before"), ("temperature", "temperature"), ("isotonic", "isotonic"))
        if calibration[part].get("log_loss", {}).get("value") is not None
    }
    return min(losses, key=lambda name: losses[name]) if losses else ""


def interval(figure: Figure, as_share: bool = True) -> str:
    """ "74 % [69 %, 79 %], n = 300"; without an interval the reason is the template's to give."""
    form = percent if as_share else decimals
    words = form(figure["value"])
    if figure.get("low") is not None:
        words += f" [{form(figure['low'])}, {form(figure['high'])}]"
    return f"{words}, n = {figure['n']}"


def _better_ways(mode: str) -> str:
    """What may make a judge of this mode agree more with people."""
    return {
        "direct": _("Try a larger model, a rationale first, or your guidelines as its preamble."),
        "score": _(
            "Try a larger model, your guidelines as its preamble, or have it compare the two "
            "responses instead of rating each alone."
        ),
        "reward": _(
            "It was trained on other people's preferences: take another reward model, or train one "
            "on labels of this project."
        ),
        "jury": _("Look at its members one by one, and leave out those that may be a coin."),
    }.get(
        mode,
        _(
            "Try a larger model, your guidelines as its preamble, or an answer at once: small "
            "models may argue themselves into the wrong one."
        ),
    )


def _less_leaning(mode: str) -> str:
    """What may make a judge of this mode lean less to a place."""
    said = _("Asking in both orders takes the leaning out of its labels, and costs it sharpness.")
    return (
        said
        + " "
        + {
            "direct": _("A rationale first often makes it smaller."),
            "rationale": _(
                "Try it with the mean of several rationales, or with an answer at once: which "
                "leans less differs from model to model."
            ),
        }.get(mode, _("Rating each response alone knows no places: try that, or a larger model."))
    )


def _steadier(mode: str) -> str:
    """What may make the answers of a judge of this mode depend less on chance."""
    return {
        "direct": _("Its single answers are shaky: ask for a rationale, or use a larger model."),
        "rationale": _(
            "Its single answers are shaky: take the mean of several rationales, or use a larger "
            "model."
        ),
    }.get(mode, _("Its answers are shaky: draw more rationales, or use a larger model."))


def _alignment(figure: Figure, ceiling: Figure, mode: str) -> Reading | None:
    subject = _("Agreement with people")
    if figure["value"] is None:
        return Reading(subject, "info", _("No comparison with a side chosen was judged yet."))
    said = _("It names the response that people chose: %(figure)s.") % {"figure": interval(figure)}
    low, high = figure["low"], figure["high"]
    if low is not None and low <= 0.5 <= high:
        return Reading(
            subject,
            "bad",
            said + " " + _("That may be a coin."),
            _better_ways(mode),
        )
    if low is not None and high < 0.5:
        return Reading(
            subject,
            "bad",
            said + " " + _("That is worse than a coin."),
            _("Look at some verdicts: it may read the question the wrong way round."),
        )
    if ceiling["value"] is None or ceiling["low"] is None or low is None:
        return Reading(
            subject,
            "info",
            said,
            _(
                "Let two or three people judge the same comparisons: then it is known how far one "
                "person agrees with others, which is what a judge can be held against."
            ),
        )
    one = _("One person against the others: %(figure)s.") % {"figure": interval(ceiling)}
    if high < ceiling["low"]:
        return Reading(
            subject,
            "warn",
            f"{said} {one} " + _("The judge is below that."),
            _(
                "Its labels are worth less than a person's; try another prompt or model, or use it "
                "where it is sure and leave the rest to people."
            ),
        )
    if low > ceiling["high"]:
        return Reading(
            subject, "ok", f"{said} {one} " + _("The judge is above that."), _("Use it.")
        )
    return Reading(
        subject,
        "ok",
        f"{said} {one} " + _("The two cannot be told apart."),
        _("Good enough to try; more comparisons would tell."),
    )


def _places(cell: dict[str, Any], mode: str) -> Reading | None:
    subject = _("Leaning to a place")
    consistency, position, bias = cell["consistency"], cell["position"], cell["bias"]
    if consistency["value"] is None:
        return None
    said = _("Asked in both orders it names the same response: %(figure)s.") % {
        "figure": interval(consistency)
    }
    first, second = position.get("first_twice", 0), position.get("second_twice", 0)
    if first or second:
        said += " " + _(
            "Otherwise it named the first place twice in %(first)s and the second in %(second)s "
            "verdicts (%(p)s)."
        ) % {"first": first, "second": second, "p": _p_words(position.get("p_value"))}
    if bias["value"] is not None:
        words = decimals(bias["value"])
        if bias["low"] is not None:
            words += f" [{decimals(bias['low'])}, {decimals(bias['high'])}]"
        said += " " + _("Mean bias %(bias)s nats.") % {"bias": words}
    if position.get("p_value", 1) < SIGNIFICANT:
        side = (
            _("It leans to the first place.")
            if first > second
            else _("It leans to the second place.")
        )
        return Reading(
            subject,
            "warn",
            f"{said} {side}",
            _less_leaning(mode),
        )
    if consistency["value"] < 0.7:
        return Reading(
            subject,
            "warn",
            said + " " + _("It leans to no side, and changes its mind often."),
            _steadier(mode),
        )
    return Reading(subject, "ok", said)


def _p_words(p_value: float | None) -> str:
    if p_value is not None and p_value < 0.001:
        return f"p < {decimals(0.001, 3)}"
    return f"p = {decimals(p_value, 3)}"


def _calibration(calibration: dict[str, Any]) -> Reading | None:
    subject = _("Its probabilities")
    before = calibration["before"]["ece"]
    if before["value"] is None:
        return None
    said = _("They are off by %(ece)s on average.") % {"ece": interval(before)}
    if before.get("by_luck"):
        said += " " + _("Luck alone makes about %(by_luck)s at this n.") % {
            "by_luck": percent(before["by_luck"])
        }
    temperature = calibration["temperature"].get("parameters", {}).get("temperature")
    if temperature is not None:
        if temperature > 1.1:
            words = _("It is surer than it may be: temperature %(temperature)s.")
        elif temperature < 0.9:
            words = _("It is less sure than it could be: temperature %(temperature)s.")
        else:
            words = _("It is about as sure as it may be: temperature %(temperature)s.")
        said += " " + words % {"temperature": decimals(temperature)}
    method = best_method(calibration)
    if method:
        after = calibration[method]["ece"]
        said += " " + _("After correction: %(ece)s.") % {"ece": interval(after)}
        return Reading(
            subject,
            "ok" if before["low"] == 0 else "warn",
            said,
            _("Use it with its correction where probabilities count: soft labels, thresholds."),
        )
    return Reading(subject, "ok", said, _("No correction made them better: use them as they are."))


def _length(figure: Figure, mode: str) -> Reading | None:
    if figure["value"] is None:
        return None
    return _against_people(
        _("Longer responses"),
        figure,
        _("It prefers the longer response in %(judge)s of cases, people in %(people)s."),
        _("Use it where lengths are alike, or leave the rest to people.")
        if mode in ("reward", "jury")
        else _("Say in the preamble that length is no merit, and look again."),
        _("It likes shorter responses more than people do; check that it reads to their end."),
    )


def _family(figure: Figure) -> Reading | None:
    if figure["value"] is None:
        return None
    return _against_people(
        _("Its own family"),
        figure,
        _(
            "It gives responses of its own family the win in %(judge)s of cases, people in "
            "%(people)s."
        ),
        _("Do not let it compare its own family with others, or take a judge of another family."),
        _("It is harder on its own family than people are."),
    )


def _against_people(
    subject: str, figure: Figure, said: str, next_above: str, next_below: str
) -> Reading:
    words = said % {
        "judge": percent(figure["judge"]["value"]),
        "people": percent(figure["people"]["value"]),
    }
    words += " " + _("Difference: %(figure)s.") % {"figure": interval(figure)}
    if figure["low"] is None or figure["low"] <= 0 <= figure["high"]:
        return Reading(subject, "ok", words + " " + _("No bias can be seen."))
    if figure["low"] > 0:
        return Reading(subject, "warn", words, next_above)
    return Reading(subject, "warn", words, next_below)


def _readable(cell: dict[str, Any]) -> Reading | None:
    unparsed, mass = cell["unparsed"], cell["mass"]
    if unparsed["value"] is None:
        return None
    said = _("Verdicts that could not be read: %(figure)s.") % {"figure": interval(unparsed)}
    if mass["value"] is not None:
        said += " " + _("Probability on the answers themselves: %(mass)s.") % {
            "mass": interval(mass)
        }
    few = mass["value"] is not None and mass["value"] < LOW_MASS
    if unparsed["value"] > MANY_UNPARSED or few:
        return Reading(
            _("Readability"),
            "warn",
            said,
            _(
                "Try it on one comparison and look at what it says instead: the ending of the "
                "question may not suit its chat template."
            ),
        )
    return Reading(_("Readability"), "ok", said)


def _stand_in(result: dict[str, Any]) -> Reading:
    subject = _("In place of a person (alt-test)")
    if result["passes"] is None:
        return Reading(
            subject,
            "info",
            _(result["why"]),
            _("Let three people judge at least thirty of the same comparisons each."),
        )
    said = _(
        "It beats %(n_beaten)s of %(n_people)s people at ε = %(epsilon)s (ω = %(omega)s); on "
        "average it is as good a choice as a person on %(advantage)s of comparisons."
    ) % {
        "n_beaten": result["n_beaten"],
        "n_people": result["n_people"],
        "epsilon": decimals(result["epsilon"]),
        "omega": decimals(result["omega"]),
        "advantage": percent(result["advantage"]),
    }
    if result["passes"]:
        return Reading(subject, "ok", said + " " + _("It passes."))
    return Reading(
        subject, "warn", said + " " + _("It does not pass."), _("Keep people where it matters.")
    )
