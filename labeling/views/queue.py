"""The comparisons of a project as a lead sees them: the list with its filters, and each of them."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.humanize.templatetags.humanize import intcomma
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST, require_safe

from labeling import adjudication, flags
from labeling import queue as domain
from labeling.access import project_for
from labeling.changes import differences
from labeling.forms.queue import BulkForm, DecisionForm, FilterForm
from labeling.models import Assignment, Choice, Comparison, Flag, Project
from labeling.scales import ANSWERS

SCALE = ["a-3", "a-2", "a-1", Choice.TIE, "b-1", "b-2", "b-3"]
CHANGES_SHOWN = 30
DISPUTED = "disagreement=people&decision=no"


@login_required
@require_safe
def comparisons(request: HttpRequest, slug: str) -> HttpResponse:
    """The comparisons that the filters let through; htmx gets the list alone."""
    project = project_for(request.user, slug, to="view")
    form = FilterForm(request.GET, project=project)
    context: dict[str, Any] = {"project": project, "active": "comparisons", "form": form}
    if form.is_valid():
        context["page"] = domain.page_of(
            project, domain.filtered(project, **form.cleaned_data), **_place(request)
        )
        context["query"] = form.query
        context["n_rare"] = sum(name in form.query for name in RARE_FILTERS)
    if "lead" in project.may:
        context["bulk"] = BulkForm()
    template = "labeling/comparisons.html#list" if request.htmx else "labeling/comparisons.html"
    return render(request, template, context)


@login_required
@require_POST
def change(request: HttpRequest, slug: str) -> HttpResponse:
    """Change the ticked comparisons, or all that the filter in the address lets through."""
    project = project_for(request.user, slug, to="lead")
    filters, form = FilterForm(request.GET, project=project), BulkForm(request.POST)
    if not filters.is_valid() or not form.is_valid():
        for error in [*filters.errors.values(), *form.errors.values()]:
            messages.error(request, error[0])
        return _to_list(slug, request.GET.urlencode())
    if form.cleaned_data["scope"] == "ticked":
        pks = form.cleaned_data["comparisons"]
    else:
        try:
            pks = domain.selected(project, domain.filtered(project, **filters.cleaned_data))
        except domain.TooMany:
            text = _(
                "Nothing was changed: at most %(most)s comparisons are changed at once. "
                "Narrow the filter."
            )
            messages.error(request, text % {"most": intcomma(domain.CHANGED_AT_ONCE)})
            return _to_list(slug, request.GET.urlencode())
    asked = form.cleaned_data
    value = asked.get(asked["action"])
    value = "" if value == BulkForm.NO_GOLD else value
    changed = domain.change_many(project, pks, asked["action"], value, request.user, asked["note"])
    messages.success(
        request,
        ngettext("%(n)s comparison changed.", "%(n)s comparisons changed.", changed.n)
        % {"n": changed.n},
    )
    if changed.why_left:
        messages.warning(request, changed.why_left)
    return _to_list(slug, request.GET.urlencode())


@login_required
@require_safe
def disputed(request: HttpRequest, slug: str) -> HttpResponse:
    """Lead to the first comparison on which people differ and that nobody has decided."""
    project = project_for(request.user, slug, to="lead")
    return _to_next(request, project, DISPUTED, after=0)


@login_required
@require_safe
def comparison(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One comparison with everything that was said of it."""
    project = project_for(request.user, slug, to="view")
    rows = project.comparisons.select_related("prompt", "response_a", "response_b")
    row = rows.filter(pk=pk).first()
    if row is None:
        messages.error(request, _("There is no such comparison in this project."))
        return redirect("labeling:comparisons", slug)
    answers = list(row.preferences.select_related("rater").order_by("created_at", "pk"))
    given = list(row.assignments.select_related("rater", "repeat_answer").order_by("pk"))
    stream_of = {a.rater_id: a.stream for a in given if a.repeats_id is None}
    for answer in answers:
        answer.stream = stream_of.get(answer.rater_id, "")
    decisions = list(row.decisions.select_related("decided_by").order_by("-pk"))
    changes = list(domain.changes_of(row).select_related("actor")[:CHANGES_SHOWN])
    for change in changes:
        change.differences = differences(change, of=pk)
    filters = FilterForm(request.GET, project=project)
    query = filters.query if filters.is_valid() else ""
    context = {
        "project": project,
        "active": "comparisons",
        "comparison": row,
        "people": [a for a in answers if a.rater.kind == "person"],
        "judges": [a for a in answers if a.rater.kind == "judge"],
        "skips": [a for a in given if a.state == Assignment.State.SKIPPED],
        "held": [a for a in given if a.state == Assignment.State.LEASED],
        "repeats": [a for a in given if hasattr(a, "repeat_answer")],
        "flags": row.flags.select_related("rater", "resolved_by").order_by("pk"),
        "decisions": decisions,
        "decision": next((d for d in decisions if d.superseded_at is None), None),
        "scale": [(n, value, *ANSWERS[value]) for n, value in enumerate(SCALE, start=1)],
        "changes": changes,
        "wanted_before": domain.wanted_before_taken_out(project, [pk]).get(pk),
        "query": query,
    }
    if query:
        filtered = domain.filtered(project, **filters.cleaned_data)
        after = domain.find(project, filtered, 1, after=pk).pks
        before = domain.find_before(project, filtered, 1, before=pk).pks
    else:
        after = _nearest(project.comparisons.filter(pk__gt=pk).order_by("pk"))
        before = _nearest(project.comparisons.filter(pk__lt=pk).order_by("-pk"))
    context["next"], context["previous"] = next(iter(after), None), next(iter(before), None)
    return render(request, "labeling/comparison.html", context)


