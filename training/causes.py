"""Why a run or another job failed, in plain words, and what to change before the next try."""

import errno
import re
import signal
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.reports import StatisticsMissing
from labeling.scoring import CannotRate
from training.ml.config import AnyRecipe
from training.ml.memory import halves
from training.ml.methods import why_not
from training.ml.ppo_config import PPORecipe
from training.ml.settings import TRACKERS, token_budget
from training.models import Run

MEMORY = "memory"  # it ran out, of the machine or of the GPU
KILLED = "killed"  # from outside, by whom nobody can tell
CRASH = "crash"  # in compiled code
DIVERGED = "diverged"  # the loss is not a number
LENGTH = "length"  # nothing fits max_length
PACKAGE = "package"  # something is not installed
DISK = "disk"
SERVER = "server"  # that writes responses does not answer
JUDGE = "judge"  # what scores the responses cannot be asked
SETTINGS = "settings"  # a setting, a file or the labels: the words say which
UNKNOWN = "unknown"

WITHOUT_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",
    "alloc_failed",  # cuBLAS
    "bad_alloc",
)
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
SMALLEST_LENGTH = 128


LESS_MEMORY = (
    "Lower batch_size (and raise gradient_accumulation), lower max_length, turn on "
    "gradient_checkpointing, or use QLoRA."
)
"""What to change in a run that ran out."""


