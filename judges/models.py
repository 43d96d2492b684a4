"""AI judges: what they are asked, their runs, and the raw numbers of every verdict."""

import socket
from datetime import timedelta
from typing import Any, Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Avg, Count, F, Q, Sum
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _lazy

from labeling.jobs import Job, JobQuerySet, process_lives
from labeling.models import Comparison, Project, Rater


class Judge(models.Model):
    """A named judge of a project. What it is made of stands in its versions."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="judges")
    name = models.CharField(max_length=100)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="judge_name_per_project")
        ]

    def __str__(self) -> str:
        return self.name


class PromptVersion(models.Model):
    """The words of a judge's question, frozen. A change makes a new version of the prompt, hence a
    new version of every judge that goes over to it."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="prompt_versions")
    name = models.CharField(max_length=100)
    number = models.PositiveIntegerField()
    words = models.JSONField()  # the fields of JudgeRecipe that a judge reads
    content_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["name", "-number"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "name", "number"], name="prompt_version_number"
            ),
            models.UniqueConstraint(
                fields=["project", "name", "content_hash"], name="prompt_version_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.number}"


class JudgeServer(models.Model):
    """An OpenAI-compatible server whose address an administrator has allowed."""

    name = models.CharField(max_length=100, unique=True)
    url = models.CharField(max_length=500)  # up to and with /v1; see judges.servers.check_url
    # Whether its name may lead to a private or a loopback address: an administrator said so.
    in_own_network = models.BooleanField(default=False)
    # The key is read from the environment, or stored encrypted; never shown again.
    key_variable = models.CharField(max_length=100, blank=True)
    encrypted_key = models.TextField(blank=True)
    max_concurrency = models.PositiveSmallIntegerField(default=8)
    timeout_seconds = models.PositiveIntegerField(default=120)  # of one request
    # In `currency` per million tokens; empty: not known.
    price_read = models.FloatField(null=True, blank=True)
    price_written = models.FloatField(null=True, blank=True)
    currency = models.CharField(max_length=3, default="USD")
    created_at = models.DateTimeField(auto_now_add=True)
    allowed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    trial = models.JSONField(default=dict)  # what the last try came to: see judges.servers
    tried_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class JudgeVersion(models.Model):
    """One frozen state of a judge: model, prompt and settings. A change makes a new version,
    hence a new rater."""

    judge = models.ForeignKey(Judge, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    model = models.CharField(max_length=500)  # see labeling.storage.model_folder
    # Where the model runs; empty: in a worker of ours.
    server = models.ForeignKey(JudgeServer, models.PROTECT, null=True, blank=True, related_name="+")
    # Everything that decides a verdict beside the model: see judges.ml.config.JudgeRecipe. The
    # words of the question are those of `prompt`, kept here too so that a recipe is whole.
    recipe = models.JSONField(default=dict)
    prompt = models.ForeignKey(
        PromptVersion, models.RESTRICT, null=True, blank=True, related_name="judge_versions"
    )
    # Goes with its project alone, as everything here that is restricted.
    rater = models.OneToOneField(Rater, models.RESTRICT, related_name="judge_version")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["judge", "number"], name="judge_version_number")
        ]

    def __str__(self) -> str:
        return f"{self.judge} v{self.number}"

    def open_to_rate(self, **limits: Any) -> Any:
        """The version, ready to rate responses one by one: see labeling.scoring.open_rater."""
        from judges.rating import open_to_rate

        return open_to_rate(self, **limits)

    def own_model(self) -> Any:
        """What it loads here: see labeling.scoring.own_model_of."""
        from judges.rating import own_model

        return own_model(self)


class JudgeRunQuerySet(JobQuerySet):
    def unfinished(self) -> Self:
        """Runs that are at work, wait for a worker, or keep their place while they are paused."""
        return self.filter(status__in=[Job.Status.QUEUED, Job.Status.RUNNING, Job.Status.PAUSED])

    def orphaned(self) -> Self:
        """Running runs whose workers are all processes of this machine that are gone."""
        running = self.filter(status=Job.Status.RUNNING).prefetch_related("workers")
        gone = [run.pk for run in running if run.is_deserted]
        return self.filter(status=Job.Status.RUNNING, pk__in=gone)


