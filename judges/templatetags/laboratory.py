"""Pictures of the laboratory: SVG with plain attributes, coloured by the stylesheet."""

from typing import Any

from django import template
from django.utils.translation import gettext as _

from labeling.templatetags.figures import decimals, percent

register = template.Library()

BIAS_WIDTH, BIAS_HEIGHT = 240, 90


@register.inclusion_tag("judges/position_bias.html")
def position_bias(cell: dict[str, Any]) -> dict[str, Any]:
    """How the bias of single comparisons is spread, with the mean and its interval; and what became
    of the verdicts: the same response in both orders, the first place twice, the second twice."""
    bias, position, consistency = cell["bias"], cell["position"], cell["consistency"]
    context: dict[str, Any] = {"bars": [], "shares": []}
    if bias.get("histogram"):
        edges, counts = bias["histogram"]["edges"], bias["histogram"]["n"]
        reach, most = edges[-1], max(counts) or 1
        at = BIAS_WIDTH / len(counts)
        context |= {
            "width": BIAS_WIDTH,
            "height": BIAS_HEIGHT + 20,
            "foot": BIAS_HEIGHT,
            "foot_text": BIAS_HEIGHT + 13,
            "reach": decimals(reach, 1),
            "minus_reach": decimals(-reach, 1),
            "middle": BIAS_WIDTH / 2,
            "bars": [
                {
                    "x": i * at + 0.5,
                    "width": at - 1,
                    "y": BIAS_HEIGHT * (1 - n / most),
                    "height": BIAS_HEIGHT * n / most,
                    "n": n,
                    "words": f"{decimals(edges[i], 2)} … {decimals(edges[i + 1], 2)}: {n}",
                }
                for i, n in enumerate(counts)
            ],
            "mean": _across(bias["value"], reach),
            "title": _("Position bias of single comparisons: mean %(mean)s nats, n = %(n)s")
            % {"mean": decimals(bias["value"]), "n": bias["n"]},
        }
        if bias["low"] is not None:
            low, high = _across(bias["low"], reach), _across(bias["high"], reach)
            context |= {"low": low, "span": max(1.0, high - low)}
    n = consistency["n"]
    if n:
        same = round(consistency["value"] * n)
        first, second = position.get("first_twice", 0), position.get("second_twice", 0)
        parts = [
            ("same", _("the same response in both orders"), same),
            ("first", _("the first place twice"), first),
            ("second", _("the second place twice"), second),
            ("neither", _("undecided in an order"), n - same - first - second),
        ]
        x = 0.0
        for kind, words, count in parts:
            if count:
                width = BIAS_WIDTH * count / n
                share = f"{words}: {count} ({percent(count / n)})"
                context["shares"].append({"kind": kind, "x": x, "width": width, "words": share})
                x += width
        context |= {"width": BIAS_WIDTH}
    return context


def _across(value: float, reach: float) -> float:
    return min(BIAS_WIDTH, max(0.0, BIAS_WIDTH * (value + reach) / (2 * reach)))
