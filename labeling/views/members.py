"""Members of a project, invitations by link, and the page that such a link opens."""

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from labeling.access import project_for
from labeling.forms.members import AccountForm, InvitationForm, MemberForm
from labeling.invitations import (
    NotValid,
    accept,
    invitation_of,
    invite,
    note_failure,
    revoke,
    state_of,
    too_many_failures,
    would_change,
)
from labeling.members import MayNot, is_owner, set_role
from labeling.models import Membership, Project
from labeling.sign_ins import network_of, session_begins

INVITATIONS_SHOWN = 50


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def members(request: HttpRequest, slug: str) -> HttpResponse:
    """Who is a member; a POST gives a person a role, or takes it. Their answers stay."""
    project = project_for(request.user, slug, to="lead")
    if request.method != "POST":
        return _page(request, project)
    form = MemberForm(request.POST)
    if not form.is_valid():
        for error in form.errors.values():
            messages.error(request, error[0])
        return redirect("labeling:members", slug)
    user, role = form.cleaned_data["user"], form.cleaned_data["role"]
    leaves = role == MemberForm.NO_ROLE
    try:
        set_role(project, user, None if leaves else role, request.user)
    except MayNot as error:
        if not is_owner(request.user, project):
            raise PermissionDenied(str(error)) from error
        messages.error(request, str(error))
        return redirect("labeling:members", slug)
    if leaves:
        messages.success(
            request, _("%(user)s is no longer a member. Their answers stay.") % {"user": user}
        )
    else:
        messages.success(
            request,
            _("%(user)s: %(role)s.") % {"user": user, "role": Membership.Role(role).label},
        )
    if user == request.user and (leaves or role not in ("owner", "lead")):
        return redirect("labeling:home")
    return redirect("labeling:members", slug)


@login_required
@never_cache
@require_POST
def make_invitation(request: HttpRequest, slug: str) -> HttpResponse:
    """Make a link and show it, this once."""
    project = project_for(request.user, slug, to="lead")
    form = InvitationForm(request.POST, may_name_owners=is_owner(request.user, project))
    if not form.is_valid():
        return _page(request, project, invitation_form=form, status=422)
    wanted = form.cleaned_data
    _invitation, token = invite(
        project, wanted["role"], request.user, days=wanted["days"], uses=wanted["uses"]
    )
    link = request.build_absolute_uri(reverse("labeling:join", args=[token]))
    return _page(request, project, new_link=link)


@login_required
@require_POST
def revoke_invitation(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Let a link open nothing from now on."""
    project = project_for(request.user, slug, to="lead")
    invitation = project.invitations.filter(pk=pk).first()
    if invitation is None:
        raise Http404("No such invitation.")
    revoke(invitation, request.user)
    messages.success(request, _("The link opens nothing any more."))
    return redirect("labeling:members", slug)


def _page(
    request: HttpRequest, project: Project, *, status: int = 200, **context: object
) -> HttpResponse:
    may_name_owners = is_owner(request.user, project)
    invitations = list(
        project.invitations.select_related("created_by").order_by("-pk")[:INVITATIONS_SHOWN]
    )
    for invitation in invitations:
        invitation.state = state_of(invitation)
    defaults = {
        "project": project,
        "active": "people",
        "part": "members",
        "members": project.memberships.select_related("user").order_by("user__username"),
        "roles": Membership.Role.choices,
        "may_name_owners": may_name_owners,
        "member_form": MemberForm(),
        "invitation_form": InvitationForm(may_name_owners=may_name_owners),
        "invitations": invitations,
    }
    return render(request, "labeling/members.html", defaults | context, status=status)


@never_cache
@sensitive_post_parameters("password1", "password2")
@require_http_methods(["GET", "POST"])
def join(request: HttpRequest, token: str) -> HttpResponse:
    """What an invitation opens: become a member, with an account made here if need be."""
    address = network_of(request)
    if too_many_failures(address):
        refused = _("Too many tries from here. Wait ten minutes.")
        return render(request, "labeling/join.html", {"refused": refused}, status=429)
    try:
        invitation = invitation_of(token)
        if request.user.is_authenticated:
            return _join_signed_in(request, token, invitation)
        form = AccountForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            # Together: no account remains of somebody who came too late for the last use.
            with transaction.atomic():
                user = form.save()
                accept(token, user)
            login(request, user, backend="django.contrib.auth.backends.ModelBackend")
            session_begins(request, user)
            return redirect("labeling:project", invitation.project.slug)
    except NotValid as error:
        note_failure(address)
        return render(request, "labeling/join.html", {"refused": str(error)}, status=410)
    if form.errors:
        note_failure(address)
    context = {"invitation": invitation, "form": form}
    return render(request, "labeling/join.html", context, status=422 if form.errors else 200)


def _join_signed_in(request: HttpRequest, token: str, invitation: object) -> HttpResponse:
    project = invitation.project
    membership = project.memberships.filter(user=request.user).first()
    if request.method == "POST":
        accept(token, request.user)
        return redirect("labeling:project", project.slug)
    context = {
        "invitation": invitation,
        "membership": membership,
        "gives": would_change(invitation, membership),
    }
    return render(request, "labeling/join.html", context)
