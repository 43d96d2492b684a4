"""The page of a sweep: its runs with the settings that differ, the best, the curves over each
other."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from labeling.access import project_for
from training.models import Run
from training.sweeps import cancel_sweep
from training.views.compare import beside_each_other


@login_required
@require_safe
def sweep(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A sweep; htmx gets the live part alone, until the last run has ended."""
    project = project_for(request.user, slug, to="view")
    found = get_object_or_404(project.sweeps.select_related("created_by"), pk=pk)
    runs = list(found.runs.select_related("dataset", "model_version").order_by("pk"))
    context = {
        "project": project,
        "active": "training",
        "sweep": found,
        "label": Run.Kind(found.kind).label,
        "rows": [(run, [run.recipe.get(name) for name in found.grid]) for run in runs],
        "n_ended": sum(not run.is_active for run in runs),
        "any_active": any(run.is_active for run in runs),
        **beside_each_other(runs),
    }
    template = "training/sweep.html#live" if request.htmx else "training/sweep.html"
    return render(request, template, context)


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop every run of a sweep that waits or runs."""
    project = project_for(request.user, slug, to="lead")
    cancel_sweep(get_object_or_404(project.sweeps, pk=pk), by=request.user)
    return redirect("training:sweep", slug, pk)
