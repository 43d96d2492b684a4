"""The registry, a merge and the playground in a real browser, by the keyboard alone."""

import shutil
from pathlib import Path

import pytest
from django.test import Client
from playwright.sync_api import Page, expect

from tests.factories import MembershipFactory, UserFactory
from tests.training.ml.test_merging import lora, save_adapter
from tests.training.projects import labeled_project
from training.models import Merge, SideBySide
from training.tasks import carry_out_job

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def in_focus(page: Page) -> str:
    """What the focused element is called: its label or its own words."""
    return page.evaluate(
        """() => {
          const focused = document.activeElement;
          return (focused.labels?.[0] ?? focused).innerText.trim();
        }"""
    )


def tab_to(page: Page, name: str, most: int = 60) -> None:
    """Press Tab until something of this name has the focus."""
    for _press in range(most):
        page.keyboard.press("Tab")
        if in_focus(page).startswith(name):
            return
    raise AssertionError(f"no Tab leads to {name}; the last was {in_focus(page)}")


def test_two_adapters_are_merged_and_asked_side_by_side_by_the_keyboard(
    page: Page, live_server, storage, tmp_path, monkeypatch, axe_findings
):
    from tests.training.tiny import save_tiny_model

    woken = []
    monkeypatch.setattr("training.tasks.merge_models.delay_on_commit", woken.append)
    monkeypatch.setattr("training.tasks.answer_side_by_side.delay_on_commit", woken.append)
    tiny = save_tiny_model(storage / "models" / "tiny")
    project = labeled_project(4)
    base = project.models.create(name="tiny", kind="base", path=str(tiny))
    for seed, name in enumerate(("calm", "kind"), 1):
        folder = storage / "runs" / name / "model"
        save_adapter(str(tiny), folder, lora(), seed=seed)
        for path in Path(tiny).glob("tokenizer*"):
            shutil.copy(path, folder)
        project.models.create(name=name, kind="policy", path=f"runs/{name}/model", base=base)
    lea = UserFactory(username="lea")
    MembershipFactory(project=project, user=lea, role="lead")
    client = Client()
    client.force_login(lea)
    session = client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])

    page.goto(f"{live_server}/projects/{project.slug}/training/models/")
    assert axe_findings(page) == []
    tab_to(page, "Merge")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Merge models")).to_be_visible()
    tab_to(page, "Adapter into its base")
    page.keyboard.press("ArrowDown")  # the settings of the method follow, and the focus stays
    expect(page.locator("#merge-fields")).to_contain_text("Weight 1")
    assert in_focus(page).startswith("Linear")
    tab_to(page, "Model 1")
    page.keyboard.type("calm")
    tab_to(page, "Model 2")
    page.keyboard.type("kind")
    tab_to(page, "Name")
    page.keyboard.type("both")
    assert axe_findings(page) == []
    page.keyboard.press("Enter")

    expect(page.locator("#merge-card")).to_contain_text("Waiting for a worker.")
    carry_out_job(Merge, woken.pop())
    expect(page.locator("#merge-card")).to_contain_text("logits on 32 prompts are finite")
    tab_to(page, "Open both")
    page.keyboard.press("Enter")
    graph = page.get_by_role("region", name="What it came from")
    for name in ("tiny", "calm", "kind", "both"):
        expect(graph.get_by_role("link", name=name).first).to_be_attached()
    page.set_viewport_size({"width": 390, "height": 800})  # the model itself stays in view
    expect(graph.locator(".is-asked")).to_be_in_viewport()
    expect(graph.get_by_role("link", name="tiny")).not_to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 800})
    assert axe_findings(page) == []

    tab_to(page, "Playground")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model A")).to_have_value("both")
    tab_to(page, "Prompt")
    page.keyboard.type("Tell me about the river.")
    tab_to(page, "Tokens, at most")
    page.keyboard.press("Control+a")
    page.keyboard.type("4")
    tab_to(page, "Answer side by side")
    page.keyboard.press("Enter")
    expect(page.locator("#pair-card")).to_contain_text("Waiting for a worker.")
    carry_out_job(SideBySide, woken.pop())
    expect(page.locator("#pair-card .badge").first).to_have_text("succeeded")
    page.emulate_media(color_scheme="dark")
    assert axe_findings(page) == []

    page.goto(f"{live_server}/projects/{project.slug}/training/models/?made=merge")
    row = page.get_by_role("row", name="both")
    expect(row.get_by_role("link", name="Merge ")).to_be_visible()
    expect(page.get_by_role("row", name="calm")).to_have_count(0)
