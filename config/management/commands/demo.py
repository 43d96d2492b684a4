"""python manage.py demo: the loop on a world whose truth is known, and one table of results."""

import importlib.util
import json
import logging
import sys
import time
import warnings
from dataclasses import replace
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

BAR_WIDTH = 30


class Command(BaseCommand):
    help = (
        "Run the loop on a micro-world with a known truth: import, simulated raters, AI judge, "
        "agreement, reward model, SFT, DPO, PPO. A second run uses what is there."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--fresh", action="store_true", help="delete the demo's project and make it anew"
        )
        parser.add_argument(
            "--seed",
            type=int,
            help="another draw of everything random, in a project of its own: was it luck?",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        if not importlib.util.find_spec("torch"):
            raise CommandError("The demo trains models: install them with pip install '.[train]'.")
        import torch
        from transformers.utils import logging as transformers_logging

        from config.demo import DemoError, DemoSettings, remove_demo, run_demo, sample_project

        # Models this small gain nothing from more threads and lose much on a busy machine.
        torch.set_num_threads(min(2, torch.get_num_threads()))
        transformers_logging.disable_progress_bar()  # the bars here tell what happens
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        settings = DemoSettings()
        if options["seed"] not in (None, settings.seed):
            project = f"{settings.project}-{options['seed']}"
            settings = replace(settings, seed=options["seed"], project=project)
        call_command("migrate", verbosity=0, interactive=False)
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 4 bits are not used here
        if options["fresh"]:
            remove_demo(settings.project)
        sample_project()
        try:
            results = run_demo(settings, Bars(self.stderr))
        except DemoError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(results, ensure_ascii=False))
        else:
            for line in table(results):
                self.stdout.write(line)


class Bars:
    """One line per thing that is being done: rewritten on a terminal, written once elsewhere."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.what, self.began = stream, "", time.monotonic()
        self.live, self.closed = sys.stderr.isatty(), False

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.what, self.began, self.closed = what, time.monotonic(), False
        full = done >= total
        if self.closed or not (self.live or full):
            return
        self.closed = full
        filled = BAR_WIDTH * done // max(1, total)
        line = (
            f"{what:<34} {'█' * filled}{'░' * (BAR_WIDTH - filled)} {done:>6,} of {total:,}"
            f"  {time.monotonic() - self.began:5.1f} s"
        )
        self.stream.write(f"\r{line}" if self.live else line, ending="\n" if full else "")
        self.stream.flush()


def table(results: dict[str, Any]) -> list[str]:
    """The figures as text, each with its interval and its n."""
    lines = ["", f"{'':<44} {'value':>7}   {'95 % interval':<18} {'n':>6}   held against"]
    for row in results["rows"]:
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
        value = "–" if row["value"] is None else f"{row['value']:.3f}"
        lines.append(
            f"{row['what']:<44} {value:>7}   {interval:<18} {row['n']:>6,}   {row['against']}"
        )
    lines += ["", "What the policy writes, before and after DPO, and after PPO:"]
    for sample in results["samples"]:
        lines += [f"  {sample['prompt']}"]
        lines += [f"    before: {sample['start']}", f"    after:  {sample['new']}"]
        lines += [f"    PPO:    {sample['ppo']}"]
    spent = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in results["seconds"].items())
    lines += [
        "",
        f"Project `{results['project']}`: {results['new_comparisons']} comparisons of the old and "
        "the new policy are open to people.",
        f"Seconds: {spent}; {sum(results['seconds'].values()):.0f} in all.",
        f"Measured at {results['measured_at']}; --fresh runs the loop anew.",
    ]
    return lines
