"""The judges of a project: make one, try it, put it to work, watch it."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from judges.claims import currency_of
from judges.drift import notice_of
from judges.engines import sample_of
from judges.figures import (
    Figures,
    figures_by,
    figures_of,
    per_minute_now,
    seconds_left,
    troubles_in_words,
)
from judges.forms import JudgeForm, LaunchForm, PromptDifferenceForm, ResumeForm, TrialForm
from judges.judging import judge_version, n_left_out, stored_models
from judges.ml.config import ASKING_MODES, PROMPT_FIELDS, recipe_from
from judges.ml.modes import requests_for
from judges.ml.questions import draw_principle, plain_text, with_written
from judges.models import JudgeRun, JudgeTrial, JudgeVersion, PromptVersion, Verdict
from judges.prompts import as_text, prompt_differences
from judges.runs import (
    BudgetUnknown,
    RunActive,
    add_worker,
    new_run,
    raise_budget,
    requeue,
    waiting_for,
)
from judges.selection import Which, which_of
from labeling.access import project_for
from labeling.changes import note_change
from labeling.differences import TooLong
from labeling.models import Project

RUNS_SHOWN = 20


@login_required
@require_safe
def judge_list(request: HttpRequest, slug: str) -> HttpResponse:
    """Every judge of the project with the figures of its newest version, and the latest runs."""
    project = project_for(request.user, slug, to="view")
    judges = list(project.judges.prefetch_related("versions"))
    figures = figures_by(Verdict.objects.filter(version__judge__project=project), "version")
    for judge in judges:
        versions = judge.versions.all()
        judge.newest = versions[0] if versions else None
        judge.figures = figures.get(judge.newest.pk, Figures()) if judge.newest else Figures()
        judge.n_versions = len(versions)
    context = {
        "project": project,
        "active": "judges",
        "judges": judges,
        "runs": _runs(JudgeRun.objects.filter(version__judge__project=project)),
        "n_comparisons": project.comparisons.count(),
        "notice": notice_of(project),
    }
    return render(request, "judges/list.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def create(request: HttpRequest, slug: str) -> HttpResponse:
    """Make a judge."""
    project = project_for(request.user, slug, to="lead")
    prompt = _prompt_asked_for(request, project)
    form = JudgeForm(request.POST or None, project=project, user=request.user, prompt=prompt)
    if request.method == "POST" and form.is_valid():
        version, _made = _kept(request, project, form.cleaned_data["name"], form)
        return redirect("judges:judge", slug, version.judge_id)
    return _form_page(request, project, form)


@login_required
@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Change a judge. What changed becomes a new version, hence a new rater."""
    project = project_for(request.user, slug, to="lead")
    judge = get_object_or_404(project.judges, pk=pk)
    form = JudgeForm(
        request.POST or None,
        project=project,
        user=request.user,
        version=judge.versions.select_related("prompt").first(),
        prompt=_prompt_asked_for(request, project),
    )
    if request.method == "POST" and form.is_valid():
        version, made = _kept(request, project, judge.name, form)
        if made:
            messages.success(
                request, _("This is version %(n)s now, a rater of its own.") % {"n": version.number}
            )
        else:
            messages.info(
                request,
                _("Nothing is new: these are the settings of %(version)s.") % {"version": version},
            )
        return redirect("judges:judge", slug, pk)
    return _form_page(request, project, form, judge=judge)


@login_required
@require_safe
def prompt_list(request: HttpRequest, slug: str) -> HttpResponse:
    """The project's prompts, each with its versions and the judges that are asked by them."""
    project = project_for(request.user, slug, to="view")
    versions = project.prompt_versions.select_related("created_by").prefetch_related(
        "judge_versions__judge"
    )
    context = {"project": project, "active": "judges", "prompt_versions": versions}
    return render(request, "judges/prompts.html", context)


@login_required
@require_safe
def prompt_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """The words of one version of a prompt, and where they differ from another version's."""
    project = project_for(request.user, slug, to="view")
    prompt = get_object_or_404(project.prompt_versions.select_related("created_by"), pk=pk)
    others = project.prompt_versions.exclude(pk=pk)
    form = PromptDifferenceForm(request.GET, others=others)
    other = form.cleaned_data["against"] if form.is_valid() else None
    if other is None:
        other = others.filter(name=prompt.name, number__lt=prompt.number).first()
    found, too_long = [], ""
    if other is not None:
        try:
            found = prompt_differences(other, prompt)
        except TooLong as error:
            too_long = str(error)
    context = {
        "project": project,
        "active": "judges",
        "prompt": prompt,
        "other": other,
        "others": others,
        "differences": found,
        "too_long": too_long,
        "words": [(field, as_text(prompt.words.get(field))) for field in PROMPT_FIELDS],
        "judge_versions": prompt.judge_versions.select_related("judge"),
    }
    return render(request, "judges/prompt.html", context)


