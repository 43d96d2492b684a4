"""Every secret, seal and sign-in anew under the newest SECRET_KEY, so that older ones can be
dropped."""

import sys
from collections.abc import Callable
from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.models import Session
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.translation import gettext_noop

from judges.models import JudgeServer
from labeling import keys
from labeling.changes import note_event
from labeling.models import Webhook
from labeling.sealing import check_chain, reseal, seal_changes


class Command(BaseCommand):
    help = (
        "Encrypt every stored secret anew under SECRET_KEY, and seal the history and sign the "
        "sessions anew. What is still under a key of SECRET_KEY_FALLBACKS is read; afterwards that "
        "key can be dropped. Exit status 1 where a secret is under a key that is not named: it "
        "has to be set anew."
    )

    @transaction.atomic
    def handle(self, **_options: Any) -> None:
        seal_changes()
        if problems := check_chain().problems:
            raise CommandError(
                f"The history is not as it was sealed ({problems[0]}): see check_audit. "
                "Nothing was rotated, so that this stays visible."
            )
        lost: list[str] = []
        servers = JudgeServer.objects.exclude(encrypted_key="").select_for_update()
        n_servers = _rotate(servers, lost, _column("encrypted_key", keys.JUDGE_SERVERS))
        hooks = Webhook.objects.select_for_update()
        n_hooks = _rotate(hooks, lost, _column("encrypted_secret", keys.WEBHOOKS))
        n_factors = _rotate(Authenticator.objects.select_for_update(), lost, _second_factor)
        n_seals = reseal()
        n_sessions = sum(map(_session, Session.objects.select_for_update()))
        note_event(
            None,
            gettext_noop("rotate keys"),
            "SECRET_KEY",
            servers=n_servers,
            webhooks=n_hooks,
            people=n_factors,
            sessions=n_sessions,
        )
        self.stdout.write(
            f"{n_servers} keys of judge servers, {n_hooks} secrets of webhooks, {n_factors} second "
            f"factors, {n_seals} seals, {n_sessions} sign-ins: all under the newest SECRET_KEY."
        )
        if not settings.SECRET_KEY_FALLBACKS:
            self.stdout.write("SECRET_KEY_FALLBACKS names no older key: nothing else was read.")
        for what in lost:
            self.stderr.write(f"Under a key that is not named here: {what}. Set it anew.")
        if lost:
            transaction.on_commit(lambda: sys.exit(1))


def _rotate(rows: Any, lost: list[str], rotate: Callable[[Any], None]) -> int:
    n = 0
    for row in rows:
        try:
            rotate(row)
        except keys.WrongKey:
            lost.append(f"{row._meta.verbose_name} {row.pk} ({row})")
        else:
            row.save()
            n += 1
    return n


def _column(name: str, purpose: str) -> Callable[[Any], None]:
    def rotate(row: Any) -> None:
        setattr(row, name, keys.rotated(getattr(row, name), purpose))

    return rotate


def _session(row: Session) -> bool:
    """Whether it is somebody's sign-in, and is now one under the newest key.

    Django would do so at the next request, and give the browser another cookie by the way: of two
    requests at once the second one then comes with a cookie that is no more, and signs its browser
    out.
    """
    data = row.get_decoded()
    user = get_user_model().objects.filter(pk=data.get(SESSION_KEY)).first()
    if user is None:
        return False
    if data.get(HASH_SESSION_KEY) in user.get_session_auth_fallback_hash():
        data[HASH_SESSION_KEY] = user.get_session_auth_hash()
    row.session_data = Session.get_session_store_class()().encode(data)
    row.save(update_fields=["session_data"])
    return True


def _second_factor(row: Authenticator) -> None:
    """The secret of an app, the seed of recovery codes; what else it holds is no secret."""
    for name in ("secret", "seed"):
        if name in row.data:
            row.data[name] = keys.rotated(row.data[name], keys.SECOND_FACTORS)
