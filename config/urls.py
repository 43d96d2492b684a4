"""All routes: one include per app."""

from allauth.account import views as allauth
from allauth.account.decorators import secure_admin_login
from django.conf import settings
from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import include, path
from django.views.generic import RedirectView

from config.metrics import metrics
from config.sign_in import PasswordChange, SignIn
from labeling.api.refusals import unknown_address

# The second factor is asked for behind our own door alone.
admin.site.login = secure_admin_login(admin.site.login)

urlpatterns = [
    path("accounts/login/", SignIn.as_view(), name="login"),
    path("accounts/logout/", auth.LogoutView.as_view(), name="logout"),
    path("accounts/password/", PasswordChange.as_view(), name="password_change"),
    # allauth looks these up by its own names. What it has besides is not here: accounts are made by
    # invitation, and there is no mail.
    path("accounts/login/", SignIn.as_view(), name="account_login"),
    path("accounts/closed/", allauth.account_inactive, name="account_inactive"),
    path("accounts/again/", allauth.reauthenticate, name="account_reauthenticate"),
    path("accounts/second-factor/", include("allauth.mfa.urls")),
    # Keeps the language that a person chooses in the header, in a cookie.
    path("i18n/", include("django.conf.urls.i18n")),
    # Its own page would take any number of wrong old passwords.
    path("admin/password_change/", RedirectView.as_view(pattern_name="password_change")),
    path("admin/", admin.site.urls),
    path("metrics", metrics, name="metrics"),
    path("api/", include("labeling.api.urls")),
    path("api/", include("judges.api")),
    path("api/", include("training.api.urls")),
    path("api/<path:rest>", unknown_address),
    path("", include("labeling.urls")),
    path("", include("judges.urls")),
    path("", include("training.urls")),
]
if settings.PREFLOOP_OIDC:
    from config import oidc

    urlpatterns = [path("accounts/oidc/", include(oidc.urlpatterns)), *urlpatterns]