class JudgeRun(Job):
    """A judge version put to work on comparisons of its project.

    Several processes may share it: `worker` names the one that started it and stands for this start
    of the run, and each of them has a RunWorker row.
    """

    version = models.ForeignKey(JudgeVersion, models.CASCADE, related_name="runs")
    limit = models.PositiveIntegerField(null=True, blank=True)
    # Which comparisons, and in which order: see judges.selection.
    selection = models.JSONField(default=dict)
    # Whether its verdicts become preferences of the judge's rater. Those of the laboratory do not,
    # until the judge is chosen.
    counts = models.BooleanField(default=True)
    # The run pauses before it would spend more; empty: no limit.
    most_tokens = models.PositiveBigIntegerField(null=True, blank=True)
    most_cost = models.FloatField(null=True, blank=True)
    workers_wanted = models.PositiveSmallIntegerField(default=1)
    pause_requested = models.BooleanField(default=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    result = models.JSONField(default=dict)  # what `judge --json` prints

    PAGE = "judges:run"

    objects = JudgeRunQuerySet.as_manager()

    @property
    def of_project(self) -> Project:
        return self.version.judge.project

    def __str__(self) -> str:
        return f"{self.version} run {self.pk}"

    def enqueue(self) -> None:
        for _worker in range(self.workers_wanted):
            self.wake_worker()

    def wake_worker(self) -> None:
        """Send a message that has one worker start the run, or share it."""
        from judges.tasks import run_judge

        run_judge.delay_on_commit(self.pk)

    @property
    def is_deserted(self) -> bool:
        """Whether every process that works on it was one of this machine, and is gone.

        Only for who sees all processes of this machine: see JobQuerySet.orphaned.
        """
        names = [worker.name for worker in self.workers.all() if worker.left_at is None]
        for name in names or [self.worker]:
            host, _, rest = name.partition(":")
            pid = rest.partition(":")[0]
            if host != socket.gethostname() or (pid.isdigit() and process_lives(int(pid))):
                return False
        return True

    def request_pause(self) -> None:
        """Pause a queued run now, and a running one when its workers have kept what they hold."""
        JudgeRun.objects.filter(pk=self.pk, status=Job.Status.QUEUED).update(
            status=Job.Status.PAUSED, finished_at=timezone.now()
        )
        JudgeRun.objects.filter(pk=self.pk, status=Job.Status.RUNNING).update(pause_requested=True)
        self.refresh_from_db()

    def request_cancel(self) -> None:
        """End the run now. Its workers see it within a second or two and drop what they hold; they
        could keep nothing of it any more."""
        JudgeRun.objects.unfinished().filter(pk=self.pk).update(
            status=Job.Status.CANCELLED, finished_at=timezone.now()
        )
        self.refresh_from_db()

    @transaction.atomic
    def requeue(self) -> bool:
        queued = super().requeue()
        if queued:
            # Whoever still has a row or a claim belongs to an earlier start, and may write no more.
            JudgeRun.objects.filter(pk=self.pk).update(pause_requested=False)
            self.pause_requested = False
            self.workers.filter(left_at=None).update(left_at=timezone.now())
            self.claims.all().delete()
        return queued


class RunWorkerQuerySet(models.QuerySet):
    def present(self) -> Self:
        """Those that have not left and were heard of lately."""
        deadline = timezone.now() - timedelta(seconds=3 * settings.PREFLOOP_HEARTBEAT_SECONDS)
        return self.filter(left_at=None, heartbeat_at__gte=deadline)

    def silent(self) -> Self:
        """Those that have not left, and have missed three heartbeats."""
        deadline = timezone.now() - timedelta(seconds=3 * settings.PREFLOOP_HEARTBEAT_SECONDS)
        return self.filter(left_at=None, heartbeat_at__lt=deadline)


class RunWorker(models.Model):
    """A process at work on a run, from when it comes to when it leaves."""

    run = models.ForeignKey(JudgeRun, models.CASCADE, related_name="workers")
    name = models.CharField(max_length=200)  # host:pid:time
    joined_at = models.DateTimeField(default=timezone.now)
    asking_since = models.DateTimeField(null=True, blank=True)  # empty while the model loads
    heartbeat_at = models.DateTimeField(default=timezone.now)
    left_at = models.DateTimeField(null=True, blank=True)
    n_judged = models.PositiveIntegerField(default=0)
    last_kept_at = models.DateTimeField(null=True, blank=True)
    problem = models.TextField(blank=True)  # why it left, if not because its work was done
    troubles = models.JSONField(default=dict)  # {kind: n}: see judges.ml.asking.Engine.counts

    objects = RunWorkerQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.name.rpartition(":")[0] or self.name


class Claim(models.Model):
    """A comparison in the hands of a worker, which alone may keep a verdict on it."""

    run = models.ForeignKey(JudgeRun, models.CASCADE, related_name="claims")
    worker = models.ForeignKey(RunWorker, models.CASCADE, related_name="claims")
    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="+")
    # What asking about it may take at most, set aside from the run's budget.
    n_tokens = models.PositiveIntegerField(default=0)
    cost = models.FloatField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "comparison"], name="claimed_once_per_run")
        ]

    def __str__(self) -> str:
        return f"{self.comparison}, held by {self.worker}"


