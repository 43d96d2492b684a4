"""The whole loop on a world whose truth is known: comparisons, raters, judge, reward model, and
policies by SFT, DPO and PPO.

Every stage goes through the product's own doors: the import, the judge's run, the agreement report,
the training runs. What comes out can be looked at in the browser, and because the micro-world's
utility is known (labeling.microworld), each result is held against what it ought to be.

What a stage has made is kept: the two small models under PREFLOOP_STORAGE/models, the comparisons
in a file, verdicts and runs in the database. A loop that was stopped goes on where it stopped.
"""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from django.core.management import call_command
from django.utils import timezone

from judges import quality
from judges.figures import figures_of
from judges.judging import judge_version
from judges.laboratory import answers_of, labeled_of
from judges.ml.config import JudgeRecipe
from judges.ml.questions import question_text, verdict_text
from judges.models import JudgeRun, JudgeVersion, Verdict
from judges.quality import Answers, Labeled, calibration_figures
from judges.runs import carry_out as carry_out_judge_run
from judges.runs import new_run, notice_death, requeue
from labeling import microworld
from labeling.agreement import CHOICES, krippendorff_alpha
from labeling.imports.importing import import_file
from labeling.jobs import Job
from labeling.models import AgreementReport, Messages, Project
from labeling.storage import storage_path
from labeling.tasks import run_agreement
from training.datasets import load_pairs
from training.ml.config import make_recipe
from training.ml.data import Pair
from training.ml.evaluation import share_right
from training.models import Run
from training.runs import create_run, named_model
from training.tasks import carry_out as carry_out_training

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, how much there is)."""

JUDGE = "micro-judge"

# A small model reads a short question: the same form as any judge's, with fewer words around it.
JUDGE_RECIPE = JudgeRecipe(
    preamble="",
    fence="==",
    rationale_request="Which is better?",
    rationale_lead="Why:",
    ending="Better=",
    max_rationale_tokens=40,
    chat="never",
)
# Who taught the judge: less reliable than a careful person, and drawn to what stands first.
JUDGE_TEACHER = microworld.SimulatedRater("teacher", temperature=1.0, side_bias=0.7)

GUIDELINES = """\
This project is a **micro-world**: its prompts, its responses and its raters are simulated, so the
truth is known. A response is better the more of this holds:

- it answers the question, and answers it **rightly**;
- it gives the **reason** where the person asked for it (and does not where they asked to be brief);
- it is **kind**, at least not rude;
- it is **not padded** with sentences that say nothing.

The comparisons that are open to you were written by the starting policy and by the one that DPO
made of it.
"""


class DemoError(Exception):
    """The loop cannot go on; the message says why in one line."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Everything that decides the demo. The defaults take some minutes on two cores."""

    project: str = "microworld"
    seed: int = 7
    n_prompts: int = 1080
    """Of the world's prompts, how many are asked."""
    per_prompt: int = 4
    """Comparisons of each prompt: the starting policy answers twice as often."""
    test_share: float = 0.15
    """Of the prompts; no comparison of these is ever trained on."""
    temperature: float = 0.7
    """At which policies are sampled: at 1 a small model now and then answers another question."""
    votes: int = 5
    """People who judge each comparison, of the world's five."""
    n_judged: int = 400
    """Comparisons that the AI judge is asked about, in both orders."""
    n_new: int = 60
    """Comparisons of the starting and the new policy that are left for people."""
    samples_per_prompt: int = 4
    """Responses by which each policy's true utility is measured, for each held-out prompt."""
    n_base_texts: int = 12_000
    n_judge_texts: int = 12_000
    # tiny_model.TinyRecipe's fields; that module imports torch, and this one is read without.
    base: dict[str, Any] = field(
        default_factory=lambda: {
            "layers": 2,
            "steps": 800,
            "batch_size": 32,
            "muon_learning_rate": 0.03,
            "learning_rate": 6e-3,
        }
    )
    judge: dict[str, Any] = field(
        default_factory=lambda: {
            "layers": 4,
            "steps": 700,
            "batch_size": 16,
            "muon_learning_rate": 0.02,
            "learning_rate": 3e-3,
        }
    )
    reward: dict[str, Any] = field(
        default_factory=lambda: {"learning_rate": 2e-3, "epochs": 3, "batch_size": 16}
    )
    sft: dict[str, Any] = field(
        default_factory=lambda: {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16}
    )
    dpo: dict[str, Any] = field(
        # At 5e-4 two worlds of five ended below their start: docs/benchmarks.md.
        default_factory=lambda: {"learning_rate": 3e-4, "epochs": 1, "batch_size": 16, "beta": 0.2}
    )
    ppo: dict[str, Any] = field(
        default_factory=lambda: {
            "steps": 24,
            "prompts_per_step": 128,
            "max_new_tokens": 64,
            "rollout_batch_size": 128,
            "batch_size": 32,
            "minibatches": 8,
            "learning_rate": 2e-3,
            "critic_learning_rate": 4e-3,
            "critic_warmup": 1,
            "kl_target": 8.0,
            "eval_every": 6,
            "test_prompts": 64,
        }
    )


