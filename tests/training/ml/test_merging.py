"""Merging: each formula against numpy in float64, whole merges against PEFT and the adapters."""

import json
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from training.ml.loading import load_causal, load_reward_model, load_scorer
from training.ml.merge_check import NotTheSame, check_rows, compare, logits_of
from training.ml.merge_formulas import agreeing_mean, drop, linear, slerp, trim, weighted_sum
from training.ml.merge_recipe import MergeRecipe, why_not
from training.ml.mergekit import mergekit_config
from training.ml.merging import merge
from training.ml.stored_weights import Adapted, Files, open_weights

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def save_adapter(base: str, folder: Path, config, *, seed: int, method: str = "lora", load=None):
    """An adapter whose matrices are random on both sides, so that it changes what the base says."""
    torch.manual_seed(seed)
    model = get_peft_model((load or load_causal)(base, method=method, dtype="float32"), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "made_by.json").write_text(json.dumps({"method": method}))
    return str(folder)


def lora(**settings) -> LoraConfig:
    values = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    return LoraConfig(**values | settings)


@pytest.fixture(scope="module")
def adapters(tiny_model, tmp_path_factory) -> dict[str, str]:
    """One adapter of each kind that changes weights, all over the same base."""
    root = tmp_path_factory.mktemp("adapters")
    kinds = {
        "lora": (lora(), "lora", load_causal),
        "norms": (lora(modules_to_save=["norm"]), "lora", load_causal),
        "rslora": (lora(r=8, use_rslora=True), "rslora", load_causal),
        "dora": (lora(use_dora=True), "dora", load_causal),
        "qlora": (lora(), "qlora", load_causal),
        "ia3": (
            IA3Config(
                task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], feedforward_modules=[]
            ),
            "ia3",
            load_causal,
        ),
        "reward": (lora(task_type="SEQ_CLS", modules_to_save=["score"]), "lora", load_scorer),
    }
    return {
        name: save_adapter(tiny_model, root / name, config, seed=seed, method=method, load=load)
        for seed, (name, (config, method, load)) in enumerate(kinds.items())
    }


@pytest.fixture(scope="module")
def wholes(tiny_model, adapters, tmp_path_factory) -> list[str]:
    """Two whole models that were learned from the base."""
    root = tmp_path_factory.mktemp("wholes")
    found = []
    for seed in (1, 2):
        folder = root / f"whole-{seed}"
        shutil.copytree(tiny_model, folder)
        torch.manual_seed(seed)
        weights = load_file(folder / "model.safetensors")
        moved = {n: w + 0.05 * torch.randn(w.shape) for n, w in weights.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        found.append(str(folder))
    return found


def merged(folder: Path, method: str, models, **settings) -> dict[str, torch.Tensor]:
    merge(MergeRecipe(method=method, models=tuple(models), **settings), folder)
    return load_file(folder / "model.safetensors")


def float64(weights: dict[str, torch.Tensor], name: str) -> np.ndarray:
    return weights[name].double().numpy()


# Formulas


def test_slerp_gives_the_value_worked_by_hand():
    found = slerp(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0]), 0.25)
    assert found.tolist() == pytest.approx([0.923880, 0.765367, 0.0], abs=1e-6)


def test_slerp_is_a_line_between_parallel_tensors_and_ends_at_its_ends():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0001])
    assert slerp(first, second, 0.5).tolist() == pytest.approx([1.5, 3.00005])
    other = torch.tensor([-2.0, 0.5])
    assert slerp(first, other, 0.0).tolist() == pytest.approx(first.tolist())
    assert slerp(first, other, 1.0).tolist() == pytest.approx(other.tolist())
    assert slerp(first, torch.zeros(2), 0.5).tolist() == [0.5, 1.0]


def ties_by_numpy(changes, weights, density, sign):
    """Yadav et al. 2023, algorithm 1, number by number."""
    kept = []
    for change in changes:
        order = np.argsort(-np.abs(change))[: int(density * len(change))]
        mask = np.zeros(len(change))
        mask[order] = 1
        kept.append(change * mask)
    found = np.zeros(len(changes[0]))
    for i in range(len(found)):
        values = [(change[i], weight) for change, weight in zip(kept, weights, strict=True)]
        voices = sum(w * (v if sign == "total" else np.sign(v)) for v, w in values)
        elected = np.sign(voices) or (1.0 if sign == "count" else 0.0)
        agree = [(v, w) for v, w in values if v != 0 and np.sign(v) == elected]
        if agree:
            found[i] = sum(v * w for v, w in agree) / sum(w for _v, w in agree)
    return found


