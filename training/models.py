"""Preferences become models: frozen datasets, runs, their steps and log, checkpoints, models; and
what is done with these: merges, answers side by side, exports."""

from typing import Self

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.jobs import Job
from labeling.models import Comparison, Project, Rater


class DatasetQuerySet(models.QuerySet):
    def of_studies_alone(self) -> Self:
        """Datasets that studies froze and nobody else has used."""
        return self.filter(for_study=True, runs=None)

    def listed(self) -> Self:
        """All others: those that people froze, or that a run was trained on."""
        return self.exclude(pk__in=self.of_studies_alone().values("pk"))


class Dataset(models.Model):
    """Frozen pairs, or judgements of single responses, with their split. The rows lie in a file
    whose SHA-256 is the dataset's name."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="datasets")
    sha256 = models.CharField(max_length=64)
    # Where an erasure wrote the file's first line anew, the hash of all lines after it: by that the
    # file is checked from then on (labeling/personal_files.py).
    body_sha256 = models.CharField(max_length=64, blank=True)
    redacted_at = models.DateTimeField(null=True, blank=True)
    path = models.CharField(max_length=500)  # JSON lines under PREFLOOP_STORAGE
    # What made it: source of labels, aggregation, split, length filter.
    filters = models.JSONField(default=dict)
    # What it holds and what was left out, with reasons: train, test, ties, disputes, filtered, …
    counts = models.JSONField(default=dict)
    # Who labeled: [{"rater", "kind", "n"}, …], judge versions among them.
    raters = models.JSONField(default=list)
    # What was seen of it before it was frozen: see training/previews.py. Empty: made with a run.
    preview = models.JSONField(default=dict)
    # Made for a study, and by nobody else since.
    for_study = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "sha256"], name="dataset_once_per_project")
        ]

    def __str__(self) -> str:
        return f"dataset {self.sha256[:12]}"

    @property
    def of_ratings(self) -> bool:
        """Whether its rows are judgements of single responses, not pairs."""
        return self.filters.get("kind") == "ratings"

    @property
    def n_rows(self) -> int:
        """Its pairs, or its single responses."""
        return self.counts.get("singles" if self.of_ratings else "pairs", 0)


class DatasetDraft(Job):
    """Settings of a dataset on their way to a preview, or to the frozen dataset itself."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="dataset_drafts")
    filters = models.JSONField(default=dict)  # of DatasetSettings, whole: as in the dataset
    freezing = models.BooleanField(default=False)  # else the preview alone
    result = models.JSONField(default=dict)  # the preview
    dataset = models.ForeignKey(
        Dataset, models.SET_NULL, null=True, blank=True, related_name="drafts"
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:draft"

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"dataset draft {self.pk}"

    @property
    def tells_of_success(self) -> bool:
        return self.freezing

    def enqueue(self) -> None:
        from training.tasks import build_dataset

        build_dataset.delay_on_commit(self.pk)


class Sweep(models.Model):
    """Runs that differ in a few settings alone, carried out one after another."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="sweeps")
    kind = models.CharField(max_length=20)  # of its runs
    grid = models.JSONField(default=dict)  # {setting: [values]}; a run for every combination
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return _("sweep %(pk)s") % {"pk": self.pk}


class Run(Job):
    """One execution of a recipe on a frozen dataset, or on a file of raw text: enough is stored to
    run it again."""

    class Kind(models.TextChoices):
        REWARD = "reward", _lazy("Reward model")
        DPO = "dpo", _lazy("DPO policy")
        PPO = "ppo", _lazy("PPO policy")
        SFT = "sft", _lazy("SFT policy")
        PRETRAIN = "pretrain", _lazy("Continued pre-training")
        QUIET_STAR = "quiet_star", _lazy("Quiet-STaR")

    project = models.ForeignKey(Project, models.CASCADE, related_name="runs")
    kind = models.CharField(max_length=20, choices=Kind)
    base_model = models.CharField(max_length=500)  # hub id, local folder, or name of a ModelVersion
    base_revision = models.CharField(max_length=64, blank=True)  # hash of the base's weights
    recipe = models.JSONField(default=dict)  # the recipe's dataclass, whole
    seed = models.PositiveIntegerField(default=0)
    # None for a run on raw text, whose recipe names its file, and until a worker froze `labels`.
    dataset = models.ForeignKey(
        Dataset, models.RESTRICT, null=True, blank=True, related_name="runs"
    )
    # DatasetSettings by which the worker freezes the labels of now; empty if the dataset was named.
    labels = models.JSONField(default=dict, blank=True)
    text_sha256 = models.CharField(max_length=64, blank=True)  # of that file
    code_version = models.CharField(max_length=100)
    metrics = models.JSONField(default=dict)
    # Bytes of memory, of a run that ended: foretold for its longest pair, and found. See
    # training/ml/memory.py and peaks.py.
    predicted_peak = models.BigIntegerField(null=True, blank=True)
    measured_peak = models.BigIntegerField(null=True, blank=True)
    device = models.CharField(max_length=10, blank=True)  # cuda | cpu
    # The judge whose ratings PPO learns from; the recipe keeps its name.
    judge = models.ForeignKey(
        Rater, models.SET_NULL, null=True, blank=True, related_name="scored_runs"
    )
    folder = models.CharField(max_length=500, blank=True)  # under PREFLOOP_STORAGE
    queue = models.CharField(max_length=20, default="gpu")  # that it waits or waited in
    cause = models.CharField(max_length=20, blank=True)  # of a failure: see training/causes.py
    report_to = models.CharField(max_length=20, blank=True)  # see training/ml/trackers.py
    sweep = models.ForeignKey(Sweep, models.SET_NULL, null=True, blank=True, related_name="runs")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:run"

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return _("%(kind)s run %(pk)s") % {"kind": self.get_kind_display(), "pk": self.pk}

    def enqueue(self) -> None:
        from training.routing import queue_for
        from training.tasks import train

        self.queue = queue_for(self)  # anew each time: the classes may have been changed meanwhile
        Run.objects.filter(pk=self.pk).update(queue=self.queue)
        if self.queue == "gpu":  # where the task is sent anyway
            train.delay_on_commit(self.pk)
        else:
            train.apply_async_on_commit(args=(self.pk,), queue=self.queue)


class RunRewardModel(models.Model):
    """A reward model that a run learns from, or that watches over it."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="reward_models")
    model = models.ForeignKey("ModelVersion", models.CASCADE, related_name="rewarded_runs")
    place = models.PositiveSmallIntegerField()  # from 1, as the recipe names them
    holds_out = models.BooleanField(default=False)  # watches, and is never learned from

    class Meta:
        ordering = ["place"]
        constraints = [
            models.UniqueConstraint(fields=["run", "model"], name="reward_model_once_per_run")
        ]

    def __str__(self) -> str:
        return f"{self.model} of {self.run}"


class RunStep(models.Model):
    """One report of a run: a point on its curves."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="steps")
    step = models.PositiveIntegerField()
    split = models.CharField(max_length=10, default="train")  # train | test
    values = models.JSONField(default=dict)  # {"loss": …, "accuracy": …, "margin": …}
    # {"tokens", "seconds", "memory"} of a training step: apart, since `values` come out the same
    # for the same seed and these never do.
    cost = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["step"]
        constraints = [
            models.UniqueConstraint(fields=["run", "step", "split"], name="one_report_per_step")
        ]

    def __str__(self) -> str:
        return f"{self.run} step {self.step}"


class RunEvent(models.Model):
    """One line of a run's log."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="events")
    text = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.text


class Checkpoint(models.Model):
    """Weights that a run saved on its way."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="checkpoints")
    step = models.PositiveIntegerField()
    path = models.CharField(max_length=500)  # under PREFLOOP_STORAGE
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["step"]
        constraints = [
            models.UniqueConstraint(fields=["run", "step"], name="one_checkpoint_per_step")
        ]

    def __str__(self) -> str:
        return f"{self.run} at step {self.step}"


class Merge(Job):
    """Several models, or an adapter and its base, on their way to become one."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="merges")
    name = models.SlugField(max_length=100)  # that the model is to bear
    method = models.CharField(max_length=20)  # see training/ml/merge_recipe.py
    # What changes are counted from, where the method wants it said.
    base = models.ForeignKey(
        "ModelVersion", models.RESTRICT, null=True, blank=True, related_name="merges_from"
    )
    recipe = models.JSONField(default=dict)  # the MergeRecipe, without its folders
    result = models.JSONField(default=dict)  # the check, bytes, seconds
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:merge"

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return _("merge %(pk)s") % {"pk": self.pk}

    def enqueue(self) -> None:
        from training.tasks import merge_models

        merge_models.delay_on_commit(self.pk)


class MergePart(models.Model):
    """One of the models that a merge is made from."""

    merge = models.ForeignKey(Merge, models.CASCADE, related_name="parts")
    model = models.ForeignKey("ModelVersion", models.RESTRICT, related_name="merge_parts")
    place = models.PositiveSmallIntegerField()  # from 1
    weight = models.FloatField(default=1.0)

    class Meta:
        ordering = ["place"]
        constraints = [
            models.UniqueConstraint(fields=["merge", "place"], name="one_part_per_place"),
            models.UniqueConstraint(fields=["merge", "model"], name="model_once_per_merge"),
        ]

    def __str__(self) -> str:
        return f"{self.model} in {self.merge}"


class ModelVersion(models.Model):
    """A model that can be named: a base that was brought in, or what a run or a merge made."""

    class Kind(models.TextChoices):
        BASE = "base", _lazy("Base model")
        REWARD = "reward", _lazy("Reward model")
        POLICY = "policy", _lazy("Policy")

    project = models.ForeignKey(Project, models.CASCADE, related_name="models")
    name = models.SlugField(max_length=100)
    kind = models.CharField(max_length=10, choices=Kind)
    path = models.CharField(
        max_length=500
    )  # under PREFLOOP_STORAGE, or any local folder for a base
    base = models.ForeignKey("self", models.RESTRICT, null=True, blank=True, related_name="derived")
    run = models.OneToOneField(
        Run, models.RESTRICT, null=True, blank=True, related_name="model_version"
    )
    merge = models.OneToOneField(
        Merge, models.RESTRICT, null=True, blank=True, related_name="model_version"
    )
    tags = models.JSONField(default=list)  # words, sorted
    notes = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="model_name_per_project")
        ]

    def __str__(self) -> str:
        return self.name


