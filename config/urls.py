"""All routes: one include per app."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.contrib.messages.views import SuccessMessageMixin
from django.urls import include, path

from labeling.api.refusals import unknown_address


class PasswordChange(SuccessMessageMixin, auth.PasswordChangeView):
    success_url = "/"
    success_message = "Your password is changed."


urlpatterns = [
    path("accounts/login/", auth.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("accounts/logout/", auth.LogoutView.as_view(), name="logout"),
    path("accounts/password/", PasswordChange.as_view(), name="password_change"),
    path("admin/", admin.site.urls),
    path("api/", include("labeling.api.urls")),
    path("api/", include("judges.api")),
    path("api/", include("training.api")),
    path("api/<path:rest>", unknown_address),
    path("", include("labeling.urls")),
    path("", include("judges.urls")),
    path("", include("training.urls")),
]
