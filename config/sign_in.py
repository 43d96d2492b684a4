"""Signing in: the door with its lock, the second factor behind it, and what ends a session."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.utils import perform_login
from allauth.core.internal.cryptokit import compare_user_code
from allauth.mfa import signals as second_factor
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal import auth as totp
from django import forms
from django.conf import settings
from django.contrib.auth import views as auth
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.contrib.messages.views import SuccessMessageMixin
from django.core.exceptions import ValidationError
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import gettext_noop, ngettext

from labeling import keys, sign_ins
from labeling.changes import note_event
from labeling.tokens import open_tokens, revoke


@contextmanager
def counted_try(request: HttpRequest, name: str, what: str) -> Iterator[None]:
    """Whoever tries a password or a code inside raises ValidationError if it is wrong. Where there
    were too many, nothing is tried, so that nothing can be learnt.

    Raises: ValidationError.
    """
    try:
        this = sign_ins.begin_try(request, name)
    except sign_ins.Locked as locked:
        minutes = max(1, round((locked.until - timezone.now()).total_seconds() / 60))
        raise ValidationError(
            ngettext(
                "Too many wrong tries. Wait a minute.",
                "Too many wrong tries. Wait %(n)s minutes.",
                minutes,
            )
            % {"n": minutes},
            code="locked",
        ) from None
    try:
        yield
    except ValidationError:
        sign_ins.was_wrong(this, name, what)
        raise
    sign_ins.was_right(this)


class SignInForm(AuthenticationForm):
    """User name and password; a locked door is not even tried, so that nothing can be learnt."""

    def clean(self) -> dict[str, Any]:
        name = self.cleaned_data.get("username")
        if name is None or not self.cleaned_data.get("password"):
            return super().clean()
        with counted_try(self.request, name, "password"):
            return super().clean()

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


class NewPasswordForm(PasswordChangeForm):
    """The old password is one that can be guessed at too."""

    revoke_tokens = forms.BooleanField(required=False, initial=True)

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(user, *args, label_suffix="", **kwargs)
        n = open_tokens(user).count()
        self.fields["revoke_tokens"].label = ngettext(
            "Revoke my token for programs: whoever knew the password may have made it",
            "Revoke my %(n)s tokens for programs: whoever knew the password may have made one",
            n,
        ) % {"n": n}
        if not n:
            del self.fields["revoke_tokens"]

    def clean_old_password(self) -> str:
        from allauth.core import context

        with counted_try(context.request, self.user.get_username(), "password"):
            return super().clean_old_password()


class PasswordChange(SuccessMessageMixin, auth.PasswordChangeView):
    """Ends every other session of the person, since a session's hash follows from the password,
    and their tokens if they want."""

    form_class = NewPasswordForm
    success_url = "/"
    success_message = _lazy("Your password is changed. Other devices are signed out.")

    def form_valid(self, form: forms.Form) -> HttpResponse:
        user = self.request.user
        with transaction.atomic():
            response = super().form_valid(form)
            note_event(user, gettext_noop("change password"), user)
            if form.cleaned_data.get("revoke_tokens"):
                for token in open_tokens(user):
                    revoke(token)
        return response


class Accounts(DefaultAccountAdapter):
    """What allauth asks us. Accounts are made by invitation or by an administrator."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def login(self, request: HttpRequest, user: Any) -> None:
        super().login(request, user)
        sign_ins.session_begins(request, user)

    def post_login(self, request: HttpRequest, user: Any, **more: Any) -> HttpResponse:
        response = super().post_login(request, user, **more)
        sign_ins.know_device(request, response, user)
        return response

    def get_client_ip(self, request: HttpRequest) -> str:
        return sign_ins.address_of(request)

    def add_message(self, *_arguments: Any, **_options: Any) -> None:
        """Whoever signs in sees that they did."""

    def reauthenticate(self, user: Any, password: str) -> bool:
        """Whether this is the person's password, asked once more in a session that may be open on
        a desk that somebody else sits at."""
        from allauth.core import context

        try:
            with counted_try(context.request, user.get_username(), "password"):
                if not user.check_password(password):
                    raise ValidationError("wrong")
        except ValidationError:
            return False
        return True


class SecondFactors(DefaultMFAAdapter):
    """Their secrets rest encrypted."""

    def encrypt(self, text: str) -> str:
        return keys.encrypted(text, keys.SECOND_FACTORS)

    def decrypt(self, encrypted_text: str) -> str:
        return keys.decrypted(encrypted_text, keys.SECOND_FACTORS)

    def get_totp_label(self, user: Any) -> str:
        return str(user.get_username())


class _CountedCode:
    """Six digits are guessed soon where nobody counts, and are good for one time alone."""

    def clean_code(self) -> str:
        from allauth.core import context

        with counted_try(context.request, self.user.get_username(), "code"):
            code = super().clean_code()
            if self.authenticator.type == Authenticator.Type.TOTP and not _is_newer(
                self.authenticator, code
            ):
                raise ValidationError(_("This code has been used. Wait for the next one."))
            return code


def _is_newer(authenticator: Authenticator, code: str) -> bool:
    """Whether the code belongs to a later time than the last one that was used; it is used now.
    The row remembers it: what is remembered in one process, the others do not know."""
    with transaction.atomic():
        row = Authenticator.objects.select_for_update().get(pk=authenticator.pk)
        secret = keys.decrypted(row.data["secret"], keys.SECOND_FACTORS)
        meant = [
            counter
            for counter in totp.yield_hotp_counters_from_time()
            if compare_user_code(
                actual=code, expected=totp.format_hotp_value(totp.hotp_value(secret, counter))
            )
        ]
        if not meant or meant[0] <= row.data.get("last_counter", -1):
            return False
        row.data["last_counter"] = meant[0]
        row.save(update_fields=["data"])
    authenticator.data = row.data  # it is saved again by whoever notes its use
    return True


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
