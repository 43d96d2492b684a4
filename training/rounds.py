"""The next round: responses are sampled, the pairs worth a label chosen and given to people; then a
model is trained on the labels and held against the one before. See docs/rounds.md.

What is sampled lies in a file of the round under PREFLOOP_STORAGE, so a round that was stopped goes
on with the next prompts. Choosing and giving the pairs to people is one transaction.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Count, Max, Sum
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.imports.interchange import Row
from labeling.imports.rows import RowStore, comparison_hash
from labeling.jobs import Job, JobCancelled, JobTaken
from labeling.judge_requests import ask_judges_first
from labeling.models import Comparison, Messages, Preference, Project, Prompt, Rater, content_hash
from labeling.storage import storage_path
from training.dataset_settings import DatasetSettings, settings_again
from training.datasets import load_pairs, pair_rows, side_of
from training.fleet import answers_folder, leave
from training.ml.ppo_config import PPORecipe
from training.models import Arena, ModelVersion, Round, RoundMeasure, RoundPair, Run
from training.near_duplicates import jaccard, shingles
from training.playground import writers
from training.runs import named_model, start_run, unusual
from training.runs import recipe_of as recipe_of_run

if TYPE_CHECKING:
    from training.ml.selection import Draw, Read

logger = logging.getLogger(__name__)

WAYS = {
    "i_optimal": _lazy("What makes all other pairs known best (I-optimal)"),
    "d_optimal": _lazy("What tells most about the last layer (D-optimal)"),
    "near_tie": _lazy("Where the model cannot tell which is better"),
    "bald": _lazy("Where the members of an ensemble contradict each other (BALD)"),
    "uncertain_gap": _lazy("What could differ most"),
    "decision": _lazy("What decides between the models"),
    "random": _lazy("Uniformly at random"),
}
WAY_OF = {
    "reward": "i_optimal",
    "dpo": "uncertain_gap",
    "ppo": "i_optimal",  # what the labels make first is a reward model
    "evaluation": "decision",
}
"""The way that suits a purpose where none is named."""
PROMPTS_AT_ONCE = 64
READ_AT_ONCE = 32
SECONDS_BETWEEN_COPIES = 60.0
"""Of answers, for other machines: each copy is the whole file."""
MOST_KNOWN = 2_000
"""Pairs with a label that are read beside the candidates: more add little to what is known."""
PRIORITY = 50
"""Of a round's pairs in the queue: before the backlog, which has 0 unless somebody says otherwise.
"""
LEAST_SHARE, MOST_SHARE = 0.1, 1.0


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """Everything that decides a round, stored whole with it."""

    purpose: str = "reward"
    way: str = ""
    """How pairs are chosen, of WAYS; empty: as suits the purpose."""
    models: tuple[str, ...]
    """Who answers, by name: the newest first, what it is held against later second."""
    scorer: str = ""
    """The reward model that reads the candidates; empty: the first model's base, which knows no
    reward but sees what is alike."""
    n_labels: int = 200
    """Pairs that are chosen."""
    people: int = 0
    """Who judge each pair; 0: as many as the project's settings want of every comparison."""
    n_prompts: int = 500
    """Prompts that are answered, at most; drawn from those on the training side."""
    responses: int = 4
    """Of each model to each prompt."""
    temperature: float = 0.8
    max_new_tokens: int = 128
    random_share: float = LEAST_SHARE
    """Of the pairs, drawn uniformly from all candidates."""
    alike: float = 0.9
    """Responses to a prompt whose words are this alike (Jaccard) count as one."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.purpose not in WAY_OF:
            raise ValueError(f"purpose is {self.purpose!r}; it must be one of {', '.join(WAY_OF)}")
        if self.way and self.way not in WAYS:
            raise ValueError(f"way is {self.way!r}; it must be one of {', '.join(WAYS)}")
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError("models: at least one, and each once")
        if self.responses * len(self.models) < 2:
            raise ValueError("responses: a pair needs two to each prompt")
        if self.way_of_choice == "decision" and len(self.models) < 2:
            raise ValueError("models: a decision is between at least two")
        for name, low, high in (
            ("n_labels", 1, 100_000),
            ("people", 0, 100),
            ("n_prompts", 1, 1_000_000),
            ("responses", 1, 64),
            ("temperature", 0.0, 10.0),
            ("max_new_tokens", 1, 100_000),
            ("random_share", LEAST_SHARE, MOST_SHARE),
            ("alike", 0.1, 1.0),
            ("seed", 0, 2**31 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}")

    @property
    def way_of_choice(self) -> str:
        return self.way or WAY_OF[self.purpose]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "models": list(self.models)}


def settings_of(round_: Round) -> RoundSettings:
    known = {field.name for field in fields(RoundSettings)}
    kept = {name: value for name, value in round_.options.items() if name in known}
    return RoundSettings(**{**kept, "models": tuple(kept["models"])})


def people_of(project: Project, asked: int) -> int:
    """How many people judge each pair of a round whose settings ask for so many."""
    return asked or project.labels_per_comparison


def defaults_for(project: Project) -> RoundSettings:
    """What the next round of a project would be, if nobody says otherwise: like the last one, with
    the models that came of it.

    Raises: ValueError if no model writes.
    """
    names = writers(project)
    if not names:
        raise ValueError(_("There is no model that writes yet."))
    policies = list(
        project.models.filter(kind=ModelVersion.Kind.POLICY, name__in=names).values_list(
            "name", flat=True
        )[:2]
    )
    first = policies[0] if policies else names[0]
    before = [name for name in [*policies[1:], *_bases_of(project, first)] if name != first]
    reward = project.models.filter(kind=ModelVersion.Kind.REWARD).order_by("-pk").first()
    last = project.rounds.order_by("-number").first()
    values = dict(last.options) if last else {}
    values |= {
        "models": (first, *[name for name in before if name in names][:1]),
        "scorer": reward.name if reward else "",
        "seed": last.number + 1 if last else 1,
    }
    known = {field.name for field in fields(RoundSettings)}
    return RoundSettings(**{name: value for name, value in values.items() if name in known})


def _bases_of(project: Project, name: str) -> list[str]:
    version = project.models.filter(name=name).select_related("base").first()
    return [version.base.name] if version and version.base else []


def scorers(project: Project) -> list[str]:
    """Names of the project's reward models, newest first."""
    rows = project.models.filter(kind=ModelVersion.Kind.REWARD).order_by("-pk")
    return list(rows.values_list("name", flat=True))


