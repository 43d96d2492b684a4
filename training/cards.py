"""A model's card: Markdown written from its lineage, for whoever meets the weights elsewhere.

It is a document and in English whatever the reader's language. People who labeled are numbers in
it, never names; AI judges are named by their versions, which are instruments.
"""

from typing import Any

from django.utils.translation import override

from training.dataset_settings import LABELS
from training.datasets import words_of
from training.ml.methods import other_settings
from training.ml.settings import METHODS
from training.models import Dataset, ModelReport, ModelVersion, Run
from training.reports import files_of, people_and_judges

FILE = "MODEL_CARD.md"
AGGREGATES = {
    "majority": "the majority of the answers, as one hard label",
    "votes": "every answer as a label of its own",
    "soft": "the share of the answers, as a soft label",
    "dawid-skene": "answers weighed by each rater's reliability (Dawid and Skene 1979), as a soft "
    "label",
}
SLICES = {
    ("agreement", "all"): "all raters agreed",
    ("agreement", "most"): "most raters agreed",
    ("agreement", "divided"): "raters were divided",
    ("length", "longer"): "the chosen response is longer",
    ("length", "shorter"): "the chosen response is shorter",
}


def latest_report(model: ModelVersion) -> ModelReport | None:
    done = model.reports.filter(status=ModelReport.Status.SUCCEEDED)
    found: ModelReport | None = done.order_by("-pk").first()
    return found


