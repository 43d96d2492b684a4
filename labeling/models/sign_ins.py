"""Passwords and codes that were wrong."""

from django.db import models


class SignInFailure(models.Model):
    """A password or a code that was wrong. Whose and from where is kept as pseudonyms, since people
    type their password into the field of the name too."""

    account = models.CharField(max_length=32)
    address = models.CharField(max_length=32)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["account", "created_at"], name="sign_in_failure_of_account"),
            models.Index(fields=["address", "created_at"], name="sign_in_failure_from_address"),
        ]

    def __str__(self) -> str:
        return f"{self.account} from {self.address}"
