"""Signing in: the door with its lock, the second factor behind it, and what ends a session."""

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.utils import perform_login
from allauth.mfa import signals as second_factor
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from django import forms
from django.conf import settings
from django.contrib.auth import views as auth
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.messages.views import SuccessMessageMixin
from django.core.exceptions import ValidationError
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import gettext_noop, ngettext

from labeling import keys, sign_ins
from labeling.changes import note_event


def locked_words(name: str, address: str) -> str:
    """Why nobody may try now, in words; empty if they may."""
    until = sign_ins.locked_until(name, address)
    if until is None:
        return ""
    minutes = max(1, round((until - timezone.now()).total_seconds() / 60))
    return ngettext(
        "Too many wrong tries. Wait a minute.",
        "Too many wrong tries. Wait %(n)s minutes.",
        minutes,
    ) % {"n": minutes}


class SignInForm(AuthenticationForm):
    """User name and password; a locked door is not even tried, so that nothing can be learnt."""

    def clean(self) -> dict[str, Any]:
        name, address = self.cleaned_data.get("username"), sign_ins.address_of(self.request)
        if name is None or not self.cleaned_data.get("password"):
            return super().clean()
        if words := locked_words(name, address):
            raise ValidationError(words, code="locked")
        try:
            return super().clean()
        except ValidationError:
            sign_ins.note_failure(name, address, "password")
            raise

    def get_invalid_login_error(self) -> ValidationError:
        return ValidationError(_("User name and password do not match."), code="invalid_login")


class SignIn(auth.LoginView):
    """The one door: the administration leads here too. Behind it the second factor is asked for,
    by those who have one."""

    form_class = SignInForm
    redirect_authenticated_user = True

    def form_valid(self, form: forms.Form) -> HttpResponse:
        return perform_login(self.request, form.get_user(), redirect_url=self.get_success_url())

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        return super().get_context_data(oidc=settings.PREFLOOP_OIDC, **context)


class PasswordChange(SuccessMessageMixin, auth.PasswordChangeView):
    """Ends every other session of the person, since a session's hash follows from the password."""

    success_url = "/"
    success_message = _lazy("Your password is changed. Other devices are signed out.")

    def form_valid(self, form: forms.Form) -> HttpResponse:
        response = super().form_valid(form)
        note_event(self.request.user, gettext_noop("change password"), self.request.user)
        return response


class Accounts(DefaultAccountAdapter):
    """What allauth asks us. Accounts are made by invitation or by an administrator."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def login(self, request: HttpRequest, user: Any) -> None:
        super().login(request, user)
        sign_ins.session_begins(request, user)

    def get_client_ip(self, request: HttpRequest) -> str:
        return sign_ins.address_of(request)

    def add_message(self, *_arguments: Any, **_options: Any) -> None:
        """Whoever signs in sees that they did."""

    def reauthenticate(self, user: Any, password: str) -> bool:
        """Whether this is the person's password, asked once more in a session that may be open on
        a desk that somebody else sits at."""
        from allauth.core import context

        name, address = user.get_username(), sign_ins.address_of(context.request)
        if sign_ins.locked_until(name, address):
            return False
        if user.check_password(password):
            return True
        sign_ins.note_failure(name, address, "password")
        return False


class SecondFactors(DefaultMFAAdapter):
    """Their secrets rest encrypted."""

    def encrypt(self, text: str) -> str:
        return keys.encrypted(text, keys.SECOND_FACTORS)

    def decrypt(self, encrypted_text: str) -> str:
        return keys.decrypted(encrypted_text, keys.SECOND_FACTORS)

    def get_totp_label(self, user: Any) -> str:
        return str(user.get_username())


class _CountedCode:
    """Six digits are guessed soon where nobody counts."""

    def clean_code(self) -> str:
        from allauth.core import context

        name = self.user.get_username()
        address = sign_ins.address_of(context.request)
        if words := locked_words(name, address):
            raise ValidationError(words, code="locked")
        try:
            return super().clean_code()
        except ValidationError:
            sign_ins.note_failure(name, address, "code")
            raise


class CodeForm(_CountedCode, AuthenticateForm):
    """The second step of a sign-in."""


class CodeAgainForm(_CountedCode, ReauthenticateForm):
    """The code once more, before something is changed that a thief would change."""


FACTORS = {
    Authenticator.Type.TOTP: gettext_noop("an authenticator app"),
    Authenticator.Type.RECOVERY_CODES: gettext_noop("recovery codes"),
}


@receiver(second_factor.authenticator_added)
def a_factor_is_added(request: HttpRequest, user: Any, authenticator: Any, **_more: Any) -> None:
    note_event(user, gettext_noop("turn on second factor"), user, kind=FACTORS[authenticator.type])


@receiver(second_factor.authenticator_reset)
def a_factor_is_made_anew(
    request: HttpRequest, user: Any, authenticator: Any, **_more: Any
) -> None:
    note_event(user, gettext_noop("renew second factor"), user, kind=FACTORS[authenticator.type])


@receiver(second_factor.authenticator_removed)
def a_factor_is_removed(request: HttpRequest, user: Any, authenticator: Any, **_more: Any) -> None:
    note_event(user, gettext_noop("turn off second factor"), user, kind=FACTORS[authenticator.type])
