"""The chain of seals over the history, which shows what was changed behind the application's back.

Each row is sealed with an HMAC of the seal before it, its place in the chain, when, where and who,
and of a salted hash of what it says. The key is derived from SECRET_KEY, so whoever can write to
the database alone cannot make seals. Rows that were changed, taken out or put in between break the
chain; that the newest ones are missing shows only to whoever noted the last seal elsewhere: it is
written to the log.

A person's erasure takes their name out of rows that are sealed: the salt is forgotten, the hash
stays, and so do all seals. Which rows that were is part of the sealed row about the erasure.
"""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC

from django.db import IntegrityError, transaction
from django.utils.translation import gettext_noop

from labeling import keys
from labeling.models import Change

logger = logging.getLogger(__name__)

AT_ONCE = 1000
ERASURE = gettext_noop("erase rater")
"""The action whose rows name those that were redacted."""


@dataclass
class Checked:
    """What a check of the whole chain found."""

    rows: int = 0
    redacted: int = 0
    unsealed: int = 0  # too young to be sealed, or the sweep does not run
    last_seal: str = ""
    problems: list[str] = field(default_factory=list)


def seal_changes() -> int:
    """Seal what is not sealed yet, in the order of its keys; how many rows."""
    if not Change._base_manager.filter(number=None).exists():
        return 0
    try:
        with transaction.atomic():
            return _seal_some()
    except IntegrityError:  # somebody else has just sealed them
        return 0


def _seal_some() -> int:
    rows = Change._base_manager
    last = rows.exclude(number=None).select_for_update().order_by("-number").first()
    number, seal = (last.number, last.seal) if last else (0, "")
    key = keys.derived(keys.HISTORY)[0]
    new = list(rows.filter(number=None).order_by("pk")[:AT_ONCE])
    for row in new:
        number += 1
        row.number, row.salt = number, secrets.token_hex(16)
        row.digest = digest_of(row)
        row.seal = seal = seal_of(row, seal, key)
    rows.bulk_update(new, ["number", "salt", "digest", "seal"])
    if new:
        logger.info("history sealed up to number %d: %s", number, seal)
    return len(new)


def digest_of(row: Change) -> str:
    """What the row says, as a hash that nobody can guess the words from once the salt is gone."""
    said = json.dumps([row.subject, row.before, row.after], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{row.salt}\n{said}".encode(errors="surrogatepass")).hexdigest()


def seal_of(row: Change, before: str, key: bytes) -> str:
    """The seal of a row that follows one with the seal `before`."""
    parts = [
        *(before, row.number, row.pk, row.project_key, row.actor_key, row.action),
        *(row.created_at.astimezone(UTC).isoformat(), row.digest),
    ]
    return hmac.new(key, json.dumps(parts).encode(), "sha256").hexdigest()


def check_chain(expected: str = "") -> Checked:
    """Go through all rows and say what does not fit.

    Args: expected: a seal that was noted elsewhere; it has to be in the chain.
    """
    found, known = Checked(), keys.derived(keys.HISTORY)
    seal, number, seen = "", 0, not expected
    redacted: set[int] = set()
    named: set[int] = set()
    for row in _rows():
        found.rows += 1
        if row.number != number + 1:
            found.problems.append(f"number {number + 1} is missing before change {row.pk}")
        # After a rotation of the key, older seals are of an older one until they are made anew.
        if not any(hmac.compare_digest(row.seal, seal_of(row, seal, key)) for key in known):
            found.problems.append(f"the seal of change {row.pk} (number {row.number}) is broken")
        if row.redacted_at is not None:
            redacted.add(row.pk)
        elif row.digest != digest_of(row):
            found.problems.append(f"change {row.pk} (number {row.number}) says something else now")
        if row.action == ERASURE and row.redacted_at is None:
            named.update(row.after.get("redacted", []))
        seal, number = row.seal, row.number
        seen = seen or seal == expected
    found.problems += [
        f"change {pk} is marked as redacted, but no erasure names it"
        for pk in sorted(redacted - named)
    ]
    if not seen:
        found.problems.append("the seal that was noted is not in the chain: its end was cut off")
    found.redacted, found.last_seal = len(redacted), seal
    found.unsealed = Change._base_manager.filter(number=None).count()
    return found


def reseal() -> int:
    """Make every seal anew under the newest key, for `rotate_keys`; how many. In a transaction, and
    only where `check_chain` finds nothing: else a broken seal would become a whole one."""
    key, seal, n = keys.derived(keys.HISTORY)[0], "", 0
    batch: list[Change] = []
    for row in _rows():
        row.seal = seal = seal_of(row, seal, key)
        batch.append(row)
        n += 1
        if len(batch) == AT_ONCE:
            Change._base_manager.bulk_update(batch, ["seal"])
            batch.clear()
    Change._base_manager.bulk_update(batch, ["seal"])
    return n


def _rows() -> Iterable[Change]:
    """Sealed rows by their number, some at a time: without a cursor, which a writer would break."""
    last = 0
    while some := list(Change._base_manager.filter(number__gt=last).order_by("number")[:AT_ONCE]):
        yield from some
        last = some[-1].number