@pytest.mark.parametrize("sign", ["total", "count"])
def test_ties_is_the_papers_algorithm(sign):
    rng = np.random.default_rng(0)
    changes = [rng.normal(size=200) for _ in range(3)]
    weights = [1.0, 0.5, 2.0]
    trimmed = [trim(torch.tensor(change), 0.4) for change in changes]
    assert [int((t != 0).sum()) for t in trimmed] == [80, 80, 80]
    found = agreeing_mean(trimmed, weights, sign)
    assert found.numpy() == pytest.approx(ties_by_numpy(changes, weights, 0.4, sign), abs=1e-12)


def test_dare_keeps_its_share_and_the_expected_change():
    change = torch.full((100_000,), 2.0)
    kept = drop(change, 0.25, torch.Generator().manual_seed(3))
    assert sorted(set(kept.tolist())) == [0.0, 8.0]
    assert float((kept != 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(kept.mean()) == pytest.approx(2.0, abs=0.05)
    again = drop(change, 0.25, torch.Generator().manual_seed(3))
    assert torch.equal(kept, again)


def test_linear_is_a_mean_and_a_sum_may_take_away():
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])]
    assert linear(tensors, [3.0, 1.0]).tolist() == [1.5, 1.0]
    assert weighted_sum(tensors, [1.0, -0.5]).tolist() == [-0.5, 3.0]


# Adapter into base


@pytest.mark.parametrize("kind", ["lora", "norms", "rslora", "dora", "ia3", "qlora"])
def test_a_folded_adapter_gives_the_adapters_logits(
    adapters, tiny_model, untouched, tmp_path, kind
):
    recipe = MergeRecipe(method="fold", models=(adapters[kind],))
    found = merge(recipe, tmp_path / "whole")
    assert found["check"]["n"] == 32
    assert found["check"]["largest"] <= found["check"]["tolerance"]
    assert found["check"]["same_words"] == {"value": 1.0, "n": 32 * 8}
    rows = check_rows(tiny_model, [])
    base, whole = logits_of(tiny_model, rows), logits_of(str(tmp_path / "whole"), rows)
    # The adapter said something, else the comparison above would hold for anything.
    moved = max(float((a - b).abs().max()) for a, b in zip(base, whole, strict=True))
    assert moved > 10 * found["check"]["tolerance"]


def test_a_stretched_context_goes_into_the_whole_models_config(adapters, tmp_path):
    stretched = tmp_path / "stretched"
    shutil.copytree(adapters["lora"], stretched)
    (stretched / "made_by.json").write_text('{"method": "lora", "rope": ["linear", 2.0]}')
    found = merge(MergeRecipe(method="fold", models=(str(stretched),)), tmp_path / "whole")
    assert found["check"]["largest"] <= found["check"]["tolerance"]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["max_position_embeddings"] == 512
    assert config["rope_parameters"]["factor"] == 2.0


def test_a_folded_reward_model_scores_as_before(adapters, tmp_path):
    merge(MergeRecipe(method="fold", models=(adapters["reward"],)), tmp_path / "whole")
    model, _tokenizer = load_reward_model(tmp_path / "whole")
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert "lm_head.weight" not in Files(str(tmp_path / "whole")).names


def test_what_is_not_the_same_is_not_saved(adapters, tiny_model, tmp_path):
    folder = tmp_path / "whole"
    with pytest.raises(NotTheSame, match=r"off by up to .* on 32 prompts"):
        compare(adapters["lora"], tiny_model, check_rows(tiny_model, []))
    broken = tmp_path / "broken"
    shutil.copytree(adapters["lora"], broken)
    weights = load_file(broken / "adapter_model.safetensors")
    weights = {n: w * float("nan") if "layers.1.mlp.up" in n else w for n, w in weights.items()}
    save_file(weights, broken / "adapter_model.safetensors")
    with pytest.raises(NotTheSame, match="nothing was saved"):
        merge(MergeRecipe(method="fold", models=(str(broken),)), folder)
    assert not folder.exists()
    assert list(tmp_path.glob("*.part")) == []