def card_of(model: ModelVersion) -> str:
    """The card as Markdown, from what is known of the model now."""
    with override("en"):
        report = latest_report(model)
        parts = [f"# {_safe(model.name)}", *_opening(model)]
        if model.run is not None:
            parts += ["## How it was made", *_made(model, model.run, report)]
            if model.run.dataset is not None:
                parts += ["## What it learned from", *_data(model.run.dataset)]
            parts += ["## Results", *_results(model.run, report)]
            parts += ["## Limits", *_limits(model, model.run, report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(model: ModelVersion) -> bool:
    """Keep the card beside the weights, where the model's folder is one of ours; whether it is."""
    folder = files_of(model)
    if folder is None or model.run is None:
        return False
    (folder / FILE).write_text(card_of(model), encoding="utf-8")
    return True


def _opening(model: ModelVersion) -> list[str]:
    what = {
        ModelVersion.Kind.REWARD: "A reward model: it gives a response to a prompt a number, so "
        "that of two responses the one that raters would prefer gets more.",
        ModelVersion.Kind.POLICY: "A policy: a language model that writes responses.",
        ModelVersion.Kind.BASE: "A base model that was brought in, not trained here.",
    }[ModelVersion.Kind(model.kind)]
    made = f"Made on {model.created_at:%Y-%m-%d} (UTC)."
    return [f"{what} {made}"]


def _made(model: ModelVersion, run: Run, report: ModelReport | None) -> list[str]:
    method = run.recipe.get("method", "lora")
    facts: list[tuple[str, Any]] = [
        ("Recipe", run.get_kind_display()),
        ("Base model", model.base.name if model.base else run.base_model),
        ("SHA-256 of the base's weights, or its commit", run.base_revision or "not recorded"),
        ("Method", METHODS.get(method, method)),
        ("Seed", run.seed),
        ("Code", run.code_version),
        ("Trained on", f"{run.finished_at:%Y-%m-%d %H:%M} UTC" if run.finished_at else "–"),
    ]
    for used in run.reward_models.select_related("model"):
        what = "Hold-out reward model" if used.holds_out else "Reward model"
        facts.append((what, used.model.name))
    if run.recipe.get("judge"):
        facts += _judge(run)
    metrics = run.metrics
    if metrics.get("parameters"):
        trained, total = metrics["trained_parameters"], metrics["parameters"]
        facts.append(("Parameters trained", f"{trained:,} of {total:,}"))
    if metrics.get("optimizer"):
        facts.append(("Optimizer", metrics["optimizer"]))
    if report is not None:
        versions = report.result.get("versions") or {}
        facts += [(name, version) for name, version in sorted(versions.items())]
    unused = other_settings(method)
    kept = {
        name: value
        for name, value in run.recipe.items()
        if name not in unused and name != "base_model"
    }
    settings = [(f"`{name}`", f"`{value}`") for name, value in sorted(kept.items())]
    return [_table(("", ""), facts), "Settings of the run:", _table(("Setting", ""), settings)]


def _judge(run: Run) -> list[tuple[str, Any]]:
    """The AI judge whose ratings the policy learned from."""
    made_of = getattr(run.judge, "judge_version", None) if run.judge else None
    if made_of is None:
        return [("AI judge that rated its responses", f"{run.recipe['judge']}, deleted since")]
    where = f" on the server {made_of.server}" if made_of.server else ""
    facts: list[tuple[str, Any]] = [
        ("AI judge that rated its responses", f"{run.judge}: {made_of.model}{where}")
    ]
    if (told := run.metrics.get("judge")) and told.get("n"):
        facts.append(
            ("Responses that it rated", f"{told['n']:,}, of which {told['unread']:,} unreadable")
        )
    return facts


def _data(dataset: Dataset) -> list[str]:
    people, judges = people_and_judges(dataset)
    filters, counts = dataset.filters, dataset.counts
    labels = str(LABELS.get(filters.get("labels", ""), filters.get("labels", "")))
    aggregate = filters.get("aggregate", "majority")
    said = [
        f"Whose labels: {labels}. A label is {AGGREGATES.get(aggregate, aggregate)}.",
        f"{_count(len(people), 'person', 'people')} gave "
        f"{sum(rater['n'] for rater in people):,} of the answers behind the labels"
        + (
            f", {_count(len(judges), 'AI judge version', 'AI judge versions')} "
            f"{sum(rater['n'] for rater in judges):,}: "
            + ", ".join(_safe(rater["rater"]) for rater in judges)
            if judges
            else ""
        )
        + ".",
        f"Training and test sides share no prompt. Dataset: `{dataset.sha256}` (SHA-256).",
    ]
    things = "rated responses" if dataset.of_ratings else "comparisons"
    rows = [
        (str(words), f"{counts[n]:,}") for n, words in words_of(counts).items() if counts.get(n)
    ]
    settings = [(f"`{name}`", f"`{value}`") for name, value in sorted(filters.items())]
    return [
        *said,
        _table((f"What became of the {things}", "n"), rows),
        "Settings of the dataset:",
        _table(("Setting", ""), settings),
    ]


def _results(run: Run, report: ModelReport | None) -> list[str]:
    if report is None:
        metrics = run.metrics
        rows = [
            (words, _figure(metrics[name]))
            for name, words in (
                ("auc", "Good responses above bad ones (AUC, chance 0.500)"),
                ("accuracy", "Accuracy on what was held out"),
                ("correlation", "Correlation with held-out ratings"),
                ("error", "Error of ratings, on a scale from -1 to 1"),
                ("usual_error", "The same of always saying the mean"),
                ("longer_wins", "Baseline: the longer one"),
                ("loss", "Loss on what was held out, nats a token"),
                ("base_loss", "The base's loss"),
                ("gain", "Gain of the score on test prompts, in deviations of the start"),
                ("holdout_gain", "The same by a reward model it never learned from"),
            )
            if isinstance(metrics.get(name), dict)
        ]
        return [_table(("Figure", "95 % interval, n"), rows) if rows else "Not measured."]
    found = report.result
    if not found.get("n"):
        return ["No pair was held out to measure it on."]
    if found["kind"] == "singles":
        return _of_singles(found, report)
    rows = [
        ("Accuracy on held-out pairs", _figure(found["accuracy"])),
        ("Baseline: the longer one", _figure(found["baselines"]["longer"])),
    ]
    if found["kind"] == "reward":
        rows += [
            ("Baseline: the side that wins more", _figure(found["baselines"]["side"])),
            ("Log-loss (chance 0.693)", _figure(found["probability"]["log_loss"])),
            ("Brier score (chance 0.250)", _figure(found["probability"]["brier"])),
            ("Calibration error (ECE)", _figure(found["probability"]["ece"])),
        ]
        if "temperature" in found["temperature"]:
            rows.append(("Temperature that fits", f"{found['temperature']['temperature']:.2f}"))
    else:
        rows += [
            ("Mean margin of the implicit reward", _figure(found["margin"])),
            ("Change of the chosen responses, nats", _figure(found["chosen_change"])),
            ("Change of the rejected ones, nats", _figure(found["rejected_change"])),
            ("Characters it writes more than its base", _figure(found["written"]["difference"])),
        ]
    rows += [
        ("Score and length go together by", _figure(found["length"]["score"])),
        ("  given the label", _figure(found["length"]["given_label"])),
    ]
    for cut in found["slices"]:
        for row in cut["rows"]:
            if words := SLICES.get((cut["by"], row["name"])):
                rows.append((f"Accuracy where {words}", _figure(row["accuracy"])))
    return [
        f"Measured on {found['n']:,} held-out pairs of {found['n_prompts']:,} prompts, on "
        f"{report.finished_at:%Y-%m-%d} (UTC). Intervals: 95 %, prompts drawn whole.",
        _table(("Figure", "95 % interval, n"), rows),
    ]


def _of_singles(found: dict[str, Any], report: ModelReport) -> list[str]:
    """Results of a model that learned judgements of single responses."""
    rows = [
        (words, _figure(found[name]))
        for name, words in (
            ("auc", "Good responses above bad ones (AUC, chance 0.500)"),
            ("accuracy", "Good ones made likelier, bad ones less likely"),
            ("correlation", "Correlation with the ratings"),
            ("rank_correlation", "The same of ranks"),
            ("error", "Error, on a scale from -1 to 1"),
            ("usual_error", "The same of always saying the mean"),
        )
        if name in found
    ]
    return [
        f"Measured on {found['n']:,} held-out responses to {found['n_prompts']:,} prompts, on "
        f"{report.finished_at:%Y-%m-%d} (UTC). Intervals: 95 %, prompts drawn whole.",
        _table(("Figure", "95 % interval, n"), rows),
    ]


def _limits(model: ModelVersion, run: Run, report: ModelReport | None) -> list[str]:
    people, judges = people_and_judges(run.dataset)
    limits = []
    if run.dataset is not None:
        limits.append(
            "Its labels are what these raters preferred under this project's guidelines, not what "
            "is right: on other prompts, languages or people it may be worse than measured."
        )
        limits.append(
            "The held-out pairs come from the same project and the same raters, so the figures say "
            "nothing of other data; they count a wrong label against a model that is right."
        )
    if judges:
        limits.append("AI judges labeled too: where they lean, it may lean.")
    if run.dataset is not None and 0 < len(people) < 3:
        limits.append(f"Only {_count(len(people), 'person', 'people')} labeled.")
    found = report.result if report is not None else {}
    if found.get("n", 0) and found["n"] < 100:
        limits.append("Fewer than 100 pairs were held out: the intervals are wide.")
    if found.get("kind") == "reward" and found.get("n"):
        if (found["against_longer"].get("low") or 0) <= 0:
            limits.append("It was not shown to beat “the longer one is better”.")
        limits.append(
            "A policy that is trained against it will find responses that it wrongly rates high; "
            "watch with another reward model, or with people."
        )
    if "chosen_change" in found and (found["chosen_change"].get("high") or 0) < 0:
        limits.append(
            "Preferred responses became less likely too while it was trained (likelihood "
            "displacement)."
        )
    if run.kind == Run.Kind.PPO:
        limits.append(
            "It learned to score high by a reward model or a judge, and may score higher than it "
            "is good: only people's comparisons tell."
        )
    if model.kind == ModelVersion.Kind.POLICY:
        limits.append("It may write what is false or harmful; nothing here measured that.")
    return ["\n".join(f"- {limit}" for limit in limits)]


def _figure(figure: dict[str, Any] | None) -> str:
    if not figure or figure.get("value") is None:
        return "–"
    interval = "no interval"
    if figure.get("low") is not None:
        interval = f"[{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f} {interval}, n {figure['n']:,}"


def _count(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


def _safe(text: str) -> str:
    """A name within Markdown: none of its characters marks anything up, or ends a table's cell."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else c for c in " ".join(text.split()))


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return " ".join(str(value).replace("|", "\\|").replace("``", "–").split())

    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {cell(name)} | {cell(value)} |" for name, value in rows])
