"""Import files of comparisons, with the preferences and verdicts that come with them; or of single
responses with ratings."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import FORM_NAMES, RATED_FORMS
from labeling.imports.importing import ImportReport, import_file
from labeling.imports.interchange import BadRow
from labeling.imports.rated import scale_of
from labeling.imports.reading import Progress
from labeling.models import Comparison, Project, Rater

COUNTS = (
    "rows",
    "created",
    "duplicates",
    "rejected",
    "preferences",
    "verdicts",
    "unparsed",
    "sets",
    "split_sets",
    "rankings",
    "leaks",
    "decisions",
    "responses",
    "ratings",
    "known_votes",
    "rejected_votes",
)


class Command(BaseCommand):
    help = (
        "Import comparisons, or ratings of single responses, from .jsonl, .json, .csv or .parquet "
        "files (each also .gz), or from hf://owner/name[/config]:split. Importing a file twice "
        "adds nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", metavar="FILE")
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--create", action="store_true", help="make the project if need be")
        parser.add_argument("--format", default="auto", choices=["auto", *FORM_NAMES])
        parser.add_argument(
            "--labels-per-comparison",
            type=int,
            metavar="N",
            help="how many people should judge each new comparison (default: the project's number)",
        )
        parser.add_argument(
            "--rater",
            default="imported",
            help="name of the rater where the file has labels and names nobody",
        )
        parser.add_argument(
            "--labels",
            default="human",
            choices=["human", "ai"],
            help="who made the labels of a file that names no rater",
        )
        parser.add_argument(
            "--known-answers",
            default=Comparison.Purpose.WORK.value,
            choices=Comparison.Purpose.values,
            help="what rows with a known answer (gold) become: ordinary work, or sets to train, "
            "qualify or check raters with; a row's own purpose goes first",
        )
        parser.add_argument(
            "--scale",
            default="",
            metavar="WORST-BEST",
            help="scale of ratings, as 1-5, where the lines of a file do not say it",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, files: list[str], **options: Any) -> None:
        n_labels = options["labels_per_comparison"]
        if n_labels is not None and not 1 <= n_labels <= 100:
            raise CommandError("--labels-per-comparison goes from 1 to 100", returncode=2)
        for file in files:
            if not file.startswith("hf://") and not Path(file).is_file():
                raise CommandError(f"{file}: there is no such file", returncode=2)
        try:
            scale = scale_of(options["scale"])
        except BadRow as problem:
            raise CommandError(str(problem), returncode=2) from problem
        project = self._project(options["project"], options["create"], n_labels)
        kind = Rater.Kind.JUDGE if options["labels"] == "ai" else Rater.Kind.PERSON
        reports = []
        for file in files:
            report = import_file(
                project,
                file,
                form=options["format"],
                labels=Labels(options["rater"], kind, scale),
                labels_per_comparison=n_labels,
                known_answers=options["known_answers"],
                on_progress=_progress_line(file) if sys.stderr.isatty() else None,
            )
            reports.append((file, report))
            if report.problem:
                self.stderr.write(report.problem)
            if not options["json"]:
                self.stdout.write(in_words(file, report))
        if options["json"]:
            self.stdout.write(json.dumps(_total(reports), ensure_ascii=False))
        if not any(report.rows for _file, report in reports):
            sys.exit(1)

    def _project(self, slug: str, create: bool, n_labels: int | None) -> Project:
        project = Project.objects.filter(slug=slug).first()
        if project is None and not create:
            raise CommandError(
                f"there is no project {slug!r}; --create makes it",
                returncode=2,
            )
        if project is None:
            project = Project(slug=slug, name=slug.replace("-", " ").capitalize())
            project.labels_per_comparison = n_labels or 1
            try:
                project.full_clean()
            except ValidationError as error:
                raise CommandError(
                    f"{slug!r} is no short name: letters, digits and hyphens, 50 at most",
                    returncode=2,
                ) from error
            project.save()
        return project


def in_words(file: str, report: ImportReport) -> str:
    """The report for a person, in one or two lines."""
    if report.format in RATED_FORMS:
        text = (
            f"{Path(file).name}: {report.format}; {report.rows:,} rows, "
            f"{report.responses:,} new responses, {report.ratings:,} new ratings, "
            f"{report.rejected:,} rejected"
        )
        return text + _also(report)
    text = (
        f"{Path(file).name}: {report.format or 'unreadable'}; {report.rows:,} rows, "
        f"{report.created:,} new comparisons, {report.duplicates:,} known, "
        f"{report.preferences:,} preferences, {report.verdicts:,} verdicts "
        f"({report.unparsed:,} unparsed), {report.rejected:,} rejected"
    )
    if report.sets:
        text += f", {report.sets:,} new sets to rank"
    if report.split_sets:
        text += f", {report.split_sets:,} sets kept as pairs"
    if report.rankings:
        text += f", {report.rankings:,} rankings"
    if report.leaks:
        text += f", {report.leaks:,} with names of models in a response"
    return text + _also(report)


def _also(report: ImportReport) -> str:
    """What was known, what was left out, and where to read about it."""
    text = ""
    if report.known_votes:
        text += f", {report.known_votes:,} known votes"
    if report.rejected_votes:
        text += f", {report.rejected_votes:,} votes left out"
    if report.reject_file:
        text += f"; see {report.reject_file}"
    return text


def _progress_line(file: str) -> Any:
    def show(report: ImportReport, progress: Progress) -> None:
        share = f"{100 * progress.done / progress.total:3.0f} %" if progress.total else ""
        rate = report.rows / report.seconds if report.seconds else 0
        line = f"\r{Path(file).name}: {share} {report.rows:,} rows, {rate:,.0f} a second"
        end = "\n" if progress.done >= progress.total else ""
        sys.stderr.write(line + end)
        sys.stderr.flush()

    return show


def _total(reports: list[tuple[str, ImportReport]]) -> dict[str, Any]:
    """One report over all files; with several, each one's own under "files"."""
    formats = list(dict.fromkeys(report.format for _file, report in reports if report.format))
    reject_files = [report.reject_file for _file, report in reports if report.reject_file]
    total: dict[str, Any] = {"format": ", ".join(formats)}
    total |= {name: sum(getattr(report, name) for _file, report in reports) for name in COUNTS}
    total["reject_file"] = reject_files[0] if reject_files else None
    total["seconds"] = round(sum(report.seconds for _file, report in reports), 3)
    if len(reports) == 1:
        return total | {"reasons": reports[0][1].reasons, "problem": reports[0][1].problem}
    return total | {"files": [{"file": file} | report.as_json() for file, report in reports]}
