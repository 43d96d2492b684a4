"""The playground: two models beside each other on the same prompt."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from training.model_forms import PlaygroundForm
from training.models import SideBySide
from training.playground import send_to_people, start_pair

SHOWN = 20


@login_required
@require_http_methods(["GET", "POST"])
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """The form, and the last pairs; a POST asks two models. htmx gets the answers' card alone."""
    project = project_for(request.user, slug, to="lead" if request.method == "POST" else "view")
    initial = {name: request.GET[name] for name in ("model_a", "model_b") if name in request.GET}
    like = project.sides_by_side.filter(pk=_number(request.GET.get("like", ""))).first()
    if like:
        initial = {"text": like.prompt[-1]["content"], **like.sampling}
        initial |= {"model_a": like.model_a, "model_b": like.model_b}
    form = PlaygroundForm(request.POST or None, project=project, initial=initial)
    context = {"project": project, "active": "training", "form": form}
    if request.method == "POST" and form.is_valid():
        asked = dict(form.cleaned_data)
        try:
            pair = start_pair(
                project,
                prompt=[{"role": "user", "content": asked.pop("text")}],
                created_by=request.user,
                **asked,
            )
        except ValueError as error:
            form.add_error(None, str(error))
        else:
            if request.htmx:
                return render(request, "training/side_by_side.html#card", context | {"pair": pair})
            return redirect("training:side_by_side", slug, pair.pk)
    if request.method == "POST" and request.htmx:
        return render(request, "training/playground.html#refused", context)
    context["pairs"] = project.sides_by_side.select_related("created_by")[:SHOWN]
    return render(request, "training/playground.html", context)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 18 else 0


@login_required
@require_safe
def side_by_side(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """What two models have said so far; polls itself until both are done."""
    project = project_for(request.user, slug, to="view")
    pair = get_object_or_404(project.sides_by_side, pk=pk)
    context = {"project": project, "active": "training", "pair": pair}
    template = "training/side_by_side.html#card" if request.htmx else "training/side_by_side.html"
    return render(request, template, context)


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop two models; what they have said stays."""
    project = project_for(request.user, slug, to="lead")
    pair = get_object_or_404(project.sides_by_side, pk=pk)
    pair.request_cancel()
    return _card_or_page(request, project, pair)


@login_required
@require_POST
def send(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Give the pair to people: a comparison with the models as its sources."""
    project = project_for(request.user, slug, to="lead")
    pair = get_object_or_404(project.sides_by_side.select_related("project", "comparison"), pk=pk)
    try:
        send_to_people(pair, request.user)
    except ValueError as error:
        messages.warning(request, str(error))
        return redirect("training:side_by_side", slug, pk)
    if not request.htmx:
        messages.success(request, _("The pair is among the comparisons now."))
    return _card_or_page(request, project, pair)


def _card_or_page(request: HttpRequest, project: Project, pair: SideBySide) -> HttpResponse:
    if not request.htmx:
        return redirect("training:side_by_side", project.slug, pair.pk)
    context = {"project": project, "pair": pair}
    return render(request, "training/side_by_side.html#card", context)