# Beginning ----------------------------------------------------------------------------------------


def create_round(project: Project, settings: RoundSettings, created_by: Any = None) -> Round:
    """Write the round's row, queued but not yet sent to a worker.

    Raises: ValueError for a model that is not there, or a project without prompts.
    """
    known = writers(project)
    for name in settings.models:
        if name not in known:
            raise ValueError(_("There is no model %(name)s that writes.") % {"name": name})
    if settings.scorer and settings.scorer not in scorers(project):
        raise ValueError(_("There is no reward model %(name)s.") % {"name": settings.scorer})
    if settings.way_of_choice == "bald" and _members(project, settings.scorer) < 2:
        raise ValueError(
            _("BALD asks how the members of an ensemble disagree: choose a reward model of several")
        )
    if settings.way_of_choice in ("decision", "uncertain_gap") and not settings.scorer:
        raise ValueError(_("This way to choose needs a reward model; train one first."))
    if not project.prompts.exists():
        raise ValueError(_("The project has no prompt."))
    with transaction.atomic():
        # One number for one round, and no two rounds at once: the second would not know what the
        # first is about to ask.
        Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        if project.rounds.active().exists():
            raise ValueError(_("A round is on its way already."))
        last = project.rounds.aggregate(last=Max("number"))["last"] or 0
        made = Round.objects.create(
            project=project,
            number=last + 1,
            purpose=settings.purpose,
            options=settings.as_json(),
            created_by=created_by,
        )
        after = {"models": list(settings.models), "labels": settings.n_labels}
        note_change(project, created_by, gettext_noop("begin round"), made, after=after)
    return made


def start_round(project: Project, settings: RoundSettings, created_by: Any = None) -> Round:
    """As create_round, and wake a worker."""
    with transaction.atomic():
        made = create_round(project, settings, created_by)
        made.enqueue()
    return made


def _members(project: Project, scorer: str) -> int:
    version = project.models.filter(name=scorer).select_related("run").first()
    return int(version.run.recipe.get("members", 1)) if version and version.run else 1


# Carrying out -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Two responses to a prompt that nobody has compared yet."""

    prompt: Messages
    a: str
    b: str
    model_a: str
    model_b: str
    key: str
    """The content hash that its comparison would have."""

    def conversations(self) -> tuple[Messages, Messages]:
        first, second = ([{"role": "assistant", "content": text}] for text in (self.a, self.b))
        return self.prompt + first, self.prompt + second


