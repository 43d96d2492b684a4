"""A person's own keys for programs: make one, see when each was used, revoke it."""

from allauth.account.decorators import reauthentication_required
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labeling.forms.tokens import TokenForm
from labeling.models import ApiToken
from labeling.tokens import make_token, revoke


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
@reauthentication_required(allow_get=True)
def tokens(request: HttpRequest) -> HttpResponse:
    """The person's tokens. A POST makes one and shows it, this once, and asks for the password
    before: a token outlives the session that a thief may have."""
    form = TokenForm(request.POST or None)
    secret, status = "", 200
    if request.method == "POST":
        if form.is_valid():
            asked = form.cleaned_data
            _token, secret = make_token(
                request.user, asked["name"], asked["scopes"], int(asked["days"])
            )
            form = TokenForm()
        else:
            status = 422
    labels = dict(ApiToken.Scope.choices)
    mine = list(request.user.api_tokens.order_by("-pk"))
    for token in mine:
        token.scope_labels = [labels[scope] for scope in token.scopes]
        token.is_open = token.revoked_at is None and token.expires_at > timezone.now()
    context = {"form": form, "tokens": mine, "secret": secret}
    return render(request, "labeling/tokens.html", context, status=status)


@login_required
@require_POST
def revoke_token(request: HttpRequest, pk: int) -> HttpResponse:
    """End one of one's own tokens."""
    token = get_object_or_404(request.user.api_tokens, pk=pk)
    revoke(token)
    messages.success(
        request, _("“%(name)s” is revoked: it opens nothing any more.") % {"name": token.name}
    )
    return redirect("labeling:tokens")
