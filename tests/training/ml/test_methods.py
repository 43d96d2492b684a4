"""Every adaptation method with every recipe: it trains, is saved and loads again, or is refused."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from django.conf import settings
from safetensors.torch import load_file

from judges.ml.config import JudgeRecipe
from judges.ml.reward import load_reward_model as load_judge
from tests.training.tiny import polite_pairs, save_tiny_model
from training.ml import adapting, dpo, ppo, ppo_memory, quiet_star, reward_model, sft
from training.ml.architecture import read_architecture
from training.ml.config import ON_TEXTS, RECIPES, make_recipe
from training.ml.data import (
    chat_tokens,
    prompts_of,
    text_pieces,
    to_imitate,
    tokenize_examples,
    tokenize_pairs,
)
from training.ml.generation import sample
from training.ml.loading import (
    adapter_config,
    load_causal,
    load_policy,
    load_reward_model,
    load_tokenizer,
    longest_allowed,
)
from training.ml.logprobs import response_logps
from training.ml.memory import predict
from training.ml.methods import BESIDE, PROMPTS, SETTINGS, WHOLE, why_not
from training.ml.settings import METHODS
from training.runs import Impossible, check_base

PAIRS = polite_pairs(24)
TEXTS = [
    f"The river by place {i} is calm and clear, and its {i} boats are slow." for i in range(12)
]
TRAIN = {
    "reward": reward_model.train,
    "dpo": dpo.train,
    "ppo": partial(ppo.train, reward=lambda prompts, texts: [float(len(text)) for text in texts]),
    "sft": sft.train,
    "pretrain": sft.pretrain,
    "quiet_star": quiet_star.train,
}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SMALL = {
    "max_steps": 2,
    "batch_size": 4,
    "dtype": "float32",
    "learning_rate": 2e-3,
    "lora_rank": 4,
    "virtual_tokens": 4,
    "galore_rank": 4,
    "galore_gap": 2,
    "eval_every": 2,
    "checkpoint_every": 2,
}
SHORT = {
    "steps": 2,
    "prompts_per_step": 4,
    "max_new_tokens": 4,
    "minibatches": 1,
    "epochs": 1,
    "dtype": "float32",
    "learning_rate": 2e-3,
    "lora_rank": 4,
}
"""Of a recipe whose steps are its own."""
TABLE_AT = re.compile(r"<!-- methods -->\n(.*?)\n<!-- end -->", re.DOTALL)


def recipe_of(kind: str, base: str, **chosen):
    if kind == "ppo":
        return make_recipe(kind, SHORT | chosen | {"base_model": base})
    more = {"text": "rivers.txt"} if kind in ON_TEXTS else {}
    if kind == "quiet_star":
        more |= {"thought_length": 1, "true_tokens": 1}
    if chosen.get("method") in PROMPTS and kind == "pretrain":
        more["packing"] = False
    return make_recipe(kind, SMALL | more | chosen | {"base_model": base})


def train(kind: str, base: str, folder: Path, on_step=lambda report: None, **chosen):
    rows = (TEXTS[:8], TEXTS[8:]) if kind in ON_TEXTS else (PAIRS[:16], PAIRS[16:])
    if kind == "ppo":
        rows = tuple(prompts_of(pairs) for pairs in rows)
    return TRAIN[kind](recipe_of(kind, base, **chosen), *rows, folder, on_step)


@pytest.fixture(scope="module")
def base(settled_imports, tmp_path_factory) -> str:
    """Folder of a random Llama of one layer."""
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "one-layer", layers=1))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(kind, method) to the metrics and the folder of a run; each combination is trained once."""
    done = {}

    def find(kind: str, method: str):
        if (kind, method) not in done:
            folder = tmp_path_factory.mktemp(f"{kind}-{method}")
            done[kind, method] = train(kind, base, folder, method=method), folder
        return done[kind, method]

    return find


@pytest.fixture(scope="module")
def outcome(base, trained):
    """(kind, method) to why a launch refuses it, in a sentence, or "" after it was trained."""

    def find(kind: str, method: str) -> str:
        try:
            check_base(base, recipe_of(kind, base, method=method))
        except Impossible as refused:
            return str(refused).removeprefix("method: ")
        trained(kind, method)
        return ""

    return find


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "model").glob("*model.safetensors")
    return load_file(path)


