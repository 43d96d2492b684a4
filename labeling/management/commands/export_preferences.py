"""Export a project's labels: for training, for a spreadsheet, for other tools, or whole."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from time import monotonic
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labeling.export import (
    AGGREGATES,
    FORMATS,
    LABELS,
    LEFT_OUT,
    ExportProblem,
    ExportReport,
    export_file,
    export_rows,
)
from labeling.models import Project

LARGE = 20_000  # comparisons from which on progress is told
SECONDS_BETWEEN = 2.0


class Command(BaseCommand):
    help = (
        "Export labels. Only a whole file bears the name of --out; what could not become a row is "
        "counted by reason."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--format", required=True, choices=FORMATS)
        parser.add_argument(
            "--labels",
            default="mixed",
            choices=LABELS,
            help="whose labels; mixed: people where they answered, AI judges elsewhere",
        )
        parser.add_argument(
            "--aggregate",
            default="",
            choices=AGGREGATES,
            help="what becomes of several answers (default: majority for trl and trl-chat, else "
            "votes)",
        )
        parser.add_argument(
            "--out",
            required=True,
            metavar="FILE",
            help="gzipped if it ends in .gz; - is standard output",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="print one JSON object (on standard error with --out -)",
        )

    def handle(self, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"there is no project {options['project']!r}", returncode=2)
        chosen = (options["format"], options["labels"], options["aggregate"])
        progress = _Progress(project.comparisons.count())
        out = options["out"]
        if out != "-" and (not Path(out).absolute().parent.is_dir() or Path(out).is_dir()):
            raise CommandError(f"{out}: there is no such folder to write in", returncode=2)
        try:
            if out == "-":
                report = self._to_stdout(project, chosen, progress)
            else:
                report = export_file(project, Path(out), *chosen, on_progress=progress)
        except ExportProblem as problem:
            raise CommandError(str(problem), returncode=1) from problem
        except OSError as error:
            raise CommandError(
                f"{out} cannot be written: {error.strerror or error}", returncode=1
            ) from error
        says = self.stderr if out == "-" else self.stdout
        if options["json"]:
            says.write(json.dumps(as_json(report, out), ensure_ascii=False), self._plain)
        else:
            says.write(in_words(report, out), self._plain)
        if not report.rows:
            self.stderr.write("nothing could be exported: no row came of it")
            sys.exit(1)

    @staticmethod
    def _plain(text: str) -> str:
        return text  # standard error would be red, and this is no error

    def _to_stdout(
        self, project: Project, chosen: tuple[str, str, str], progress: "_Progress"
    ) -> ExportReport:
        report = ExportReport()
        to = getattr(self.stdout, "buffer", None)  # none where a program has put a text in place
        for block in export_rows(project, *chosen, report):
            if to is not None:
                to.write(block)
            else:
                self.stdout.write(block.decode(), ending="")
            progress(report)
        self.stdout.flush()
        return report


def as_json(report: ExportReport, out: str) -> dict[str, Any]:
    """What --json prints; the file is null where no row came of it."""
    return {
        "rows": report.rows,
        "file": out if report.rows else None,
        "left_out": dict(report.left_out),
    }


def in_words(report: ExportReport, out: str) -> str:
    """The report for a person: a line, and one for each reason."""
    lines = [f"{report.rows:,} rows" + (f" in {out}" if out != "-" and report.rows else "")]
    lines += [f"  left out: {n:,} {LEFT_OUT[why]}" for why, n in report.left_out.most_common()]
    return "\n".join(lines)


class _Progress:
    """A line on standard error every two seconds, for large projects."""

    def __init__(self, n_comparisons: int):
        self.n_comparisons, self.next_at = n_comparisons, monotonic() + SECONDS_BETWEEN

    def __call__(self, report: ExportReport) -> None:
        if self.n_comparisons < LARGE or monotonic() < self.next_at:
            return
        self.next_at = monotonic() + SECONDS_BETWEEN
        share = report.comparisons / self.n_comparisons
        sys.stderr.write(f"{share:4.0%} {report.comparisons:,} comparisons read\n")
        sys.stderr.flush()
