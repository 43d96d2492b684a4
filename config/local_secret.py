"""The secret key of laptop mode: made once, kept beside the database, readable by its owner."""

import secrets
from pathlib import Path


def local_secret_key(folder: Path) -> str:
    """The key stored in `folder`, made on first use."""
    path = folder / "secret_key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(50))
    return path.read_text().strip()
