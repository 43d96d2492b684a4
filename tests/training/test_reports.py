"""Reports, cards and studies: real runs of a tiny model, real rows, the pages over them."""

import pytest

from labeling.jobs import Job
from labeling.models import Choice, Decision, Preference
from labeling.storage import storage_path
from tests.factories import MembershipFactory, UserFactory
from tests.training.projects import comparison, labeled_project
from training.cards import card_of
from training.dataset_settings import stored_settings
from training.datasets import freeze, load_pairs
from training.models import ModelReport, Study
from training.reports import wrong_pairs
from training.runs import create_run
from training.studies import part_of, start_study
from training.tasks import carry_out, carry_out_job

pytestmark = pytest.mark.django_db

QUICK = {"max_steps": 4, "batch_size": 8, "lora_rank": 2, "dtype": "float32", "eval_every": 99}


def trained(project, base: str, kind: str = "reward", **changes):
    settings = {"recipe_settings": QUICK, "test_share": 0.4}
    run = create_run(project, kind=kind, base_model=base, **settings | changes)
    carry_out(run.pk)
    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    return run


def reported(run) -> ModelReport:
    """The report that the end of the run asked for, carried out."""
    report = run.model_version.reports.get()
    assert report.status == Job.Status.QUEUED
    carry_out_job(ModelReport, report.pk)
    report.refresh_from_db()
    assert (report.status, report.error) == ("succeeded", "")
    return report


def lead_of(client, project):
    member = MembershipFactory(project=project, user=UserFactory(), role="lead")
    client.force_login(member.user)
    return member.user


def test_a_reward_model_is_measured_when_its_run_ends_and_its_page_leads_to_the_labels(
    client, tiny_model
):
    project = labeled_project(40)
    project.raters.update(name="Ann Personal")
    # Every label against the model's taste would be a wrong one: some stand on the test side.
    Preference.objects.filter(comparison__in=project.comparisons.all()[:12]).update(choice="b")
    run = trained(project, tiny_model)

    report = reported(run)

    found = report.result
    assert found["n"] == run.dataset.counts["test"]
    assert found["accuracy"]["value"] == pytest.approx(run.metrics["accuracy"]["value"])
    assert found["probability"]["log_loss"]["value"] == pytest.approx(
        run.metrics["log_loss"], abs=1e-5
    )
    assert found["wrong"]
    assert found["training"]["accuracy"]["n"] == run.dataset.counts["train"]
    lead = lead_of(client, project)
    worst = wrong_pairs(project, found["wrong"])[0]["comparison"]
    Decision.objects.create(comparison=worst, decided_by=lead, choice=Choice.A)
    page = client.get(f"/projects/polite/training/models/reward-{run.pk}/report/")
    text = page.content.decode()
    assert f'/projects/polite/comparisons/{worst.pk}/#decision"' in text
    assert "decided since" in text
    assert report.finished_at.strftime("%Y-%m-%d %H:%M") in text

    client.post(f"/projects/polite/training/models/reward-{run.pk}/report/")
    assert run.model_version.reports.filter(status="queued").count() == 1

    # The card names what made the model, and no person.
    text = card_of(run.model_version)
    assert run.dataset.sha256 in text
    assert "1 person gave 40 of the answers" in text
    assert run.base_revision in text
    assert "`lora_rank` | `2`" in text
    assert "Personal" not in text
    assert (storage_path(run.model_version.path) / "MODEL_CARD.md").read_text() == text
    address = f"/projects/polite/training/models/reward-{run.pk}/card/"
    assert "<h2>Limits</h2>" in client.get(address).content.decode()
    assert client.get(f"{address}file/").content.decode() == text


def test_a_report_on_an_ensemble_says_where_its_members_disagree(client, tiny_model):
    project = labeled_project(24)
    run = trained(
        project, tiny_model, recipe_settings=QUICK | {"members": 2, "max_steps": 2, "epochs": 1}
    )

    found = reported(run).result

    assert found["spread"]["mean"]["value"] == pytest.approx(run.metrics["spread"], abs=1e-5)
    quarters = found["spread"]["quarters"]
    assert sum(quarter["accuracy"]["n"] for quarter in quarters) == found["n"]
    spreads = [row["spread"] for row in found["disputed"]]
    assert len(spreads) == found["n"]
    assert min(spreads) == quarters[0]["low"] > 0
    lead_of(client, project)
    page = client.get(f"/projects/polite/training/models/reward-{run.pk}/report/")
    assert page.context["disputed"][0]["comparison"].project == project
    assert "Does it know when it does not know?" in page.content.decode()


