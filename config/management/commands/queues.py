"""Which queues a GPU worker of this machine can serve."""

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.workers import gpus, queues_within
from training.ml.memory import read_bytes


class Command(BaseCommand):
    help = (
        "Print the queues of a GPU worker of this machine, with commas between them: `gpu`, and "
        "those of the training runs that its smallest GPU holds (PREFLOOP_GPU_CLASSES). For "
        '`celery -A config worker --queues "$(python manage.py queues)"`.'
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--gpu-memory", default="", help="Of one GPU, as 80GB, where nvidia-smi cannot say."
        )

    def handle(self, *, gpu_memory: str, **options: object) -> None:
        self.stdout.write(",".join(["gpu", *queues_within(self._memory(gpu_memory))]))

    def _memory(self, asked: str) -> float:
        if asked or settings.PREFLOOP_GPU_MEMORY:
            try:
                return read_bytes(asked or settings.PREFLOOP_GPU_MEMORY)
            except ValueError as error:
                raise CommandError(str(error), returncode=2) from error
        found = [gpu["memory_total"] for gpu in gpus() if gpu["memory_total"]]
        return min(found, default=0.0)
