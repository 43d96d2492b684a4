"""All routes: one include per app."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.contrib.messages.views import SuccessMessageMixin
from django.urls import include, path
from django.utils.translation import gettext_lazy as _lazy

from config.metrics import metrics
from labeling.api.refusals import unknown_address


class PasswordChange(SuccessMessageMixin, auth.PasswordChangeView):
    success_url = "/"
    success_message = _lazy("Your password is changed.")


urlpatterns = [
    path("accounts/login/", auth.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("accounts/logout/", auth.LogoutView.as_view(), name="logout"),
    path("accounts/password/", PasswordChange.as_view(), name="password_change"),
    # Keeps the language that a person chooses in the header, in a cookie.
    path("i18n/", include("django.conf.urls.i18n")),
    path("admin/", admin.site.urls),
    path("metrics", metrics, name="metrics"),
    path("api/", include("labeling.api.urls")),
    path("api/", include("judges.api")),
    path("api/", include("training.api")),
    path("api/<path:rest>", unknown_address),
    path("", include("labeling.urls")),
    path("", include("judges.urls")),
    path("", include("training.urls")),
]