class SideBySide(Job):
    """A prompt to which two models answer, for a person to look at."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="sides_by_side")
    prompt = models.JSONField()  # messages
    # By name, so that the row outlives the models.
    model_a = models.CharField(max_length=200)
    model_b = models.CharField(max_length=200)
    sampling = models.JSONField(default=dict)  # temperature, seed, max_new_tokens
    text_a = models.TextField(blank=True)
    text_b = models.TextField(blank=True)
    result = models.JSONField(default=dict)  # of each side: tokens, seconds, why it ended
    # What people were given of it.
    comparison = models.ForeignKey(
        Comparison, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:side_by_side"

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "sides by side"

    def __str__(self) -> str:
        return f"{self.model_a} beside {self.model_b}"

    @property
    def tells_of_success(self) -> bool:
        return False

    def enqueue(self) -> None:
        from training.tasks import answer_side_by_side

        answer_side_by_side.delay_on_commit(self.pk)


class ModelExport(Job):
    """A model on its way to a GGUF file."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="model_exports")
    model = models.ForeignKey(ModelVersion, models.CASCADE, related_name="exports")
    numbers = models.CharField(max_length=10)  # see training/ml/exporting.py
    path = models.CharField(max_length=500, blank=True)  # under PREFLOOP_STORAGE
    result = models.JSONField(default=dict)  # bytes, tensors, seconds
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    @property
    def address(self) -> str:
        return reverse("training:model", args=[self.project.slug, self.model.name])

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.model} as GGUF"

    def enqueue(self) -> None:
        from training.tasks import export_model

        export_model.delay_on_commit(self.pk)


