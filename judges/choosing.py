"""The judge that a project works with, and how its probabilities are corrected."""

from typing import Any

from django.db import transaction
from django.utils import timezone

from judges.drift import keep_probe
from judges.models import Calibration, ChosenJudge, Experiment, JudgeVersion, Verdict
from judges.runs import hand_over
from labeling.changes import note_change
from labeling.correction import corrected
from labeling.models import Preference, Rater

AT_ONCE = 500


class NoSuchCalibration(ValueError):
    """The experiment has not fitted it; the message says which."""


@transaction.atomic
def choose(
    version: JudgeVersion,
    *,
    user: Any,
    experiment: Experiment | None = None,
    method: str = "",
) -> ChosenJudge:
    """Let the project work with this version from now on, its probabilities corrected by what the
    experiment fitted.

    The calibration is frozen as a row with a number. The caller wakes a worker to `settle` it.

    Args:
        method: "temperature", "isotonic", or "" to leave probabilities as they are.
    Raises: NoSuchCalibration.
    """
    project = version.judge.project
    earlier = ChosenJudge.objects.select_for_update().filter(project=project).first()
    before = _in_words(earlier)
    calibration = _frozen(version, experiment, method, user) if method else None
    chosen, _created = ChosenJudge.objects.update_or_create(
        project=project,
        defaults={
            "version": version,
            "calibration": calibration,
            "chosen_by": user if user.is_authenticated else None,
            "settled_at": None,
        },
    )
    # Until `settle` has corrected them, the labels of this one are as its judge said them; those
    # that another gives from now on stay so.
    project.raters.exclude(calibrated_at=None).update(calibrated_at=None)
    note_change(project, user, "choose judge", version, before=before, after=_in_words(chosen))
    return chosen


def settle(version: JudgeVersion) -> None:
    """What follows from choosing a judge, for a worker: its stored verdicts become preferences of
    its rater, with corrected probabilities, and its probe is kept. Called again, it goes on.

    A version that is not its project's judge is left alone.
    """
    chosen = ChosenJudge.objects.filter(version=version).first()
    if chosen is None:
        return
    hand_over(version)
    correct_preferences(version)
    newest = version.cells.select_related("experiment").order_by("-pk").first()
    keep_probe(version, newest.experiment.selection["comparisons"] if newest else None)
    ChosenJudge.objects.filter(pk=chosen.pk, chosen_at=chosen.chosen_at).update(
        settled_at=timezone.now()
    )


def _in_words(chosen: ChosenJudge | None) -> dict[str, Any]:
    if chosen is None:
        return {"judge": "", "calibration": ""}
    calibration = chosen.calibration
    words = f"{calibration} ({calibration.get_method_display()})" if calibration else ""
    return {"judge": str(chosen.version), "calibration": words}


def _frozen(
    version: JudgeVersion, experiment: Experiment | None, method: str, user: Any
) -> Calibration:
    """The calibration that the experiment fitted for the version, as a row; the same parameters are
    the same row."""
    cells = experiment.result.get("cells", []) if experiment else []
    fitted = next((cell for cell in cells if cell["version"] == version.pk), {})
    figures = fitted.get("calibration", {})
    parameters = figures.get(method, {}).get("parameters")
    if parameters is None:
        raise NoSuchCalibration(f"the experiment has no {method} calibration of {version}")
    for row in version.calibrations.filter(method=method):
        if row.parameters == parameters:
            return row
    newest = version.calibrations.first()
    return Calibration.objects.create(
        version=version,
        number=newest.number + 1 if newest else 1,
        method=method,
        parameters=parameters,
        n=figures["n"],
        experiment=experiment,
        created_by=user if user.is_authenticated else None,
    )


def correct_preferences(version: JudgeVersion) -> int:
    """Let the preferences of a chosen version's rater bear corrected probabilities; how many were
    changed. With a calibration the rater is then marked by it. Verdicts keep what the judge said,
    so this can be done again with another calibration.

    A version that is not its project's judge is left alone.
    """
    chosen = ChosenJudge.objects.filter(version=version).select_related("calibration").first()
    if chosen is None:
        return 0
    parameters = chosen.calibration.parameters if chosen.calibration else None
    said = dict(version.verdicts.filter(parsed=True).values_list("comparison", "prob_a"))
    changed = []
    for row in Preference.objects.current().filter(rater=version.rater_id).exclude(prob_a=None):
        if row.comparison_id in said:
            raw = said[row.comparison_id]
            prob_a = corrected(parameters, raw) if parameters else raw
            if row.prob_a != prob_a:
                row.prob_a = prob_a
                changed.append(row)
    Preference.objects.bulk_update(changed, ["prob_a"], batch_size=AT_ONCE)
    if parameters and ChosenJudge.objects.filter(pk=chosen.pk, calibration=chosen.calibration):
        Rater.objects.filter(pk=version.rater_id).update(calibrated_at=timezone.now())
    return len(changed)


def n_not_handed_over(version: JudgeVersion) -> int:
    """Verdicts of the version that are no preferences of its rater."""
    labeled = Preference.objects.current().filter(rater=version.rater_id).values("comparison")
    return Verdict.objects.filter(version=version).exclude(comparison__in=labeled).count()
