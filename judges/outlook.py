"""What a certificate would come to now, what it costs, and what to do next: for pages, programs and
the command. Plain Python, from counts that a worker stored."""

from typing import Any

from django.contrib.humanize.templatetags.humanize import intcomma
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from judges.audit import audit_labels, plan
from judges.certificates import next_number, versions_of
from judges.models import Certificate, RoutingPolicy, RoutingRun
from labeling.models import Project
from labeling.shares import clopper_pearson
from labeling.templatetags.figures import percent


def newest_count(project: Project) -> RoutingRun | None:
    """The newest run that has counted the audit stream."""
    return project.routing_runs.filter(result__has_key="counted").order_by("-pk").first()


def outlook(project: Project, policy: RoutingPolicy) -> dict[str, Any] | None:
    """The test that the policy asks for, made on what was last counted; None before anything was.

    Returns: `judges.audit.plan`, and "counted_at", "n_since" (audit labels given since),
        "same_judges", "counted", "costs", "said": sentences of (level, words).
    """
    run = newest_count(project)
    if run is None:
        return None
    counted = run.result["counted"]
    found = plan(
        counted,
        alpha=policy.alpha,
        delta=policy.delta,
        starts=policy.starts,
        number=next_number(project),
    )
    counted_ids = [version["id"] for version in counted["versions"]]
    for stage in found["stages"]:
        stage["steps"] = [_with_interval(step) for step in stage["steps"]]
    found |= {
        "counted_at": run.finished_at or run.started_at,
        "n_since": audit_labels(project).filter(pk__gt=counted["last_preference"]).count(),
        "same_judges": counted_ids == [version.pk for version in versions_of(policy)],
        "counted": {name: value for name, value in counted.items() if name != "cells"},
        "costs": costs(project, policy, counted, found),
    }
    return found | {"said": sentences(project, found)}


def _with_interval(step: dict[str, Any]) -> dict[str, Any]:
    """A threshold with how often the judge was right there, and the exact 95 % interval."""
    n, right = step["n"], step["n"] - step["errors"]
    if not n:
        return step | {"right": None, "low": None, "high": None}
    low, high = clopper_pearson(right, n)
    return step | {"right": right / n, "low": low, "high": high}


def costs(
    project: Project, policy: RoutingPolicy, counted: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """What the judges' and people's parts cost. Money is None where no price is known, hours where
    nobody's time was measured."""
    n_left = counted["n_open"] - found["n_leaving"]
    labels = project.labels_per_comparison

    def of_people(n: int) -> dict[str, Any]:
        seconds, price = counted["seconds_per_label"], policy.cost_per_label
        return {
            "n": n,
            "labels": n * labels,
            "hours": n * labels * seconds / 3600 if seconds is not None else None,
            "money": n * labels * price if price is not None else None,
        }

    asked = [version for version in counted["versions"] if version["n_judged"]]
    prices = [version["cost"] for version in asked]
    known = [price for price in prices if price is not None]
    seconds = [version["seconds"] for version in asked if version["seconds"] is not None]
    return {
        "judge": {
            "n": found["n_decided"],
            "per_comparison": sum(known) if asked and len(known) == len(asked) else None,
            "money": found["n_decided"] * sum(known)
            if asked and len(known) == len(asked)
            else None,
            "currency": asked[0]["currency"] if asked else "",
            "seconds_per_comparison": sum(seconds) if seconds else None,
            "hours": found["n_decided"] * sum(seconds) / 3600 if seconds else None,
        },
        "spared": of_people(found["n_leaving"]),
        "left": of_people(n_left),
        "seconds_per_label": counted["seconds_per_label"],
        "n_timed": counted["n_timed"],
        "currency": policy.currency,
    }


def sentences(project: Project, found: dict[str, Any]) -> list[tuple[str, str]]:
    """What the figures say and what to do next: (level, words); level as of notes."""
    counted = found["counted"]
    said = [_verdict(project, found)]
    if not found["same_judges"]:
        said.append(
            ("warn", _("These figures are of other judges than those named here: count anew."))
        )
    if found["n_since"]:
        said.append(
            (
                "info",
                ngettext(
                    "%(n)s label of the audit stream came since; count anew to see it.",
                    "%(n)s labels of the audit stream came since; count anew to see them.",
                    found["n_since"],
                )
                % {"n": intcomma(found["n_since"])},
            )
        )
    if counted["n_unjudged"]:
        said.append(
            (
                "warn",
                _(
                    "%(n)s labeled comparisons of the audit stream have no verdict: let the judge "
                    "judge the audit set."
                )
                % {"n": intcomma(counted["n_unjudged"])},
            )
        )
    n_judged = min((version["n_judged"] for version in counted["versions"]), default=0)
    if n_judged < counted["n_comparisons"]:
        said.append(
            (
                "info",
                _(
                    "The judge has judged %(n)s of %(all)s comparisons. A certificate speaks of "
                    "all that it is sure of together, so let it judge everything, not some."
                )
                % {"n": intcomma(n_judged), "all": intcomma(counted["n_comparisons"])},
            )
        )
    if counted["n_ahead"]:
        said.append(
            (
                "info",
                _(
                    "%(n)s labels came ahead of their turn in the audit stream and do not count "
                    "until those before them are there."
                )
                % {"n": intcomma(counted["n_ahead"])},
            )
        )
    return said


def _verdict(project: Project, found: dict[str, Any]) -> tuple[str, str]:
    agreement, needed = percent(1 - found["alpha"]), found["n_needed"]
    if found["n_decided"]:
        return (
            "ok",
            _(
                "The AI may decide %(share)s alone: there it says what people say in at least "
                "%(agreement)s of comparisons, at confidence %(confidence)s."
            )
            % {
                "share": percent(found["share_ai"]),
                "agreement": agreement,
                "confidence": percent(1 - found["level"], 1),
            },
        )
    if found["why_needed"] == "nothing":
        return "warn", _("The judge is sure of nothing yet: put it to work first.")
    if found["why_needed"] == "too many":
        return (
            "warn",
            _(
                "The AI may decide nothing: at every threshold it differs from people about as "
                "often as you allow, or more. More labels will not mend that: allow more errors, "
                "or take another judge."
            ),
        )
    if not project.audit_share:
        return (
            "warn",
            _(
                "The AI may decide nothing, and the project has no audit stream: give it a share "
                "in the settings."
            ),
        )
    if needed is None:
        return "warn", _("The AI may decide nothing yet.")
    words = {
        "needed": intcomma(needed),
        "n": intcomma(found["n_labels"]),
        "agreement": agreement,
    }
    if found["why_needed"] == "few":
        return (
            "warn",
            _(
                "Too few labels: %(n)s of the audit stream so far. About %(needed)s more are "
                "needed before %(agreement)s can be tested at all."
            )
            % words,
        )
    return (
        "warn",
        _(
            "The AI may decide nothing yet. If it goes on erring as it has so far, about "
            "%(needed)s more labels of the audit stream would show %(agreement)s."
        )
        % words,
    )


def certificate_rows(project: Project) -> list[Certificate]:
    """The project's tests, newest first, with their stages."""
    rows = project.certificates.select_related("issued_by", "revoked_by")
    return list(rows.prefetch_related("stages__version__judge", "stages__calibration"))
