"""For health checks of containers: whether the worker of this machine writes its row."""

import socket

from django.core.management.base import BaseCommand, CommandError

from labeling.models import Worker


class Command(BaseCommand):
    help = "Exit status 0 if a worker of this machine was heard of just now, else 1."
    requires_system_checks = ()

    def handle(self, **options: object) -> None:
        host = socket.gethostname()
        if not Worker.objects.present().filter(name__startswith=f"{host}:").exists():
            raise CommandError(f"no worker of {host} was heard of within three reports")