def carry_out_round(round_: Round) -> None:
    """Sample, choose, give to people, and end the row.

    Raises: ModelMissing, ValueError if there is nothing to choose from; JobCancelled, JobTaken.
    """
    began = time.monotonic()
    settings = settings_of(round_)
    project = round_.project
    prompts = prompts_of(project, settings)
    if not prompts:
        raise ValueError(_("No prompt on the training side is left to be answered."))
    n_answers = len(prompts) * len(settings.models) * settings.responses
    # Reading the candidates is told as half of the work: nobody knows yet how many there will be.
    round_.report(n_done=0, n_total=2 * n_answers)
    counts: dict[str, Any] = {"prompts": len(prompts)}
    answers = list(_sampled(round_, settings, prompts, counts))
    candidates = _candidates(project, answers, settings, counts)
    if not candidates:
        raise ValueError(
            _("Nothing to choose from: the responses to each prompt are alike, or known already.")
        )
    counts["candidates"] = len(candidates)

    def on_read(done: int, total: int) -> None:
        round_.report(n_done=n_answers + round(n_answers * done / total))

    drawn, scores = _chosen(project, settings, candidates, counts, on_read)
    counts |= {
        "chosen": len(drawn.places),
        "at_random": int(drawn.at_random.sum()),
        "floor": drawn.floor,
        "seconds": round(time.monotonic() - began + counts.get("seconds", 0), 1),
    }
    with transaction.atomic():
        # First: it proves that the round is this worker's, and locks the row until commit.
        if not round_.finish(Job.Status.SUCCEEDED, result=counts):
            raise JobTaken(f"{round_} went to another worker")
        pks = _give_to_people(round_, candidates, drawn, scores)
        ask_judges_first(project, pks)


def prompts_of(project: Project, settings: RoundSettings) -> list[Prompt]:
    """The prompts that a round asks about: a random part of those on the training side."""
    is_held_out = held_out_rule(project)
    rows = usable_prompts(project).order_by("content_hash")
    found = [prompt for prompt in rows.iterator() if not is_held_out(prompt.content_hash)]
    random.Random(f"round {settings.seed}").shuffle(found)  # noqa: S311 - a sample, not a secret
    return found[: settings.n_prompts]


def usable_prompts(project: Project) -> Any:
    """Prompts of the project's work: not those of the raters' sets, whose answers are known."""
    # As a list: `of_sets` names the table itself, which a subquery would call by another name.
    sets = list(project.comparisons.of_sets().values_list("prompt", flat=True))
    return project.prompts.exclude(pk__in=sets)


def held_out_rule(project: Project) -> Callable[[str], bool]:
    """Whether a prompt, by its hash, is on the test side: as in the dataset of the newest run, and
    where that did not hold it, as the same draw decides."""
    run = (
        project.runs.filter(status=Job.Status.SUCCEEDED)
        .exclude(dataset=None)
        .select_related("dataset")
        .order_by("-pk")
        .first()
    )
    if run is None:
        return lambda prompt_hash: side_of(prompt_hash, 0.1, 0) == "test"
    sides = {row["prompt_id"]: row["split"] for row in pair_rows(run.dataset)}
    share, seed = (run.dataset.filters.get(k, v) for k, v in (("test_share", 0.1), ("seed", 0)))
    return lambda prompt_hash: (
        (sides.get(prompt_hash) or side_of(prompt_hash, share, seed)) == "test"
    )


@dataclass(frozen=True)
class Answer:
    """What one model said to a prompt."""

    prompt: Prompt
    model: str
    texts: list[str]


def _sampled(
    round_: Round, settings: RoundSettings, prompts: Sequence[Prompt], counts: dict[str, Any]
) -> Iterator[Answer]:
    n_before = 0
    for model in settings.models:

        def on_texts(n: int, n_before: int = n_before) -> None:
            round_.report(n_done=n_before + n)

        yield from sampled(
            round_,
            model,
            prompts,
            draws=settings.responses,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            counts=counts,
            on_texts=on_texts,
        )
        n_before += len(prompts) * settings.responses


def sampled(
    job: Round | Arena,
    model: str,
    prompts: Sequence[Prompt],
    *,
    draws: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    counts: dict[str, Any],
    on_texts: Callable[[int], None],
) -> Iterator[Answer]:
    """What a model says to each prompt; kept in the job's folder as it comes, so that a job which
    was stopped goes on with the next prompts. Other machines get it each minute, and at the end.

    Args: counts: gets "responses", "too_long"; on_texts: is told how many responses there are, and
        may raise to stop.
    """
    place = content_hash(model, draws, temperature, max_new_tokens, seed)[:16]
    folder = storage_path(answers_folder(job))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{place}.jsonl"
    said = _kept(file)
    by_key = {prompt.content_hash: prompt for prompt in prompts}
    parts = [
        prompts[start : start + PROMPTS_AT_ONCE]
        for start in range(0, len(prompts), PROMPTS_AT_ONCE)
    ]
    left = [part for part in parts if any(prompt.content_hash not in said for prompt in part)]
    if left:
        with file.open("a", encoding="utf-8") as out:
            left_at = time.monotonic()
            for answers in _answers(
                job.project, model, left, draws, temperature, max_new_tokens, seed
            ):
                said |= answers
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in answers.items()]
                out.write("".join(lines))
                out.flush()
                try:
                    on_texts(draws * len(said))
                except JobCancelled:
                    _leave_answers(job)
                    raise
                if time.monotonic() - left_at >= SECONDS_BETWEEN_COPIES:
                    _leave_answers(job)
                    left_at = time.monotonic()
        _leave_answers(job)
    for key, texts in said.items():
        if key in by_key:
            counts["responses"] = counts.get("responses", 0) + len(texts)
            counts["too_long"] = counts.get("too_long", 0) + (not texts)
            yield Answer(by_key[key], model, texts)


