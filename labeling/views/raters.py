"""How each person labels, and what a lead may do about it; the sets of known answers."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.forms.raters import LabelLimitForm, SetForm
from labeling.habits import CHARS_PER_SECOND
from labeling.members import set_label_limit
from labeling.models import Assignment, Comparison, Project, Rater
from labeling.quality import (
    HUMAN_AGREEMENT,
    NEWEST_IN_LIST,
    findings,
    glances,
    quality_of,
    usual_rates,
)
from labeling.raters import let_in, pause_rater, requalify, resume_rater
from labeling.sets import (
    Chosen,
    choose_by_id,
    choose_unanimous,
    choose_with_gold,
    has_entrance,
    in_sets,
    items,
    set_purpose,
    set_sizes,
)

RATERS_ON_A_PAGE = 50
ITEMS_ON_A_PAGE = 50
# Filters of the list: what a lead looks for.
WHO = {
    "all": Q(),
    "working": Q(paused_at=None, disqualified_at=None),
    "paused": Q(paused_at__isnull=False),
    "failed": Q(disqualified_at__isnull=False),
}


@login_required
@require_safe
def raters(request: HttpRequest, slug: str) -> HttpResponse:
    """The project's people, a page at a time, with what aggregates alone can tell of them."""
    project = project_for(request.user, slug, to="view")
    who = request.GET.get("who", "all")
    people = project.raters.filter(WHO.get(who, Q()), kind=Rater.Kind.PERSON)
    page = Paginator(people.order_by("name", "pk"), RATERS_ON_A_PAGE).get_page(
        request.GET.get("page")
    )
    context = {
        "project": project,
        "active": "people",
        "part": "raters",
        "page": page,
        "glances": glances(list(page)),
        "usual": usual_rates(project),
        "n_newest": NEWEST_IN_LIST,
        "who": who,
        "has_entrance": has_entrance(project),
        "n_judges": project.raters.filter(kind=Rater.Kind.JUDGE).count(),
    }
    return render(request, "labeling/raters.html", context)


@login_required
@require_safe
def rater(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One person's figures, in words and pictures, and what a lead may do."""
    project = project_for(request.user, slug, to="view")
    person = _person(project, pk)
    quality = quality_of(person)
    context = {
        "project": project,
        "active": "people",
        "part": "raters",
        "rater": person,
        "quality": quality,
        "findings": findings(quality, project.qualification_pass),
        "usual_agreement": HUMAN_AGREEMENT,
        "words_per_minute": CHARS_PER_SECOND * 60 // 6,
        "n_held": person.assignments.filter(state=Assignment.State.LEASED).count(),
        "sizes": set_sizes(project),
        "has_entrance": has_entrance(project),
        "limit_form": LabelLimitForm(initial={"label_limit": person.label_limit}),
    }
    return render(request, "labeling/rater.html", context)


@login_required
@require_POST
def pause(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Give the rater no more work; what they hold goes back to the queue."""
    return _act(request, slug, pk, pause_rater, _("Paused. What they held is in the queue again."))


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    return _act(request, slug, pk, resume_rater, _("They may work again."))


@login_required
@require_POST
def ask_again(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Ask the rater the training and the qualification again."""
    return _act(request, slug, pk, requalify, _("They are asked the qualification again."))


@login_required
@require_POST
def admit(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Let the rater to real work, whatever the qualification says."""
    return _act(request, slug, pk, let_in, _("They are let to real work."))


@login_required
@require_POST
def set_limit(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Set how many labels this rater may give; empty: as the project says."""
    project_for(request.user, slug, to="lead")
    form = LabelLimitForm(request.POST)
    if not form.is_valid():
        messages.error(request, _("Give a whole number above 0, or nothing."))
        return redirect("labeling:rater", slug, pk)
    limit = form.cleaned_data["label_limit"]
    return _act(request, slug, pk, lambda r, actor: set_label_limit(r, limit, actor), _("Kept."))


def _act(
    request: HttpRequest, slug: str, pk: int, act: Callable[[Rater, Any], None], done: str
) -> HttpResponse:
    project = project_for(request.user, slug, to="lead")
    act(_person(project, pk), request.user)
    messages.success(request, done)
    return redirect("labeling:rater", slug, pk)


def _person(project: Project, pk: int) -> Rater:
    person = project.raters.filter(pk=pk, kind=Rater.Kind.PERSON).select_related("project").first()
    if person is None:
        raise Http404("No such rater in this project.")
    return person


# Sets of known answers ----------------------------------------------------------------------------


@login_required
@require_http_methods(["GET", "POST"])
def sets(request: HttpRequest, slug: str) -> HttpResponse:
    """Training, qualification and gold; a POST puts comparisons into one of them."""
    if request.method == "POST":
        project = project_for(request.user, slug, to="lead")
        form = SetForm(request.POST)
        if form.is_valid():
            _tell(request, _choose(project, form, request.user))
            return redirect("labeling:sets", slug)
    else:
        project = project_for(request.user, slug, to="view")
        form = SetForm()
    purpose = request.GET.get("purpose", "")
    listed = in_sets(project).select_related("prompt").order_by("purpose", "random_key")
    if purpose in Comparison.Purpose.values:
        listed = listed.filter(purpose=purpose)
    page = Paginator(listed, ITEMS_ON_A_PAGE).get_page(request.GET.get("page"))
    sizes = set_sizes(project)
    n_people = project.raters.filter(kind=Rater.Kind.PERSON).aggregate(
        qualified=Count("pk", filter=Q(qualified_at__isnull=False)),
        failed=Count("pk", filter=Q(disqualified_at__isnull=False)),
    )
    context = {
        "project": project,
        "active": "people",
        "part": "sets",
        "sets": [(value, label, sizes[value]) for value, label in Comparison.Purpose.choices[1:]],
        "purpose": purpose,
        "page": page,
        "items": items(page),
        "form": form,
        "n_people": n_people,
    }
    status = 422 if form.errors else 200
    return render(request, "labeling/sets.html", context, status=status)


@login_required
@require_POST
def take_out(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Put a comparison of a set back among the work."""
    project = project_for(request.user, slug, to="lead")
    set_purpose(project, [pk], Comparison.Purpose.WORK, request.user)
    messages.success(request, _("It is ordinary work again; its known answer stays with it."))
    return redirect("labeling:sets", slug)


def _choose(project: Project, form: SetForm, actor: Any) -> Chosen:
    wanted = form.cleaned_data
    n, purpose = wanted["n"], wanted["purpose"]
    if wanted["source"] == SetForm.IDS:
        return choose_by_id(project, wanted["ids"], purpose, wanted["gold"], actor)
    if wanted["source"] == SetForm.GOLD:
        return choose_with_gold(project, n, purpose, actor)
    return choose_unanimous(project, n, wanted["at_least"], purpose, actor)


def _tell(request: HttpRequest, chosen: Chosen) -> None:
    done = ngettext("%(n)d comparison put in.", "%(n)d comparisons put in.", chosen.n_moved)
    level = messages.success if chosen.n_moved else messages.warning
    level(request, done % {"n": chosen.n_moved})
    for n, text in (
        (chosen.n_without_gold, _("%(n)d left out: they have no known answer; give one.")),
        (chosen.n_unknown, _("%(n)d left out: no comparison of this project has that id.")),
        (chosen.n_ranked, _("%(n)d left out: they are ranked as a set, not judged as a pair.")),
    ):
        if n:
            messages.warning(request, text % {"n": n})
