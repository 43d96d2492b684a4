"""The laboratory's pages: who may see and do what, and that every figure is said in words."""

import re

import numpy as np
import pytest
from django.urls import reverse

from judges.choosing import choose
from judges.drift import keep_probe, new_check
from judges.judging import judge_version
from judges.laboratory import new_experiment
from judges.ml.config import JudgeRecipe
from judges.models import ChosenJudge, Experiment, Verdict
from judges.readings import best_method, readings_of
from judges.tasks import check_drift, run_experiment, settle_judge
from labeling.models import Membership, Preference
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
)

pytestmark = pytest.mark.django_db

URL = "/projects/kitchen/judges/laboratory/"


@pytest.fixture
def queued(monkeypatch) -> list[tuple[str, int]]:
    """What would have been sent to a worker: the network begins there."""
    sent: list[tuple[str, int]] = []
    for task, name in (
        (run_experiment, "experiment"),
        (check_drift, "check"),
        (settle_judge, "settle"),
    ):
        monkeypatch.setattr(task, "delay_on_commit", lambda pk, name=name: sent.append((name, pk)))
    return sent


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen")


@pytest.fixture
def lead(client, project):
    client.force_login(MembershipFactory(project=project, role=Membership.Role.LEAD).user)
    return client


def words_of(response):
    """The page as a person reads it: tags gone, runs of white space one space."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def labeled_and_judged(project, n=40, times=3.0, seed=4, names=("sure",)):
    """Comparisons that three people judged, and stored verdicts of judges that are too sure."""
    rng = np.random.default_rng(seed)
    people = [RaterFactory(project=project, name=name) for name in ("ann", "bob", "cem")]
    versions = [
        judge_version(project, name, f"owner/{name}-7b", JudgeRecipe(mode="direct"))[0]
        for name in names
    ]
    for z in rng.normal(0, 1.5, n):
        comparison = ComparisonFactory(project=project)
        for rater in people:
            choice = "a" if rng.random() < 1 / (1 + np.exp(-z)) else "b"
            PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
        for version in versions:
            ab = 1 / (1 + np.exp(-(times * z + rng.normal(0.4, 0.3))))
            ba = 1 / (1 + np.exp(-(times * z - rng.normal(0.4, 0.3))))
            Verdict.objects.create(
                version=version,
                comparison=comparison,
                logp_ab_first=np.log(0.9 * ab),
                logp_ab_second=np.log(0.9 * (1 - ab)),
                logp_ba_first=np.log(0.9 * (1 - ba)),
                logp_ba_second=np.log(0.9 * ba),
                prob_a=(ab + ba) / 2,
                answer_mass_ab=0.9,
                answer_mass_ba=0.9,
                parsed=True,
                n_tokens=100,
                seconds=0.5,
            )
    return versions


def computed(project, versions) -> Experiment:
    experiment = new_experiment(project, "prompts", versions)
    run_experiment(experiment.pk)
    experiment.refresh_from_db()
    return experiment


def test_a_lead_starts_an_experiment_over_a_grid(lead, project, queued):
    [version] = labeled_and_judged(project, n=3)

    response = lead.post(
        URL,
        {"name": "modes", "versions": [version.pk], "modes": ["direct", "rationale"], "most": 50,
         "epsilon": "0.1"},
    )  # fmt: skip

    experiment = Experiment.objects.get()
    assert response.url == reverse("judges:experiment", args=["kitchen", experiment.pk])
    assert queued == [("experiment", experiment.pk)]
    assert experiment.cells.count() == 2
    assert experiment.selection["epsilon"] == 0.1
    page = words_of(lead.get(response.url))
    assert "0 of" in page or "of 6 verdicts" in page


def test_what_cannot_be_is_said_and_nothing_is_made(lead, project, queued):
    version, _made = judge_version(project, "sure", "owner/sure", JudgeRecipe())
    given = {"name": "x", "versions": [version.pk], "most": 50, "epsilon": "0.1"}

    response = lead.post(URL, given)
    assert response.status_code == 422
    assert "labeled nothing yet" in words_of(response)
    response = lead.post(URL, given | {"versions": []})
    assert "Choose at least one judge." in words_of(response)
    assert not Experiment.objects.exists()
    assert queued == []


def test_the_page_says_every_figure_with_its_n_and_what_to_do_next(lead, project):
    versions = labeled_and_judged(project, names=("sure", "twin"))
    experiment = computed(project, versions)

    response = lead.get(reverse("judges:experiment", args=["kitchen", experiment.pk]))
    page = words_of(response)

    assert "The human ceiling:" in page
    assert "Held against people on 40 comparisons of 40 prompts, judged by 3 people" in page
    assert "It names the response that people chose:" in page
    assert "It leans to the first place." in page or "Asked in both orders" in page
    assert "It is surer than it may be: temperature" in page
    assert "sure v1" in page
    assert "twin v1" in page
    assert "Is one better than another?" in page
    assert response.content.decode().count('class="reliability"') == 4
    assert "nan" not in page.lower().split()
    assert "None" not in page


def test_a_figure_without_ground_has_its_reason(lead, project):
    [version] = labeled_and_judged(project, n=3)
    experiment = computed(project, [version])

    page = lead.get(reverse("judges:experiment", args=["kitchen", experiment.pk]))

    content = page.content.decode()
    assert "No response was written by a model of the judge&#x27;s own family." in content
    assert "It wants three people who each answered thirty" in words_of(page)


def test_use_this_one_makes_it_the_projects_judge(lead, project):
    [version] = labeled_and_judged(project)
    experiment = computed(project, [version])
    assert not Preference.objects.of_judges().exists()

    response = lead.post(
        reverse("judges:use", args=["kitchen", experiment.pk]),
        {"version": version.pk, "method": "temperature"},
        follow=True,
    )

    assert "40 verdicts of it are no labels yet" in words_of(lead.get(URL))
    settle_judge(version.pk)
    page = words_of(response)
    assert "sure v1 is the project's judge now" in page.replace("&#x27;", "'")
    assert ChosenJudge.objects.get().calibration.method == "temperature"
    assert Preference.objects.of_judges().count() == 40
    laboratory = words_of(lead.get(URL))
    assert "corrected by temperature (calibration 1, fitted on 40 comparisons)" in laboratory
    history = words_of(lead.get("/projects/kitchen/history/"))
    assert "choose judge" in history


def test_a_version_of_another_experiment_is_no_choice(lead, project):
    [version] = labeled_and_judged(project, n=12)
    experiment = computed(project, [version])
    other, _made = judge_version(project, "other", "owner/other", JudgeRecipe())

    lead.post(reverse("judges:use", args=["kitchen", experiment.pk]), {"version": other.pk})

    assert not ChosenJudge.objects.exists()


def test_drift_is_noticed_on_the_judges_pages_until_a_lead_takes_it_down(lead, project, queued):
    [version] = labeled_and_judged(project, n=20)
    experiment = computed(project, [version])
    user = Membership.objects.get(project=project).user
    choose(version, user=user, experiment=experiment)
    lead.post(reverse("judges:check_start", args=["kitchen"]))
    assert queued == []  # nothing is kept yet that could be asked again
    settle_judge(version.pk)
    lead.post(reverse("judges:check_start", args=["kitchen"]))
    check = keep_probe(version).checks.get()
    assert queued == [("check", check.pk)]
    check.status = "succeeded"
    check.result = {
        "n": 20, "n_moved": 9, "n_turned": 4, "p_value": 1e-9, "drifted": True,
        "mean_shift": 0.2, "moved": [{"comparison": 1, "before": 0.7, "after": None}],
    }  # fmt: skip
    check.save()

    for url in (URL, "/projects/kitchen/judges/", f"/projects/kitchen/judges/{version.judge_id}/"):
        page = words_of(lead.get(url))
        assert "no longer answers as it did when it was chosen" in page
        assert "9 of 20 kept answers moved, 4 name the other response now" in page
    shown = words_of(lead.get(reverse("judges:check", args=["kitchen", check.pk])))
    assert "not readable" in shown

    lead.post(reverse("judges:drift_is_known", args=["kitchen", check.pk]))
    assert "no longer answers" not in words_of(lead.get(URL))


def test_a_check_that_runs_already_is_not_doubled(project):
    [version] = labeled_and_judged(project, n=12)
    probe = keep_probe(version)
    assert new_check(probe) == new_check(probe)


def test_a_viewer_sees_the_figures_and_changes_nothing(client, project):
    [version] = labeled_and_judged(project, n=12)
    experiment = computed(project, [version])
    client.force_login(MembershipFactory(project=project, role=Membership.Role.VIEWER).user)

    page = client.get(reverse("judges:experiment", args=["kitchen", experiment.pk]))
    assert "Judges against people" in words_of(page)
    assert "Use this one</button>" not in page.content.decode()
    assert client.post(URL).status_code == 403


def test_readings_follow_the_intervals_not_the_values():
    """A judge whose interval holds one half may be a coin, whatever its value is."""

    def figure(value, low, high, n=50, **more):
        return {"value": value, "low": low, "high": high, "n": n, **more}

    def reading(low, high):
        ceiling = {"without_ties": figure(0.75, 0.7, 0.8)}
        none = {"value": None, "why": "", "n": 0}
        cell = {
            "mode": "direct",
            "alignment": {"decided": figure((low + high) / 2, low, high)},
            "consistency": none,
            "position": none,
            "bias": none,
            "length": none,
            "self": none,
            "unparsed": none,
            "mass": none,
            "alt_test": {"passes": None, "why": "few"},
            "calibration": {"before": {"ece": none}, "temperature": {}, "isotonic": {}},
        }
        return readings_of(cell, ceiling)[0]

    assert reading(0.45, 0.8).level == "bad"
    assert "coin" in reading(0.45, 0.8).said
    assert reading(0.6, 0.69).level == "warn"
    assert "below that" in reading(0.6, 0.69).said
    assert "cannot be told apart" in reading(0.6, 0.78).said
    assert "above that" in reading(0.81, 0.9).said


def test_the_correction_with_the_least_loss_is_offered():
    def loss(value):
        return {"log_loss": {"value": value}}

    assert (
        best_method({"before": loss(0.5), "temperature": loss(0.6), "isotonic": {"why": ""}}) == ""
    )
    assert (
        best_method({"before": loss(0.6), "temperature": loss(0.55), "isotonic": loss(0.5)})
        == "isotonic"
    )
