"""Pages of the servers that judges may ask, for administrators alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import ProtectedError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from judges.models import JudgeServer
from judges.servers import KEY_VARIABLE, ask_for_trial, check_url, encrypted, is_key, origin


class ServerForm(forms.ModelForm):
    """Allow an address, and say how it may be used. The key's field is never filled."""

    key = forms.CharField(
        required=False,
        max_length=1000,
        label=_lazy("Key"),
        widget=forms.PasswordInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    forget_key = forms.BooleanField(required=False, label=_lazy("Forget the key that is stored"))

    class Meta:
        model = JudgeServer
        fields = [
            "name",
            "url",
            "in_own_network",
            "key",
            "forget_key",
            "key_variable",
            "max_concurrency",
            "timeout_seconds",
            "price_read",
            "price_written",
            "currency",
        ]
        labels = {
            "name": _lazy("Name"),
            "url": _lazy("Address"),
            "in_own_network": _lazy("The name is one of our own network"),
            "key_variable": _lazy("Or an environment variable with the key"),
            "max_concurrency": _lazy("Requests at once"),
            "timeout_seconds": _lazy("Seconds that one request may take"),
            "price_read": _lazy("Price of a million tokens read"),
            "price_written": _lazy("Price of a million tokens written"),
            "currency": _lazy("Currency"),
        }
        help_texts = {
            "url": _lazy(
                "Up to and with <code>/v1</code>, such as <code>http://127.0.0.1:8000/v1</code>. "
                "Redirects are never followed."
            ),
            "in_own_network": _lazy(
                "For names such as <code>vllm</code> in a Docker network: it may lead to private "
                "addresses. Without it, a name must lead to the open internet."
            ),
            "key_variable": _lazy(
                "Read by the worker: <code>PREFLOOP_JUDGE_KEY_…</code> or a name that ends with "
                "<code>_API_KEY</code>."
            ),
            "price_read": _lazy("Empty where it is not known: then no run can have a cost limit."),
        }
        widgets = {
            "url": forms.TextInput(attrs={"spellcheck": "false", "inputmode": "url"}),
            "key_variable": forms.TextInput(attrs={"spellcheck": "false", "autocomplete": "off"}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        self.old_url = self.instance.url
        self.had_key = bool(self.instance.encrypted_key)
        self.fields["key"].help_text = (
            _("A key is stored. It is not shown; type another one to put it in its place.")
            if self.had_key
            else _("Stored encrypted, and never shown again. Many servers of one's own need none.")
        )
        if not self.had_key:
            del self.fields["forget_key"]

    def clean_url(self) -> str:
        url = self.cleaned_data["url"].strip().rstrip("/")
        check_url(url, in_own_network=False)
        return url

    def clean_key(self) -> str:
        key = self.cleaned_data["key"].strip()
        if not is_key(key):
            raise forms.ValidationError(_("A key has neither spaces nor letters outside of ASCII."))
        return key

    def clean_key_variable(self) -> str:
        name = self.cleaned_data["key_variable"].strip()
        if name and not KEY_VARIABLE.fullmatch(name):
            raise forms.ValidationError(
                _("The name begins with PREFLOOP_JUDGE_KEY_ or ends with _API_KEY.")
            )
        return name

    def clean_currency(self) -> str:
        return self.cleaned_data["currency"].strip().upper()

    def clean_max_concurrency(self) -> int:
        return _between(self.cleaned_data["max_concurrency"], 1, 256)

    def clean_timeout_seconds(self) -> int:
        return _between(self.cleaned_data["timeout_seconds"], 1, 3600)

    @sensitive_variables("values")
    def clean(self) -> dict[str, Any]:
        values = super().clean()
        if self.errors:
            return values
        if values["key"] and values["key_variable"]:
            self.add_error("key_variable", _("Give the key or a variable that holds it, not both."))
        for name in ("price_read", "price_written"):
            if values[name] is not None and values[name] < 0:
                self.add_error(name, _("A price is 0 or more."))
        moved = self.had_key and origin(values["url"]) != origin(self.old_url)
        keeps = not (values["key"] or values["key_variable"] or values.get("forget_key"))
        if moved and keeps:
            # Whoever may change the address must not thereby learn the key.
            self.add_error(
                "key", _("The key was given for another address: type it again, or forget it.")
            )
        values["in_own_network"] = check_url(values["url"], in_own_network=values["in_own_network"])
        return values

    @sensitive_variables("key")
    def save(self, commit: bool = True) -> JudgeServer:
        server = super().save(commit=False)
        key = self.cleaned_data["key"]
        if key:
            server.encrypted_key = encrypted(key, server.url)
        elif self.cleaned_data.get("forget_key") or server.key_variable:
            server.encrypted_key = ""
        server.save()
        return server


def _between(value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise forms.ValidationError(
            _("A number from %(least)s to %(most)s.") % {"least": least, "most": most}
        )
    return value


def administrators_only(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """For whoever is signed in, and administrates the installation."""

    @login_required
    @never_cache
    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.is_superuser:
            raise PermissionDenied(_("Administrators alone decide which servers judges may ask."))
        return view(request, *args, **kwargs)

    return checked


@administrators_only
@require_safe
def server_list(request: HttpRequest) -> HttpResponse:
    """Every server that is allowed."""
    return render(request, "judges/servers.html", {"servers": JudgeServer.objects.all()})


@administrators_only
@sensitive_post_parameters("key")
@require_http_methods(["GET", "POST"])
def allow(request: HttpRequest) -> HttpResponse:
    """Allow a server."""
    form = ServerForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.instance.allowed_by = request.user
        return redirect("judges:server", form.save().pk)
    return _form_page(request, form)


@administrators_only
@sensitive_post_parameters("key")
@require_http_methods(["GET", "POST"])
def change(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a server; a new address is a new allowance."""
    server = get_object_or_404(JudgeServer, pk=pk)
    form = ServerForm(request.POST or None, instance=server)
    if request.method == "POST" and form.is_valid():
        if "url" in form.changed_data:
            server.allowed_by = request.user
        form.save()
        messages.success(request, _("The server is changed."))
        return redirect("judges:server", pk)
    return _form_page(request, form)


@administrators_only
@require_safe
def server_page(request: HttpRequest, pk: int) -> HttpResponse:
    """One server and what trying it came to; the card polls itself while a worker tries."""
    server = get_object_or_404(JudgeServer, pk=pk)
    waited = (timezone.now() - server.tried_at).total_seconds() if server.tried_at else 0
    context = {"server": server, "waits_long": server.trial.get("waits") and waited > 15}
    template = "judges/server.html#trial" if request.htmx else "judges/server.html"
    return render(request, template, context)


@administrators_only
@require_POST
def try_it(request: HttpRequest, pk: int) -> HttpResponse:
    """Have a worker ask the server a question."""
    server = get_object_or_404(JudgeServer, pk=pk)
    ask_for_trial(server, request.POST.get("model", "").strip()[:500])
    return redirect("judges:server", pk)


@administrators_only
@require_POST
def remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Allow a server no more; one that a judge was made with stays, without its key."""
    server = get_object_or_404(JudgeServer, pk=pk)
    try:
        server.delete()
    except ProtectedError:
        messages.error(
            request,
            _(
                "Judges were made with this server, and what they said names it. Forget its key "
                "instead."
            ),
        )
        return redirect("judges:server", pk)
    messages.success(request, _("%(name)s is allowed no more.") % {"name": server.name})
    return redirect("judges:servers")


def _form_page(request: HttpRequest, form: ServerForm) -> HttpResponse:
    context = {"form": form, "server": form.instance if form.instance.pk else None}
    return render(request, "judges/server_form.html", context, status=422 if form.errors else 200)