def test_an_adapter_over_convolutions_of_gpt2_is_turned(tiny_model, tmp_path):
    """GPT-2 keeps its weights the other way round."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for path in Path(tiny_model).glob("tokenizer*"):
        shutil.copy(path, tmp_path / "gpt2")
    base = str(tmp_path / "gpt2")
    for name, settings in (("lora", {}), ("dora", {"use_dora": True}), ("qlora", {})):
        chosen = lora(target_modules=["c_attn"], fan_in_fan_out=True, **settings)
        adapter = save_adapter(base, tmp_path / name, chosen, seed=1, method=name)
        found = merge(MergeRecipe(method="fold", models=(adapter,)), tmp_path / f"{name}-whole")
        assert found["check"]["largest"] <= found["check"]["tolerance"]


def test_a_base_stored_in_4_bits_is_turned_back_into_numbers(adapters, tiny_model, tmp_path):
    stored = load_causal(tiny_model, method="qlora", dtype="float32")
    stored.save_pretrained(tmp_path / "stored")
    files, rounded = Files(str(tmp_path / "stored")), Adapted(adapters["qlora"]).base
    assert sorted(files.names) == sorted(rounded.names)
    assert torch.equal(files.tensor(Q), rounded.tensor(Q))
    assert not torch.equal(files.tensor(Q), Files(tiny_model).tensor(Q))


# Several models


def test_cat_and_task_arithmetic_are_peft_without_its_cross_terms(adapters, tiny_model, tmp_path):
    """PEFT's own "cat" and "linear_svd" act on ΔW, as ours do; its "linear" does not."""
    weights = (0.7, -0.4)
    pair = [adapters["lora"], adapters["rslora"]]
    ours = merged(tmp_path / "sum", "task_arithmetic", pair, weights=weights)
    theirs = PeftModel.from_pretrained(load_causal(tiny_model), pair[0], adapter_name="a")
    theirs.load_adapter(pair[1], adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], list(weights), "cat", combination_type="cat")
    layer = theirs.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    change = ours[Q] - load_file(Path(tiny_model) / "model.safetensors")[Q]
    assert torch.allclose(change, layer.get_delta_weight("cat"), atol=1e-6)

    merge(MergeRecipe(method="cat", models=tuple(pair), weights=weights), tmp_path / "cat")
    side_by_side = load_file(tmp_path / "cat" / "adapter_model.safetensors")
    assert side_by_side[f"base_model.model.{Q.replace('.weight', '.lora_A.weight')}"].shape[0] == 12
    rows = check_rows(tiny_model, [])
    for a, b in zip(
        logits_of(str(tmp_path / "sum"), rows), logits_of(str(tmp_path / "cat"), rows), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)

    even = [adapters["lora"], adapters["norms"]]  # of one rank, as PEFT's "linear" wants it
    theirs.load_adapter(even[1], adapter_name="c")
    theirs.add_weighted_adapter(["a", "c"], [1.0, 1.0], "linear", combination_type="linear")
    exact = layer.get_delta_weight("a") + layer.get_delta_weight("c")
    crossed = layer.get_delta_weight("linear")
    assert float((crossed - exact).abs().max()) > 0.1 * float(exact.abs().max())


def test_ties_of_adapters_is_pefts_on_whole_changes(adapters, tiny_model, tmp_path):
    """The "ties_svd" of PEFT with full rank: what its singular values keep of our ΔW."""
    pair = [adapters["lora"], adapters["rslora"]]
    ours = merged(tmp_path / "ties", "ties", pair, density=0.5)
    theirs = PeftModel.from_pretrained(load_causal(tiny_model), pair[0], adapter_name="a")
    theirs.load_adapter(pair[1], adapter_name="b")
    theirs.add_weighted_adapter(
        ["a", "b"], [1.0, 1.0], "ties", combination_type="ties_svd", svd_rank=32, density=0.5
    )
    layer = theirs.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    change = ours[Q] - load_file(Path(tiny_model) / "model.safetensors")[Q]
    assert torch.allclose(change, layer.get_delta_weight("ties"), atol=1e-5)


