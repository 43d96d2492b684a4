"""A project's webhooks: make one, switch it off, and see whether its messages arrive."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, Max, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.forms.webhooks import WebhookForm
from labeling.models import Project, Webhook
from labeling.webhooks import change_webhook, make_webhook, secret_of, send_again, send_test

DELIVERIES_SHOWN = 50


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def webhooks(request: HttpRequest, slug: str) -> HttpResponse:
    """The project's webhooks. A POST makes one and shows its secret, this once."""
    project = project_for(request.user, slug, to="lead")
    form = WebhookForm(request.POST or None)
    made, status = None, 200
    if request.method == "POST":
        if form.is_valid():
            asked = form.cleaned_data
            made = make_webhook(project, asked["url"], asked["events"], request.user)
            form = WebhookForm()
        else:
            status = 422
    context = {
        "project": project,
        "active": "settings",
        "form": form,
        "made": made,
        "secret": secret_of(made) if made else "",
        "webhooks": _with_figures(project),
    }
    return render(request, "labeling/webhooks.html", context, status=status)


@login_required
@never_cache
@require_safe
def webhook(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One webhook and the log of its messages; htmx asks for the log alone."""
    project = project_for(request.user, slug, to="lead")
    found = _webhook(project, pk)
    deliveries = list(found.deliveries.order_by("-pk")[: DELIVERIES_SHOWN + 1])
    context = {
        "project": project,
        "active": "settings",
        "webhook": found,
        "deliveries": deliveries[:DELIVERIES_SHOWN],
        "has_more": len(deliveries) > DELIVERIES_SHOWN,
        "is_waiting": any(delivery.next_try_at for delivery in deliveries),
    }
    template = "labeling/webhook.html#log" if request.htmx else "labeling/webhook.html"
    return render(request, template, context)


@login_required
@require_POST
def switch(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Switch a webhook off, or on again."""
    project = project_for(request.user, slug, to="lead")
    found = _webhook(project, pk)
    change_webhook(found, request.user, disabled=found.disabled_at is None)
    return redirect("labeling:webhook", slug, pk)


@login_required
@require_POST
def test(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Send a message that says nothing."""
    project = project_for(request.user, slug, to="lead")
    send_test(_webhook(project, pk))
    messages.success(request, _("A test is on its way. The log says whether it arrives."))
    return redirect("labeling:webhook", slug, pk)


@login_required
@require_POST
def again(request: HttpRequest, slug: str, pk: int, delivery: int) -> HttpResponse:
    """Try a message anew."""
    project = project_for(request.user, slug, to="lead")
    send_again(get_object_or_404(_webhook(project, pk).deliveries, pk=delivery))
    messages.success(request, _("It is sent again."))
    return redirect("labeling:webhook", slug, pk)


def _webhook(project: Project, pk: int) -> Webhook:
    return get_object_or_404(project.webhooks, pk=pk)


def _with_figures(project: Project) -> list[Any]:
    """The webhooks with what became of their messages: one query, however many there are."""
    given_up = Q(deliveries__delivered_at=None, deliveries__next_try_at=None)
    rows = list(
        project.webhooks.annotate(
            n_delivered=Count("deliveries", filter=Q(deliveries__delivered_at__isnull=False)),
            n_waiting=Count("deliveries", filter=Q(deliveries__next_try_at__isnull=False)),
            n_given_up=Count("deliveries", filter=given_up),
            last_at=Max("deliveries__delivered_at"),
        ).order_by("-pk")
    )
    labels = dict(Webhook.Event.choices)
    for row in rows:
        row.event_labels = [labels[event] for event in row.events]
    return rows
