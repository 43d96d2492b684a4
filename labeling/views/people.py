"""What is kept about one person, for administrators: look, give out, erase."""

from typing import Any

from django.apps import apps
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from labeling.forms.people import EraseForm, PersonForm
from labeling.personal_data import (
    CannotErase,
    Person,
    erase,
    export_person,
    find_person,
    held,
    traces,
    why_not,
)


def _administrators_alone(user: Any) -> None:
    if not user.is_superuser:
        raise PermissionDenied(_("Administrators alone see what is kept about people."))


@login_required
@never_cache
@require_safe
def people(request: HttpRequest) -> HttpResponse:
    """Ask for a name; see what is kept under it."""
    _administrators_alone(request.user)
    form = PersonForm(request.GET if "name" in request.GET else None, label_suffix="")
    context: dict[str, Any] = {"form": form}
    if form.is_valid():
        person = find_person(form.cleaned_data["name"])
        context |= {"name": person.name, "person": person if person else None}
        if person:
            context |= _shown(request, person)
    return render(request, "labeling/people.html", context)


def _shown(request: HttpRequest, person: Person) -> dict[str, Any]:
    tables = [
        (str(apps.get_model(label)._meta.verbose_name_plural), n)
        for label, n in held(person).items()
    ]
    return {
        "tables": tables,
        "why_not": why_not(person, request.user),
        "erase_form": EraseForm(name=person.name, label_suffix=""),
    }


@login_required
@never_cache
@require_POST
def export_of_person(request: HttpRequest) -> HttpResponse:
    """A zip with everything that is kept about the person."""
    _administrators_alone(request.user)
    person = _person(request)
    response = HttpResponse(export_person(person, request.user), content_type="application/zip")
    response.headers["Content-Disposition"] = 'attachment; filename="personal-data.zip"'
    return response


@login_required
@never_cache
@require_POST
def erase_person(request: HttpRequest) -> HttpResponse:
    """Erase the person, once their name was typed again."""
    _administrators_alone(request.user)
    person = _person(request)
    form = EraseForm(request.POST, name=person.name, label_suffix="")
    if not form.is_valid():
        asked = PersonForm({"name": person.name}, label_suffix="")
        context = {"form": asked, "name": person.name, "person": person}
        context |= _shown(request, person) | {"erase_form": form}
        return render(request, "labeling/people.html", context, status=422)
    try:
        pseudonym = erase(person, request.user, keep_reasons=form.cleaned_data["keep_reasons"])
    except CannotErase as problem:
        messages.error(request, str(problem))
        return redirect("labeling:people")
    messages.success(
        request, _("Erased. The answers stand under %(pseudonym)s.") % {"pseudonym": pseudonym}
    )
    for place, n in traces(person.name).items():
        messages.warning(
            request,
            _("The name still stands in %(place)s (%(n)s).") % {"place": place, "n": n},
        )
    return redirect("labeling:people")


def _person(request: HttpRequest) -> Person:
    person = find_person(request.POST.get("name", ""))
    if not person:
        raise Http404("Nobody here goes by this name.")
    return person