def test_whole_models_merge_as_numpy_says(tiny_model, wholes, tmp_path):
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in wholes)
    start = load_file(Path(tiny_model) / "model.safetensors")
    a, b, zero = (float64(weights, Q) for weights in (first, second, start))

    found = merged(tmp_path / "linear", "linear", wholes, weights=(3.0, 1.0))
    assert float64(found, Q) == pytest.approx(0.75 * a + 0.25 * b, abs=1e-6)

    found = merged(tmp_path / "slerp", "slerp", wholes, t=0.3)
    angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    line = (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)
    assert float64(found, Q) == pytest.approx(line, abs=1e-6)

    found = merged(tmp_path / "ties", "ties", wholes, base=tiny_model, density=0.3, scale=0.8)
    changes = [(x - zero).flatten() for x in (a, b)]
    expected = zero + 0.8 * ties_by_numpy(changes, [1, 1], 0.3, "total").reshape(zero.shape)
    assert np.mean(np.abs(float64(found, Q) - expected) > 1e-6) < 0.01  # rounding at the border

    found = merged(tmp_path / "dare", "dare_linear", wholes, base=tiny_model, density=0.5, seed=7)
    again = merged(tmp_path / "again", "dare_linear", wholes, base=tiny_model, density=0.5, seed=7)
    other = merged(tmp_path / "other", "dare_linear", wholes, base=tiny_model, density=0.5, seed=8)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found[Q], other[Q])
    shifts = (float64(found, Q) - zero).flatten() / 0.5 * 0.5
    possible = np.stack([0 * changes[0], *changes, changes[0] + changes[1]])
    assert np.abs(shifts - possible).min(axis=0).max() < 1e-6  # each number: dropped or doubled

    found = merged(tmp_path / "dt", "dare_ties", wholes, base=tiny_model, density=0.5)
    assert float64(found, Q).shape == zero.shape


def test_an_adapter_merges_with_a_whole_model(adapters, wholes, tiny_model, tmp_path):
    found = merged(
        tmp_path / "mixed", "task_arithmetic", [adapters["norms"], wholes[0]], weights=(1.0, 1.0)
    )
    start = Files(tiny_model)
    for name in (Q, NORM):
        changes = [
            open_weights(folder).tensor(name) - start.tensor(name)
            for folder in (adapters["norms"], wholes[0])
        ]
        assert torch.allclose(found[name], start.tensor(name) + changes[0] + changes[1], atol=1e-5)


def test_layers_are_stacked_in_the_order_asked_for(tiny_model, wholes, tmp_path):
    found = merged(tmp_path / "deep", "passthrough", wholes, layers="1:0-2, 2:1-2")
    second = load_file(Path(wholes[1]) / "model.safetensors")
    assert torch.equal(found[Q.replace("layers.0", "layers.2")], second[Q.replace("0", "1")])
    assert torch.equal(found["lm_head.weight"], second["lm_head.weight"])
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    of_one = merged(tmp_path / "deeper", "passthrough", wholes[:1], layers="1:0-2, 1:1-2")
    assert torch.equal(of_one[Q.replace("0", "1")], of_one[Q.replace("layers.0", "layers.2")])


def test_shards_load_as_one_and_number_formats_are_kept(wholes, tmp_path):
    recipe = MergeRecipe(method="linear", models=tuple(wholes), dtype="bfloat16")
    merge(recipe, tmp_path / "shards", shard_bytes=20_000)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert {path.name for path in (tmp_path / "shards").glob("*.safetensors")} == files
    assert load_causal(str(tmp_path / "shards"), dtype="float32").num_parameters() > 0
    assert Files(str(tmp_path / "shards")).dtype(Q) == torch.bfloat16


def test_a_stopped_merge_leaves_nothing(wholes, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, total):
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        merge(
            MergeRecipe(method="linear", models=tuple(wholes)), tmp_path / "stopped" / "out", stop
        )
    assert list((tmp_path / "stopped").iterdir()) == []


MERGEKIT = """#!{python}
import json, pathlib, shutil, sys
plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
assert plan["merge_method"] == "model_stock", plan
shutil.copytree(plan["models"][0]["model"], sys.argv[2], dirs_exist_ok=True)
print("merged by another program")
"""