class JudgeTrial(Job):
    """A judge version tried on one comparison: nothing of it counts as a verdict."""

    version = models.ForeignKey(JudgeVersion, models.CASCADE, related_name="trials")
    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="+")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    result = models.JSONField(default=dict)  # see judges.judging.carry_out_trial

    PAGE = "judges:trial"

    def __str__(self) -> str:
        return f"{self.version} tried on {self.comparison}"

    @property
    def of_project(self) -> Project:
        return self.version.judge.project

    @property
    def tells_of_success(self) -> bool:
        return False

    def enqueue(self) -> None:
        from judges.tasks import try_judge

        try_judge.delay_on_commit(self.pk)


# "Says first" in the order A, B and in the order B, A; see Verdict for the names.
_FIRST_AB = Q(logp_ab_first__gt=F("logp_ab_second"))
_FIRST_BA = Q(logp_ba_first__gt=F("logp_ba_second"))
_SECOND_AB = Q(logp_ab_first__lt=F("logp_ab_second"))
_SECOND_BA = Q(logp_ba_first__lt=F("logp_ba_second"))


class VerdictQuerySet(models.QuerySet):
    def counted_by(self, field: str) -> Self:
        """One row per value of `field`: how many verdicts, and the sums of what they say.

        A parsed verdict of both orders (n_ordered) is consistent when both name the same response.
        One that is not names the same place in both (first_twice, second_twice), or an order is
        undecided. Scores, rewards and juries have no orders.
        """
        asked, parsed = Q(problem=""), Q(parsed=True)
        mass = (F("answer_mass_ab") + F("answer_mass_ba")) / 2
        return (
            self.order_by()
            .values(field)
            .annotate(
                n=Count("pk"),
                n_parsed=Count("pk", filter=parsed),
                n_ordered=Count("pk", filter=parsed & Q(logp_ab_first__isnull=False)),
                n_refused=Count("pk", filter=~asked),
                n_cut=Count("pk", filter=Q(n_tokens_cut__gt=0)),
                n_consistent=Count(
                    "pk", filter=parsed & ((_FIRST_AB & _SECOND_BA) | (_SECOND_AB & _FIRST_BA))
                ),
                n_first_twice=Count("pk", filter=parsed & _FIRST_AB & _FIRST_BA),
                n_second_twice=Count("pk", filter=parsed & _SECOND_AB & _SECOND_BA),
                mean_mass=Avg(mass, filter=asked),
                n_tokens=Sum("n_tokens"),
                n_tokens_written=Sum("n_tokens_written"),
                cost=Sum("cost"),
                seconds=Sum("seconds"),
            )
        )