class ModelReport(Job):
    """What a trained model is worth at one moment, measured by a worker and kept."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="model_reports")
    model = models.ForeignKey(ModelVersion, models.CASCADE, related_name="reports")
    result = models.JSONField(default=dict)  # see training/reports.py
    # Nobody for the one that is made with the model.
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"report on {self.model}"

    @property
    def address(self) -> str:
        return reverse("training:report", args=[self.project.slug, self.model.name])

    @property
    def tells_of_success(self) -> bool:
        return self.created_by_id is not None

    def enqueue(self) -> None:
        from training.tasks import report_on_model

        report_on_model.delay_on_commit(self.pk)


class Study(Job):
    """Several reward models trained alike but for one thing, and held against the same pairs."""

    class Kind(models.TextChoices):
        CURVE = "curve", _lazy("How many labels")
        LABELS = "labels", _lazy("Which labels")

    project = models.ForeignKey(Project, models.CASCADE, related_name="studies")
    kind = models.CharField(max_length=10, choices=Kind)
    # The run whose base, settings and labels the study takes over.
    run = models.ForeignKey(Run, models.CASCADE, related_name="studies")
    options = models.JSONField(default=dict)  # see training/studies.py
    # What each training came to, so that a study that was stopped goes on with the next one.
    cells = models.JSONField(default=dict)
    result = models.JSONField(default=dict)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:study"

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "studies"

    def __str__(self) -> str:
        return _("study %(pk)s") % {"pk": self.pk}

    def enqueue(self) -> None:
        from training.tasks import carry_out_study

        carry_out_study.delay_on_commit(self.pk)


class Round(Job):
    """One turn of the loop: responses are sampled, pairs chosen and given to people; later a model
    is trained on the labels and held against the one before."""

    class Purpose(models.TextChoices):
        REWARD = "reward", _lazy("A better reward model")
        DPO = "dpo", _lazy("A better policy, by DPO")
        PPO = "ppo", _lazy("A better policy, by PPO")
        EVALUATION = "evaluation", _lazy("Which model is better")

    class Then(models.TextChoices):
        POLICY = "policy", _lazy("the policy, once the reward model is trained")
        ARENA = "arena", _lazy("the arena, once the policy is trained")

    project = models.ForeignKey(Project, models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField()  # from 1, in its project
    purpose = models.CharField(max_length=12, choices=Purpose)
    options = models.JSONField(default=dict)  # the RoundSettings, whole: see training/rounds.py
    result = models.JSONField(default=dict)  # what was sampled, left out and chosen
    # What came of it, once there are labels.
    reward_run = models.ForeignKey(
        Run, models.SET_NULL, null=True, blank=True, related_name="rounds_of_reward"
    )
    policy_run = models.ForeignKey(
        Run, models.SET_NULL, null=True, blank=True, related_name="rounds_of_policy"
    )
    # What follows by itself when the run on its way has ended: see training/round_chain.py.
    then = models.CharField(max_length=10, choices=Then, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:round"

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="round_number_per_project")
        ]

    def __str__(self) -> str:
        return _("round %(number)s") % {"number": self.number}

    def enqueue(self) -> None:
        from training.tasks import choose_pairs

        choose_pairs.delay_on_commit(self.pk)


class RoundPair(models.Model):
    """A comparison that a round chose, and how it came to be chosen."""

    round = models.ForeignKey(Round, models.CASCADE, related_name="pairs")
    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="round_pairs")
    # With which the round's design takes this candidate: see training/ml/selection.py.
    probability = models.FloatField()
    # Belongs to the part that is a uniform sample of all candidates.
    at_random = models.BooleanField(default=False)
    score = models.FloatField(null=True, blank=True)  # what a label would tell; None: not scored

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["round", "comparison"], name="pair_once_per_round")
        ]

    def __str__(self) -> str:
        return f"{self.comparison} in {self.round}"


class Arena(Job):
    """Comparisons between models on prompts that none of them was trained on, on their way."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="arenas")
    # The round whose new policy is held against the one before; empty: a lead's own.
    round = models.ForeignKey(Round, models.CASCADE, null=True, blank=True, related_name="arenas")
    options = models.JSONField(default=dict)  # the ArenaSettings, whole: see training/arenas.py
    comparisons = models.ManyToManyField(Comparison, related_name="arenas")
    result = models.JSONField(default=dict)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "training:arena"

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return _("arena %(pk)s") % {"pk": self.pk}

    def enqueue(self) -> None:
        from training.tasks import fill_arena

        fill_arena.delay_on_commit(self.pk)


class RoundMeasure(Job):
    """How much better a round's policy is than the one before, by the labels of one moment."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="round_measures")
    round = models.ForeignKey(Round, models.CASCADE, related_name="measures")
    result = models.JSONField(default=dict)  # see training/rounds.py
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"measure of {self.round}"

    @property
    def address(self) -> str:
        return reverse("training:round", args=[self.project.slug, self.round_id])

    @property
    def tells_of_success(self) -> bool:
        return self.created_by_id is not None

    def enqueue(self) -> None:
        from training.tasks import measure_round

        measure_round.delay_on_commit(self.pk)
