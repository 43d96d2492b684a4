"""Responses from a server that speaks vLLM's words: what it is handed, asked, and what can fail."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.projects import labeled_project
from tests.training.tiny import save_tiny_model
from tests.training.vllm_protocol import vllm_words
from training.ml import ppo
from training.ml.ppo_config import PPORecipe
from training.ml.vllm_generation import GenerationServer, Writer
from training.models import ModelVersion, Run
from training.runs import create_run
from training.tasks import carry_out

QUICK = {
    "algorithm": "rloo",
    "steps": 2,
    "prompts_per_step": 2,
    "samples_per_prompt": 2,
    "max_new_tokens": 6,
    "minibatches": 1,
    "epochs": 1,
    "lora_rank": 2,
    "dtype": "float32",
    "learning_rate": 1e-2,
    "generation": "vllm",
    "train_norms": False,
}


PROMPTS = [[{"role": "user", "content": f"Tell me about place {i}."}] for i in range(8)]


def longest_is_best(_prompts, texts):
    return [float(len(text)) for text in texts]


def trained(base, server, folder, **settings):
    reports = []
    recipe = PPORecipe(base_model=base, **QUICK | settings)
    writer = Writer(server, "run")
    metrics = ppo.train(
        recipe, PROMPTS[:6], PROMPTS[6:], folder, reports.append,
        reward=longest_is_best, writer=writer,
    )  # fmt: skip
    writer.close()
    return metrics, [r.values for r in reports if r.values and r.split == "train"]


@pytest.mark.parametrize("tells_ids", [True, False])
def test_every_update_is_handed_over_and_the_responses_are_its_own(tiny_model, tmp_path, tells_ids):
    with vllm_words(tiny_model, key="sk", tells_ids=tells_ids, hides_end=True) as served:
        server = GenerationServer(url=served.url, adapters=tmp_path / "adapters", key="sk")
        metrics, values = trained(tiny_model, server, tmp_path / "run")

    assert [name.split("-")[1] for name in served.loaded] == ["0", "1", "2"]
    assert served.unloaded == served.loaded
    assert list((tmp_path / "adapters").iterdir()) == []
    assert metrics["n_steps"] == 2
    assert metrics["response_tokens"] > 0
    # In one number format on both sides, with the adapter of this very step, nothing is left.
    assert all(row["server_gap"] < 1e-4 for row in values)
    assert all(row["ratio"] == pytest.approx(1, abs=1e-5) for row in values)
    first = served.asked[0]
    assert (first["top_p"], first["top_k"], first["min_p"]) == (1.0, -1, 0.0)
    assert len({asked["seed"] for asked in served.asked[:4]}) == 4


def test_a_server_of_another_base_is_found_out_at_the_first_step(tiny_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    other = save_tiny_model(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.mul_(20).add_(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(other)
    with vllm_words(str(other)) as served:
        server = GenerationServer(url=served.url, adapters=tmp_path / "adapters")
        with pytest.raises(ValueError, match="it serves another base than the run's"):
            trained(tiny_model, server, tmp_path / "run")


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.ml.vllm_generation.FIRST_WAIT", 0.01)
    with vllm_words(tiny_model, n_failing=4, forgets=True) as served:
        server = GenerationServer(url=served.url, adapters=tmp_path / "adapters")
        metrics, _values = trained(tiny_model, server, tmp_path / "run")
        served.allows_updates = False
        with pytest.raises(ValueError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            trained(tiny_model, server, tmp_path / "again")
        served.key = "sk"
        with pytest.raises(ValueError, match=re.escape("(401)")):
            trained(tiny_model, server, tmp_path / "key")
    assert metrics["n_steps"] == 2
    gone = replace(server, timeout_seconds=1.0)
    with pytest.raises(ConnectionError, match="could not be asked"):
        trained(tiny_model, gone, tmp_path / "gone")


@pytest.mark.django_db
def test_a_run_of_the_project_is_written_by_the_server_that_the_settings_name(
    tiny_model, storage, settings, tmp_path
):
    project = labeled_project(16)
    project.models.create(name="tiny", kind=ModelVersion.Kind.BASE, path=tiny_model)
    asked = {**QUICK, "judge_model": "tiny", "steps": 1, "test_prompts": 1}
    chosen = {"kind": "ppo", "base_model": "tiny", "recipe_settings": asked, "test_share": 0.4}
    with pytest.raises(ValueError, match="no vLLM server is named"):
        create_run(project, **chosen)
    with vllm_words(tiny_model) as served:
        settings.PREFLOOP_VLLM_URL = served.url
        settings.PREFLOOP_VLLM_ADAPTERS = str(tmp_path / "adapters")
        run = create_run(project, **chosen)
        carry_out(run.pk)
        run.refresh_from_db()
        assert run.status == Run.Status.SUCCEEDED, run.error
        assert run.recipe["generation"] == "vllm"
        assert served.unloaded == served.loaded
        assert Path(run.folder).name == str(run.pk)

    settings.PREFLOOP_VLLM_URL = "http://169.254.169.254/v1"
    refused = create_run(project, **chosen)
    carry_out(refused.pk)
    refused.refresh_from_db()
    assert refused.status == Run.Status.FAILED
    assert "169.254.169.254 is never allowed" in refused.error
