"""The laboratory for programs."""

import pytest

from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.models import ChosenJudge, Experiment, JudgeVersion
from judges.tasks import run_experiment
from labeling.models import Membership
from tests.factories import MembershipFactory, ProjectFactory, bearer
from tests.judges.test_laboratory_pages import computed, labeled_and_judged

pytestmark = pytest.mark.django_db

URL = "/api/projects/kitchen/experiments/"


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen")


@pytest.fixture
def headers(project):
    return bearer(MembershipFactory(project=project, role=Membership.Role.LEAD).user)


def post(client, url, data, headers):
    return client.post(url, data, "application/json", headers=headers)


def test_an_experiment_is_made_read_and_used(client, project, headers, monkeypatch):
    sent = []
    monkeypatch.setattr(run_experiment, "delay_on_commit", sent.append)
    [version] = labeled_and_judged(project)

    made = post(client, URL, {"name": "first", "versions": [version.pk], "most": 30}, headers)

    assert made.status_code == 202
    key = made.json()["id"]
    assert (made.json()["n_comparisons"], made.json()["versions"]) == (30, [version.pk])
    assert sent == [key]
    run_experiment(key)
    [row] = client.get(URL, headers=headers).json()["results"]
    assert (row["status"], row["name"]) == ("succeeded", "first")
    assert "result" not in row
    result = client.get(f"{URL}{key}/", headers=headers).json()["result"]
    assert result["cells"][0]["alignment"]["decided"]["n"] == 30

    used = post(
        client, f"{URL}{key}/use/", {"version": version.pk, "method": "temperature"}, headers
    )
    assert used.json()["calibration"] == 1
    assert ChosenJudge.objects.get().version == version
    refused = post(
        client, f"{URL}{key}/use/", {"version": version.pk, "method": "isotonic"}, headers
    )
    assert refused.status_code == 409
    again = post(client, f"{URL}{key}/resume/", {}, headers)
    assert (again.status_code, again.json()["status"]) == (202, "queued")
    stopped = post(client, f"{URL}{key}/cancel/", {}, headers)
    assert stopped.json()["status"] == "cancelled"


def test_judges_of_another_project_are_unknown(client, project, headers):
    labeled_and_judged(project, n=2)
    elsewhere, _made = judge_version(ProjectFactory(), "other", "owner/other", JudgeRecipe())

    response = post(client, URL, {"name": "x", "versions": [elsewhere.pk]}, headers)

    assert response.status_code == 400
    assert "no such version" in response.content.decode()
    assert not Experiment.objects.exists()


def test_without_labels_nothing_is_made(client, project, headers):
    version, _made = judge_version(project, "one", "owner/one", JudgeRecipe())
    response = post(
        client, URL, {"name": "x", "versions": [version.pk], "modes": ["direct"]}, headers
    )
    assert response.status_code == 409
    assert JudgeVersion.objects.count() == 1  # nor the version that the grid would have made


def test_a_viewer_reads_and_starts_nothing(client, project):
    [version] = labeled_and_judged(project, n=12)
    experiment = computed(project, [version])
    headers = bearer(MembershipFactory(project=project, role=Membership.Role.VIEWER).user)

    assert client.get(f"{URL}{experiment.pk}/", headers=headers).status_code == 200
    assert post(client, URL, {"name": "x", "versions": [version.pk]}, headers).status_code == 403
