"""Secrets that rest in the database: encrypted with keys that are derived from SECRET_KEY.

Each purpose has its own key, so what was stored for one is of no use for another. The newest
SECRET_KEY encrypts; those in SECRET_KEY_FALLBACKS still read, until `rotate_keys` has written all
anew.
"""

import base64
import hmac
from typing import Any

from django.conf import settings
from django.views.decorators.debug import sensitive_variables

JUDGE_SERVERS = "prefloop judge server keys"
WEBHOOKS = "prefloop webhook secrets"
SECOND_FACTORS = "prefloop second factors"
HISTORY = "prefloop history"


class WrongKey(Exception):
    """The text was encrypted under a SECRET_KEY that is no longer known here."""


@sensitive_variables()
def encrypted(text: str, purpose: str) -> str:
    return str(_box(purpose).encrypt(text.encode()).decode())


@sensitive_variables()
def decrypted(token: str, purpose: str) -> str:
    """Raises: WrongKey."""
    from cryptography.fernet import InvalidToken

    try:
        return str(_box(purpose).decrypt(token).decode())
    except InvalidToken:
        raise WrongKey from None


@sensitive_variables()
def rotated(token: str, purpose: str) -> str:
    """The same secret under the newest key. Raises: WrongKey."""
    from cryptography.fernet import InvalidToken

    try:
        return str(_box(purpose).rotate(token).decode())
    except InvalidToken:
        raise WrongKey from None


@sensitive_variables()
def derived(purpose: str) -> list[bytes]:
    """Keys of 32 bytes, the newest first."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return [
        HKDF(SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret.encode())
        for secret in secrets
    ]


def pseudonym(text: str, purpose: str) -> str:
    """A text as a number that tells whether it is the same, and nothing else without the key."""
    return hmac.new(derived(purpose)[0], text.encode(errors="replace"), "sha256").hexdigest()[:32]


@sensitive_variables()
def _box(purpose: str) -> Any:
    from cryptography.fernet import Fernet, MultiFernet

    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived(purpose)])