def of_error(error: Exception, less_memory: str = LESS_MEMORY) -> tuple[str, str]:
    """(cause, words) of an exception, for people who do not read tracebacks.

    Args: less_memory: what to change where it did not fit.
    """
    text = str(error).strip() or type(error).__name__
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if (
        no_memory
        or isinstance(error, MemoryError)
        or any(words in text.lower() for words in WITHOUT_MEMORY)
    ):
        return MEMORY, (
            f"The model and its batch did not fit into memory. {less_memory} "
            f"({text.splitlines()[0][:200]})"
        )
    if isinstance(error, ModuleNotFoundError) and error.name in TRACKERS:
        return PACKAGE, (
            f"This worker has no {TRACKERS[error.name]}: pip install {error.name} there, or let "
            "the numbers go to the run's page alone."
        )
    if isinstance(error, ModuleNotFoundError):
        return PACKAGE, (
            f"This worker cannot train: the package {error.name} is not installed. "
            "Install the extra [train] on the machine of the worker."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DISK, f"The disk of {settings.PREFLOOP_STORAGE} is full."
    if isinstance(error, StatisticsMissing):
        return PACKAGE, text
    if isinstance(error, CannotRate):
        return JUDGE, f"{text} Resume goes on from the last checkpoint, and asks nothing twice."
    if isinstance(error, ConnectionError):
        return SERVER, f"{text} Resume goes on from the last checkpoint."
    if isinstance(error, FloatingPointError):
        return DIVERGED, _capitalised(text)
    if isinstance(error, ValueError):
        return LENGTH if "max_length=" in text else SETTINGS, _capitalised(text)
    return UNKNOWN, f"{type(error).__name__}: {text}"


def of_exit(returncode: int, peak: int | None, *, ran_out: bool) -> tuple[str, str]:
    """(cause, words) of a job whose process is gone without having said why.

    Args:
        returncode: of the process; below 0 it is the signal that ended it.
        peak: bytes that it held at most, when it was last looked at.
        ran_out: the system has ended a process for want of memory meanwhile.
    """
    held = f" It held {peak / 2**30:.1f} GiB at most." if peak else ""
    if returncode == -signal.SIGKILL and ran_out:
        return MEMORY, (
            "The machine ran out of memory, and the system ended the process that did this." + held
        )
    if returncode == -signal.SIGKILL:
        return KILLED, (
            "The process that did this was killed (SIGKILL). If nobody did that by hand, the "
            "machine or its container ran out of memory." + held
        )
    if -returncode in CRASHES:
        name = signal.Signals(-returncode).name
        return CRASH, (
            f"The process that did this crashed in compiled code ({name}): a driver, a library or "
            "faulty memory. The last lines of its output stand in the log." + held
        )
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return KILLED, f"The process that did this was ended from outside ({name})."
    return UNKNOWN, (
        f"The process that did this ended with exit status {returncode} before it could say why. "
        "The last lines of its output stand in the log."
    )


def _capitalised(text: str) -> str:
    first = text.split(" ", 1)[0]  # the name of a model or a setting stays as it is written
    return text if "/" in first or "_" in first else text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Remedy:
    """Something to try: words, and the settings that the launch form would hold; none: resume."""

    words: str
    changes: dict[str, Any]


def remedies(run: Run, recipe: AnyRecipe) -> list[Remedy]:
    """What to change after a failure, what alters no result first."""
    if run.cause in (MEMORY, KILLED):
        return _for_less_memory(run.kind, recipe)
    if run.cause == DIVERGED:
        found = [
            Remedy(_("a tenth of the learning rate"), {"learning_rate": recipe.learning_rate / 10})
        ]
        if recipe.dtype != "float32":
            found.append(Remedy(_("the base in float32"), {"dtype": "float32"}))
        return found
    if run.cause == CRASH:
        found = [Remedy(_("the same again, from the last checkpoint"), {})]
        if recipe.method == "qlora":
            found.append(Remedy(_("LoRA in place of QLoRA"), {"method": "lora"}))
        if recipe.dtype != "float32":
            found.append(Remedy(_("the base in float32"), {"dtype": "float32"}))
        return found
    if run.cause == LENGTH:
        limit = re.search(r"max_length=(\d+)", run.error)
        # Where the model's own context is what limits, a larger setting changes nothing.
        if limit and int(limit[1]) >= recipe.max_length:
            longer = max(1024, 2 * recipe.max_length)
            return [Remedy(_("up to %(n)s tokens") % {"n": f"{longer:,}"}, {"max_length": longer})]
    if run.cause == PACKAGE and run.report_to:
        return [Remedy(_("numbers on the run’s page alone"), {"report_to": ""})]
    if run.cause in (DISK, PACKAGE, UNKNOWN):
        return [Remedy(_("the same again, from the last checkpoint"), {})]
    return []


def _for_less_memory(kind: str, recipe: AnyRecipe) -> list[Remedy]:
    found = []
    if isinstance(recipe, PPORecipe):
        fewer = {
            name: getattr(recipe, name) // 2
            for name in ("batch_size", "rollout_batch_size")
            if getattr(recipe, name) > 1
        }
        if fewer:
            found.append(Remedy(_("half as many responses in memory at once"), fewer))
        if recipe.algorithm == "ppo":
            changes = {"algorithm": "rloo"}
            changes |= {"samples_per_prompt": max(2, recipe.samples_per_prompt)}
            found.append(Remedy(_("RLOO, which needs no critic"), changes))
    elif budget := token_budget(recipe):  # holds as many rows as it may, whatever batch_size says
        if budget // 2 >= SMALLEST_LENGTH:
            words = f"{_('Tokens at once')}: {budget // 2:,}"
            found.append(Remedy(words, {"batch_tokens": budget // 2}))
    elif recipe.batch_size > 1:
        smaller = halves(recipe.batch_size, 1)[1:]
        half = next(batch for batch in smaller if recipe.batch_size % batch == 0)
        summed = recipe.gradient_accumulation * (recipe.batch_size // half)
        changes = {"batch_size": half, "gradient_accumulation": summed}
        words = _("batches of %(n)s, %(summed)s of them summed up before a step")
        found.append(Remedy(words % {"n": half, "summed": summed}, changes))
    if not recipe.gradient_checkpointing and not why_not(
        kind, recipe.method, {}, gradient_checkpointing=True
    ):
        words = _("gradient checkpointing, about a quarter slower")
        found.append(Remedy(words, {"gradient_checkpointing": True}))
    if recipe.method in ("lora", "full") and not why_not(kind, "qlora", {}):
        found.append(Remedy(_("QLoRA: the base in 4 bits"), {"method": "qlora"}))
    if recipe.max_length > SMALLEST_LENGTH:
        half = max(SMALLEST_LENGTH, recipe.max_length // 2)
        words = _("conversations of at most %(n)s tokens; longer ones are left out and counted")
        found.append(Remedy(words % {"n": f"{half:,}"}, {"max_length": half}))
    return found


IN_SHORT = {
    MEMORY: gettext_noop("Out of memory"),
    KILLED: gettext_noop("Killed from outside"),
    CRASH: gettext_noop("Crashed in compiled code"),
    DIVERGED: gettext_noop("The loss diverged"),
    LENGTH: gettext_noop("Nothing fits the longest length"),
    PACKAGE: gettext_noop("A package is missing"),
    DISK: gettext_noop("The disk is full"),
    SERVER: gettext_noop("The server that writes the responses does not answer"),
    JUDGE: gettext_noop("The judge cannot be asked"),
    SETTINGS: gettext_noop("The settings, the base or the labels do not serve"),
    UNKNOWN: gettext_noop("An error that nobody foresaw"),
}
