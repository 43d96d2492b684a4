"""The leaderboard page: which source is better, how sure that is, and what would decide it."""

import itertools
from types import SimpleNamespace
from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.humanize.templatetags.humanize import intcomma
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from labeling.access import project_for
from labeling.models import Leaderboard
from labeling.reports import compute_anew, stop
from labeling.templatetags.figures import percent
from labeling.votes import changed_since, state_of

N_SHOWN = 20  # sources in the heat map
FEW_LABELS = 10  # of two neighbours that are to be compared more often
MIN_SHARED = 5  # answers of a readable cell of the heat map


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def leaderboard(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the ratings that a worker stored last; a POST has them computed anew, or stops that."""
    if request.method == "POST":
        project = project_for(request.user, slug, to="lead")
        if "cancel" in request.POST:
            stop(project.leaderboards)
        else:
            compute_anew(project, project.leaderboards, request.user)
        return redirect("labeling:leaderboard", slug)
    project = project_for(request.user, slug, to="view")
    job = project.leaderboards.order_by("-pk").defer("result").first()
    if request.htmx:  # the status polls itself until the job has ended
        response = render(request, "labeling/figures_status.html", {"job": job, "project": project})
        if job is None or not job.is_active:
            response.headers["HX-Refresh"] = "true"
        return response
    context = {"project": project, "active": "leaderboard", "job": job}
    stored = project.leaderboards.filter(status=Leaderboard.Status.SUCCEEDED)
    stored = stored.order_by("-pk").first()
    if stored is None:
        context["n_preferences"] = state_of(project)[0]
    else:
        n_new, n_gone = changed_since(project, stored.n_preferences, stored.last_preference)
        context |= {"stored": stored, "n_new": n_new, "n_gone": n_gone}
        context |= _figures(stored.result, request.GET)
    return render(request, "labeling/leaderboard.html", context)


def _figures(report: dict[str, Any], asked: Any) -> dict[str, Any]:
    boards = report["boards"]
    for number, board in enumerate(boards):
        board["key"] = str(number)
    shown = next((b for b in boards if b["key"] == asked.get("board")), None)
    if shown is None:
        shown = next((b for b in boards if b["parts"]), boards[0])
    for part in shown["parts"]:
        ends = [
            end
            for row in part["sources"]
            for end in (row["rating"]["low"], row["rating"]["high"], row["rating"]["value"])
            if end is not None
        ]
        part["lowest"], part["highest"] = min([*ends, 1000]), max([*ends, 1000])
        part["columns"] = [name for name in ("length", "style") if name in part["features"]]
        for row in part["sources"]:
            row["held"] = [row["controlled"].get(name) for name in part["columns"]]
        part["above"] = [row["source"] for row in part["sources"] if row["edge"] == "above"]
        part["below"] = [row["source"] for row in part["sources"] if row["edge"] == "below"]
        part["top"] = _top(part)
    ranked = [row["source"] for part in boards[0]["parts"] for row in part["sources"]]
    pair = _asked_pair(report, ranked, asked.get("a"), asked.get("b"))
    for key in ("people", "judge", "combined") if pair and pair["people"] else ():
        pair[key]["span"] = SimpleNamespace(**pair[key])
    return {
        "report": report,
        "boards": boards,
        "shown": shown,
        "next_steps": next_steps(report),
        "ranked": ranked or report["sources"],
        "pair": pair,
        "chances": _chances(boards[0], pair) if pair else [],
        "heat": heat(boards[0], ranked[:N_SHOWN], report["sources"]),
        "n_heat_hidden": max(0, len(ranked) - N_SHOWN),
        "heat_levels": range(11),
        "min_shared": MIN_SHARED,
    }


def _top(part: dict[str, Any]) -> list[str]:
    """The sources that may be the best: those whose rank interval begins at 1."""
    return [row["source"] for row in part["sources"] if row["rank_low"] == 1]


def next_steps(report: dict[str, Any]) -> list[str]:
    """What would make the board surer, in sentences; the nearest undecided neighbours first."""
    steps, has_few = [], False
    people = _people_parts(report)
    if len(people) > 1:
        steps.append(
            _(
                "No chain of comparisons joins “%(one)s” with “%(other)s”: compare the two, or one "
                "of each group, and all can stand in one order."
            )
            % {"one": people[0]["sources"][0]["source"], "other": people[1]["sources"][0]["source"]}
        )
    by_names = {frozenset((pair["a"], pair["b"])): pair for pair in report["pairs"]}
    neighbours = [
        two
        for part in people
        for two in itertools.pairwise([row["source"] for row in part["sources"]])
    ]
    for one, other in neighbours:
        pair = by_names.get(frozenset((one, other)))
        if pair is None or pair["people"]["n"] < FEW_LABELS:
            if has_few:  # said once, of the best
                continue
            has_few, n = True, pair["people"]["n"] if pair else 0
            few = ngettext(
                "“%(one)s” and “%(other)s” stand next to each other, and people have compared them "
                "on %(n)s comparison: give them more.",
                "“%(one)s” and “%(other)s” stand next to each other, and people have compared them "
                "on %(n)s comparisons: give them more.",
                n,
            )
            steps.append(few % {"one": one, "other": other, "n": n})
        elif pair["more"]["value"]:
            n = pair["more"]["value"]
            more = ngettext(
                "If their win rate is what it looks like now, about %(n)s more label decides "
                "whether “%(one)s” is better than “%(other)s”.",
                "If their win rate is what it looks like now, about %(n)s more labels decide "
                "whether “%(one)s” is better than “%(other)s”.",
                n,
            )
            steps.append(more % {"n": intcomma(n), "one": one, "other": other})
        if len(steps) == 3:
            break
    return steps


def _people_parts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The connected parts of the people's board."""
    return report["boards"][0]["parts"] if report["boards"] else []


def _asked_pair(
    report: dict[str, Any], ranked: list[str], a: str | None, b: str | None
) -> dict[str, Any] | None:
    """The figures of A over B; unless asked for others, of the best two neighbours with enough.

    A pair that has no figures comes back with its names alone.
    """
    if not report["pairs"]:
        return None
    by_names = {frozenset((pair["a"], pair["b"])): pair for pair in report["pairs"]}
    if a in report["sources"] and b in report["sources"] and a != b:
        found = by_names.get(frozenset((a, b)))
        if found is None:
            return {"a": a, "b": b, "people": None}
    else:
        near = (by_names.get(frozenset(two)) for two in itertools.pairwise(ranked))
        enough = (pair for pair in near if pair and pair["people"]["n"] >= FEW_LABELS)
        found = next(enough, report["pairs"][0])
        a, b = (found["a"], found["b"])
        if b in ranked and a in ranked and ranked.index(b) < ranked.index(a):
            a, b = b, a
    return found if found["a"] == a else turned(found)


def turned(pair: dict[str, Any]) -> dict[str, Any]:
    """The figures of B over A from those of A over B."""

    def other(figure: dict[str, Any]) -> dict[str, Any]:
        if figure["value"] is None:
            return figure
        return figure | {
            "value": 1 - figure["value"],
            "low": 1 - figure["high"],
            "high": 1 - figure["low"],
        }

    shares = {
        key: other(pair[key]) for key in ("people", "judge", "combined", "corrected", "sequential")
    }
    if shares["sequential"].get("decided"):
        shares["sequential"]["decided"] = "b" if shares["sequential"]["decided"] == "a" else "a"
    return pair | shares | {"a": pair["b"], "b": pair["a"]}


def _chances(board: dict[str, Any], pair: dict[str, Any]) -> list[dict[str, Any]]:
    """Chance of A over B by the people's ratings: "raw", at equal "length", and "style"."""
    for part in board["parts"]:
        if pair["a"] not in part["order"] or pair["b"] not in part["order"]:
            continue
        i, j = part["order"].index(pair["a"]), part["order"].index(pair["b"])
        low, high, n = min(i, j), max(i, j), len(part["order"])
        place = low * n - low * (low + 1) // 2 + high - low - 1
        found = []
        for name in ("raw", "length", "style"):
            rows = part["chances"].get(name)
            if rows:
                value, least, most = rows[place]
                if i > j:
                    value, least, most = 1 - value, 1 - most, 1 - least
                found.append({"name": name, "value": value, "low": least, "high": most})
        return found
    return []


def heat(board: dict[str, Any], names: list[str], sources: list[str]) -> list[dict[str, Any]]:
    """Rows of the picture of pairwise wins: a cell's level is the share of the row's wins."""
    cells = {}
    for i, j, for_i, ties, for_j in board.get("wins", []):
        n = for_i + ties + for_j
        for one, other, wins in ((i, j, for_i), (j, i, for_j)):
            share = (wins + ties / 2) / n
            words = _(
                "%(one)s over %(other)s: %(share)s of %(n)s answers; %(wins)s wins, %(ties)s ties"
            ) % {
                "one": sources[one],
                "other": sources[other],
                "share": percent(share),
                "n": intcomma(round(n)),
                "wins": intcomma(round(wins)),
                "ties": intcomma(round(ties)),
            }
            cells[sources[one], sources[other]] = {
                "share": share,
                "n": round(n),
                "words": words,
                "level": None if n < MIN_SHARED else round(10 * share),
            }
    return [
        {
            "name": name,
            "cells": [
                {"self": True} if other == name else cells.get((name, other)) for other in names
            ],
        }
        for name in names
    ]
