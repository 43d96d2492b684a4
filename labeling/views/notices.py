"""What a person was told: the header's short list, and the page with all of it."""

from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.functional import SimpleLazyObject
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from labeling.models import Notice
from labeling.notices import SHOWN, read

PER_PAGE = 50


def unread(request: HttpRequest) -> dict[str, Any]:
    """For every page's header: how many notices the person has not read."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}
    return {"n_unread": SimpleLazyObject(lambda: Notice.objects.unread_by(user).count())}


@login_required
@never_cache
@require_safe
def notices(request: HttpRequest) -> HttpResponse:
    """All notices; htmx gets the header's list of the newest."""
    own = Notice.objects.filter(user=request.user.pk).select_related("project")
    if request.htmx:
        return render(request, "labeling/notices.html#list", {"newest": own[:SHOWN]})
    page = Paginator(own, PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "labeling/notices.html", {"page": page})


@login_required
@never_cache
@require_safe
def count(request: HttpRequest) -> HttpResponse:
    """The header's button, asked for once a minute."""
    return render(request, "labeling/notice_count.html")


@login_required
@require_POST
def open_notice(request: HttpRequest, pk: int) -> HttpResponse:
    """Mark a notice as read and go to what it speaks of."""
    notice = get_object_or_404(Notice, pk=pk, user=request.user.pk)
    read(request.user, pk)
    return redirect(notice.address)


@login_required
@require_POST
def read_all(request: HttpRequest) -> HttpResponse:
    """Mark all as read."""
    read(request.user)
    return redirect("labeling:notices")