@login_required
@require_safe
def judge_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One judge: its versions with their figures, what it is asked, its runs."""
    project = project_for(request.user, slug, to="view")
    judge = get_object_or_404(project.judges, pk=pk)
    versions = list(judge.versions.select_related("rater", "prompt", "server"))
    figures = figures_by(Verdict.objects.filter(version__judge=judge), "version")
    for version in versions:
        version.figures = figures.get(version.pk, Figures())
    n_comparisons = project.comparisons.count()
    newest = versions[0] if versions else None
    context = {
        "project": project,
        "active": "judges",
        "notice": notice_of(project),
        "judge": judge,
        "versions": versions,
        "newest": newest,
        "example": _example(project, newest) if newest else "",
        "settings": sorted(newest.recipe.items()) if newest else [],
        "members": _members(newest) if newest else [],
        "n_comparisons": n_comparisons,
        "n_waiting": waiting_for(newest).count() if newest else 0,
        "n_left_out": n_left_out(newest) if newest else 0,
        "currency": currency_of(newest) if newest else "",
        "launch": LaunchForm(versions=judge.versions.all(), newest=newest),
        "runs": _runs(JudgeRun.objects.filter(version__judge=judge)),
        "trials": JudgeTrial.objects.filter(version__judge=judge)
        .select_related("version__judge", "comparison")
        .order_by("-pk")[:5],
    }
    return render(request, "judges/judge.html", context)


@login_required
@require_POST
def launch(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Put a judge to work on what it has not judged yet."""
    project = project_for(request.user, slug, to="lead")
    judge = get_object_or_404(project.judges, pk=pk)
    form = LaunchForm(request.POST, versions=judge.versions.select_related("server"))
    if not form.is_valid():
        return _said_wrong(request, form, slug, pk)
    version = form.cleaned_data.pop("version")
    try:
        with transaction.atomic():
            run = new_run(version, user=request.user, **form.cleaned_data)
            if run.n_total:
                run.enqueue()
            else:
                run.delete()
    except BudgetUnknown as error:
        messages.error(request, str(error))
        return redirect("judges:judge", slug, pk)
    except RunActive as error:
        messages.warning(request, str(error))
        return redirect("judges:run", slug, version.runs.unfinished().latest("pk").pk)
    if not run.n_total:
        nothing = _("%(version)s has nothing left to judge.")
        if form.cleaned_data["selection"]["which"] != Which.ALL:
            nothing = _("%(version)s has nothing left to judge among what was chosen.")
        messages.info(request, nothing % {"version": version})
        return redirect("judges:judge", slug, pk)
    return redirect("judges:run", slug, run.pk)


