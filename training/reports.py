"""Reports on models: what a worker measures once a run has ended, and again when asked to.

`training.model_figures` turns scores into figures; here are the rows, before and after. A report is
of the model's files as they lie there now and of the dataset's test side as it was frozen, so two
reports on one model differ in what is known of the labels alone: strengths, tags, decisions.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_noop

from labeling.models import Choice, Messages, Preference, Project, Rater
from labeling.reports import statistics_for
from labeling.storage import storage_path
from labeling.votes import topics_of
from training.datasets import pair_of, pair_rows
from training.ml.config import AnyRecipe, DPORecipe
from training.ml.data import Pair, n_chars
from training.models import Dataset, ModelReport, ModelVersion, Run
from training.runs import named_model, recipe_of, version_folder

if TYPE_CHECKING:
    from training.ml.scoring import ScoredPair, Written

OnProgress = Callable[[int, int], None]
MOST_TRAINING_PAIRS = 1_000
"""Training pairs that a reward model is asked about, drawn at random: enough to show over-fitting,
and labels that it would not learn."""
SAMPLED_PROMPTS = 24
NEW_TOKENS = 192
WORST = 10
"""Single responses that a report shows."""
AT_ONCE = 500
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
POLICIES = (Run.Kind.DPO, Run.Kind.PPO, Run.Kind.SFT)


def can_report(model: ModelVersion) -> bool:
    """Whether there are held-out pairs to measure the model on: raw text has none."""
    return model.run is not None and model.run.dataset_id is not None


def report_on(model: ModelVersion) -> ModelReport:
    """Queue a report on a model that a run has just left."""
    report: ModelReport = model.reports.create(project=model.project)
    report.enqueue()
    return report


def figures_of(model: ModelVersion, on_progress: OnProgress) -> dict[str, Any]:
    """The figures of a report, see `reward_figures` and `policy_figures`; with
        "kind": reward or policy; "left_out": held-out pairs too long or without text;
        reward: "training" {"accuracy", "wrong"} and "wrong", see `_wrong`; of an ensemble
        "disputed", see `_disputed`;
        policy: "written" (figures), "samples" [{"prompt", "policy", "base"}];
        of a model that learned single judgements, see `_of_singles`;
        "versions" of the libraries.

    Raises: StatisticsMissing; ValueError if the dataset's file or the model's is not what it was.
    """
    with statistics_for("Reports on models"):
        from training import model_figures  # noqa: F401 - fails here if a library is missing
    if not can_report(model):
        raise ValueError("a model that learned no pairs has no held-out pairs to be measured on")
    is_policy = model.run.kind in POLICIES
    if model.run.dataset.of_ratings and model.run.kind in (Run.Kind.DPO, Run.Kind.REWARD):
        return _of_singles(model, on_progress) | {"versions": _versions()}
    figures = (_of_policy if is_policy else _of_reward_model)(model, on_progress)
    return figures | {"versions": _versions()}


def _versions() -> dict[str, str]:
    """Of the libraries that this worker trains and measures with."""
    return {name: metadata.version(name) for name in LIBRARIES if find_spec(name)}


def _of_reward_model(model: ModelVersion, on_progress: OnProgress) -> dict[str, Any]:
    from labeling.calibration import mean_of
    from training.ml.scoring import rewards
    from training.model_figures import columns, reward_figures, rightness

    run, recipe = model.run, recipe_of(model.run)
    rows, a_share = _rows(run.dataset, run.seed)
    pairs = [pair_of(row) for row in rows]
    found = rewards(
        version_folder(model),
        pairs,
        max_length=recipe.max_length,
        batch_size=recipe.batch_size,
        dtype=recipe.dtype,
        on_progress=on_progress,
    )
    scored = _with_facts(found, pairs, rows, _strengths(model.project, rows))
    test = [row for row in scored if row["split"] == "test"]
    learned = [row for row in scored if row["split"] == "train"]
    if not test:
        return {"kind": "reward", "n": 0, "why": _nothing_held_out()}
    figures = reward_figures(columns(test, _topics(model.project, test)), a_share)
    figures |= {"kind": "reward", "left_out": _n_test(rows) - len(test), "wrong": _wrong(test)}
    if "spread" in figures:
        figures["disputed"] = _disputed(test)
    if learned:
        of_training = columns(learned, {})
        figures["training"] = {
            "accuracy": mean_of(of_training.prompt, rightness(of_training.margin)),
            "wrong": _wrong(learned),
        }
    return figures


def _of_policy(model: ModelVersion, on_progress: OnProgress) -> dict[str, Any]:
    from training.ml.scoring import against_base
    from training.model_figures import columns, policy_figures

    run, recipe = model.run, recipe_of(model.run)
    rows = [row for row in _rows(run.dataset, run.seed)[0] if row["split"] == "test"]
    pairs = [pair_of(row) for row in rows]
    found, written = against_base(
        version_folder(model),
        named_model(model.project, run.base_model),
        recipe,
        pairs,
        _different_prompts(rows)[:SAMPLED_PROMPTS],
        new_tokens=NEW_TOKENS,
        on_progress=on_progress,
    )
    figures: dict[str, Any] = {"n": 0, "why": _nothing_held_out()}
    if found:
        scored = _with_facts(found, pairs, rows, _strengths(model.project, rows))
        topics = _topics(model.project, scored)
        figures = policy_figures(columns(scored, topics)) | {"implicit": _measure_of(recipe)}
    return figures | {
        "kind": "policy",
        "left_out": len(rows) - len(found),
        **_side_by_side(written),
    }


def _side_by_side(written: Sequence["Written"]) -> dict[str, Any]:
    """What a policy and its base write to the same prompts, and how long it is."""
    import numpy as np

    from training.model_figures import written_figures

    return {
        "written": written_figures(
            np.arange(len(written)),
            np.array([len(row.policy) for row in written]),
            np.array([len(row.base) for row in written]),
        ),
        "samples": [
            {"prompt": row.prompt, "policy": row.policy, "base": row.base} for row in written
        ],
        "new_tokens": NEW_TOKENS,
    }


def _of_singles(model: ModelVersion, on_progress: OnProgress) -> dict[str, Any]:
    """Of a model that learned judgements of single responses: single_metrics of a policy's implicit
    rewards, or rating_metrics of a reward model, on the held-out responses, and "of": singles or
    ratings; with "n_prompts", "left_out", "training" (the same figures on some training rows) and
    "worst", the responses that it is most wrong about; of a policy "samples" and "written"."""
    from training.ml.evaluation import rating_metrics, single_metrics
    from training.ml.scoring import against_base, rewards

    run, recipe = model.run, recipe_of(model.run)
    is_policy = run.kind == Run.Kind.DPO
    rows = _some_rows(run.dataset, run.seed, with_training=not is_policy)
    # What is asked for is a number for each response; both of a pair may be the same one.
    asked = [
        Pair(row["prompt"], row["response"], row["response"], comparison=row["name"])
        for row in rows
    ]
    more: dict[str, Any] = {}
    if is_policy:
        found, written = against_base(
            version_folder(model),
            named_model(model.project, run.base_model),
            recipe,
            asked,
            _different_prompts(rows)[:SAMPLED_PROMPTS],
            new_tokens=NEW_TOKENS,
            on_progress=on_progress,
        )
        more = _side_by_side(written)
    else:
        found = rewards(
            version_folder(model),
            asked,
            max_length=recipe.max_length,
            batch_size=recipe.batch_size,
            dtype=recipe.dtype,
            on_progress=on_progress,
        )
    row_of = {id(pair): row for pair, row in zip(asked, rows, strict=True)}
    scored = [row_of[id(one.pair)] | {"score": one.chosen} for one in found]
    usual = [row["rating"] for row in rows if row["split"] == "train"]

    def figures(split: str) -> dict[str, Any]:
        own = [row for row in scored if row["split"] == split]
        scores, good = [row["score"] for row in own], [row["good"] for row in own]
        units, lengths = [row["prompt_id"] for row in own], [row["length"] for row in own]
        if is_policy:
            return single_metrics(scores, good, units, lengths)
        ratings = [row["rating"] for row in own]
        mean = sum(usual) / len(usual) if usual else 0.0
        return rating_metrics(scores, ratings, good, units, lengths, usual=mean)

    test = [row for row in scored if row["split"] == "test"]
    if not test:
        return {"kind": "singles", "n": 0, "why": _nothing_held_out()} | more
    return {
        "kind": "singles",
        **figures("test"),
        "n_prompts": len({row["prompt_id"] for row in test}),
        "left_out": _n_test(rows) - len(test),
        "training": {} if is_policy else figures("train"),
        "worst": _worst(test, is_policy),
        **more,
    }


def _some_rows(dataset: Dataset, seed: int, *, with_training: bool) -> list[dict[str, Any]]:
    """Test rows, and some training rows, drawn with the seed."""
    rows = list(pair_rows(dataset))
    test = [row for row in rows if row["split"] == "test"]
    learned = [row for row in rows if row["split"] == "train"]
    draw = random.Random(f"training rows {seed}")  # noqa: S311 - a sample, not a secret
    n = min(MOST_TRAINING_PAIRS, len(learned)) if with_training else 0
    return test + draw.sample(learned, n)


def _worst(test: Sequence[dict[str, Any]], is_policy: bool) -> list[dict[str, Any]]:
    """The responses that a model is most wrong about, the worst first."""

    def wrong(row: dict[str, Any]) -> float:
        if is_policy:  # a good response that became less likely, or a bad one that became likelier
            return (1 - 2 * row["good"]) * row["score"]
        return abs(row["score"] - row["rating"])

    kept = ("prompt", "response", "outcome", "rating", "score", "votes", "source")
    ordered = sorted(test, key=lambda row: (-wrong(row), row["name"]))
    return [{name: row[name] for name in kept} for row in ordered[:WORST] if wrong(row) > 0]


def _measure_of(recipe: AnyRecipe) -> str:
    """The implicit reward of the run's loss, as a formula."""
    if not isinstance(recipe, DPORecipe):
        return "log π/π_base"
    return {"simpo": "β · mean log π", "orpo": "log odds"}.get(recipe.loss, "β · log π/π_base")


