"""python manage.py leaderboard --project SLUG [--json]: which source of responses is better."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from labeling.reports import StatisticsMissing, leaderboard_of

N_SHOWN = 20  # pairs in the text; --json prints them all


class Command(BaseCommand):
    help = "Ratings and ranks of a project's sources, and how often one is preferred to another."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']!r}.", returncode=2)
        try:
            report = leaderboard_of(project)
        except StatisticsMissing as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(report, ensure_ascii=False, allow_nan=False))
        else:
            for line in report_lines(report):
                self.stdout.write(line)


def report_lines(report: dict[str, Any]) -> list[str]:
    """The leaderboard as text, every figure with its interval and its n."""
    left_out = report["n_left_out"]
    lines = [
        f"{report['n_votes']:,} answers of people and {report['n_verdicts']:,} verdicts on "
        f"{report['n_comparisons']:,} comparisons of two sources",
        f"Left out: {left_out['no_source']:,} comparisons without a source, "
        f"{left_out['same_source']:,} of a source with itself, {left_out['unparsed']:,} verdicts "
        "that could not be read",
        f"Ratings: Davidson's model, mean 1,000, 400 points are ten to one; intervals "
        f"{report['confidence']:.0%}, whole prompts resampled",
    ]
    for board in report["boards"]:
        lines += ["", {"people": "People", "judge": f"Judge {board['name']}"}.get(
            board["kind"], f"People and {board['name']} together"
        )]  # fmt: skip
        if board["why"]:
            lines.append(f"  – {board['why']}")
        for number, part in enumerate(board["parts"], start=1):
            if len(board["parts"]) > 1:
                lines.append(
                    f"  Part {number} of {len(board['parts'])}: not comparable with the others"
                )
            lines += _part_lines(part)
    if report["pairs"]:
        lines += ["", f"How often the first is preferred; judge: {report['judge'] or 'none'}"]
        for pair in report["pairs"][:N_SHOWN]:
            lines.append(f"  {pair['a']} over {pair['b']}")
            for key in ("people", "judge", "combined"):
                lines.append(f"    {key:<10} {_figure(pair[key], 100, 1)}")
            more = pair["more"]
            if more["value"]:
                lines.append(f"    about {more['value']:,} more labels of people decide")
        if (hidden := len(report["pairs"]) - N_SHOWN) > 0:
            lines.append(f"  … and {hidden:,} more (--json prints all)")
    return lines


def _part_lines(part: dict[str, Any]) -> list[str]:
    names = list(part["features"])
    lines = [
        f"  {'rank':<10} {'rating':<28} " + "".join(f"equal {n:<10}" for n in names) + "source"
    ]
    for row in part["sources"]:
        rank = f"{row['rank']}"
        if row["rank_low"] is not None:
            rank += f" ({row['rank_low']}–{row['rank_high']})"
        held = "".join(
            f"{row['controlled'][name]['value']:<16.0f}" if name in row["controlled"] else " " * 16
            for name in names
        )
        edge = {"above": "   beaten by none of the others", "below": "   beats none of the others"}
        lines.append(
            f"  {rank:<10} {_figure(row['rating'], 1, 0):<28} {held}{row['source']}"
            f"{edge.get(row['edge'], '')}"
        )
    return lines


def _figure(figure: dict[str, Any], scale: float, places: int) -> str:
    if figure["value"] is None:
        return f"–  {figure['why']}"
    text = f"{scale * figure['value']:.{places}f}"
    if figure["low"] is not None:
        text += f" [{scale * figure['low']:.{places}f}, {scale * figure['high']:.{places}f}]"
    return f"{text} n = {figure['n']:,}"
