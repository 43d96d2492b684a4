"""The agreement page: how good the labels are, which judges one may believe, who leans where."""

from statistics import NormalDist
from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.humanize.templatetags.humanize import intcomma
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from labeling.access import project_for
from labeling.models import AgreementReport, Project
from labeling.reports import compute_anew, stop
from labeling.shares import Z
from labeling.templatetags.figures import decimals, percent
from labeling.votes import changed_since, state_of

N_SHOWN = 15  # people in the matrix and in the table before "show all"
MIN_SHARED = 10  # shared comparisons of a readable kappa


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def agreement(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the figures that a worker stored last; a POST has them computed anew, or stops that."""
    if request.method == "POST":
        project = project_for(request.user, slug, to="lead")
        if "cancel" in request.POST:
            stop(project.agreement_reports)
        else:
            compute_anew(project, project.agreement_reports, request.user)
        return redirect("labeling:agreement", slug)
    project = project_for(request.user, slug, to="view")
    job = project.agreement_reports.order_by("-pk").first()
    if request.htmx:  # the status polls itself until the job has ended
        response = render(request, "labeling/figures_status.html", {"job": job, "project": project})
        if job is None or not job.is_active:
            response.headers["HX-Refresh"] = "true"
        return response
    context = {"project": project, "active": "agreement", "job": job}
    stored = project.agreement_reports.filter(status=AgreementReport.Status.SUCCEEDED)
    stored = stored.order_by("-pk").first()
    if stored is None:
        context["n_preferences"] = state_of(project)[0]
    else:
        n_new, n_gone = changed_since(project, stored.n_preferences, stored.last_preference)
        context |= {"stored": stored, "n_new": n_new, "n_gone": n_gone}
        context |= _figures(request, stored.result)
        context |= _truth(request, stored.result) | _topics(project, stored.result)
    return render(request, "labeling/agreement.html", context)


def _figures(request: HttpRequest, report: dict[str, Any]) -> dict[str, Any]:
    show_all = "all" in request.GET
    raters = report["raters"]
    shown = raters if show_all else raters[:N_SHOWN]
    for row in shown:
        row["shares"] = [row["position"], row["length"]]
        for figure in row["shares"]:
            # One rater in twenty would stand out by luck alone: so the bar is divided by their
            # number.
            p_value = figure.get("p_value")
            figure["stands_out"] = p_value is not None and p_value < 0.05 / len(raters)
    for judge in report["judges"]:
        judge["parts"] = [judge["with_ties"], judge["without_ties"]]
        judge["shares"] = [judge["consistency"], judge["position"], judge["length"]]
    return {
        "report": report,
        "alpha_reading": alpha_reading(report["krippendorff_alpha"]),
        "matrix": matrix(report, [row["rater"] for row in shown[: AgreementReport.MOST_RATERS]]),
        "raters": shown,
        "n_raters_hidden": len(raters) - len(shown),
        "show_all": show_all,
        "min_shared": MIN_SHARED,
        "heat_levels": range(11),
    }


def _truth(request: HttpRequest, report: dict[str, Any]) -> dict[str, Any]:
    """What the rater models need on the page; nothing for a report from before they were there."""
    raters = report.get("truth", {}).get("raters", [])
    # One rater in twenty would stand out by luck alone: so the interval is widened by their number.
    wider = NormalDist().inv_cdf(1 - 0.025 / max(1, len(raters))) / Z
    for row in raters:
        side = row["side"]
        row["leans"] = side["value"] is not None and (
            side["value"] - wider * (side["value"] - side["low"]) > 0
            or side["value"] + wider * (side["high"] - side["value"]) < 0
        )
    drawn = [row for row in raters if row["seconds"] and row["reliability"]["low"] is not None]
    shown = raters if "all" in request.GET else raters[:N_SHOWN]
    return {
        "believed": shown,
        "n_believed_hidden": len(raters) - len(shown),
        "timed": drawn if len(drawn) >= 2 else [],
        "held_against_known": any(row.get("known") for row in raters),
        "weakest": _weakest(raters),
    }


def _weakest(raters: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rater that is least to be believed, if surely less than the middle one."""
    known = [row for row in raters if row["reliability"]["low"] is not None]
    if len(known) < 3:
        return None
    known.sort(key=lambda row: row["reliability"]["value"])
    middle = known[len(known) // 2]["reliability"]["value"]
    return known[0] if known[0]["reliability"]["high"] < middle else None


def _topics(project: Project, report: dict[str, Any]) -> dict[str, Any]:
    """The disputed topics; of prompts, how they begin."""
    topics = report.get("topics", {"rows": []})
    if topics["rows"] and topics["by"] == "prompt":
        keys = [row["comparison"] for row in topics["rows"]]
        shown = project.comparisons.filter(pk__in=keys).select_related("prompt")
        words = {comparison.pk: str(comparison.prompt) for comparison in shown}
        for row in topics["rows"]:
            row["topic"] = words.get(row["comparison"], "")
    return {"topics": topics}


# From which alpha on, what to call it, how it is coloured, what to do next. The bounds 0.667 and
# 0.8 are Krippendorff's own (2018, ch. 12); below them the words are ours.
ALPHA_READINGS = (
    (0.8, _lazy("reliable"), "ok", _lazy("One label per comparison is usually enough.")),
    (
        0.667,
        _lazy("good enough for most uses"),
        "ok",
        _lazy("Two or three labels on each comparison, and the majority, make it solid."),
    ),
    (
        0.4,
        _lazy("moderate"),
        "warn",
        _lazy(
            "Ask for three labels or more, train on the majority, and talk over the comparisons on "
            "which people differ: they show what the guidelines leave open."
        ),
    ),
    (
        -1.0,
        _lazy("low"),
        "bad",
        _lazy(
            "A single label says little here. Read some comparisons on which people differ; then "
            "sharpen the guidelines, or accept that tastes differ and ask many people."
        ),
    ),
)


def alpha_reading(alpha: dict[str, Any]) -> dict[str, str] | None:
    """What an alpha means for the labels, and what to do next; None where it is refused.

    Where the interval reaches into other readings, "unsure" names the worst and the best of them.
    """
    if alpha["value"] is None:
        return None

    def reading(value: float) -> tuple[str, str, str]:
        return next(row[1:] for row in ALPHA_READINGS if value >= row[0])

    name, level, what_next = reading(alpha["value"])
    unsure = ""
    if alpha["low"] is not None:
        worst, best = reading(alpha["low"])[0], reading(alpha["high"])[0]
        unsure = (
            _("from “%(worst)s” to “%(best)s”") % {"worst": worst, "best": best}
            if worst != best
            else ""
        )
    return {"name": name, "level": level, "next": what_next, "unsure": unsure}


def matrix(report: dict[str, Any], people: list[str]) -> list[dict[str, Any]]:
    """Rows of the rater × rater picture: judges first, then these people.

    A person and a judge may bear the same name, so a rater is its name and its kind.
    """
    judges = [(judge["rater"], True) for judge in report["judges"]]
    raters = judges + [(name, False) for name in people]
    cells: dict[frozenset[tuple[str, bool]], dict[str, Any]] = {}
    for pair in report["cohen_kappa"] + report["judge_pairs"]:
        ends = [(pair["rater_1"], pair["judge_1"]), (pair["rater_2"], pair["judge_2"])]
        cells[frozenset(ends)] = _cell(pair)
    return [
        {
            "name": name,
            "is_judge": is_judge,
            "cells": [
                {"self": True}
                if other == (name, is_judge)
                else cells.get(frozenset([other, (name, is_judge)]))
                for other in raters
            ],
        }
        for name, is_judge in raters
    ]


def _cell(pair: dict[str, Any]) -> dict[str, Any]:
    ends = {"one": pair["rater_1"], "other": pair["rater_2"]}
    words = _("%(one)s and %(other)s:") % ends + " "
    if pair["value"] is None:
        words += _("kappa not defined")
    else:
        words += _("kappa") + f" {decimals(pair['value'])}"
        if pair["low"] is not None:
            words += f" [{decimals(pair['low'])}, {decimals(pair['high'])}]"
    shared = ngettext(
        "same answer on %(agreement)s of %(n)s shared comparison",
        "same answer on %(agreement)s of %(n)s shared comparisons",
        pair["n"],
    )
    words += "; " + shared % {"agreement": percent(pair["agreement"]), "n": intcomma(pair["n"])}
    few = pair["n"] < MIN_SHARED
    level = None
    if pair["value"] is not None and not few:
        level = max(0, min(10, round(10 * pair["value"])))
    return {"pair": pair, "words": words, "few": few, "level": level}
