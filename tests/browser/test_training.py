"""A lead launches a run in a real browser and watches it end, without loading the page again."""

import json

import pytest
from playwright.sync_api import Page, expect

from tests.factories import MembershipFactory, UserFactory
from tests.training.projects import labeled_project
from training.models import ModelReport, Run
from training.tasks import build_dataset, carry_out, carry_out_job

LARGE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def test_a_run_is_launched_from_the_form_and_its_curves_draw_themselves(
    page: Page, live_server, storage, monkeypatch, settings, axe_findings
):
    from tests.training.tiny import save_tiny_model

    settings.PREFLOOP_GPU_MEMORY = "24GiB"
    save_tiny_model(storage / "models" / "tiny")
    (storage / "models" / "large").mkdir()
    (storage / "models" / "large" / "config.json").write_text(json.dumps(LARGE))
    woken = []
    monkeypatch.setattr("training.tasks.train.delay_on_commit", woken.append)
    project = labeled_project()
    MembershipFactory(project=project, user=UserFactory(username="lea"), role="lead")
    page.goto(f"{live_server}/accounts/login/?next=/projects/{project.slug}/training/")
    page.get_by_label("User name").fill("lea")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")

    page.get_by_role("link", name="New reward model").click()
    page.get_by_label("Test share").fill("0.3")
    page.get_by_label("Labels", exact=True).select_option(
        "ai"
    )  # the preview follows without a reload
    expect(page.locator("#preview")).to_contain_text("No pair to train on")
    page.get_by_label("Labels", exact=True).select_option("human")
    expect(page.locator("#preview")).not_to_contain_text("No pair to train on")
    page.get_by_label("Base model").fill("large")
    page.get_by_label("Batch size").fill("64")
    page.get_by_label("Max length").fill("4096")
    page.keyboard.press("Tab")
    # What was told of the first of these settings alone does not fit either.
    expect(page.locator("#fits-card")).to_contain_text("128 texts of 4,096 tokens")
    expect(page.locator("#fits-card")).to_contain_text("Does not fit")
    assert axe_findings(page) == []
    page.locator("#fits-card button[name=fit]").first.click()
    expect(page.locator("#fits-card")).to_contain_text("Fits:")
    assert Run.objects.count() == 0

    page.get_by_label("Base model").fill("tiny")
    page.get_by_label("Batch size").fill("4")
    page.get_by_role("button", name="Freeze the labels and train").click()

    expect(page.locator("#live")).to_contain_text("Waiting for a worker.")
    run = Run.objects.get()
    assert woken == [run.pk]
    carry_out(run.pk)

    expect(page.locator("h1 .badge")).to_have_text("succeeded", timeout=15_000)
    expect(page.locator("#live")).to_contain_text("Results on test pairs")
    run.refresh_from_db()
    expect(page.locator("#live")).to_contain_text(f"n {run.metrics['n']}")
    assert page.locator(".chart canvas").count() == 6
    n_points = page.evaluate(
        """() => {
          const [r, g, b] = getComputedStyle(document.documentElement)
            .getPropertyValue("--chart-2").match(/[0-9a-f]{2}/gi).map((x) => parseInt(x, 16));
          return [...document.querySelectorAll(".chart[data-test] canvas")].map((canvas) => {
            const { data } = canvas.getContext("2d")
              .getImageData(0, 0, canvas.width, canvas.height);
            let n = 0;
            for (let i = 0; i < data.length; i += 4)
              n += data[i] === r && data[i + 1] === g && data[i + 2] === b;
            return n;
          });
        }"""
    )
    assert len(n_points) == 3
    assert all(n > 50 for n in n_points)  # dots and line of the test pairs, in their colour
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert axe_findings(page) == []
    page.get_by_role("link", name=f"Model reward-{run.pk}").click()
    expect(page.locator("h1")).to_contain_text(f"reward-{run.pk}")
    assert axe_findings(page) == []

    carry_out_job(ModelReport, run.model_version.reports.get().pk)
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.get_by_role("heading", name="What it gets most wrong")).to_be_visible()
    assert axe_findings(page) == []


def test_a_dataset_is_previewed_beside_its_form_and_frozen(
    page: Page, live_server, storage, monkeypatch, axe_findings
):
    woken = []
    monkeypatch.setattr("training.tasks.build_dataset.delay_on_commit", woken.append)
    project = labeled_project(30)
    MembershipFactory(project=project, user=UserFactory(username="lea"), role="lead")
    page.goto(f"{live_server}/accounts/login/?next=/projects/{project.slug}/training/datasets/new/")
    page.get_by_label("User name").fill("lea")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")

    page.get_by_label("Votes, at least").evaluate("field => field.closest('details').open = true")
    page.get_by_label("Votes, at least").fill("0")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#draft-card")).to_contain_text("Votes, at least: Ensure this value is")
    page.get_by_label("Votes, at least").fill("1")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#draft-card")).to_contain_text("Waiting for a worker.")
    build_dataset(woken.pop())
    expect(page.locator("#draft-card")).to_contain_text("What it holds", timeout=15_000)
    assert axe_findings(page) == []

    page.get_by_role("button", name="Freeze this dataset").click()
    expect(page.locator("#draft-card")).to_contain_text("Waiting for a worker.")
    build_dataset(woken.pop())
    expect(page.locator("h1")).to_contain_text("Dataset", timeout=15_000)
    expect(page.get_by_text("Runs that used it")).to_be_visible()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert axe_findings(page) == []