def run_demo(
    settings: DemoSettings, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Run the loop, or what is left of it, and return its figures.

    Returns: {"project", "rows": [{"what", "value", "low", "high", "n", "against"}, …], "share":
        {"truth", "labels"} (the reward model's way from chance to the best achievable), "gain"
        {"value", "low", "high", "n"}, "samples", "models", "seconds": {stage: s}, …}. A figure that
        was measured has its 95 % interval and its n. A loop that was run to its end before is not
        measured again: its figures come back as they were.
    Raises: DemoError.
    """
    kept = results_file(settings)
    if kept.exists() and Project.objects.filter(slug=settings.project).exists():
        earlier: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return earlier
    clock = _Clock()
    with clock("base model"):
        base = base_model(settings, progress)
    with clock("judge model"):
        judge = judge_model(settings, base, progress)
    with clock("comparisons"):
        file = comparisons_file(settings, base, progress)
    with clock("import"):
        project = imported(settings, file, progress)
    with clock("judge"):
        version = judged(settings, project, judge, progress)
    with clock("agreement"):
        report = agreement_figures(project)
        rows = [*people_rows(settings, project, report), *judge_rows(version)]
    with clock("reward model"):
        reward_run = trained(settings, project, "reward", base, progress)
        reward = reward_figures(settings, reward_run, progress)
        rows += reward["rows"]
    with clock("SFT"):
        sft_run = trained(settings, project, "sft", base, progress)
    with clock("DPO"):
        dpo_run = trained(settings, project, "dpo", base, progress)
    with clock("PPO"):
        rewarding = reward_run.model_version.name
        ppo_run = trained(settings, project, "ppo", base, progress, reward_models=rewarding)
    with clock("true utility"):
        made = {"SFT": sft_run, "DPO": dpo_run, "PPO": ppo_run}
        gain = policy_figures(settings, base, made, progress)
        rows += gain["rows"]
    with clock("new comparisons"):
        n_new = keep_new_comparisons(settings, project, base, dpo_run, gain["samples"], progress)
    results = {
        "project": project.slug,
        "rows": rows,
        "share": reward["share"],
        "gain": gain["gain"],
        "samples": gain["samples"][:3],
        "new_comparisons": n_new,
        "models": {
            "base": base,
            "judge": judge,
            "reward": reward_run.model_version.name,
            "policy": dpo_run.model_version.name,
            "sft": sft_run.model_version.name,
            "ppo": ppo_run.model_version.name,
        },
        "seconds": clock.seconds,
        "measured_at": timezone.now().isoformat(timespec="seconds"),
    }
    kept.write_text(json.dumps(results, ensure_ascii=False, indent=1), encoding="utf-8")
    return results


def results_file(settings: DemoSettings) -> Path:
    """Where the figures of a loop with these settings are kept."""
    name = f"results-{settings.project}-{_fingerprint(asdict(settings))}.json"
    return storage_path("demo") / name


def remove_demo(slug: str) -> None:
    """Delete the demo's project with its runs; its models stay, since they took the time."""
    for kept in storage_path("demo").glob(f"results-{slug}-*.json"):
        kept.unlink()
    project = Project.objects.filter(slug=slug).first()
    if project is None:
        return
    for run in project.runs.all():
        if run.folder:
            shutil.rmtree(storage_path(run.folder), ignore_errors=True)
    # In this order: a row that others stand on is protected from deletion.
    project.models.exclude(base=None).delete()
    project.models.all().delete()
    project.runs.all().delete()
    project.datasets.all().delete()
    project.judges.all().delete()
    project.delete()


def sample_project() -> None:
    """The hand-written comparisons for people, unless they are there already."""
    call_command("sample_project", verbosity=0)


# ---- The two small models -----------------------------------------------------------------------


def base_model(settings: DemoSettings, progress: Progress) -> str:
    """The name of the policy to start from, made now if it is not there: it learned the world's
    dialogues, good and bad alike, and prefers nothing."""
    from training.ml import tiny_model

    recipe = tiny_model.TinyRecipe(**settings.base)
    name = _model_name("base", asdict(recipe), settings.n_base_texts, settings.seed)
    if _model_exists(name):
        return name
    rng = random.Random(f"base {settings.seed}")  # noqa: S311 - a simulation
    texts = [tiny_model.Text("", dialogue(rng)) for _ in range(settings.n_base_texts)]
    # The judge goes on from this model, so the tokenizer should know its question as well.
    questions = [read + learned for read, learned in (judge_text(rng) for _ in range(1000))]
    with _new_folder(name) as folder:
        tiny_model.pretrain(
            recipe,
            texts,
            folder,
            vocabulary_texts=questions,
            on_step=lambda step, steps, loss: progress("base model learns to write", step, steps),
        )
    return name


def judge_model(settings: DemoSettings, base: str, progress: Progress) -> str:
    """The name of the judge's model, made now if it is not there: it goes on from the base with
    judgements of a teacher who is noisy and leans to the first response."""
    from training.ml import tiny_model

    recipe = tiny_model.TinyRecipe(**settings.judge)
    name = _model_name("judge", asdict(recipe), settings.n_judge_texts, settings.seed, base)
    if _model_exists(name):
        return name
    rng = random.Random(f"judge {settings.seed}")  # noqa: S311 - a simulation
    texts = [tiny_model.Text(*judge_text(rng)) for _ in range(settings.n_judge_texts)]
    with _new_folder(name) as folder:
        tiny_model.pretrain(
            recipe,
            texts,
            folder,
            start=storage_path("models") / base,
            on_step=lambda step, steps, loss: progress("judge learns to compare", step, steps),
        )
    return name


def dialogue(rng: random.Random) -> str:
    """A dialogue of the world in the small model's chat form: prompt, response, reaction."""
    prompt = rng.choice(microworld.prompts())
    response = microworld.sample_response(prompt, rng)
    reaction = microworld.sample_reaction(prompt, response, rng)
    return f"{prompt}<|assistant|>{response}<|end|>{reaction}<|end|>"


def judge_text(rng: random.Random) -> tuple[str, str]:
    """A question as judges are asked it, and what the teacher says: its rationale, its answer."""
    prompt = rng.choice(microworld.prompts())
    first, second = (microworld.sample_response(prompt, rng) for _ in range(2))
    question = question_text(
        JUDGE_RECIPE, _messages("user", prompt), _messages("assistant", first),
        _messages("assistant", second),
    )  # fmt: skip
    readings = [microworld.read_response(prompt, response) for response in (first, second)]
    utilities = [microworld.utility_of(reading) for reading in readings]
    rationale = " ".join(
        f"{place} {microworld.describe(reading)}: {microworld.grade(value)}."
        for place, reading, value in zip(("first", "second"), readings, utilities, strict=True)
    )
    says_first, says_second, _tie = JUDGE_TEACHER.probabilities(utilities[0] - utilities[1])
    answer = rng.choices("12", weights=(says_first, says_second))[0]
    whole = verdict_text(JUDGE_RECIPE, question, rationale)
    return question, f"{whole[len(question) :]}{answer}<|end|>"


# ---- The stages ---------------------------------------------------------------------------------


def comparisons_file(settings: DemoSettings, base: str, progress: Progress) -> Path:
    """The file of comparisons: two responses of the base to a prompt each, with people's votes.

    In the interchange form; made once for equal settings.
    """
    folder = storage_path("demo")
    folder.mkdir(parents=True, exist_ok=True)
    decides = [
        base,
        settings.seed,
        settings.n_prompts,
        settings.per_prompt,
        settings.votes,
        settings.temperature,
    ]
    path = folder / f"comparisons-{_fingerprint(*decides, settings.test_share)}.jsonl"
    if path.exists():
        return path
    rng = random.Random(f"comparisons {settings.seed}")  # noqa: S311 - a simulation
    prompts = microworld.sample_prompts(settings.n_prompts, rng)
    n_test = max(1, round(settings.test_share * len(prompts)))
    n_each = 2 * settings.per_prompt
    responses = sample_responses(
        storage_path("models") / base,
        [prompt for prompt in prompts for _ in range(n_each)],
        settings.seed,
        settings.temperature,
        lambda done, total: progress("base model answers prompts", done, total),
    )
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(prompts):
            compared: set[frozenset[str]] = set()
            for k in range(settings.per_prompt):
                start = number * n_each + 2 * k
                a, b = responses[start : start + 2]
                if a == b or not (a and b) or {a, b} in compared:
                    continue  # nothing to compare, or asked before
                compared.add(frozenset((a, b)))
                difference = microworld.utility(prompt, a) - microworld.utility(prompt, b)
                votes = microworld.votes(difference, rng, n=settings.votes)
                row = {
                    "id": f"{path.stem}-{number}-{k}",
                    "prompt": prompt,
                    "response_a": a,
                    "response_b": b,
                    "model_a": base,
                    "model_b": base,
                    "metadata": {"split": "test" if number < n_test else "train"},
                    "preferences": [
                        {"rater": v.rater, "choice": v.choice, "shown_first": v.shown_first}
                        for v in votes
                    ],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return part.rename(path)


def imported(settings: DemoSettings, file: Path, progress: Progress) -> Project:
    """The demo's project with the file's comparisons and votes in it.

    Raises: DemoError if the project was made with other settings, or lines were rejected.
    """
    project, _created = Project.objects.get_or_create(
        slug=settings.project,
        defaults={
            "name": "Micro-world",
            "guidelines": GUIDELINES,
            "labels_per_comparison": settings.votes,
        },
    )
    with file.open(encoding="utf-8") as lines:
        n_lines = sum(1 for _ in lines)
    made_here = project.comparisons.filter(external_id__startswith="comparisons-")
    if made_here.exclude(external_id__startswith=file.stem).exists():
        raise DemoError(
            f"the project {project.slug} was made with other settings; --fresh makes it anew"
        )
    report = import_file(
        project,
        file,
        on_progress=lambda report, _: progress("import", report.rows, n_lines),
    )
    if report.problem or report.rejected or report.rejected_votes:
        raise DemoError(report.problem or f"rejected lines, see {report.reject_file}")
    return project


def judged(
    settings: DemoSettings, project: Project, model: str, progress: Progress
) -> JudgeVersion:
    """The judge, with `n_judged` comparisons behind it: what it has judged is not asked again."""
    version, _created = judge_version(project, JUDGE, model, JUDGE_RECIPE)
    last = version.runs.order_by("-pk").first()
    if last is not None:
        notice_death(last)
        if last.status == Job.Status.SUCCEEDED:
            return version
        if last.can_resume:
            requeue(last)
    run = last or new_run(version, min(settings.n_judged, project.comparisons.count()))
    claimed = JudgeRun.objects.claim(run.pk)
    if claimed is None:
        raise DemoError(f"judge run {run.pk} is {run.status} in another process")
    carry_out_judge_run(
        claimed, on_batch=lambda run: progress("judge compares", run.n_done, run.n_total or 0)
    )
    if figures_of(claimed).n_parsed == 0:
        raise DemoError("none of the judge's verdicts could be read")
    return version


def agreement_figures(project: Project) -> dict[str, Any]:
    """The figures of now, stored as a worker does it: the agreement page then shows the same.

    Raises: DemoError.
    """
    report = AgreementReport.objects.create(project=project)
    run_agreement(report.pk)
    report.refresh_from_db()
    if report.status != Job.Status.SUCCEEDED:
        raise DemoError(f"no agreement figures: {report.error or report.status}")
    result: dict[str, Any] = report.result
    return result


def trained(
    settings: DemoSettings,
    project: Project,
    kind: str,
    base: str,
    progress: Progress,
    **more: Any,
) -> Run:
    """A finished run of a recipe on people's labels; an earlier one with equal settings will do.

    Args: more: settings besides those of the demo.
    Raises: DemoError if the run failed.
    """
    chosen: dict[str, Any] = {
        "seed": settings.seed,
        "max_length": 256,
        "eval_every": 100,
        "checkpoint_every": 100,
        **getattr(settings, kind),
        **more,
    }
    recipe = make_recipe(kind, {**chosen, "base_model": named_model(project, base)})
    for earlier in project.runs.filter(kind=kind, status=Run.Status.SUCCEEDED):
        if earlier.recipe == asdict(recipe):
            return earlier
    what = {
        "reward": "reward model trains",
        "sft": "SFT trains a policy",
        "dpo": "DPO trains the policy",
        "ppo": "PPO trains a policy",
    }[kind]
    run = create_run(
        project,
        kind=kind,
        base_model=base,
        recipe_settings=chosen,
        labels="human",
        test_share=settings.test_share,
    )
    carry_out_training(run.pk, show=lambda step: progress(what, step.step, step.n_steps))
    run.refresh_from_db()
    if run.status != Run.Status.SUCCEEDED:
        raise DemoError(f"{run} {run.status}: {run.error}")
    return run


# ---- Figures ------------------------------------------------------------------------------------


def people_rows(
    settings: DemoSettings, project: Project, report: dict[str, Any]
) -> list[dict[str, Any]]:
    """Agreement of the simulated people, beside what such people must come to."""
    expected, low, high = microworld.expected_alpha(
        [
            _utility_difference(prompt, a, b)
            for prompt, a, b in project.comparisons.filter(external_id__startswith="comparisons-")
            .order_by("pk")
            .values_list("prompt__messages", "response_a__messages", "response_b__messages")
        ],
        lambda votes: krippendorff_alpha(_vote_counts(votes))["value"],
        n=settings.votes,
        seed=settings.seed,
    )
    return [
        _row(
            "People: Krippendorff's alpha",
            report["krippendorff_alpha"],
            f"{expected:.3f} expected of these raters ({low:.3f} to {high:.3f})",
        ),
        _row(
            "People: response shown first preferred",
            report["position"],
            "0.5 without a side bias; some of these raters lean to the first",
        ),
    ]


def judge_rows(version: JudgeVersion) -> list[dict[str, Any]]:
    """The judge against people and against the truth, by the laboratory's functions: in one order
    alone, averaged over both, and with its probabilities corrected by a temperature."""
    project = version.judge.project
    judged = list(version.verdicts.order_by("pk").values_list("comparison", flat=True))
    labeled = labeled_of(project, judged)
    both = answers_of(version, labeled)
    one = in_one_order(both)
    before, after = (calibration_figures(labeled, answers) for answers in (one, both))
    corrected = after["temperature"]
    temperature = corrected.get("parameters", {}).get("temperature", float("nan"))
    bias = quality.position_bias(labeled, both)
    votes = quality.as_votes(labeled, both)
    people = quality.ceiling(labeled)["without_ties"]
    truth = share_right_of(version)
    rows = [
        _row("One person with most of the others", people, "what a judge may reach"),
        _row("Judge with people, one order alone", decided(labeled, one), "0.5 by chance"),
        _row("Judge with people, both orders averaged", decided(labeled, both), "0.5 by chance"),
        _row("Judge with the truth, one order alone", truth["one order"], "0.5 by chance"),
        _row("Judge with the truth, both orders averaged", truth["both orders"], "0.5 by chance"),
        _row(
            "Judge: same response in both orders",
            quality.position_consistency(votes),
            "1 without position bias",
        ),
        _row(
            "Judge: response shown first preferred",
            quality.position_preference(votes),
            "0.5 without a bias; averaging makes it 0.5",
        ),
        _row(
            "Judge: mean position bias b, in nats", bias, "0 without a bias; averaging makes it 0"
        ),
    ]
    for name, figures, against in (
        ("one order alone", before["before"], ""),
        ("both orders averaged", after["before"], ""),
        ("and a temperature", corrected, f", cross-fitted; T = {temperature:.2f} on all"),
    ):
        if "ece" in figures:
            by_luck = figures["ece"].get("by_luck")
            luck = f", luck alone makes {by_luck:.3f}" if by_luck is not None else ""
            rows += [
                _row(f"Judge: ECE, {name}", figures["ece"], f"0 is perfect{luck}{against}"),
                _row(f"Judge: Brier, {name}", figures["brier"], f"0.25 knows nothing{against}"),
            ]
    return rows


def in_one_order(both: Answers) -> Answers:
    """What the judge would have said if it had been asked with A shown first alone."""
    z = both.logit_ab
    choice = np.select([z > 0, z < 0], [quality.A, quality.B], quality.TIE)
    choice = np.where(both.choice == quality.UNPARSED, quality.UNPARSED, choice)
    return replace(both, prob_a=1 / (1 + np.exp(-np.nan_to_num(z))), choice=choice)


def decided(labeled: Labeled, answers: Answers) -> dict[str, Any]:
    return quality.alignment(labeled, answers)["decided"]


def share_right_of(version: JudgeVersion) -> dict[str, dict[str, Any]]:
    """How often it prefers what the world's utility prefers: {"one order", "both orders"}."""
    one_order, both = [], []
    for verdict in Verdict.objects.filter(version=version, parsed=True).select_related(
        "comparison__prompt", "comparison__response_a", "comparison__response_b"
    ):
        comparison = verdict.comparison
        difference = _utility_difference(
            comparison.prompt.messages,
            comparison.response_a.messages,
            comparison.response_b.messages,
        )
        if difference != 0:
            sign = 1 if difference > 0 else -1
            one_order.append(sign * (verdict.logp_ab_first - verdict.logp_ab_second))
            both.append(sign * (verdict.prob_a - 0.5))
    return {"one order": share_right(one_order), "both orders": share_right(both)}


def reward_figures(settings: DemoSettings, run: Run, progress: Progress) -> dict[str, Any]:
    """The reward model on the held-out pairs: against people's labels and against the truth.

    The best achievable accuracy is 1 against the truth (pairs of equal utility left out), and
    against labels what a model that knows the utility would have.
    """
    from training.ml.loading import load_reward_model
    from training.ml.reward_model import score

    _train, test = load_pairs(run.dataset)
    model, tokenizer = load_reward_model(storage_path(run.folder) / "model")
    progress("reward model is measured", 0, 1)
    rewards = score(
        model,
        tokenizer,
        [pair.prompt + side for pair in test for side in (pair.chosen, pair.rejected)],
        batch_size=64,
    )
    margins = np.array(rewards[::2]) - np.array(rewards[1::2])
    truth = np.array([_pair_difference(pair) for pair in test])
    progress("reward model is measured", 1, 1)
    labels = share_right(margins)
    best = microworld.best_accuracy(truth.tolist(), n=settings.votes)
    known = truth != 0
    noiseless = share_right(margins[known] * np.sign(truth[known]))
    shares = {
        name: {
            "n": figure["n"],
            **{k: (figure[k] - 0.5) / (top - 0.5) for k in ("value", "low", "high")},
        }
        for name, figure, top in (("truth", noiseless, 1.0), ("labels", labels, best))
    }
    equal = int((~known).sum())
    return {
        "rows": [
            _row("Reward model with people's labels", labels, f"{best:.3f} best achievable"),
            _row(
                "Reward model with the truth",
                noiseless,
                f"1 best achievable; {equal} pairs of equal utility left out",
            ),
            _row("  way from chance to the best: truth", shares["truth"], "0.9 wanted"),
            _row("  way from chance to the best: labels", shares["labels"], "0.9 wanted"),
        ],
        "share": shares,
    }


def policy_figures(
    settings: DemoSettings, base: str, runs: dict[str, Run], progress: Progress
) -> dict[str, Any]:
    """True utility of the start and of every new policy on the held-out prompts, paired by prompt.

    Args: runs: SFT's, DPO's and PPO's, which share their held-out prompts.
    Returns: "rows"; "gain" of DPO over the start; "samples" of these two.
    """
    from training.ml.loading import load_policy  # noqa: F401 - fails here if torch is missing

    _train, test = load_pairs(runs["DPO"].dataset)
    prompts = sorted({_text(pair.prompt) for pair in test})
    asked = [prompt for prompt in prompts for _ in range(settings.samples_per_prompt)]
    folders = {"start": storage_path("models") / base}
    folders |= {name: storage_path(run.folder) / "model" for name, run in runs.items()}
    written, utilities = {}, {}
    for who, folder in folders.items():
        what = f"{who} answers held-out prompts"
        # Another seed than the comparisons', so the start is measured on fresh responses too.
        written[who] = sample_responses(
            folder,
            asked,
            settings.seed + 1,
            settings.temperature,
            lambda done, total, what=what: progress(what, done, total),
        )
        utilities[who] = (
            np.array([microworld.utility(p, r) for p, r in zip(asked, written[who], strict=True)])
            .reshape(len(prompts), settings.samples_per_prompt)
            .mean(axis=1)
        )  # (prompts,)

    def gain(of: str, over: str) -> dict[str, Any]:
        return _bootstrap_mean(utilities[of] - utilities[over], settings.seed)

    scale = f"from {microworld.LOWEST:g} to {microworld.HIGHEST:g}"
    names = {"start": "the start"} | {name: f"the {name} policy" for name in runs}
    rows = [
        _row(f"True utility of {names[who]}", _bootstrap_mean(values, settings.seed), scale)
        for who, values in utilities.items()
    ]
    rows += [
        _row(f"  {of} over {names[over]}, by prompt", gain(of, over), against)
        for of, over, against in (
            ("SFT", "start", ""),
            ("DPO", "start", "0 must lie outside the interval"),
            ("PPO", "start", "0 must lie outside the interval"),
            ("PPO", "SFT", "0 must lie outside the interval"),
            ("PPO", "DPO", "at least 0"),
        )
    ]
    return {
        "gain": gain("DPO", "start"),
        "rows": rows,
        "samples": [
            {"prompt": prompt, "start": before, "new": after, "ppo": rewarded}
            for prompt, before, after, rewarded in zip(
                asked, written["start"], written["DPO"], written["PPO"], strict=True
            )
        ][:: settings.samples_per_prompt],
    }


def keep_new_comparisons(
    settings: DemoSettings,
    project: Project,
    base: str,
    run: Run,
    samples: Sequence[dict[str, str]],
    progress: Progress,
) -> int:
    """The start's and the new policy's responses become the next comparisons, open to people.

    Returns: how many of them the project holds.
    """
    policy = run.model_version.name
    rng = random.Random(f"new {settings.seed}")  # noqa: S311 - which of the two is called A
    path = storage_path("demo") / f"{project.slug}-{policy}.jsonl"
    chosen = [s for s in samples if s["start"] and s["new"] and s["start"] != s["new"]]
    with path.open("w", encoding="utf-8") as file:
        for number, pair in enumerate(chosen[: settings.n_new]):
            sides = [(base, pair["start"]), (policy, pair["new"])]
            rng.shuffle(sides)
            (model_a, a), (model_b, b) = sides
            row = {
                "id": f"{policy}-{number}",
                "prompt": pair["prompt"],
                "response_a": a,
                "response_b": b,
                "model_a": model_a,
                "model_b": model_b,
                "metadata": {"split": "test"},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    report = import_file(project, path, labels_per_comparison=1)
    if report.problem:
        raise DemoError(report.problem)
    progress("new comparisons", 1, 1)
    return report.created + report.duplicates


def sample_responses(
    folder: Path,
    prompts: Sequence[str],
    seed: int,
    temperature: float,
    progress: Callable[[int, int], None],
) -> list[str]:
    """One response of the model in `folder` to each prompt."""
    from training.ml.generation import sample
    from training.ml.loading import load_policy

    model, tokenizer = load_policy(str(folder))
    responses: list[str] = []
    chunk = 256  # large batches: a tiny model's step costs more in overhead than in arithmetic
    for start in range(0, len(prompts), chunk):
        responses += sample(
            model,
            tokenizer,
            [_messages("user", prompt) for prompt in prompts[start : start + chunk]],
            max_new_tokens=64,
            temperature=temperature,
            seed=seed + start,
            batch_size=chunk,
        )
        progress(len(responses), len(prompts))
    return responses


# ---- Small things -------------------------------------------------------------------------------


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 1)


def _row(what: str, figure: dict[str, Any], against: str) -> dict[str, Any]:
    return {"what": what, **{k: figure.get(k) for k in ("value", "low", "high", "n")}} | {
        "against": against
    }


def _messages(role: str, text: str) -> Messages:
    return [{"role": role, "content": text}]


def _text(messages: Messages) -> str:
    return messages[-1]["content"]


def _utility_difference(prompt: Messages, a: Messages, b: Messages) -> float:
    """u_a - u_b of a comparison of the world."""
    question = _text(prompt)
    return microworld.utility(question, _text(a)) - microworld.utility(question, _text(b))


def _pair_difference(pair: Pair) -> float:
    """u_chosen - u_rejected."""
    return _utility_difference(pair.prompt, pair.chosen, pair.rejected)


def _vote_counts(votes: list[dict[str, str]]) -> np.ndarray:
    """(comparisons, CHOICES) how many votes each answer got."""
    counts = np.zeros((len(votes), len(CHOICES)), dtype=np.int64)
    for item, by_rater in enumerate(votes):
        for choice in by_rater.values():
            counts[item, CHOICES.index(choice)] += 1
    return counts


def _bootstrap_mean(values: np.ndarray, seed: int, resamples: int = 10_000) -> dict[str, Any]:
    """The mean with its 95 % percentile bootstrap interval; `values` is one number per prompt."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "value": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def _fingerprint(*decides: Any) -> str:
    """Ten characters that change when the world or one of the settings does."""
    world = Path(microworld.__file__).read_bytes()
    text = json.dumps(decides, sort_keys=True, default=str).encode()
    return hashlib.sha256(world + text).hexdigest()[:10]


def _model_name(part: str, *decides: Any) -> str:
    return f"micro-{part}-{_fingerprint(*decides)}"


def _model_exists(name: str) -> bool:
    return (storage_path("models") / name / "config.json").exists()


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """A folder that appears under its name once it is whole."""
    folder = storage_path("models") / name
    part = folder.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)