class Verdict(models.Model):
    """What one judge version said of one comparison, in both orders, as raw numbers.

    "first" and "second" are the places of the responses in the question: with A shown first (ab),
    "first" speaks for A; with B shown first (ba), "second" does. Log-probabilities are in nats, and
    empty where a `problem` kept the question from being asked.
    """

    version = models.ForeignKey(JudgeVersion, models.CASCADE, related_name="verdicts")
    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="verdicts")
    run = models.ForeignKey(JudgeRun, models.SET_NULL, null=True, related_name="verdicts")
    # The run of a jury that had its member asked: what that took, the run has spent.
    asked_for = models.ForeignKey(
        JudgeRun, models.SET_NULL, null=True, related_name="member_verdicts"
    )
    logp_ab_first = models.FloatField(null=True)
    logp_ab_second = models.FloatField(null=True)
    logp_ba_first = models.FloatField(null=True)
    logp_ba_second = models.FloatField(null=True)
    # Tie-aware judges alone.
    logp_ab_tie = models.FloatField(null=True)
    logp_ba_tie = models.FloatField(null=True)
    prob_tie = models.FloatField(null=True)
    # Direct scores from 1 to 10, or a reward model's rewards.
    score_a = models.FloatField(null=True)
    score_b = models.FloatField(null=True)
    prob_a = models.FloatField()
    standard_error = models.FloatField(null=True)  # of prob_a, where rationales were drawn
    answer_mass_ab = models.FloatField()
    answer_mass_ba = models.FloatField()
    parsed = models.BooleanField()
    rationale_ab = models.TextField(blank=True)
    rationale_ba = models.TextField(blank=True)
    aspects = models.JSONField(default=dict)  # {aspect: probability that A is better there}
    # What the mode read beside the columns: every sample's log-probabilities, the distributions of
    # scores, the members' logits of a jury, the principle drawn. See judges.ml.modes.
    raw = models.JSONField(default=dict)
    measured_by = models.CharField(max_length=10, default="logprobs")  # or "samples"
    n_tokens = models.PositiveIntegerField()  # read and written, both orders
    n_tokens_written = models.PositiveIntegerField(default=0)
    cost = models.FloatField(null=True)
    n_tokens_cut = models.PositiveIntegerField(default=0)  # of the prompt, to fit the context
    seconds = models.FloatField()
    problem = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = VerdictQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["version", "comparison"], name="one_verdict_per_judge_version"
            )
        ]

    def __str__(self) -> str:
        return f"{self.version} on {self.comparison}: {self.prob_a:.3f}"


class Calibration(models.Model):
    """How a judge version's probabilities are corrected; fitted once, on people's labels, and
    frozen."""

    class Method(models.TextChoices):
        TEMPERATURE = "temperature", _lazy("Temperature")
        ISOTONIC = "isotonic", _lazy("Isotonic")

    version = models.ForeignKey(JudgeVersion, models.CASCADE, related_name="calibrations")
    number = models.PositiveIntegerField()
    method = models.CharField(max_length=20, choices=Method)
    parameters = models.JSONField()  # see labeling.calibration
    n = models.PositiveIntegerField()  # comparisons it was fitted on
    experiment = models.ForeignKey(
        "Experiment", models.SET_NULL, null=True, blank=True, related_name="calibrations"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["version", "number"], name="calibration_number")
        ]

    def __str__(self) -> str:
        return f"{self.version}, calibration {self.number}"


class ChosenJudge(models.Model):
    """The judge that a project works with, and how its probabilities are corrected."""

    project = models.OneToOneField(Project, models.CASCADE, related_name="chosen_judge")
    version = models.ForeignKey(JudgeVersion, models.RESTRICT, related_name="+")
    calibration = models.ForeignKey(
        Calibration, models.RESTRICT, null=True, blank=True, related_name="+"
    )
    chosen_at = models.DateTimeField(auto_now=True)
    # When a worker had let its verdicts count: see judges.choosing.settle.
    settled_at = models.DateTimeField(null=True, blank=True)
    chosen_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )

    def __str__(self) -> str:
        return f"{self.project}: {self.version}"


class Experiment(Job):
    """The laboratory: judge versions held against people's labels of the same comparisons."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="experiments")
    name = models.CharField(max_length=100)
    selection = models.JSONField(default=dict)  # which labeled comparisons: see judges.selection
    result = models.JSONField(default=dict)  # see judges.laboratory
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    PAGE = "judges:experiment"

    def __str__(self) -> str:
        return self.name

    def request_cancel(self) -> None:
        """Stop it, and the run that it is at: an engine may say nothing for minutes."""
        super().request_cancel()
        for run in JudgeRun.objects.active().filter(cells__experiment=self, counts=False):
            run.request_cancel()

    def enqueue(self) -> None:
        from judges.tasks import run_experiment

        run_experiment.delay_on_commit(self.pk)


class Cell(models.Model):
    """One judge version of an experiment, and the run that asked it."""

    experiment = models.ForeignKey(Experiment, models.CASCADE, related_name="cells")
    version = models.ForeignKey(JudgeVersion, models.CASCADE, related_name="cells")
    run = models.ForeignKey(JudgeRun, models.SET_NULL, null=True, blank=True, related_name="cells")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["experiment", "version"], name="version_once_per_experiment"
            )
        ]

    def __str__(self) -> str:
        return f"{self.experiment}: {self.version}"


class Probe(models.Model):
    """A chosen judge's answers to a fixed few comparisons, kept to be asked again."""

    version = models.OneToOneField(JudgeVersion, models.CASCADE, related_name="probe")
    answers = models.JSONField()  # [{"comparison", "probs", "standard_error"}, …]: see judges.drift
    fingerprint = models.CharField(max_length=200, blank=True)  # of the model that gave them
    told = models.JSONField(default=list)  # by its server with them: see judges.ml.answers
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"probe of {self.version}"


