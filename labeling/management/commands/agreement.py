"""python manage.py agreement --project SLUG [--json]: how far the raters of a project agree."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from labeling.reports import ALL_MODELS, OWN_MODELS, StatisticsMissing, agreement_of

N_SHOWN = 20  # rows of a table in the text; --json prints them all


class Command(BaseCommand):
    help = "Alpha, kappas, judges against people, position and length preference of a project."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
        parser.add_argument(
            "--all-models", action="store_true", help="MACE and GLAD too, by crowd-kit: slower"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']!r}.", returncode=2)
        try:
            models = ALL_MODELS if options["all_models"] else OWN_MODELS
            report = agreement_of(project, models=models)
        except StatisticsMissing as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(report, ensure_ascii=False, allow_nan=False))
        else:
            for line in report_lines(report):
                self.stdout.write(line)


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as text, a fact a line; every figure with its interval and its n."""
    interval = report["interval"]
    lines = [
        f"{report['n_comparisons']:,} comparisons, {report['n_preferences']:,} preferences of "
        f"{report['n_people']:,} people, {report['n_verdicts']:,} verdicts of "
        f"{report['n_judges']:,} AI judges",
        f"Intervals: {interval['confidence']:.0%}, {interval['resamples']:,} resamples of whole "
        f"{interval['unit']}; exact for shares with one vote a prompt",
        "",
        "People among themselves",
        *_row("Krippendorff's alpha (nominal)", report["krippendorff_alpha"], "comparisons"),
        *_row_of_places(report["krippendorff_alpha"]),
        *_row("agreeing pairs of votes", report["percent_agreement"], "comparisons"),
        *_row("Fleiss' kappa", report["fleiss_kappa"], "comparisons"),
        *_row("response shown first preferred", report["position"], "decided votes"),
        *_row("longer response preferred", report["length"], "decided votes"),
    ]
    for judge in report["judges"]:
        lines += ["", f"AI judge {judge['rater']}: {judge['n']:,} verdicts"]
        for key, words in (("with_ties", "ties counted"), ("without_ties", "both decided")):
            figure = judge[key]
            for name in ("agreement", "kappa"):
                part = {
                    "value": figure[name],
                    "low": figure.get(f"{name}_low"),
                    "high": figure.get(f"{name}_high"),
                    "n": figure["n"],
                    "why": figure.get("why"),
                    "why_no_interval": figure.get(f"{name}_why_no_interval"),
                }
                lines += _row(f"{name} with people, {words}", part, "comparisons")
        lines += [f"  {'not readable':<36} {judge['unparsed']:>7,}"]
        lines += _row("same verdict in both orders", judge["consistency"], "comparisons")
        lines += _row("response shown first preferred", judge["position"], "decided showings")
        if judge["position"].get("first_twice") or judge["position"].get("second_twice"):
            lines.append(
                f"  {'first place twice, second twice':<36} {judge['position']['first_twice']:>7,}"
                f"   {judge['position']['second_twice']:,}   p = {judge['position']['p_value']:.3g}"
            )
        lines += _row("longer response preferred", judge["length"], "decided verdicts")
    if report["cohen_kappa"]:
        lines += ["", "Pairs of people (Cohen's kappa), most shared comparisons first"]
        for pair in report["cohen_kappa"][:N_SHOWN]:
            name = f"{pair['rater_1']} – {pair['rater_2']}"
            lines += _row(name, pair, "shared")
        lines += _more(report["cohen_kappa"])
    if report["raters"]:
        lines += ["", f"  {'Person':<36} {'votes':>7}   first shown      longer"]
        for rater in report["raters"][:N_SHOWN]:
            shares = [
                f"{rater[key]:.3f} ({rater[figure]['n']})" if rater[key] is not None else "–"
                for key, figure in (("first_shown_share", "position"), ("longer_share", "length"))
            ]
            lines.append(
                f"  {rater['rater']:<36} {rater['n']:>7,}  {shares[0]:>13} {shares[1]:>13}"
            )
        lines += _more(report["raters"])
    return lines


def _row(name: str, figure: dict[str, Any], unit: str) -> list[str]:
    if figure["value"] is None:
        return [f"  {name:<36}       –   {figure.get('why', '')}"]
    text = f"  {name:<36} {figure['value']:>7.4f}"
    if figure["low"] is not None:
        text += f"   [{figure['low']:.4f}, {figure['high']:.4f}]"
    lines = [f"{text}   n = {figure['n']:,} {unit}"]
    if why := figure.get("why_no_interval"):
        lines.append(f"  {'':<36}         no interval: {why}")
    return lines


def _row_of_places(alpha: dict[str, Any]) -> list[str]:
    if alpha.get("missing") is None:
        return []
    return [
        f"  {'':<36}         {alpha['n_votes']:,} votes of {alpha['n_raters']:,} people, "
        f"{alpha['missing']:.1%} of their places empty"
    ]


def _more(rows: list[Any]) -> list[str]:
    left = len(rows) - N_SHOWN
    return [f"  … and {left:,} more (--json prints all)"] if left > 0 else []