@pytest.mark.parametrize(("kind", "more"), [("dpo", {"loss": "simpo"}), ("sft", {})])
def test_a_policy_is_measured_against_its_base_and_shown_beside_it(
    client, tiny_model, kind, more, monkeypatch
):
    monkeypatch.setattr("training.reports.NEW_TOKENS", 8)  # for time
    project = labeled_project(24)
    run = trained(project, tiny_model, kind, recipe_settings=QUICK | more)

    found = reported(run).result

    if kind == "dpo":
        changes = run.metrics["chosen_logp_change"], run.metrics["rejected_logp_change"]
        assert (found["chosen_change"]["value"], found["rejected_change"]["value"]) == (
            pytest.approx(changes, abs=1e-3)
        )
        # By the measure of the run's own loss, not by log π/π_base, which SimPO does not know.
        assert found["accuracy"]["value"] == run.metrics["accuracy"]["value"]
        last = run.steps.filter(split="test").last().values
        assert found["margin"]["value"] == pytest.approx(last["margin"], abs=1e-4)
        assert found["implicit"] == "β · mean log π"
        assert last["chosen_logp"] == pytest.approx(changes[0])
    assert len(found["samples"]) == run.dataset.counts["test_prompts"]
    assert {"prompt", "policy", "base"} == set(found["samples"][0])
    lead_of(client, project)
    page = client.get(f"/projects/polite/training/models/{kind}-{run.pk}/report/")
    assert "Implicit accuracy" in page.content.decode()


def test_a_learning_curve_goes_on_where_it_was_stopped(client, tiny_model, monkeypatch):
    monkeypatch.setattr("training.studies.SHARES", (0.5, 1.0))  # for time
    project = labeled_project(50)
    run = trained(project, tiny_model, recipe_settings=QUICK | {"max_steps": 1})
    lead = lead_of(client, project)
    study = start_study(run, Study.Kind.CURVE, user=lead)

    class Stopped(Exception):
        pass

    original = Study.report

    def report(self, **values):
        original(self, **values)
        if len(self.cells) == 1:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "report", report)
        carry_out_job(Study, study.pk)
    study.refresh_from_db()
    assert (study.status, list(study.cells)) == ("failed", ["0.5 0"])
    kept = dict(study.cells)

    study.requeue()
    carry_out_job(Study, study.pk)
    study.refresh_from_db()

    assert (study.status, study.error) == ("succeeded", "")
    assert {name: study.cells[name] for name in kept} == kept
    points = study.result["points"]
    assert [point["n"] for point in points] == [
        len(part_of(load_pairs(run.dataset)[0], share, 0)) for share in (0.5, 1.0)
    ]
    assert points[-1]["accuracy"]["value"] == pytest.approx(run.metrics["accuracy"]["value"])
    page = client.get(f"/projects/polite/training/studies/{study.pk}/").content.decode()
    assert "labels, accuracy changed by" in page


def test_a_study_whose_labels_do_not_suit_the_loss_says_so_before_it_trains(client, tiny_model):
    project = labeled_project(0)
    for i in range(40):
        votes = {"ann": "a", "bob": "a", "cy": "b" if i % 2 else "a"}
        comparison(project, question=f"Which place {i}?", **votes)
    Preference.objects.update(strength=2)
    run = trained(project, tiny_model, recipe_settings=QUICK | {"max_steps": 1, "loss": "margin"})
    study = start_study(run, Study.Kind.LABELS, reference="votes", user=lead_of(client, project))

    carry_out_job(Study, study.pk)
    study.refresh_from_db()

    assert (study.status, study.cells) == ("failed", {})
    assert "a margin wants hard labels" in study.error


def test_ways_of_making_labels_are_held_against_decisions_that_none_was_trained_on(
    client, tiny_model
):
    project = labeled_project(30)
    for i in range(40):
        comparison(project, question=f"Which place {i}?", ann="a", bob="b" if i % 3 else "a")
    run = trained(project, tiny_model, recipe_settings=QUICK | {"max_steps": 1})
    lead = lead_of(client, project)
    with pytest.raises(ValueError, match="only 0 comparisons have a known answer"):
        start_study(run, Study.Kind.LABELS, reference="decided", user=lead)
    for row in project.comparisons.order_by("pk")[:12]:
        Decision.objects.create(comparison=row, decided_by=lead, choice=Choice.A)

    answer = client.post(
        f"/projects/polite/training/runs/{run.pk}/studies/",
        {"kind": "labels", "reference": "decided", "n_seeds": 1},
    )
    study = Study.objects.get()
    study.options["arms"] = ["majority", "dawid-skene"]  # two of four, for time
    study.save()
    carry_out_job(Study, study.pk)
    study.refresh_from_db()

    assert answer.url == f"/projects/polite/training/studies/{study.pk}/"
    assert (study.status, study.error) == ("succeeded", "")
    rows = {row["arm"]: row for row in study.result["rows"]}
    assert list(rows) == ["majority", "dawid-skene"]
    assert study.result["n"] == 12
    assert rows["majority"]["n"] < rows["dawid-skene"]["n"]  # divided votes are a soft label there
    assert rows["dawid-skene"]["against"]["n"] == 12
    assert "Against majority" in client.get(answer.url).content.decode()
    assert list((storage_path("studies") / str(study.pk)).iterdir()) == []
    # What it froze stands in a list of its own, until somebody else freezes the same.
    of_study = list(project.datasets.of_studies_alone())
    assert list(project.datasets.listed()) == [run.dataset]
    address = "/projects/polite/training/datasets/"
    page = client.get(address).content.decode()
    assert f"Show the {len(of_study)} datasets that studies froze" in page
    assert of_study[0].sha256 not in page
    page = client.get(address + "?of=studies").content.decode()
    assert of_study[0].sha256 in page
    assert run.dataset.sha256 not in page
    freeze(project, stored_settings(of_study[0].filters))
    assert of_study[0] in project.datasets.listed()