@login_required
@require_POST
def decide(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Keep the lead's decision; inside a filter, go on to the next comparison."""
    project = project_for(request.user, slug, to="lead")
    row = _comparison(project, pk)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        messages.error(request, _("Choose an answer."))
        return _to_comparison(slug, pk, request.GET.urlencode())
    adjudication.decide(
        row,
        request.user,
        form.cleaned_data["choice"],
        strength=form.cleaned_data["strength"],
        note=form.cleaned_data["note"],
    )
    messages.success(request, _("%(comparison)s is decided.") % {"comparison": row})
    if request.GET:
        return _to_next(request, project, request.GET.urlencode(), after=pk)
    return _to_comparison(slug, pk, "")


@login_required
@require_POST
def withdraw(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Let the votes count again."""
    project = project_for(request.user, slug, to="lead")
    adjudication.withdraw_decision(_comparison(project, pk), request.user)
    messages.success(request, _("The decision is withdrawn: the votes count again."))
    return _to_comparison(slug, pk, request.GET.urlencode())


@login_required
@require_POST
def place(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Take the comparison out of the queue, or put it back."""
    project = project_for(request.user, slug, to="lead")
    row = _comparison(project, pk)
    if request.POST.get("to") == "back":
        n = domain.put_back(project, [row.pk], request.user)
        done = _("It wants labels again.")
    else:
        note = request.POST.get("note", "")[:500]
        n = domain.take_out(project, [row.pk], request.user, note)
        done = _("Nobody is asked about it any more.")
    messages.success(request, done if n else _("Nothing had to be changed."))
    return _to_comparison(slug, pk, request.GET.urlencode())


@login_required
@require_POST
def flag(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Resolve a flag, or take it up again."""
    project = project_for(request.user, slug, to="lead")
    row = Flag.objects.filter(comparison__project=project, pk=pk).first()
    if row is None:
        raise Http404("No such flag.")
    if request.POST.get("to") == "reopen":
        flags.reopen_flag(row, request.user)
    else:
        flags.resolve_flag(row, request.user)
    return _to_comparison(slug, row.comparison_id, request.GET.urlencode())


RARE_FILTERS = (
    "flag=",
    "judge=",
    "purpose=",
    "leak=",
    "rater=",
    "tag=",
    "length_min=",
    "length_max=",
)
"""Shown when asked for, or when one of them is set."""


def _place(request: HttpRequest) -> dict[str, int | None]:
    after, before = (request.GET.get(name, "") for name in ("after", "before"))
    return {
        "after": int(after) if after.isdecimal() else 0,
        "before": int(before) if before.isdecimal() else None,
    }


def _comparison(project: Project, pk: int) -> Comparison:
    row = project.comparisons.filter(pk=pk).first()
    if row is None:
        raise Http404("No such comparison.")
    return row


def _nearest(rows: Any) -> list[int]:
    return list(rows.values_list("pk", flat=True)[:1])


def _to_list(slug: str, query: str) -> HttpResponse:
    return redirect(_with(reverse("labeling:comparisons", args=[slug]), query))


def _to_comparison(slug: str, pk: int, query: str) -> HttpResponse:
    return redirect(_with(reverse("labeling:comparison", args=[slug, pk]), query))


def _to_next(request: HttpRequest, project: Project, query: str, *, after: int) -> HttpResponse:
    """Go on to the next comparison of a filter, from its beginning after its end."""
    form = FilterForm(QueryDict(query), project=project)
    if form.is_valid():
        rows = domain.filtered(project, **form.cleaned_data)
        found = domain.find(project, rows, 1, after=after)
        if not found.pks and after:
            found = domain.find(project, rows, 1)
        if found.pks:
            return _to_comparison(project.slug, found.pks[0], form.query)
    messages.success(request, _("Nothing is left in this filter."))
    return _to_list(project.slug, query)


def _with(address: str, query: str) -> str:
    return f"{address}?{query}" if query else address