@login_required
@require_POST
def start_trial(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Have a worker try a judge on one comparison."""
    project = project_for(request.user, slug, to="lead")
    judge = get_object_or_404(project.judges, pk=pk)
    form = TrialForm(request.POST, project=project, versions=judge.versions.all())
    if not form.is_valid():
        return _said_wrong(request, form, slug, pk)
    trial = JudgeTrial.objects.create(
        version=form.cleaned_data["version"],
        comparison=form.cleaned_data["comparison"],
        created_by=request.user,
    )
    trial.enqueue()
    return redirect("judges:trial", slug, trial.pk)


@login_required
@never_cache
@require_safe
def trial_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A judge tried on one comparison; the card polls itself until the worker is done."""
    project = project_for(request.user, slug, to="view")
    trial = get_object_or_404(
        JudgeTrial.objects.filter(version__judge__project=project).select_related(
            "version__judge",
            "comparison__prompt",
            "comparison__response_a",
            "comparison__response_b",
        ),
        pk=pk,
    )
    context = {
        "project": project,
        "active": "judges",
        "trial": trial,
        "waits_long": _waits_long(trial),
    }
    template = "judges/trial.html#card" if request.htmx else "judges/trial.html"
    return render(request, template, context)


@login_required
@never_cache
@require_safe
def run_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A run and how far it is; the card polls itself until the run ends."""
    project = project_for(request.user, slug, to="view")
    return _run_card(request, project, _run(project, pk))


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a run. What its workers hold at this moment is dropped; what is judged is kept."""
    project = project_for(request.user, slug, to="lead")
    run = _run(project, pk)
    run.request_cancel()
    return _run_card(request, project, run) if request.htmx else redirect("judges:run", slug, pk)


@login_required
@require_POST
def pause(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Let a run keep its place: at once while it waits, after the batch in hand while it works."""
    project = project_for(request.user, slug, to="lead")
    run = _run(project, pk)
    run.request_pause()
    return _run_card(request, project, run) if request.htmx else redirect("judges:run", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped run again; what it has judged is kept. The form may raise its limits."""
    project = project_for(request.user, slug, to="lead")
    run = _run(project, pk)
    form = ResumeForm(request.POST)
    refused = ""
    if not form.is_valid():
        refused = " ".join(error for errors in form.errors.values() for error in errors)
    else:
        try:
            with transaction.atomic():
                raise_budget(run, **form.cleaned_data)
                if requeue(run):
                    run.enqueue()
        except (RunActive, BudgetUnknown) as error:
            refused = str(error)
            run.refresh_from_db()
    if request.htmx:
        return _run_card(request, project, run, refused=refused)
    if refused:
        messages.warning(request, refused)
    return redirect("judges:run", slug, pk)


@login_required
@require_POST
def another_worker(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Let one more worker share a run."""
    project = project_for(request.user, slug, to="lead")
    run = _run(project, pk)
    with transaction.atomic():
        if add_worker(run):
            run.refresh_from_db()
            run.wake_worker()
    return _run_card(request, project, run) if request.htmx else redirect("judges:run", slug, pk)


def _prompt_asked_for(request: HttpRequest, project: Project) -> PromptVersion | None:
    """The prompt whose words the form is to begin with."""
    number = request.GET.get("prompt", "")
    return project.prompt_versions.filter(pk=number).first() if number.isdecimal() else None


@transaction.atomic
def _kept(
    request: HttpRequest, project: Project, name: str, form: JudgeForm
) -> tuple[JudgeVersion, bool]:
    """The form's judge as a version, and whether it was made now; what was made is noted."""
    values = form.cleaned_data
    version, made = judge_version(
        project,
        name,
        values["model"],
        form.recipe,
        request.user,
        prompt=values["prompt_name"],
        server=values.get("server"),
    )
    if made:
        after = {
            "model": version.model,
            "server": str(version.server or ""),
            "mode": form.recipe.mode,
            "prompt": str(version.prompt),
        }
        note_change(project, request.user, "make judge", version, after=after)
    return version, made


def _example(project: Project, version: JudgeVersion) -> str:
    """The version's question about some comparison of the project, as plain text.

    A chat template is the model's: what it makes of this, a trial shows.
    """
    recipe = recipe_from(version.recipe)
    row = project.comparisons.select_related("prompt", "response_a", "response_b").first()
    if row is None or recipe.mode not in ASKING_MODES:
        return ""
    sample = sample_of(row)
    request = requests_for(recipe, sample, principle=draw_principle(recipe, sample))[0]
    return with_written(plain_text(request), "…" if request.write else "", request.ending)


def _members(version: JudgeVersion) -> list[JudgeVersion]:
    """Who sits in a jury; those that are gone are left out."""
    numbers = version.recipe.get("members", [])
    return list(JudgeVersion.objects.filter(pk__in=numbers).select_related("judge"))


def _run(project: Project, pk: int) -> JudgeRun:
    runs = JudgeRun.objects.filter(version__judge__project=project)
    return get_object_or_404(runs.select_related("version__judge", "version__server"), pk=pk)


def _runs(runs):
    """The latest runs with their figures: two queries however many there are."""
    latest = list(runs.select_related("version__judge").order_by("-pk")[:RUNS_SHOWN])
    figures = figures_by(Verdict.objects.filter(run__in=[run.pk for run in latest]), "run")
    for run in latest:
        run.figures = figures.get(run.pk, Figures())
    return latest


def _run_card(
    request: HttpRequest, project: Project, run: JudgeRun, refused: str = ""
) -> HttpResponse:
    figures = figures_of(run)
    workers = list(run.workers.all())
    present = [worker for worker in workers if worker.left_at is None]
    speed = per_minute_now(workers) if run.status == run.Status.RUNNING else None
    context = {
        "project": project,
        "active": "judges",
        "run": run,
        "refused": refused,
        "figures": figures,
        "troubles": troubles_in_words(figures.troubles),
        "selection": which_of(run.selection).label,
        "workers": workers,
        "present": present,
        "is_loading": bool(present) and all(worker.asking_since is None for worker in present),
        "per_minute": speed or figures.per_minute,
        "seconds_left": seconds_left(run, speed),
        "currency": currency_of(run.version),
        "resume": ResumeForm(initial={"most_tokens": run.most_tokens, "most_cost": run.most_cost}),
        "waits_long": _waits_long(run),
        "verdicts": run.verdicts.select_related("comparison").order_by("-pk")[:10],
    }
    template = "judges/run.html#card" if request.htmx else "judges/run.html"
    return render(request, template, context)


def _waits_long(job: JudgeRun | JudgeTrial) -> bool:
    """No worker took it for a quarter of a minute: perhaps none is there."""
    waited = (timezone.now() - job.queued_at).total_seconds()
    return job.status == job.Status.QUEUED and waited > 15


def _form_page(request: HttpRequest, project: Project, form: JudgeForm, **more) -> HttpResponse:
    context = {
        "project": project,
        "active": "judges",
        "form": form,
        "models": [*project.models.values_list("name", flat=True), *stored_models()],
        "prompts": project.prompt_versions.all(),
    }
    status = 422 if form.errors else 200
    return render(request, "judges/form.html", context | more, status=status)


def _said_wrong(request: HttpRequest, form, slug: str, pk: int) -> HttpResponse:
    for errors in form.errors.values():
        messages.error(request, errors[0])
    return redirect("judges:judge", slug, pk)
