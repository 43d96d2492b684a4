"""The playground: two models answer, a person looks, people are asked."""

import pytest
from django.urls import reverse

from labeling.models import Change
from tests.factories import MembershipFactory, UserFactory, bearer
from tests.training.projects import labeled_project
from training.models import SideBySide
from training.playground import MOST_WAITING, QueueFull, start_pair
from training.tasks import carry_out_job

pytestmark = pytest.mark.django_db

ASKED = {"text": "Tell me about the river.", "temperature": 1.0, "seed": 3, "max_new_tokens": 8}


@pytest.fixture
def project(tiny_model):
    project = labeled_project(2)
    project.models.create(name="one", kind="base", path=tiny_model)
    project.models.create(name="two", kind="policy", path=tiny_model)
    project.models.create(name="scorer", kind="reward", path=tiny_model)
    return project


@pytest.fixture
def lead(project, client):
    user = UserFactory(username="lea")
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def ask(lead, project, **changes):
    url = reverse("training:playground", args=[project.slug])
    return lead.post(url, ASKED | {"model_a": "one", "model_b": "two"} | changes)


def test_two_models_answer_in_a_worker_and_the_page_follows(project, lead):
    answer = ask(lead, project)
    pair = SideBySide.objects.get()
    assert answer.url == reverse("training:side_by_side", args=[project.slug, pair.pk])
    card = lead.get(answer.url, headers={"HX-Request": "true"}).content.decode()
    assert "hx-trigger" in card
    assert "Waiting for a worker" in card
    carry_out_job(SideBySide, pair.pk)
    pair.refresh_from_db()
    assert (pair.status, pair.error) == ("succeeded", "")
    assert pair.text_a == pair.text_b != ""  # one model under two names, and one seed
    assert pair.result["a"]["tokens"] <= 8
    card = lead.get(answer.url, headers={"HX-Request": "true"}).content.decode()
    assert "hx-trigger" not in card
    assert "Both said the same" in card


def test_a_pair_is_sent_to_people_once_with_its_sources(project, lead):
    ask(lead, project)
    pair = SideBySide.objects.get()
    carry_out_job(SideBySide, pair.pk)
    SideBySide.objects.update(text_b="Something else.")
    before = project.comparisons.count()
    url = reverse("training:send_to_people", args=[project.slug, pair.pk])
    for _again in range(2):
        lead.post(url)
    pair.refresh_from_db()
    made = pair.comparison
    assert project.comparisons.count() == before + 1
    sides = {response.source: response for response in (made.response_a, made.response_b)}
    assert set(sides) == {"one", "two"}
    assert sides["two"].messages == [{"role": "assistant", "content": "Something else."}]
    assert made.metadata["playground"] == pair.pk
    assert (made.open_places, made.purpose) == (1, "work")
    assert Change.objects.get(action="send pair to people").after == {"models": ["one", "two"]}


def test_a_scorer_or_a_path_is_no_writer_and_the_queue_is_bounded(project, lead, tiny_model):
    for wrong in ("scorer", tiny_model, "nobody"):
        page = ask(lead, project, model_b=wrong)
        assert page.status_code == 200
        assert "Model B" in page.content.decode()
    assert SideBySide.objects.count() == 0
    for _n in range(MOST_WAITING):
        ask(lead, project)
    page = ask(lead, project).content.decode()
    assert f"{MOST_WAITING} pairs wait for a worker already" in page
    assert SideBySide.objects.count() == MOST_WAITING
    with pytest.raises(QueueFull):
        start_pair(
            project,
            prompt=[{"role": "user", "content": "x"}],
            model_a="one",
            model_b="two",
            temperature=0,
            seed=0,
            max_new_tokens=1,
            created_by=None,
        )


def test_a_pair_can_be_stopped_and_keeps_what_was_said(project, lead, monkeypatch):
    from training import playground

    monkeypatch.setattr(playground, "SECONDS_BETWEEN_REPORTS", 0.0)
    ask(lead, project)
    pair = SideBySide.objects.get()
    SideBySide.objects.update(text_a="so far")
    lead.post(reverse("training:cancel_side_by_side", args=[project.slug, pair.pk]))
    pair.refresh_from_db()
    assert (pair.status, pair.text_a) == ("cancelled", "so far")
    carry_out_job(SideBySide, pair.pk)  # a late message wakes nobody
    pair.refresh_from_db()
    assert pair.text_a == "so far"


def test_a_prompt_without_room_fails_in_words(project, lead):
    ask(lead, project, max_new_tokens=4000)
    pair = SideBySide.objects.get()
    carry_out_job(SideBySide, pair.pk)
    pair.refresh_from_db()
    assert pair.status == "failed"
    assert "exceed the context of 256" in pair.error


def test_programs_ask_look_stop_and_send_as_people_do(project, client):
    api = f"/api/projects/{project.slug}/playground/"
    lead = bearer(MembershipFactory(project=project).user)
    viewer = bearer(MembershipFactory(project=project, role="viewer").user)
    body = {"text": "Tell me about the river.", "model_a": "one", "model_b": "two", "seed": 3}

    def post(path, headers, **changes):
        return client.post(path, body | changes, "application/json", headers=headers)

    assert post(api, viewer).status_code == 403
    wrong = post(api, lead, model_b="scorer")
    assert wrong.json()["detail"] == "There is no model scorer that writes."
    answers = [post(api, lead) for _n in range(MOST_WAITING)]
    assert {answer.status_code for answer in answers} == {202}
    assert post(api, lead).status_code == 409
    one = f"{api}{answers[0].json()['id']}/"
    assert client.get(one, headers=viewer).json() | {"created_at": ""} == answers[0].json() | {
        "created_at": ""
    }
    assert answers[0].json()["prompt"] == [{"role": "user", "content": body["text"]}]
    assert client.post(one + "send/", headers=lead).status_code == 409  # nothing said yet
    SideBySide.objects.update(status="succeeded", text_a="Water.", text_b="More water.")
    sent = [client.post(one + "send/", headers=lead).json()["comparison"] for _n in range(2)]
    assert sent[0] == sent[1] == SideBySide.objects.exclude(comparison=None).get().comparison_id
    other = f"{api}{post(api, lead).json()['id']}/"
    assert client.post(other + "cancel/", headers=viewer).status_code == 403
    assert client.post(other + "cancel/", headers=lead).json()["status"] == "cancelled"
    assert len(client.get(api, headers=viewer).json()["results"]) == MOST_WAITING + 1