def _nothing_held_out() -> str:
    return gettext_noop("No held-out pair fits the model’s context, or none is held out.")


# Rows ---------------------------------------------------------------------------------------------


def _rows(dataset: Dataset, seed: int) -> tuple[list[dict[str, Any]], float | None]:
    """Test rows and some training rows, drawn with the seed; the share of training pairs that A
    won.

    Ties that train as one half have no right answer, and are no row here.
    """
    test: list[dict[str, Any]] = []
    learned: list[dict[str, Any]] = []
    draw = random.Random(f"training pairs {seed}")  # noqa: S311 - a sample, not a secret
    n_a = n = 0
    for row in pair_rows(dataset):
        if row.get("outcome") == Choice.TIE:
            continue
        if row["split"] == "test":
            test.append(row)
            continue
        n += 1
        n_a += row.get("outcome") == Choice.A
        if len(learned) < MOST_TRAINING_PAIRS:  # a reservoir: every row has the same chance
            learned.append(row)
        elif (place := draw.randrange(n)) < MOST_TRAINING_PAIRS:
            learned[place] = row
    return test + learned, n_a / n if n else None


def _n_test(rows: Sequence[dict[str, Any]]) -> int:
    return sum(row["split"] == "test" for row in rows)


def _different_prompts(rows: Sequence[dict[str, Any]]) -> list[Messages]:
    """Each prompt once, in the order of their hashes, which is as good as a draw."""
    by_hash = {row["prompt_id"]: row["prompt"] for row in rows}
    return [by_hash[key] for key in sorted(by_hash)]


