"""Will it fit: the launch form's fragment, the command, and what a run leaves."""

import json

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.urls import reverse

from tests.factories import MembershipFactory, UserFactory
from tests.training.projects import labeled_project
from training.fitting import error_band, machine
from training.models import Run
from training.runs import create_run
from training.tasks import carry_out

pytestmark = pytest.mark.django_db

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
FORM = {"method": "lora", "batch_size": "8", "max_length": "2048", "dtype": "auto"}


@pytest.fixture
def large(storage):
    """A model that is nothing but its config."""
    folder = storage / "models" / "large"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return "large"


@pytest.fixture
def lead(client):
    project = labeled_project(16)
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def test_the_form_says_what_does_not_fit_and_what_would(lead, large, settings):
    settings.PREFLOOP_GPU_MEMORY = "24GiB"
    url = reverse("training:fits", args=["polite", "reward"])

    page = lead.post(url, FORM | {"base_model": large}).content.decode()
    assert "Does not fit" in page
    assert "same result, slower" in page

    settings.PREFLOOP_GPU_MEMORY = "900GiB"
    page = lead.post(url, FORM | {"base_model": large}).content.decode()
    assert "Fits:" in page
    assert "The optimizer&#x27;s averages of it" in page
    assert "numbers are trained, 0.522 % of the base’s 8,030,261,248" in page.replace(
        "</strong>", ""
    )


def test_a_model_without_a_config_is_no_error(lead):
    url = reverse("training:fits", args=["polite", "reward"])

    page = lead.post(url, FORM | {"base_model": "nobody/nothing"}).content.decode()

    assert "cannot be told" in page
    assert "onfig of nobody/nothing is not on this machine" in page
    page = lead.post(url, FORM | {"base_model": " "}).content.decode()
    assert "Choose a base model to see the memory that it needs." in page
    page = lead.post(url, FORM | {"base_model": "x", "epochs": "many"}).content.decode()
    assert "Epochs must be a number" in page


def test_a_suggestions_button_fills_the_form_and_starts_nothing(lead, large):
    url = reverse("training:launch", args=["polite", "reward"])
    chosen = json.dumps({"gradient_checkpointing": True, "batch_size": 2})

    page = lead.post(url, FORM | {"base_model": large, "fit": chosen})

    form = page.context["form"]
    assert form["gradient_checkpointing"].value() is True
    assert form["batch_size"].value() == "2"
    assert Run.objects.count() == 0


def test_the_command_tells_terms_and_ends_with_one_where_it_does_not_fit(large, capsys):
    asked = ["fits", "dpo", "--base", large, "--method", "qlora", "--set", "batch_size=1", "--json"]

    call_command(*asked, "--gpu-memory", "900GiB")
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    assert sum(report["terms"].values()) == report["peak"]

    with pytest.raises(SystemExit) as ended:
        call_command(*asked, "--gpu-memory", "1GiB")
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["suggestions"] == []


@pytest.mark.parametrize(
    ("kind", "method", "reason"),
    [("sft", "head", "only a reward model has a head"), ("reward", "prompt", "Prompt tuning puts")],
)
def test_what_is_refused_does_not_fit_either(large, kind, method, reason):
    with pytest.raises(CommandError, match=reason):
        call_command("fits", kind, "--base", large, "--method", method, "--gpu-memory", "900GiB")


def test_the_page_tells_what_a_model_at_work_takes(lead, large, settings):
    settings.PREFLOOP_GPU_MEMORY = "24GiB"
    url = reverse("training:working", args=["polite"])
    asked = {"use": "write", "model": large, "rows": "64", "tokens": "4096", "new_tokens": "512"}
    asked["dtype"] = "auto"

    assert "Name a model" in lead.get(url).content.decode()
    page = lead.get(url, asked)
    assert "Does not fit" in page.content.decode()
    assert [settings for settings, _c, _s in page.context["suggestions"]] == [
        '{"rows": 8}', '{"rows": 16, "in_4_bits": true}',
    ]  # fmt: skip
    lighter = lead.get(url, asked | {"fit": '{"rows": 16, "in_4_bits": true}'})
    assert "Fits:" in lighter.content.decode()
    assert lighter.context["form"]["rows"].value() == "16"
    assert "The peak with 16 texts of 4,096 tokens." in lighter.content.decode()
    wrong = lead.get(url, asked | {"new_tokens": "4096", "fit": "nonsense"})
    assert "new_tokens" in wrong.context["form"].errors
    assert "cannot be told" in lead.get(url, asked | {"model": "nobody/none"}).content.decode()
    assert "model" in lead.get(url, asked | {"model": "/etc"}).context["form"].errors


def test_the_command_tells_a_model_at_work(large, capsys):
    asked = ["fits", "ask", "--base", large, "--set", "rows=8", "--set", "tokens=2048", "--json"]

    call_command(*asked, "--gpu-memory", "900GiB")

    report = json.loads(capsys.readouterr().out)
    assert (report["fits"], report["trained"], report["band"]) == (True, 0, None)
    assert report["terms"]["cache"] == 8 * 2048 * 128 * 1024
    with pytest.raises(CommandError, match="there is no setting 'beta'"):
        call_command(*asked, "--set", "beta=1")


def test_programs_are_told_why_a_method_is_refused(lead, storage, tiny_model):
    (storage / "models").mkdir(exist_ok=True)
    (storage / "models" / "tiny").symlink_to(tiny_model)

    def refusal(kind, **chosen):
        asked = {"kind": kind, "base_model": "tiny", "settings": chosen}
        response = lead.post(
            "/api/projects/polite/runs/", json.dumps(asked), content_type="application/json"
        )
        return response.status_code, response.json()["detail"]

    status, reason = refusal("dpo", method="head")
    assert (status, reason) == (
        400,
        "method: only a reward model has a head of its own to train; choose another method",
    )
    assert "method: Prompt tuning puts vectors" in refusal("reward", method="prompt")[1]
    assert "has no layer layers.9.*; it has" in refusal("sft", target_modules="layers.9.*")[1]
    assert "the narrowest has 32" in refusal("reward", method="loftq", lora_rank=33)[1]
    assert Run.objects.count() == 0


def test_a_run_keeps_both_peaks_and_three_make_a_band(tiny_model):
    project = labeled_project(16)
    run = create_run(
        project, kind="reward", base_model=tiny_model, recipe_settings={"max_steps": 1}
    )
    carry_out(run.pk)  # in a process that has done much else before
    run.refresh_from_db()
    assert run.status == Run.Status.SUCCEEDED
    assert run.predicted_peak > 0
    assert run.measured_peak is None
    assert run.device in ("cpu", "cuda")
    assert run.metrics["longest"] > 10

    Run.objects.update(predicted_peak=100, measured_peak=110, device="cpu")
    assert error_band(1000, "cpu", "lora") == {
        "value": None,
        "n": 1,
        "why": "too few runs of this kind so far",
    }
    for measured in (90, 100):
        other = create_run(project, kind="reward", base_model=tiny_model)
        Run.objects.filter(pk=other.pk).update(
            predicted_peak=100, measured_peak=measured, device="cpu"
        )
    assert error_band(1000, "cpu", "lora") == {"value": 1000, "low": 800, "high": 1200, "n": 3}
    assert error_band(1000, "cuda", "lora")["n"] == 0


def test_the_machines_memory_is_looked_up_where_nothing_is_set(settings):
    settings.PREFLOOP_GPU_MEMORY = ""
    assert machine("8GiB").available == 8 * 2**30
    assert machine().source in ("gpu", "memory")
