"""The page "Routing": what judges may decide alone, and the certificates that say so."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from judges.certificates import (
    NotReady,
    RoutingActive,
    new_run,
    policy_of,
    revoke,
    set_policy,
    versions_of,
    why_void,
    withdraw_if_due,
)
from judges.forms import RoutingForm
from judges.models import Certificate, RoutingPolicy, RoutingRun
from judges.outlook import certificate_rows, outlook
from labeling.access import project_for
from labeling.models import Project

SHOWN = 20
LOOKED_AT = ("alpha", "delta", "starts", "cost_per_label", "currency")
"""What the figures follow while it is moved; the rest takes effect when it is kept."""


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def routing(request: HttpRequest, slug: str) -> HttpResponse:
    """What judges may decide alone, at the errors that one allows; htmx gets the figures alone. A
    POST keeps the policy, and with `do` counts anew or tests for a certificate."""
    project = project_for(request.user, slug, to="lead" if request.method == "POST" else "view")
    policy = policy_of(project)
    if request.method == "POST":
        return _kept(request, project)
    shown, form = policy, RoutingForm(instance=policy, project=project)
    if any(name in request.GET for name in LOOKED_AT):
        looked = RoutingForm(
            form.initial | {name: request.GET[name] for name in LOOKED_AT if name in request.GET},
            instance=policy_of(project),
            project=project,
        )
        if looked.is_valid():
            shown = looked.save(commit=False)
            form = RoutingForm(instance=shown, project=project)
        else:
            form = looked
    context = _context(project, shown, form)
    if request.htmx:
        return render(request, "judges/routing.html#figures", context)
    return render(request, "judges/routing.html", context)


def _kept(request: HttpRequest, project: Project) -> HttpResponse:
    """Keep the policy that was posted, and do what its button says."""
    form = RoutingForm(request.POST, instance=policy_of(project), project=project)
    if not form.is_valid():
        return render(
            request,
            "judges/routing.html",
            _context(project, policy_of(project), form),
            status=422,
        )
    what = request.POST.get("do", "")
    if what == "show":
        asked = {name: request.POST.get(name, "") for name in LOOKED_AT}
        return redirect(f"{reverse('judges:routing', args=[project.slug])}?{urlencode(asked)}")
    set_policy(project, request.user, **form.policy())
    if what in (RoutingRun.Kind.COUNT, RoutingRun.Kind.ISSUE, RoutingRun.Kind.ROUTE):
        try:
            with transaction.atomic():
                new_run(project, what, request.user).enqueue()
        except (RoutingActive, NotReady) as error:
            messages.error(request, str(error))
    else:
        messages.success(request, _("Kept."))
    return redirect("judges:routing", project.slug)


def _context(project: Project, policy: RoutingPolicy, form: Any) -> dict[str, Any]:
    certificates = certificate_rows(project)
    live = next((c for c in certificates if c.status == Certificate.Status.ACTIVE), None)
    void = why_void(live) if live is not None else ""
    return {
        "project": project,
        "active": "judges",
        "form": form,
        "policy": policy,
        "outlook": outlook(project, policy),
        "versions": versions_of(policy),
        "certificates": certificates[:SHOWN],
        "live": live,
        "void": Certificate.Reason(void).label if void else "",
        "job": project.routing_runs.order_by("-pk").first(),
    }


@login_required
@never_cache
@require_safe
def run_status(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """How far a run of the routing is; it polls itself until it has ended."""
    project = project_for(request.user, slug, to="view")
    job = get_object_or_404(project.routing_runs, pk=pk)
    if not request.htmx:
        return redirect("judges:routing", slug)
    context = {"project": project, "job": job}
    response = render(request, "judges/routing.html#status", context)
    if not job.is_active:
        response.headers["HX-Refresh"] = "true"
    return response


@login_required
@require_POST
def cancel_routing(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a run after the comparisons in hand; what it has done stays."""
    project = project_for(request.user, slug, to="lead")
    get_object_or_404(project.routing_runs, pk=pk).request_cancel()
    return redirect("judges:routing", slug)


@login_required
@require_POST
def resume_routing(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Go on with a stopped run where it stopped."""
    project = project_for(request.user, slug, to="lead")
    run = get_object_or_404(project.routing_runs, pk=pk)
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=project.pk)
        if not project.routing_runs.active().exists():
            run.resume()
    return redirect("judges:routing", slug)


@login_required
@require_POST
def revoke_certificate(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """End a certificate; what it let stand goes back to people."""
    project = project_for(request.user, slug, to="lead")
    certificate = get_object_or_404(project.certificates, pk=pk)
    note = request.POST.get("note", "")[:500]
    if revoke(certificate, Certificate.Reason.LEAD, user=request.user, note=note):
        withdraw_if_due(project)
        messages.success(request, _("Revoked. What it let stand goes back to people."))
    return redirect("judges:routing", slug)