def _strengths(project: Project, rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """(comparison, choice) -> mean strength of the current answers that chose it, 1 to 3."""
    said: dict[tuple[str, str], list[int]] = {}
    for part in _parts(sorted({row["comparison"] for row in rows})):
        answers = Preference.objects.current().filter(
            comparison__project=project, comparison__content_hash__in=part, strength__gt=0
        )
        for key, choice, strength in answers.values_list(
            "comparison__content_hash", "choice", "strength"
        ):
            said.setdefault((key, choice), []).append(strength)
    return {key: sum(values) / len(values) for key, values in said.items()}


def _topics(project: Project, rows: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """Tag or topic -> hashes of the rows' comparisons that bear it now."""
    keys: dict[int, str] = {}
    for part in _parts(sorted({row["comparison"] for row in rows})):
        known = project.comparisons.filter(content_hash__in=part)
        keys |= dict(known.values_list("pk", "content_hash"))
    _by, topics = topics_of(project)
    found = {name: {keys[pk] for pk in pks if pk in keys} for name, pks in topics.items()}
    return {name: hashes for name, hashes in found.items() if hashes}


def _with_facts(
    scored: Iterable["ScoredPair"],
    pairs: Sequence[Pair],
    rows: Sequence[dict[str, Any]],
    strengths: Mapping[tuple[str, str], float],
) -> list[dict[str, Any]]:
    """Scored pairs as `model_figures.columns` wants them.

    Args: pairs, rows: all that were asked about, in one order.
    """
    row_of = {id(pair): row for pair, row in zip(pairs, rows, strict=True)}
    found = []
    for one in scored:
        row = row_of[id(one.pair)]
        outcome = row.get("outcome", "")
        found.append(
            {
                "split": row["split"],
                "prompt": row["prompt_id"],
                "comparison": row["comparison"],
                "chosen": one.chosen,
                "rejected": one.rejected,
                "spread": one.spread,
                "moved": one.moved,
                "chosen_chars": n_chars(row["chosen"]),
                "rejected_chars": n_chars(row["rejected"]),
                "a_chosen": outcome == Choice.A,
                "outcome": outcome,
                "votes": {} if row.get("decided") else row.get("votes") or {},
                "decided": bool(row.get("decided")),
                "strength": strengths.get((row["comparison"], outcome)),
                "by_people": row.get("source") != "ai",
            }
        )
    return found


def _wrong(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs that the model gets most wrong, the worst first, see `_kept`."""
    from training.model_figures import most_wrong

    rows, margins = _once(rows)
    return [_kept(rows[place], prob) for place, prob in most_wrong(margins)]


def _disputed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs that an ensemble's members disagree on most, see `_kept`, with their "spread"."""
    import numpy as np

    from training.model_figures import most_disputed

    rows, margins = _once(rows)
    spread = np.array([row["spread"] for row in rows], dtype=float)
    return [
        _kept(rows[place], prob) | {"spread": rows[place]["spread"]}
        for place, prob in most_disputed(margins, spread)
    ]


def _once(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """The first row of each comparison, of which each vote may be one; and their margins."""
    import numpy as np

    first = list({row["comparison"]: row for row in reversed(rows)}.values())
    return first, np.array([row["chosen"] - row["rejected"] for row in first], dtype=float)


def _kept(row: dict[str, Any], prob: float) -> dict[str, Any]:
    """{"comparison" (its hash), "outcome" (the label), "prob" (that the model gives to the label),
    "votes", "decided", "by_people"}."""
    kept = ("comparison", "outcome", "votes", "decided", "by_people")
    return {name: row[name] for name in kept} | {"prob": prob}


def _parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


# What a page shows of it --------------------------------------------------------------------------


def wrong_pairs(project: Project, wrong: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kept pairs with their comparisons as they are now; "comparison" is None if it is gone.

    Adds "decision" (the current one, if a lead made it since) and "texts": the label's response
    and the model's.
    """
    hashes = [row["comparison"] for row in wrong]
    found = {
        comparison.content_hash: comparison
        for comparison in project.comparisons.filter(content_hash__in=hashes)
        .select_related("prompt", "response_a", "response_b")
        .prefetch_related("decisions")
    }
    shown = []
    for row in wrong:
        comparison = found.get(row["comparison"])
        shown.append(row | {"comparison": comparison, "decision": None})
        if comparison is None:
            continue
        sides = (comparison.response_a, comparison.response_b)
        label, other = sides if row["outcome"] == Choice.A else reversed(sides)
        held = [d for d in comparison.decisions.all() if d.superseded_at is None]
        shown[-1] |= {"label": label, "model": other, "decision": held[0] if held else None}
    return shown


def people_and_judges(dataset: Dataset | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(people, judge versions) who labeled a dataset, and how many answers of each it rests on."""
    raters = dataset.raters if dataset else []
    return (
        [rater for rater in raters if rater["kind"] == Rater.Kind.PERSON],
        [rater for rater in raters if rater["kind"] == Rater.Kind.JUDGE],
    )


def files_of(model: ModelVersion) -> Any:
    """The folder of the model's files, where it is one of ours."""
    path = storage_path(model.path)
    return path if path.is_dir() else None
