"""Every encrypted secret anew under the newest SECRET_KEY, so that older ones can be dropped."""

import sys
from collections.abc import Callable
from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings
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
        "Encrypt every stored secret anew under SECRET_KEY and seal the history anew. What is "
        "still under a key of SECRET_KEY_FALLBACKS is read; afterwards that key can be dropped. "
        "Exit status 1 where a secret is under a key that is not named: it has to be set anew."
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
        note_event(
            None,
            gettext_noop("rotate keys"),
            "SECRET_KEY",
            servers=n_servers,
            webhooks=n_hooks,
            people=n_factors,
        )
        self.stdout.write(
            f"{n_servers} keys of judge servers, {n_hooks} secrets of webhooks, {n_factors} second "
            f"factors, {n_seals} seals: all under the newest SECRET_KEY."
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


def _second_factor(row: Authenticator) -> None:
    """The secret of an app, the seed of recovery codes; what else it holds is no secret."""
    for name in ("secret", "seed"):
        if name in row.data:
            row.data[name] = keys.rotated(row.data[name], keys.SECOND_FACTORS)