def _leave_answers(job: Round | Arena) -> None:
    """For other machines. What cannot be left now is left with the next."""
    try:
        leave(answers_folder(job))
    except OSError as error:
        logger.warning("the answers of %s are on this machine alone for now: %s", job, error)


def _kept(file: Path) -> dict[str, list[str]]:
    """What was sampled before the job was stopped. A line that broke off is not there."""
    found: dict[str, list[str]] = {}
    if file.exists():
        whole = [
            line for line in file.read_text(encoding="utf-8").splitlines(True) if line[-1:] == "\n"
        ]
        file.write_text("".join(whole), encoding="utf-8")
        found.update(json.loads(line) for line in whole)
    return found


def _answers(
    project: Project,
    model_name: str,
    parts: Sequence[Sequence[Prompt]],
    draws: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Iterator[dict[str, list[str]]]:
    """Of each part its answers by the prompt's hash; none where a prompt leaves no room for one."""
    from training.ml.data import chat_tokens
    from training.ml.generation import sample
    from training.ml.loading import load_policy, longest_allowed
    from training.ml.peaks import give_memory_back

    folder = named_model(project, model_name)
    model, tokenizer = load_policy(folder)
    room = longest_allowed(folder, 1 << 20) - max_new_tokens
    for part in parts:
        fitting = [
            p for p in part if len(chat_tokens(tokenizer, p.messages, open_answer=True)) <= room
        ]
        # By what is asked and who is: a job that goes on draws what it would have drawn, and two
        # models do not draw the same numbers.
        own_seed = int(content_hash(model_name, seed, [p.content_hash for p in fitting])[:8], 16)
        texts = sample(
            model,
            tokenizer,
            [prompt.messages for prompt in fitting for _ in range(draws)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=own_seed,
        )
        said: dict[str, list[str]] = {prompt.content_hash: [] for prompt in part}
        for n, prompt in enumerate(fitting):
            own = texts[n * draws : (n + 1) * draws]
            said[prompt.content_hash] = own
        yield said
    del model
    give_memory_back()


def _candidates(
    project: Project, answers: Iterable[Answer], settings: RoundSettings, counts: dict[str, Any]
) -> list[Candidate]:
    """Every pair of responses to a prompt that are not nearly the same and not compared yet."""
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    prompts: dict[str, Prompt] = {}
    counts |= {"empty": 0, "alike": 0, "known": 0}
    for answer in answers:
        key = answer.prompt.content_hash
        prompts[key] = answer.prompt
        kept = by_prompt.setdefault(key, [])
        for text in answer.texts:
            if not text:
                counts["empty"] += 1
            elif any(_is_alike(text, other, settings.alike) for other, _model in kept):
                counts["alike"] += 1
            else:
                kept.append((text, answer.model))
    found = []
    for key, kept in sorted(by_prompt.items()):
        for (a, model_a), (b, model_b) in combinations(kept, 2):
            if settings.way_of_choice == "decision" and model_a == model_b:
                continue  # says nothing about which model is better
            said = [[{"role": "assistant", "content": text}] for text in (a, b)]
            name = comparison_hash(
                key, (content_hash(said[0]), model_a), (content_hash(said[1]), model_b)
            )
            found.append(Candidate(prompts[key].messages, a, b, model_a, model_b, name))
    known = known_keys(project, [candidate.key for candidate in found])
    counts["known"] = len(known)
    return [candidate for candidate in found if candidate.key not in known]


def _is_alike(one: str, other: str, alike: float) -> bool:
    return one == other or jaccard(shingles(one), shingles(other)) >= alike


def known_keys(project: Project, keys: Sequence[str]) -> set[str]:
    """Those of these comparisons, by content hash, that the project has already."""
    found: set[str] = set()
    for start in range(0, len(keys), 500):
        rows = project.comparisons.filter(content_hash__in=keys[start : start + 500])
        found.update(rows.values_list("content_hash", flat=True))
    return found


def _chosen(
    project: Project,
    settings: RoundSettings,
    candidates: Sequence[Candidate],
    counts: dict[str, Any],
    on_progress: Callable[[int, int], None],
) -> "tuple[Draw, list[float | None]]":
    """What is drawn of the candidates, and their scores."""
    import numpy as np

    from training.ml import selection

    way = settings.way_of_choice
    n = min(settings.n_labels, len(candidates))
    worth = labeled = None
    if way == "random":
        read = selection.Read(np.zeros((1, len(candidates))), np.zeros((len(candidates), 1)))
    else:
        known = _labeled_pairs(project, settings)
        counts["known_labels"] = len(known)
        sides = [c.conversations() for c in candidates]
        both = _read(project, settings, [*sides, *known], on_progress)
        read, labeled = (
            selection.Read(both.gaps[:, part], both.features[part], both.is_trained)
            for part in (slice(len(sides)), slice(len(sides), None))
        )
    if way == "decision":
        worth = _decision_worth(project, settings, candidates, read)
    probs, scores = selection.design(
        way,
        n,
        read,
        labeled,
        prompts=[content_hash(c.prompt) for c in candidates],
        worth=worth,
        share=settings.random_share,
    )
    drawn = selection.draw(probs, settings.seed)
    return drawn, [None if np.isnan(score) else float(score) for score in scores]


def _labeled_pairs(project: Project, settings: RoundSettings) -> list[tuple[Messages, Messages]]:
    """Conversations of pairs that are known, or about to be: what the scorer learned from, and the
    pairs of earlier rounds."""
    version = project.models.filter(name=settings.scorer).select_related("run__dataset").first()
    found: dict[str, tuple[Messages, Messages]] = {}
    if version and version.run and version.run.dataset and not version.run.dataset.of_ratings:
        for pair in load_pairs(version.run.dataset)[0]:
            sides = pair.prompt + pair.chosen, pair.prompt + pair.rejected
            found[pair.comparison] = sides
    rows = Comparison.objects.filter(round_pairs__round__project=project).select_related(
        "prompt", "response_a", "response_b"
    )
    for row in rows.order_by("-pk")[:MOST_KNOWN]:
        found[row.content_hash] = (
            row.prompt.messages + row.response_a.messages,
            row.prompt.messages + row.response_b.messages,
        )
    keys = sorted(found)
    random.Random(f"known {settings.seed}").shuffle(keys)  # noqa: S311 - chance, not a secret
    return [found[key] for key in keys[:MOST_KNOWN]]


def _read(
    project: Project,
    settings: RoundSettings,
    sides: Sequence[tuple[Messages, Messages]],
    on_progress: Callable[[int, int], None],
) -> "Read":
    """Pairs under the scorer, or under the base of the first model where there is none."""
    from training.ml.candidates import load_reader, read_responses
    from training.ml.peaks import give_memory_back
    from training.ml.selection import Read

    name = settings.scorer or settings.models[0]
    model, tokenizer = load_reader(named_model(project, name), is_trained=bool(settings.scorer))
    unique: dict[str, int] = {}
    conversations: list[Messages] = []
    places = []
    for side in (side for pair in sides for side in pair):
        key = content_hash(side)
        if key not in unique:
            unique[key] = len(conversations)
            conversations.append(side)
        places.append(unique[key])
    seen = read_responses(
        model, tokenizer, conversations, batch_size=READ_AT_ONCE, on_progress=on_progress
    )
    del model
    give_memory_back()
    rewards, features = seen.rewards[:, places], seen.features[places]
    return Read(
        rewards[:, ::2] - rewards[:, 1::2], features[::2] - features[1::2], bool(settings.scorer)
    )


def _decision_worth(
    project: Project, settings: RoundSettings, candidates: Sequence[Candidate], read: "Read"
) -> Any:
    """(candidates,) by how much an answer shrinks the variance of "first model − second"."""
    import numpy as np

    from training.ml.selection import decision_gain

    place = {name: n for n, name in enumerate(settings.models)}
    information = np.eye(len(place))
    for a, b, n in _n_compared(project, settings.models):
        d = np.zeros(len(place))
        d[place[a]], d[place[b]] = 1, -1
        information += n / 4 * np.outer(d, d)  # p(1 − p) ≤ ¼: what is known is not overstated
    features = np.zeros((len(candidates), len(place)))
    for row, candidate in zip(features, candidates, strict=True):
        row[place[candidate.model_a]], row[place[candidate.model_b]] = 1, -1
    contrast = np.zeros(len(place))
    contrast[0], contrast[1] = 1, -1
    probs = read.probs.mean(axis=0)
    return decision_gain(np.linalg.inv(information), contrast, features, probs)


def _n_compared(project: Project, models: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """(model, model, labels of people on their comparisons)."""
    votes = Preference.objects.current().filter(
        comparison__project=project,
        rater__kind=Rater.Kind.PERSON,
        comparison__response_a__source__in=models,
        comparison__response_b__source__in=models,
    )
    by = votes.order_by().values_list(
        "comparison__response_a__source", "comparison__response_b__source"
    )
    for a, b, n in by.annotate(n=Count("pk")):
        if a != b:
            yield a, b, n


def _give_to_people(
    round_: Round,
    candidates: Sequence[Candidate],
    drawn: "Draw",
    scores: Sequence[float | None],
) -> list[int]:
    """The chosen candidates as comparisons in the queue, with how each came to be chosen."""
    project = round_.project
    rng = random.Random(f"sides {round_.pk}")  # noqa: S311 - which of the two is called A
    rows = []
    for place in drawn.places:
        c = candidates[place]
        sides = [(c.a, c.model_a), (c.b, c.model_b)]
        rng.shuffle(sides)
        said = [[{"role": "assistant", "content": text}] for text, _model in sides]
        rows.append(
            Row(
                prompt=c.prompt,
                response_a=said[0],
                response_b=said[1],
                model_a=sides[0][1],
                model_b=sides[1][1],
                metadata={
                    "round": round_.number,
                    "probability": float(drawn.probability[place]),
                    "at_random": bool(drawn.at_random[place]),
                },
            )
        )
    RowStore(project, people_of(project, settings_of(round_).people)).store(rows)
    keys = {candidates[place].key: place for place in drawn.places}
    made = list(
        project.comparisons.filter(content_hash__in=list(keys)).values_list("pk", "content_hash")
    )
    RoundPair.objects.bulk_create(
        RoundPair(
            round=round_,
            comparison_id=pk,
            probability=float(drawn.probability[keys[key]]),
            at_random=bool(drawn.at_random[keys[key]]),
            score=scores[keys[key]],
        )
        for pk, key in made
    )
    pks = [pk for pk, _key in made]
    project.comparisons.filter(pk__in=pks, priority=0).update(priority=PRIORITY)
    return pks


# What came of it ----------------------------------------------------------------------------------


def train_on_labels(round_: Round, kind: str, user: Any) -> Run:
    """Start a run on all labels of now, with base and settings of the project's last one of this
    kind, else the defaults on the base under the round's first model, and where several people
    judged each pair on the share of their votes; and tie it to the round.

    Raises: ValueError in plain words: a round that has not chosen yet, a run on its way already,
        or what `start_run` refuses.
    """
    if kind not in (Run.Kind.REWARD, Run.Kind.DPO):
        raise ValueError(_("A round trains a reward model, or a policy by DPO or PPO."))
    if round_.status != Job.Status.SUCCEEDED:
        raise ValueError(_("The round has to choose its pairs first."))
    name = "reward_run" if kind == Run.Kind.REWARD else "policy_run"
    before = getattr(round_, name)
    if before is not None and before.is_active:
        raise ValueError(_("%(run)s is on its way already.") % {"run": str(before).capitalize()})
    project = round_.project
    last = project.runs.filter(kind=kind, status=Job.Status.SUCCEEDED).order_by("-pk").first()
    base, chosen = _first_base(project, settings_of(round_).models[0]), {}
    made_by = None
    if last is None and people_of(project, settings_of(round_).people) > 1:
        made_by = DatasetSettings(aggregate="soft", near_duplicates=0.0)
    if last is not None:
        base, chosen = last.base_model, unusual(recipe_of_run(last))
        if last.dataset is not None and not last.dataset.of_ratings:
            made_by = settings_again(last.dataset.filters)
    with transaction.atomic():
        run = start_run(
            project,
            kind=kind,
            base_model=base,
            recipe_settings=chosen,
            made_by=made_by,
            created_by=user,
        )
        setattr(round_, name, run)
        round_.then = ""
        round_.save(update_fields=[name, "then"])
    return run


def policy_by_ppo(round_: Round, scored_by: ModelVersion, user: Any) -> Run:
    """Start PPO from a reward model, on the prompts that it was trained on, with base and settings
    of the project's last PPO run, else the defaults on the base under the round's first model and
    the reward model before as hold-out; and tie it to the round.

    Raises: ValueError for a run on its way already, or what `start_run` refuses.
    """
    before = round_.policy_run
    if before is not None and before.is_active:
        raise ValueError(_("%(run)s is on its way already.") % {"run": str(before).capitalize()})
    project = round_.project
    last = project.runs.filter(kind=Run.Kind.PPO, status=Job.Status.SUCCEEDED).first()
    if last is not None:
        known = {field.name for field in fields(PPORecipe)}
        stored = PPORecipe(**{k: v for k, v in last.recipe.items() if k in known})
        base, chosen = last.base_model, unusual(stored)
    else:
        base, chosen = _first_base(project, settings_of(round_).models[0]), {}
        others = project.models.filter(kind=ModelVersion.Kind.REWARD).exclude(pk=scored_by.pk)
        chosen["holdout_reward_model"] = getattr(others.order_by("-pk").first(), "name", "")
    chosen["reward_models"] = scored_by.name
    if chosen.get("holdout_reward_model") == scored_by.name:
        del chosen["holdout_reward_model"]
    assert scored_by.run is not None  # only runs make reward models
    with transaction.atomic():
        run = start_run(
            project,
            kind=Run.Kind.PPO,
            base_model=base,
            recipe_settings=chosen,
            dataset=scored_by.run.dataset,
            created_by=user,
        )
        round_.policy_run = run
        round_.save(update_fields=["policy_run"])
    return run


def _first_base(project: Project, name: str) -> str:
    """The base under a model, through all that was trained on it."""
    version = project.models.filter(name=name).select_related("base").first()
    while version is not None and version.base is not None:
        version = ModelVersion.objects.select_related("base").get(pk=version.base_id)
    return version.name if version else name


def new_and_previous(round_: Round) -> tuple[str, str] | None:
    """The policy that came of the round, and the one that it is held against: the round's first
    model. None before there is one."""
    run = round_.policy_run
    version = getattr(run, "model_version", None) if run else None
    return (version.name, round_.options["models"][0]) if version else None


def measure_of(round_: Round) -> dict[str, Any]:
    """How often the round's policy is preferred to the one before, by the arenas' labels of now.

    Comparisons that a round chose are left out: they were chosen because they are special.

    Returns: "new", "previous", and the figures of `labeling.leaderboard.pair_figures`.
    Raises: ValueError if there is nothing to hold against each other; StatisticsMissing.
    """
    from labeling.reports import statistics_for

    with statistics_for("Rounds"):
        from labeling.leaderboard import answers_of, only, pair_figures
    pair = new_and_previous(round_)
    if pair is None:
        raise ValueError(_("Train a policy on the labels of this round first."))
    new, previous = pair
    keys = Comparison.objects.filter(arenas__project=round_.project).values_list("pk", flat=True)
    answers = only(answers_of(round_.project), set(keys))
    missing = [name for name in pair if name not in answers.sources]
    if missing:
        raise ValueError(_("Nobody has compared these two models yet: send pairs to people first."))
    places = [answers.sources.index(name) for name in pair]
    judge = next(iter(answers.judges), None)
    figures = pair_figures(answers, *places, judge)
    return {"new": new, "previous": previous, **figures}


# Rounds as rows -----------------------------------------------------------------------------------

SETTLED = 0.05
"""A win rate whose interval lies this near to one half is no gain that is worth labels."""
HARDLY = 0.01
"""The same of a reward model's accuracy."""


ADVICE = {
    "labels": _lazy("label its pairs"),
    "train": _lazy("train on them"),
    "compare": _lazy("compare policies"),
    "go on": _lazy("go on"),
    "open": _lazy("not decided"),
    "stop": _lazy("stop"),
    "worse": _lazy("worse"),
}


@dataclass(frozen=True)
class Advice:
    """Whether to go on, in words."""

    word: str
    """Of ADVICE."""
    level: str
    """ok, warn or info"""
    text: str

    @property
    def badge(self) -> str:
        return str(ADVICE[self.word])


@dataclass
class RoundRow:
    """One round with what it cost and what came of it."""

    round: Round
    n_pairs: int = 0
    n_random: int = 0
    n_done: int = 0
    """Pairs that want no more labels."""
    n_labels: int = 0
    """Current answers of people."""
    n_verdicts: int = 0
    """Current answers of judges."""
    seconds: float = 0.0
    """That people took, where it is known."""
    n_labels_so_far: int = 0
    """Those of this round and of all before."""
    accuracy: dict[str, Any] | None = None
    """Of the round's reward model on what was held out."""
    gain: dict[str, Any] | None = None
    """See `measure_of`."""
    advice: Advice | None = None

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def share_done(self) -> float:
        """Of what a worker does for it."""
        return self.round.n_done / (self.round.n_total or 1)

    @property
    def win_rate(self) -> dict[str, Any] | None:
        """The best figure there is: with the judge's verdicts where that may be."""
        if not self.gain:
            return None
        joined: dict[str, Any] = self.gain["combined"]
        people: dict[str, Any] = self.gain["people"]
        return people if joined.get("value") is None else joined


def round_rows(project: Project) -> list[RoundRow]:
    """Every round, the first first, in a number of queries that does not grow with them."""
    rounds = project.rounds.order_by("number").select_related(
        "created_by", "reward_run__model_version", "policy_run__model_version"
    )
    rows = {round_.pk: RoundRow(round_) for round_ in rounds}
    pairs = RoundPair.objects.filter(round__project=project).order_by()
    for pk, at_random, is_open, n in pairs.values_list(
        "round", "at_random", "comparison__open_places"
    ).annotate(n=Count("pk")):
        row = rows[pk]
        row.n_pairs += n
        row.n_random += n * at_random
        row.n_done += n * (not is_open)
    answers = Preference.objects.current().filter(comparison__round_pairs__round__project=project)
    for pk, kind, n, seconds in (
        answers.order_by()
        .values_list("comparison__round_pairs__round", "rater__kind")
        .annotate(n=Count("pk"), seconds=Sum("seconds"))
    ):
        if kind == Rater.Kind.PERSON:
            rows[pk].n_labels, rows[pk].seconds = n, seconds or 0.0
        else:
            rows[pk].n_verdicts = n
    measured = project.round_measures.filter(status=Job.Status.SUCCEEDED).order_by("pk")
    for pk, result in measured.values_list("round", "result"):
        rows[pk].gain = result
    so_far = 0
    before: RoundRow | None = None
    for row in rows.values():
        so_far += row.n_labels
        row.n_labels_so_far = so_far
        run = row.round.reward_run
        figure = run.metrics.get("accuracy") if run else None
        row.accuracy = figure if figure and figure.get("value") is not None else None
        row.advice = advice_of(row, before)
        before = row
    return list(rows.values())


def advice_of(row: RoundRow, before: RoundRow | None) -> Advice | None:
    """What to do after a round: go on while there is a gain, stop once its interval says that there
    is none to speak of. None for a round that is still choosing.

    Of policies the interval is the one that holds at every look, since one looks after every round.
    """
    if row.round.status != Job.Status.SUCCEEDED:
        return None
    if row.n_done < row.n_pairs:
        left = row.n_pairs - row.n_done
        return Advice("labels", "info", _("%(n)s of its pairs still want labels.") % {"n": left})
    if row.round.reward_run is None and row.round.policy_run is None:
        return Advice("train", "info", _("All its pairs are labeled: train on them."))
    if row.gain:
        return _of_policy(row.gain)
    if row.accuracy and before and before.accuracy:
        return _of_accuracy(row.accuracy, before.accuracy)
    if row.round.policy_run is not None:
        text = _("Hold the new policy against the one before: blind, on held-out prompts.")
        return Advice("compare", "info", text)
    return Advice("go on", "info", _("One round shows no gain yet: begin the next one."))


def _of_policy(gain: dict[str, Any]) -> Advice:
    figure = gain["sequential"]
    if figure.get("value") is None or figure.get("low") is None:
        return Advice("open", "info", _("People have not compared the two policies yet."))
    low, high = figure["low"], figure["high"]
    if low > 0.5:
        text = _(
            "The new policy is better, however often one looks: the next round begins with it."
        )
        return Advice("go on", "ok", text)
    if high < 0.5:
        text = _("The new policy is worse: keep the one before, and look at what was learned.")
        return Advice("worse", "warn", text)
    if low > 0.5 - SETTLED and high < 0.5 + SETTLED:
        text = _(
            "The interval has settled around one half: more rounds of this kind bring little. Stop."
        )
        return Advice("stop", "warn", text)
    more = gain["more"]
    if more.get("value") is not None:
        text = _("Not decided yet: about %(n)s more labels of the arena would.")
        return Advice("open", "info", text % {"n": round(more["value"])})
    return Advice("open", "info", _("Not decided yet: label more pairs of the arena."))


def _of_accuracy(now: dict[str, Any], before: dict[str, Any]) -> Advice:
    """By the difference of two accuracies. Their intervals are taken as independent; prompts that
    both were measured on make the true interval narrower, so this stops late rather than early."""
    if now.get("low") is None or before.get("low") is None:
        return Advice("open", "info", _("Too few held-out pairs to see a gain: hold out more."))
    change = now["value"] - before["value"]
    half = ((now["high"] - now["low"]) ** 2 + (before["high"] - before["low"]) ** 2) ** 0.5 / 2
    words = {
        "change": f"{100 * change:+.1f}",
        "low": f"{100 * (change - half):+.1f}",
        "high": f"{100 * (change + half):+.1f}",
    }
    told = _("Held-out accuracy %(change)s points [%(low)s, %(high)s] against the round before.")
    told %= words
    if change - half > 0:
        return Advice("go on", "ok", told + " " + _("Labels still help: go on."))
    if change + half < HARDLY:
        text = _("More labels of this kind bring less than a point: stop.")
        return Advice("stop", "warn", told + " " + text)
    return Advice("open", "info", told + " " + _("The interval is too wide to stop: go on."))


def measure_round(round_: Round, by: Any) -> RoundMeasure:
    """The measurement of the round that waits or works; a new one, of which `by` is told, if none
    does."""
    with transaction.atomic():
        # Two clicks at the same moment: the second waits here for the first.
        Project.objects.select_for_update(no_key=True).get(pk=round_.project_id)
        found = round_.measures.active().first()
        if found is None:
            found = round_.measures.create(project=round_.project, created_by=by)
            found.enqueue()
    return found