class DriftCheck(Job):
    """A probe asked again, to see whether the judge still answers as it did."""

    class Reason(models.TextChoices):
        ASKED = "asked", _lazy("Somebody asked for it")
        CHANGED = "changed", _lazy("The model has changed")

    probe = models.ForeignKey(Probe, models.CASCADE, related_name="checks")
    reason = models.CharField(max_length=10, choices=Reason, default=Reason.ASKED)
    fingerprint = models.CharField(max_length=200, blank=True)  # of the model at this check
    told = models.JSONField(default=list)  # by its server: what the check is about
    result = models.JSONField(default=dict)  # see judges.drift.drift_test
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    PAGE = "judges:check"

    # When a lead said that the drift is known, which takes the notice down.
    known_at = models.DateTimeField(null=True, blank=True)

    @property
    def of_project(self) -> Project:
        return self.probe.version.judge.project

    def __str__(self) -> str:
        return f"{self.probe}, check {self.pk}"

    def enqueue(self) -> None:
        from judges.tasks import check_drift

        check_drift.delay_on_commit(self.pk)


class RoutingPolicy(models.Model):
    """What a project's lead wants of judges that decide alone."""

    class Purpose(models.TextChoices):
        """What the labels are for: the order in which people get what is left to them."""

        AS_IT_IS = "", _lazy("Nothing in particular: leave the queue as it is")
        REWARD_MODEL = "reward_model", _lazy("A reward model: near ties first")
        DPO = "dpo", _lazy("DPO: large but uncertain differences first")
        EVALUATION = "evaluation", _lazy("Evaluation: what decides which model is better first")

    project = models.OneToOneField(Project, models.CASCADE, related_name="routing_policy")
    alpha = models.FloatField(
        default=0.1, validators=[MinValueValidator(0.001), MaxValueValidator(0.5)]
    )
    delta = models.FloatField(
        default=0.1, validators=[MinValueValidator(0.0001), MaxValueValidator(0.4)]
    )
    # Three, because a first threshold that has just labels enough fails by one unlucky label.
    starts = models.PositiveSmallIntegerField(
        default=3, validators=[MinValueValidator(1), MaxValueValidator(10)]
    )
    purpose = models.CharField(max_length=20, choices=Purpose, default="", blank=True)
    # Versions that decide, one after the other; none: the project's judge.
    versions = models.JSONField(default=list, blank=True)
    # What a person's label costs; empty: not known.
    cost_per_label = models.FloatField(null=True, blank=True, validators=[MinValueValidator(0)])
    currency = models.CharField(max_length=3, default="USD")

    def __str__(self) -> str:
        return f"routing of {self.project}"


class RoutingRun(Job):
    """A look at what the audit stream says, a test for a certificate, or the queue put in order."""

    class Kind(models.TextChoices):
        COUNT = "count", _lazy("Count")
        ISSUE = "issue", _lazy("Test for a certificate")
        ROUTE = "route", _lazy("Route again")
        WITHDRAW = "withdraw", _lazy("Withdraw")

    project = models.ForeignKey(Project, models.CASCADE, related_name="routing_runs")
    kind = models.CharField(max_length=10, choices=Kind)
    # Comparisons up to this key are routed: a run that is resumed goes on behind it.
    routed_to = models.PositiveBigIntegerField(default=0)
    result = models.JSONField(default=dict)  # see judges.audit.count and judges.routing.carry_out
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.project}"

    @property
    def address(self) -> str:
        return reverse("judges:routing", args=[self.project.slug])

    @property
    def tells_of_success(self) -> bool:
        return self.created_by_id is not None

    def enqueue(self) -> None:
        from judges.tasks import run_routing

        run_routing.delay_on_commit(self.pk)