def reward_margin(folder: Path) -> float:
    """Mean margin of the test pairs under the saved model."""
    model, tokenizer = load_reward_model(folder, dtype="float32")
    chosen = reward_model.score(model, tokenizer, [p.prompt + p.chosen for p in PAIRS[16:]])
    rejected = reward_model.score(model, tokenizer, [p.prompt + p.rejected for p in PAIRS[16:]])
    return sum(a - b for a, b in zip(chosen, rejected, strict=True)) / len(chosen)


def policy_change(kind: str, folder: Path, base: str, method: str) -> float:
    """Mean log-probability of what was held out: the saved policy's less its start's. Of DPO per
    response, of the others per token."""
    tokenizer = load_tokenizer(base)
    if kind == "dpo":
        tokens, _left_out = tokenize_pairs(PAIRS[16:], tokenizer, 256)
        prompts, responses = [p.prompt_ids for p in tokens], [p.chosen_ids for p in tokens]
        n = len(responses)
    else:
        if kind == "sft":
            rows, _left_out = tokenize_examples(to_imitate(PAIRS[16:], "chosen")[0], tokenizer, 256)
        else:
            rows = [p for text in TEXTS[8:] for p in text_pieces(text, text, tokenizer, 256)]
        prompts, responses = [r.prompt_ids for r in rows], [r.response_ids for r in rows]
        n = sum(map(len, responses))
    policy, _tokenizer = load_policy(str(folder), dtype="float32")
    start = load_causal(base, method=method, dtype="float32").eval()
    now, then = (
        response_logps(m, prompts, responses, tokenizer.pad_token_id) for m in (policy, start)
    )
    return float((now - then).sum()) / n


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", RECIPES)
def test_a_method_trains_leaves_the_base_and_loads_again_with_the_numbers_it_measured(
    base, trained, outcome, kind, method
):
    before = (Path(base) / "model.safetensors").read_bytes()
    if reason := outcome(kind, method):
        assert reason == why_not(kind, method, LLAMA)
        return
    metrics, folder = trained(kind, method)

    assert (Path(base) / "model.safetensors").read_bytes() == before
    saved = weights(folder)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    if method in WHOLE:
        assert metrics["trained_parameters"] == metrics["parameters"]
        old = load_file(Path(base) / "model.safetensors")
        assert all(not torch.equal(old[name], saved[name]) for name in old if name in saved)
    else:
        assert 0 < metrics["trained_parameters"] < metrics["parameters"] / 2
    recipe, arch = recipe_of(kind, base, method=method), read_architecture(base)
    foretold = ppo_memory.predict(recipe, arch) if kind == "ppo" else predict(kind, recipe, arch)
    assert foretold.trained == metrics["trained_parameters"]
    assert not [p for p in (folder / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    if kind == "reward":
        assert reward_margin(folder / "model") == pytest.approx(metrics["margin"], abs=2e-5)
        return
    change = policy_change(kind, folder / "model", base, method)
    assert abs(change) > 1e-5
    if kind == "ppo":
        return
    if kind == "dpo":
        assert change == pytest.approx(metrics["chosen_logp_change"], abs=1e-3)
    else:
        assert change == pytest.approx(-metrics["change"]["value"], abs=2e-4)


@pytest.mark.parametrize("method", ["qlora", "loftq", "prefix", "pissa", "full", "head"])
def test_a_reward_model_gives_the_same_rewards_as_a_judge(trained, method):
    folder = trained("reward", method)[1] / "model"
    model, tokenizer = load_reward_model(folder, dtype="float32")
    texts = [p.prompt + p.chosen for p in PAIRS[:6]]

    judge = load_judge(str(folder), JudgeRecipe(mode="reward", dtype="float32"))

    rows = [chat_tokens(judge.tokenizer, text) for text in texts]
    assert judge._rewards(rows) == pytest.approx(
        reward_model.score(model, tokenizer, texts), abs=2e-5
    )


class Cancelled(Exception):
    pass


def stop_at_2(report):
    if report.step >= 2:
        raise Cancelled


@pytest.mark.parametrize(
    ("kind", "method"),
    [("dpo", "full"), ("reward", "galore"), ("dpo", "pissa"), ("dpo", "ptuning"),
     ("reward", "head"), ("dpo", "dora"), ("sft", "loftq")],
)  # fmt: skip
def test_a_run_cut_short_resumes_to_the_same_weights(base, trained, tmp_path, kind, method):
    with pytest.raises(Cancelled):
        train(kind, base, tmp_path, stop_at_2, method=method, checkpoint_every=1)

    train(kind, base, tmp_path, method=method)

    whole, cut = weights(trained(kind, method)[1]), weights(tmp_path)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("method", ["ia3", "loftq", "full"])
def test_what_a_run_left_is_a_base_of_the_next(trained, tmp_path, method):
    first = trained("dpo", method)[1] / "model"

    metrics = train("dpo", str(first), tmp_path, method="lora", max_steps=1)

    assert metrics["n_steps"] == 1
    policy, tokenizer = load_policy(str(tmp_path / "model"), dtype="float32")
    prompt = [{"role": "user", "content": "Tell me about place 1."}]
    assert sample(policy, tokenizer, [prompt], max_new_tokens=3) is not None


@pytest.mark.parametrize("method", PROMPTS)
def test_a_learned_prompt_writes_what_its_log_probabilities_say(base, trained, method):
    folder = str(trained("dpo", method)[1] / "model")
    policy, tokenizer = load_policy(folder, dtype="float32")
    prompts = [p.prompt for p in PAIRS[:2]] + [[{"role": "user", "content": "Why?"}]]
    with torch.no_grad():
        likeliest = []
        # One by one, the whole text anew for each word: no cache, no padding.
        for prompt in prompts:
            ids = chat_tokens(tokenizer, prompt, open_answer=True)
            for _word in range(4):
                ids = [*ids, int(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            likeliest.append(tokenizer.decode(ids[-4:], skip_special_tokens=True).strip())

    written = sample(policy, tokenizer, prompts, max_new_tokens=4, temperature=0)

    assert written == likeliest
    assert longest_allowed(folder, 1000) == longest_allowed(base, 1000) - 4
    with pytest.raises(ValueError, match="a learned prompt, which cannot be merged"):
        load_causal(folder)


def test_pissa_leaves_an_adapter_for_the_base_as_it_is_on_the_disk(trained):
    folder = trained("dpo", "pissa")[1] / "model"

    saved = json.loads((folder / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 64, True)


def test_dora_and_rslora_and_pissa_and_loftq_are_other_methods_than_lora(trained):
    methods = ("lora", "qlora", "dora", "rslora", "pissa", "loftq")

    margins = {method: trained("reward", method)[0]["margin"] for method in methods}

    assert len({round(margin, 6) for margin in margins.values()}) == len(methods)


@torch.no_grad()
def test_loftq_starts_nearer_to_the_base_than_its_four_bits(base):
    """The matrices are the main directions of what the rounding took: nothing of that rank is
    nearer, and at full rank nothing is missing."""
    whole = load_causal(base, dtype="float32")
    weight = whole.model.layers[0].mlp.up_proj.weight
    far = {}
    for rank in (1, 4, 32):
        recipe = recipe_of("sft", base, method="loftq", lora_rank=rank, lora_alpha=8)
        model = load_causal(base, method="loftq", dtype="float32")
        model = adapting.adapted(model, recipe, task="CAUSAL_LM")
        adapting.start_loftq(model, whole)
        layer = model.get_base_model().model.layers[0].mlp.up_proj
        lost = weight - dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        far[rank] = (lost - layer.get_delta_weight("default")).norm() / lost.norm()
        sizes = torch.linalg.svdvals(lost)
        assert far[rank] == pytest.approx(float(sizes[rank:].norm() / sizes.norm()), abs=1e-4)

    assert 1 > far[1] > far[4] > far[32]
    assert far[32] < 1e-4


def adapted_paths(base: str, method: str, wanted: str) -> set[str]:
    recipe = recipe_of("sft", base, method=method, target_modules=wanted)
    model = adapting.adapted(load_causal(base, dtype="float32"), recipe, task="CAUSAL_LM")
    return {
        name.removeprefix("base_model.model.model.layers.").partition(".lora_A")[0]
        for name, _p in model.named_parameters()
        if ".lora_A" in name
    }


def test_layers_are_named_by_name_by_pattern_or_all(tiny_model):
    q, k = ("0.self_attn.q_proj", "1.self_attn.q_proj"), ("0.self_attn.k_proj",)
    mlp = {f"1.mlp.{name}_proj" for name in ("gate", "up", "down")}

    assert adapted_paths(tiny_model, "lora", "q_proj") == {*q}
    assert adapted_paths(tiny_model, "dora", "layers.1.mlp.*") == mlp
    assert adapted_paths(tiny_model, "lora", "layers.0.*.[qk]_proj, 1.self_attn.q_proj") == {*q, *k}
    assert len(adapted_paths(tiny_model, "lora", "all-linear")) == 14
    for chosen in ("q_proj", "layers.1.mlp.*", "layers.0.*.[qk]_proj, 1.self_attn.q_proj"):
        recipe = recipe_of("sft", tiny_model, target_modules=chosen, train_norms=False)
        model = adapting.adapted(load_causal(tiny_model), recipe, task="CAUSAL_LM")
        trained, _all = model.get_nb_trainable_parameters()
        assert predict("sft", recipe, read_architecture(tiny_model)).trained == trained


@pytest.mark.parametrize("wanted", ["c_attn", "layers.7.*", "lm_head", "q_proj,nothing*"])
def test_targets_that_match_no_layer_are_refused_before_and_in_the_run(tiny_model, wanted):
    recipe = recipe_of("sft", tiny_model, target_modules=wanted)
    missing = wanted.split(",")[-1]

    with pytest.raises(ValueError, match="target_modules: the model has no layer") as before:
        check_base(tiny_model, recipe)
    with pytest.raises(ValueError, match="its linear layers are down_proj, gate_proj") as within:
        adapter_config(load_causal(tiny_model), recipe, task="CAUSAL_LM")

    assert missing in str(before.value)
    assert missing in str(within.value)


def test_targets_are_held_against_an_adapters_base_and_against_a_config_alone(
    tiny_model, tmp_path, monkeypatch
):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")

    def stands_on(base: str) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))

    def check(base, wanted: str) -> None:
        check_base(str(base), recipe_of("sft", str(base), target_modules=wanted))

    stands_on(tiny_model)
    check(adapter, "q_proj,layers.1.*")
    with pytest.raises(ValueError, match=r"no layer layers\.2\.\*; it has .* in layers 0 to 1$"):
        check(adapter, "layers.2.*")
    stands_on(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"is an adapter of .*gone, which is not on this machine"):
        check(adapter, "q_proj")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cached = tmp_path / "hub" / "models--some--model" / "snapshots" / "1"
    cached.mkdir(parents=True)
    config = json.loads((Path(tiny_model) / "config.json").read_text())
    (cached / "config.json").write_text(json.dumps(config))
    check("some/model", "layers.1.mlp.*")
    with pytest.raises(ValueError, match="no layer c_attn; it has down_proj, gate_proj, k_proj"):
        check("some/model", "c_attn")
    # Whose layers bear other names than a config tells is asked in the run alone.
    (cached / "config.json").write_text(json.dumps(config | {"model_type": "phi3"}))
    check("some/model", "qkv_proj")
    check("nobody/knows", "whatever")


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
    for kind, recipe in RECIPES.items():
        known = recipe.__dataclass_fields__
        methods = BESIDE if kind == "ppo" else METHODS  # of others why_not says why not
        names = {name for method in methods for name in SETTINGS[method]}
        names -= {"lora_dropout"} if kind == "ppo" else set()
        assert names <= known.keys()
        assert all(known[name].metadata["help"] for name in names)


def test_the_table_in_the_documents_is_what_runs_and_what_is_refused(outcome):
    text = (Path(settings.BASE_DIR) / "docs" / "training.md").read_text()
    lines = [f"| Method | {' | '.join(RECIPES)} |", "| --- |" + " --- |" * len(RECIPES)]
    reasons: list[str] = []
    for method, words in METHODS.items():
        cells = []
        for kind in RECIPES:
            reason = outcome(kind, method)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"no ({reasons.index(reason) + 1})" if reason else "runs")
        lines.append(f"| `{method}` {words.split(':')[0]} | {' | '.join(cells)} |")
    lines += ["", *(f"{n}. {reason}" for n, reason in enumerate(reasons, 1))]
    found = TABLE_AT.search(text)

    assert found is not None
    assert found[1] == "\n".join(lines)