def test_mergekit_is_called_as_a_program_where_it_is_installed(
    wholes, tiny_model, tmp_path, monkeypatch
):
    recipe = MergeRecipe(method="mergekit", models=tuple(wholes), base=tiny_model)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="mergekit is not installed"):
        merge(recipe, tmp_path / "out")
    program = tmp_path / "mergekit-yaml"
    program.write_text(MERGEKIT.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    found = merge(recipe, tmp_path / "out")
    assert found["said"] == "merged by another program"
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert mergekit_config(recipe)["base_model"] == tiny_model


# What is refused before the launch


def refusal(method: str, models, **settings) -> str:
    recipe = MergeRecipe(method=method, models=tuple(models), **settings)
    return why_not(recipe, [Path(model).name for model in models])


def test_what_does_not_fit_is_said_before_the_launch(adapters, wholes, tiny_model, tmp_path):
    from tests.training.tiny import save_tiny_model

    wide = str(save_tiny_model(tmp_path / "wide", hidden_size=64))
    assert "wide has other shapes" in refusal("linear", [tiny_model, wide])
    assert "have other shapes" in refusal("passthrough", [tiny_model, wide], layers="1:0-1,2:0-1")
    assert "has 2 layers" in refusal("passthrough", [tiny_model], layers="1:0-3")
    foreign = tmp_path / "foreign"
    shutil.copytree(wholes[0], foreign)
    words = json.loads((foreign / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (foreign / "tokenizer.json").write_text(json.dumps(words))
    assert "different tokenizers" in refusal("linear", [tiny_model, str(foreign)])
    assert "name the base" in refusal("ties", wholes)
    assert refusal("ties", wholes, base=tiny_model) == ""
    assert refusal("ties", [adapters["lora"], adapters["dora"]]) == ""
    assert "a whole model already" in refusal("fold", [tiny_model])
    assert "wholes" not in refusal("cat", [adapters["lora"], adapters["norms"]])
    assert "whole-1 is none" in refusal("cat", [adapters["lora"], wholes[0]])
    assert "is a DoRA" in refusal("cat", [adapters["lora"], adapters["dora"]])
    assert "a reward model and a model that writes" in refusal(
        "linear", [adapters["lora"], adapters["reward"]]
    )
    ensemble = tmp_path / "ensemble"
    shutil.copytree(adapters["reward"], ensemble)
    (ensemble / "made_by.json").write_text('{"method": "lora", "members": 3}')
    assert "an ensemble of 3" in refusal("fold", [str(ensemble)])
    (ensemble / "made_by.json").write_text('{"method": "lora", "rope": ["yarn", 2.0]}')
    assert "a stretched context" in refusal("linear", [str(ensemble), adapters["reward"]])
    other = tmp_path / "other-base"
    shutil.copytree(adapters["lora"], other)
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": wholes[0]})
    )
    assert "different bases" in refusal("linear", [adapters["lora"], str(other)])
    assert "no folder on this machine" in refusal("linear", [tiny_model, "/nowhere/at/all"])
    assert "merge the adapter" in refusal("mergekit", [tiny_model, adapters["lora"]])


@pytest.mark.parametrize(
    ("method", "chosen", "words"),
    [
        ("slerp", {"models": ("a", "b", "c")}, "models: SLERP"),
        ("linear", {"models": ("a",)}, "models: a merge needs two"),
        ("linear", {"models": ("a", "a")}, "models: a model is named twice"),
        ("linear", {"models": ("a", "b"), "weights": (1.0,)}, "weights: give one"),
        ("ties", {"models": ("a", "b"), "weights": (1.0, -1.0)}, "weights: only task arithmetic"),
        ("ties", {"models": ("a", "b"), "density": 0.0}, "density:"),
        ("passthrough", {"models": ("a",), "layers": "1:4"}, "layers: '1:4' is not written"),
        (
            "passthrough",
            {"models": ("a", "b"), "layers": "1:0-2"},
            "layers: model 2 gives no layer",
        ),
        ("blend", {"models": ("a",)}, "method: blend"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(method, chosen, words):
    with pytest.raises(ValueError, match=words):
        MergeRecipe(method=method, **chosen)