class Certificate(models.Model):
    """The outcome of one test whether judges may decide alone. Its numbers are never changed."""

    class Status(models.TextChoices):
        ACTIVE = "active", _lazy("In force")
        REVOKED = "revoked", _lazy("Revoked")
        REFUSED = "refused", _lazy("Not given")  # the first threshold failed: people decide all

    class Reason(models.TextChoices):
        LEAD = "lead", _lazy("A lead revoked it")
        REPLACED = "replaced", _lazy("A newer certificate takes its place")
        JUDGE = "judge", _lazy("The project works with another judge")
        DRIFT = "drift", _lazy("The judge no longer answers as it did")
        GUIDELINES = "guidelines", _lazy("The guidelines have changed")
        SOURCES = "sources", _lazy("Responses of other models have come")
        AUDIT = "audit", _lazy("People's labels since contradict it")

    project = models.ForeignKey(Project, models.CASCADE, related_name="certificates")
    number = models.PositiveIntegerField()  # of the project's tests, from 1: see level_of_test
    status = models.CharField(max_length=10, choices=Status)
    alpha = models.FloatField()
    delta = models.FloatField()  # of all the project's tests together
    level = models.FloatField()  # of this test: what `number` leaves of delta
    starts = models.PositiveSmallIntegerField()
    n_labels = models.PositiveIntegerField()  # comparisons of the audit stream that it rests on
    n_comparisons = models.PositiveIntegerField()  # that it speaks of
    n_decided = models.PositiveIntegerField()  # of them the judges' own
    # It speaks of comparisons up to this key, and rests on labels up to that one.
    last_comparison = models.PositiveBigIntegerField()
    last_preference = models.PositiveBigIntegerField()
    # What must not change.
    guidelines_hash = models.CharField(max_length=64)
    sources = models.JSONField()
    looked_to = models.PositiveBigIntegerField()  # comparisons whose sources were compared
    # The audit share by which its comparisons were last routed; empty: not yet.
    routed_share = models.FloatField(null=True)
    # The running audit, as it was last counted: labels given since on what it lets judges decide.
    audit_n = models.PositiveIntegerField(default=0)
    audit_errors = models.PositiveIntegerField(default=0)
    audited_to = models.PositiveBigIntegerField()  # the newest preference that was looked at
    issued_at = models.DateTimeField(default=timezone.now)
    issued_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    reason = models.CharField(max_length=12, choices=Reason, blank=True)
    note = models.CharField(max_length=500, blank=True)
    # When its labels were taken back and its comparisons had returned to people.
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="certificate_number"),
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(status="active"),
                name="one_certificate_in_force",
            ),
        ]

    def __str__(self) -> str:
        return f"certificate {self.number}"


class CertificateStage(models.Model):
    """One judge of a certificate: it decides what the stages before it left."""

    certificate = models.ForeignKey(Certificate, models.CASCADE, related_name="stages")
    position = models.PositiveSmallIntegerField()
    version = models.ForeignKey(JudgeVersion, models.RESTRICT, related_name="+")
    # How the judge was corrected then. Thresholds are of its own word, which corrections leave.
    calibration = models.ForeignKey(
        Calibration, models.RESTRICT, null=True, blank=True, related_name="+"
    )
    threshold = models.FloatField(null=True)  # empty: this judge decides nothing
    n = models.PositiveIntegerField()  # labels at or above the threshold
    errors = models.PositiveIntegerField()
    bound = models.FloatField(null=True)  # of the share of errors, at the test's level
    n_decided = models.PositiveIntegerField()
    steps = models.JSONField()  # every threshold as it was tried: see judges.guarantee.Step

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["certificate", "position"], name="stage_of_certificate")
        ]

    def __str__(self) -> str:
        return f"{self.certificate}, {self.version}"


class RoutedComparison(models.Model):
    """A comparison that left the human queue, and what it wanted before."""

    comparison = models.OneToOneField(Comparison, models.CASCADE, related_name="+")
    # No index of its own: "routed_of_certificate" begins with it.
    certificate = models.ForeignKey(
        Certificate, models.CASCADE, related_name="routed", db_index=False
    )
    wanted_before = models.PositiveSmallIntegerField()
    wanted_now = models.PositiveSmallIntegerField()

    class Meta:
        indexes = [models.Index(fields=["certificate", "comparison"], name="routed_of_certificate")]

    def __str__(self) -> str:
        return f"{self.comparison}, decided by {self.certificate}"
