"""Sign-in by OpenID Connect, for installations that name a provider in the environment."""

from typing import Any

from allauth.socialaccount import views
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.providers.openid_connect import urls as openid_connect
from allauth.socialaccount.signals import social_account_added, social_account_removed
from django.conf import settings
from django.dispatch import receiver
from django.http import HttpRequest
from django.urls import include, path
from django.utils.translation import gettext_noop

from labeling.changes import note_event


class Provider(DefaultSocialAccountAdapter):
    """Who comes from the provider is known by its `sub`, never by a name or a mail address that
    they may have chosen there: an account of ours is connected by whoever is signed in to it."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        return bool(settings.PREFLOOP_OIDC_SIGNUP)


@receiver(social_account_added)
def an_account_is_connected(request: HttpRequest, sociallogin: Any, **_more: Any) -> None:
    note_event(sociallogin.user, gettext_noop("connect sign-in"), sociallogin.user)


@receiver(social_account_removed)
def an_account_is_disconnected(request: HttpRequest, socialaccount: Any, **_more: Any) -> None:
    note_event(socialaccount.user, gettext_noop("disconnect sign-in"), socialaccount.user)


urlpatterns = [
    path("", views.connections, name="socialaccount_connections"),
    path("cancelled/", views.login_cancelled, name="socialaccount_login_cancelled"),
    path("error/", views.login_error, name="socialaccount_login_error"),
    path("", include(openid_connect)),
]
