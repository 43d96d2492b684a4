"""Every adaptation method with every recipe: it trains, is saved and loads again, or is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from django.conf import settings
from safetensors.torch import load_file

from judges.ml.config import JudgeRecipe
from judges.ml.reward import load_reward_model as load_judge
from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model
from training.ml.config import METHODS, RECIPES
from training.ml.data import chat_tokens, tokenize_pairs
from training.ml.generation import sample
from training.ml.loading import (
    load_causal,
    load_policy,
    load_reward_model,
    load_tokenizer,
    longest_allowed,
)
from training.ml.logprobs import response_logps
from training.ml.methods import PROMPTS, SETTINGS, WHOLE, other_settings, why_not

PAIRS = polite_pairs(24)
TRAIN = {"reward": reward_model.train, "dpo": dpo.train}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SMALL = {
    "max_steps": 3,
    "batch_size": 4,
    "dtype": "float32",
    "learning_rate": 2e-3,
    "lora_rank": 4,
    "virtual_tokens": 4,
    "galore_rank": 4,
    "galore_gap": 2,
    "eval_every": 3,
    "checkpoint_every": 2,
}
FITTING = [(k, m) for k in TRAIN for m in METHODS if not why_not(k, m, LLAMA)]
TABLE_AT = re.compile(r"<!-- methods -->\n(.*?)\n<!-- end -->", re.DOTALL)


def train(kind: str, base: str, folder: Path, on_step=lambda report: None, **chosen):
    recipe = RECIPES[kind](base_model=base, **SMALL | chosen)
    return TRAIN[kind](recipe, PAIRS[:16], PAIRS[16:], folder, on_step)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "model").glob("*.safetensors")
    return load_file(path)


def reward_margin(folder: Path) -> float:
    """Mean margin of the test pairs under the saved model."""
    model, tokenizer = load_reward_model(folder, dtype="float32")
    chosen = reward_model.score(model, tokenizer, [p.prompt + p.chosen for p in PAIRS[16:]])
    rejected = reward_model.score(model, tokenizer, [p.prompt + p.rejected for p in PAIRS[16:]])
    return sum(a - b for a, b in zip(chosen, rejected, strict=True)) / len(chosen)


def policy_change(folder: Path, base: str, method: str) -> float:
    """Mean log-probability of the chosen test responses: the saved policy's less its start's."""
    tokens, _left_out = tokenize_pairs(PAIRS[16:], load_tokenizer(base), 256)
    prompts, responses = [p.prompt_ids for p in tokens], [p.chosen_ids for p in tokens]
    policy, tokenizer = load_policy(str(folder), dtype="float32")
    start = load_causal(base, method=method, dtype="float32").eval()
    now, then = (
        response_logps(m, prompts, responses, tokenizer.pad_token_id) for m in (policy, start)
    )
    return float((now - then).mean())


@pytest.mark.parametrize(("kind", "method"), FITTING)
def test_a_method_trains_leaves_the_base_and_loads_again_with_the_numbers_it_measured(
    tiny_model, untouched, tmp_path, kind, method
):
    metrics = train(kind, tiny_model, tmp_path, method=method)

    saved = weights(tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    if method in WHOLE:
        assert metrics["trained_parameters"] == metrics["parameters"]
        before = load_file(Path(tiny_model) / "model.safetensors")
        assert all(not torch.equal(before[n], saved[n]) for n in before if n in saved)
    else:
        assert 0 < metrics["trained_parameters"] < metrics["parameters"] / 2
    assert not [p for p in (tmp_path / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    if kind == "reward":
        assert reward_margin(tmp_path / "model") == pytest.approx(metrics["margin"], abs=2e-5)
    else:
        change = policy_change(tmp_path / "model", tiny_model, method)
        assert abs(change) > 1e-4
        assert change == pytest.approx(metrics["chosen_logp_change"], abs=1e-3)


@pytest.mark.parametrize("method", ["qlora", "prefix", "pissa", "full", "head"])
def test_a_reward_model_gives_the_same_rewards_as_a_judge(tiny_model, tmp_path, method):
    train("reward", tiny_model, tmp_path, method=method)
    model, tokenizer = load_reward_model(tmp_path / "model", dtype="float32")
    texts = [p.prompt + p.chosen for p in PAIRS[:6]]

    judge = load_judge(str(tmp_path / "model"), JudgeRecipe(mode="reward", dtype="float32"))

    rows = [chat_tokens(judge.tokenizer, text) for text in texts]
    assert judge._rewards(rows) == pytest.approx(
        reward_model.score(model, tokenizer, texts), abs=2e-5
    )


class Cancelled(Exception):
    pass


def stop_at_3(report):
    if report.step >= 3:
        raise Cancelled


@pytest.mark.parametrize(
    ("kind", "method"),
    [("dpo", "full"), ("reward", "galore"), ("dpo", "pissa"), ("dpo", "ptuning"),
     ("reward", "head"), ("dpo", "dora")],
)  # fmt: skip
def test_a_run_cut_short_resumes_to_the_same_weights(tiny_model, tmp_path, kind, method):
    chosen = {"method": method, "max_steps": 4}
    train(kind, tiny_model, tmp_path / "whole", **chosen)
    with pytest.raises(Cancelled):
        train(kind, tiny_model, tmp_path / "cut", stop_at_3, **chosen)

    train(kind, tiny_model, tmp_path / "cut", **chosen)

    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("method", ["ia3", "qlora", "full"])
def test_what_a_run_left_is_a_base_of_the_next(tiny_model, tmp_path, method):
    train("dpo", tiny_model, tmp_path / "1", method=method)

    metrics = train("dpo", str(tmp_path / "1" / "model"), tmp_path / "2", method="lora")

    assert metrics["n_steps"] == 3
    policy, tokenizer = load_policy(str(tmp_path / "2" / "model"), dtype="float32")
    prompt = [{"role": "user", "content": "Tell me about place 1."}]
    assert sample(policy, tokenizer, [prompt], max_new_tokens=3) is not None


@pytest.mark.parametrize("method", PROMPTS)
def test_a_learned_prompt_writes_what_its_log_probabilities_say(tiny_model, tmp_path, method):
    train("dpo", tiny_model, tmp_path, method=method, learning_rate=0.05)
    folder = str(tmp_path / "model")
    policy, tokenizer = load_policy(folder, dtype="float32")
    prompts = [p.prompt for p in PAIRS[:2]] + [[{"role": "user", "content": "Why?"}]]
    with torch.no_grad():
        likeliest = []
        for (
            prompt
        ) in prompts:  # one by one, the whole text anew for each word: no cache, no padding
            ids = chat_tokens(tokenizer, prompt, open_answer=True)
            for _word in range(4):
                ids = [*ids, int(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            likeliest.append(tokenizer.decode(ids[-4:], skip_special_tokens=True).strip())

    written = sample(policy, tokenizer, prompts, max_new_tokens=4, temperature=0)

    assert written == likeliest
    assert longest_allowed(folder, 1000) == longest_allowed(tiny_model, 1000) - 4
    with pytest.raises(ValueError, match="a learned prompt, which cannot be merged"):
        load_causal(folder)


def test_pissa_leaves_an_adapter_for_the_base_as_it_is_on_the_disk(tiny_model, tmp_path):
    train("dpo", tiny_model, tmp_path, method="pissa")

    saved = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 64, True)


def test_dora_and_rslora_and_pissa_are_other_methods_than_lora(tiny_model, tmp_path):
    found = {}
    for method in ("lora", "dora", "rslora", "pissa"):
        found[method] = train("reward", tiny_model, tmp_path / method, method=method)["margin"]

    assert len({round(margin, 6) for margin in found.values()}) == 4


@pytest.mark.parametrize(
    ("kind", "method", "config", "checkpointing", "reason"),
    [
        ("reward", "prompt", LLAMA, False, "Prompt tuning puts vectors in the place of word ids"),
        ("dpo", "head", LLAMA, False, "only a reward model has a head of its own"),
        ("dpo", "lora", {"model_type": "bert"}, False, "an encoder (bert), which writes no text"),
        ("reward", "prefix", {"model_type": "bert"}, False, "reads from left to right"),
        ("reward", "prefix", LLAMA, True, "gradient checkpointing turns off"),
        ("reward", "full", {"quantization_config": {"bits": 4}}, False, "is stored quantised"),
        (
            "dpo", "full", {"architectures": ["LlamaForSequenceClassification"]}, False,
            "a reward model, which writes no text",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_reason(kind, method, config, checkpointing, reason):
    assert reason in why_not(kind, method, config, gradient_checkpointing=checkpointing)
    assert why_not("reward", "lora", config, gradient_checkpointing=checkpointing) == ""


def test_every_method_names_its_settings_and_they_are_settings_of_every_recipe():
    assert SETTINGS.keys() == METHODS.keys()
    for recipe in RECIPES.values():
        known = recipe.__dataclass_fields__
        assert all(name in known for names in SETTINGS.values() for name in names)
        assert all(known[name].metadata["help"] for name in other_settings("full"))


def test_the_table_in_the_documents_is_what_the_function_says():
    text = (Path(settings.BASE_DIR) / "docs" / "training.md").read_text()
    lines = [f"| Method | {' | '.join(RECIPES)} |", "| --- |" + " --- |" * len(RECIPES)]
    for method, words in METHODS.items():
        reasons = [why_not(kind, method, LLAMA) for kind in RECIPES]
        cells = [f"no: {reason}" if reason else "yes" for reason in reasons]
        lines.append(f"| `{method}` {words.split(':')[0]} | {' | '.join(cells)} |")
    found = TABLE_AT.search(text)

    assert found is not None
    assert found[1] == "\n".join(lines)
