"""Memory told from a config: the worked examples, and what autograd really keeps."""

from dataclasses import replace

import pytest

from training.ml.architecture import architecture, read_architecture
from training.ml.config import RECIPES, DPORecipe, RewardRecipe
from training.ml.memory import (
    USES,
    Work,
    activations,
    adapter_weights,
    base_weights,
    checkpoints,
    four_bits,
    full_logits,
    inference,
    kv_cache,
    layer_activations,
    lighter_work,
    make_work,
    predict,
    read_bytes,
    suggestions,
)

LLAMA_8B = {
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
QWEN_HALF_B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
GIB = 2**30


def test_llama_8b_as_worked_by_hand():
    arch = architecture(LLAMA_8B)

    assert arch.linear_weights == 6_979_321_856
    assert arch.weights == 8_030_261_248  # as published
    assert four_bits(arch.linear_weights) / 1e9 == pytest.approx(3.60, abs=0.005)
    assert (arch.embeddings + arch.language_head) * 2 / 1e9 == pytest.approx(2.10, abs=0.005)
    assert adapter_weights(arch, 16, "all-linear") == 41_943_040
    assert adapter_weights(arch, 16, "all-linear") * 16 / 1e9 == pytest.approx(0.67, abs=0.005)
    assert checkpoints(arch, rows=1, tokens=2048, number=2) / 1e9 == pytest.approx(0.54, abs=0.005)
    assert full_logits(rows=1, tokens=2048, vocabulary=128256) / 1e9 == pytest.approx(
        2.63, abs=0.005
    )
    assert kv_cache(arch) == 128 * 1024


def test_qwen_half_b_as_worked_by_hand():
    arch = architecture(QWEN_HALF_B)

    assert arch.weights == 494_032_768  # as published
    assert four_bits(arch.linear_weights) / 1e9 == pytest.approx(0.18, abs=0.006)
    assert arch.embeddings * 2 / 1e9 == pytest.approx(0.27, abs=0.005)
    assert adapter_weights(arch, 16, "all-linear") / 1e6 == pytest.approx(8.8, abs=0.05)
    assert full_logits(rows=1, tokens=2048, vocabulary=151936) / 1e9 == pytest.approx(
        3.11, abs=0.005
    )
    assert kv_cache(arch) == 12 * 1024


def test_qlora_of_8b_fits_a_card_that_lora_does_not():
    arch = architecture(LLAMA_8B)
    asked = {"base_model": "x", "batch_size": 1, "max_length": 1024, "gradient_checkpointing": True}

    lora = predict("reward", RewardRecipe(**asked), arch)
    qlora = predict("reward", RewardRecipe(**asked, method="qlora"), arch)

    assert lora.peak > 16 * GIB > qlora.peak
    assert sum(term.bytes for term in qlora.terms) == qlora.peak


def test_what_makes_a_run_larger_makes_its_peak_larger():
    arch = architecture(QWEN_HALF_B)

    def peak(kind=DPORecipe, name="dpo", **settings):
        return predict(name, kind(base_model="x", **settings), arch).peak

    assert peak(batch_size=8) > peak(batch_size=4) > peak(batch_size=4, max_length=512)
    assert peak(batch_size=8) > peak(batch_size=8, gradient_checkpointing=True)
    assert peak(lora_rank=64) > peak(lora_rank=16) > peak(lora_rank=16, method="qlora")
    assert peak(gradient_accumulation=8) == peak(gradient_accumulation=1)
    assert peak(dtype="float32") > peak(dtype="bfloat16")


def test_a_budget_of_tokens_bounds_what_is_at_work_together():
    arch = architecture(QWEN_HALF_B)

    def told(name="reward", **settings):
        recipe = RECIPES[name](base_model="x", max_length=1000, **settings)
        return predict(name, recipe, arch)

    eight = told(batch_size=8)
    assert eight.part == (16, 1000)
    assert told(batch_size=8, batch_tokens=4000).part == (4, 1000)
    assert told(batch_size=2, gradient_accumulation=4, batch_tokens=99_999) == eight
    # Two pairs of the longest leave room; three of 833 tokens fill it.
    assert told(batch_size=8, batch_tokens=5000).part == (6, 833)
    assert told(batch_size=8, batch_tokens=100).part == (2, 1000)  # one pair alone, whatever it has
    assert told("sft", batch_size=8, batch_tokens=4000).part == (4, 1000)
    assert told("dpo", batch_size=8, batch_tokens=4000, loss="kto").part == (2, 1000)
    recipe = RewardRecipe(base_model="x", batch_size=8, batch_tokens=16_000, max_length=1000)
    found = suggestions("reward", recipe, arch, told(batch_size=8, batch_tokens=4000).peak)
    assert {"batch_tokens": 4000} in [s.settings for s in found if s.same_result]


def test_a_reference_that_was_asked_before_is_not_in_the_peak():
    arch = architecture(QWEN_HALF_B)

    def told(**settings):
        return predict("dpo", DPORecipe(base_model="x", batch_size=2, **settings), arch)

    live = {"precompute_reference": False}
    before, copied = told(method="full"), told(method="full", **live)
    assert (before.reference, copied.reference) == ("before", "copy")
    assert copied.peak - before.peak == base_weights(arch, method="lora", number=2)
    off = told(**live)
    assert (off.reference, off.peak) == ("off", told().peak)
    assert told(loss="simpo").reference == told(loss="orpo", **live).reference == ""
    recipe = DPORecipe(base_model="x", batch_size=2, method="full", **live)
    (first, *_others) = suggestions("dpo", recipe, arch, before.peak)
    assert (first.settings, first.same_result, first.slower) == (
        {"precompute_reference": True}, True, False,
    )  # fmt: skip


def test_attention_without_flash_keeps_the_matrices_of_all_heads():
    arch = architecture(QWEN_HALF_B)
    shape = {"rows": 2, "tokens": 512, "number": 2}

    more = layer_activations(arch, **shape, flash=False) - layer_activations(arch, **shape)

    assert more == 5 * 2 * 14 * 512**2  # Korthikanti et al. 2022, eq. 2


def test_suggestions_fit_and_begin_with_what_changes_no_result():
    arch = architecture(LLAMA_8B)
    recipe = RewardRecipe(base_model="x", batch_size=8, max_length=2048)
    room = 24 * GIB
    assert predict("reward", recipe, arch).peak > room

    found = suggestions("reward", recipe, arch, room)

    assert found[0].same_result
    first = found[0].settings
    assert first.get("batch_size", 8) * first.get("gradient_accumulation", 1) == 8
    for suggestion in found:
        changed = RewardRecipe(
            **{"base_model": "x", "batch_size": 8, "max_length": 2048} | suggestion.settings
        )
        assert predict("reward", changed, arch).peak == suggestion.peak <= room
    assert suggestions("reward", recipe, arch, GIB) == []


def test_suggestions_can_be_launched_and_each_of_them_is_worth_a_look():
    arch = architecture(LLAMA_8B)

    def told(kind, room, **settings):
        recipe = RECIPES[kind](base_model="x", **settings)
        return suggestions(kind, recipe, arch, room * GIB)

    prefix = told("sft", 24, method="prefix", max_length=2048)
    assert [s.settings for s in prefix] == [
        {"batch_size": 1, "gradient_accumulation": 8, "max_length": 1024}
    ]
    odd = told("reward", 60, batch_size=7, gradient_checkpointing=True, max_length=8192)
    assert odd[0].settings == {"batch_size": 1, "gradient_accumulation": 7}
    assert odd[0].same_result
    # Under QLoRA the reference is the policy with its adapter off, however it is asked.
    live = told("dpo", 24, method="full", precompute_reference=False)
    assert not [s for s in live if s.settings.keys() >= {"precompute_reference", "method"}]
    assert live


def test_headers_of_weights_count_what_the_config_counts(tiny_model):
    import json
    from pathlib import Path

    from_config = architecture(json.loads((Path(tiny_model) / "config.json").read_text()))
    from_headers = read_architecture(tiny_model)

    assert from_headers.weights == from_config.weights
    assert sorted(from_headers.linears) == sorted(from_config.linears)
    assert from_headers.file_bytes > from_headers.weights * 4


def test_a_model_at_work_needs_weights_and_cache():
    arch = architecture(LLAMA_8B)
    one, more = (Work(rows=1, tokens=n, new_tokens=0) for n in (1, 2049))
    short, long = (inference("ask", work, arch).peak for work in (one, more))

    assert short > base_weights(arch, method="lora", number=2)
    assert long - short > 2048 * 128 * 1024
    work = Work(rows=16, tokens=2048, new_tokens=512)
    peaks = {use: inference(use, work, arch).peak for use in USES}
    assert peaks["score"] < min(peaks["write"], peaks["ask"])
    assert inference("write", replace(work, in_4_bits=True), arch).peak < peaks["write"] - 9 * GIB


def test_lighter_work_is_the_most_texts_that_fit():
    arch = architecture(LLAMA_8B)
    work = Work(rows=64, tokens=4096, new_tokens=512)
    room = 24 * GIB

    found = lighter_work("write", work, arch, room)

    assert [s.settings for s in found] == [{"rows": 8}, {"rows": 16, "in_4_bits": True}]
    assert [s.same_result for s in found] == [True, False]
    for suggestion in found:
        rows = suggestion.settings["rows"]
        lighter = replace(work, **suggestion.settings)
        assert inference("write", lighter, arch).peak == suggestion.peak <= room
        assert inference("write", replace(lighter, rows=2 * rows), arch).peak > room
    assert lighter_work("write", work, arch, GIB) == []


def test_what_a_method_trains_and_keeps_is_told():
    arch = architecture(LLAMA_8B)

    def told(method, kind="sft", **settings):
        found = predict(kind, RECIPES[kind](base_model="x", method=method, **settings), arch)
        return found.trained, {term.name: term.bytes for term in found.terms}

    assert told("prompt", virtual_tokens=20)[0] == 20 * 4096
    assert told("prefix", virtual_tokens=20)[0] == 20 * 2 * 32 * 1024
    assert told("ptuning", virtual_tokens=20)[0] == 20 * 4096 + 3 * (4096**2 + 4096)
    assert told("ia3", train_norms=False)[0] == 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    assert told("head", "reward")[0] == 4096
    assert told("full")[0] == arch.weights
    # Of a 4096 × 4096 weight 3 × 128 × 4096 numbers instead of 2 × 4096².
    assert told("galore")[1]["optimizer"] < told("full")[1]["optimizer"] / 5
    assert "reference" not in told("loftq", "dpo")[1]
    assert "reference" not in told("pissa", "dpo")[1]  # asked before the first step
    live = told("pissa", "dpo", precompute_reference=False)[1]
    assert live["reference"] == base_weights(arch, method="lora", number=2)
    assert "activations" not in told("head", "reward")[1]


def test_where_all_weights_are_trained_gradients_come_as_activations_go():
    """The way back is told at its ends, so a longer one takes less than both together."""
    arch = architecture(QWEN_HALF_B)
    recipe = RewardRecipe(base_model="x", method="full", batch_size=2, max_length=1024)

    found = {t.name: t.bytes for t in predict("reward", recipe, arch, device="cpu").terms}
    summed = replace(recipe, gradient_accumulation=4)
    summed_up = {t.name: t.bytes for t in predict("reward", summed, arch, device="cpu").terms}

    assert "gradients" not in found
    assert summed_up["gradients"] == 4 * predict("reward", recipe, arch).trained
    assert summed_up["activations"] == found["activations"]


SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24},
    "gpt2": {"activation_function": "gelu_new"},
    "gpt_neox": {"hidden_act": "gelu"},
}


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix", "full", "head"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_what_autograd_keeps(shape, method):
    """Per layer, as the difference of two and one layers; float32 with trained norms."""
    torch = pytest.importorskip("torch")
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from trl.trainer.utils import disable_dropout_in_model

    from training.ml.loading import adapter_config, train_in_float32

    names = ("n_embd", "n_inner", "n_head", "n_positions", "n_layer")
    if shape != "gpt2":
        names = (
            "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings",
            "num_hidden_layers",
        )  # fmt: skip
    config = dict(zip(names, (64, 160, 4, 64), strict=False)) | {"vocab_size": 50} | SHAPES[shape]
    rows, tokens, before = 4, 48, 8 if method == "prefix" else 0

    def kept(layers: int) -> int:
        torch.manual_seed(0)
        made = AutoConfig.for_model(
            shape, **config, **{names[-1]: layers}, num_labels=1, pad_token_id=0, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_config(made)
        disable_dropout_in_model(model)
        recipe = RewardRecipe(base_model="x", lora_rank=4, method=method, virtual_tokens=8)
        if method != "full":
            model = get_peft_model(model, adapter_config(model, recipe, task="SEQ_CLS"))
        train_in_float32(model)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages, alive = {}, []

        def pack(tensor):
            storage = tensor.untyped_storage()
            # Matrices without texts in them are DoRA's, which are gone when the layer is done.
            of_texts = tensor.dim() != 2 or len(tensor) == rows * tokens
            if storage.data_ptr() not in own and of_texts:
                storages[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)  # so that no address is used twice
            return tensor

        ids = torch.randint(1, 50, (rows, tokens))
        mask = torch.ones_like(ids)
        mask[1, 40:] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        return sum(storages.values())

    arch = architecture({"model_type": shape, names[-1]: 2, **config})
    asked = {"rows": rows, "tokens": tokens, "number": 4, "rank": 4, "method": method}
    whole = activations(arch, **asked, before=before, checkpointing=False)
    if method == "head":
        assert kept(2) == kept(1) == pytest.approx(whole, rel=0.01)
        return
    told = layer_activations(arch, **asked, before=before)
    assert kept(2) - kept(1) == pytest.approx(told, rel=0.04)
    assert whole > 2 * told


@pytest.mark.parametrize(
    ("text", "found"),
    [("24GiB", 24 * GIB), ("16 GB", 16 * 10**9), ("512m", 512 * 2**20), ("1024", 1024)],
)
def test_an_amount_of_memory_is_read(text, found):
    assert read_bytes(text) == found


def test_what_cannot_be_told_is_said():
    with pytest.raises(ValueError, match="no amount of memory"):
        read_bytes("much")
    with pytest.raises(ValueError, match="does not say its hidden_size"):
        architecture({"model_type": "llama"})
    with pytest.raises(ValueError, match="new_tokens must be fewer than tokens"):
        make_work({"tokens": "10", "new_tokens": "10"})
    with pytest.raises(ValueError, match="new_tokens must not be negative"):
        make_work({"tokens": "10", "new_tokens": "-1"})
    with pytest.raises(ValueError, match="there is no setting 'row'"):
        make_work({"row": 1})
    with pytest.raises(ValueError, match="experts"):
        architecture(LLAMA_8B | {"num_local_experts": 8})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_key_value_heads", "eight", "num_key_value_heads must be a whole number .* 'eight'"),
        ("hidden_size", "4096", "hidden_size must be a whole number .*, not '4096'"),
        ("head_dim", -128, "head_dim must be a whole number .*, not -128"),
        ("vocab_size", None, "does not say its vocab_size"),
        ("intermediate_size", 14336.5, "intermediate_size must be .*, not 14336.5"),
        ("num_hidden_layers", True, "num_hidden_layers must be .*, not True"),
        ("num_hidden_layers", 10**6, "more than 10,000 layers are not counted"),
        ("max_position_embeddings", 10**30, "max_position_embeddings .* more than 20 digits"),
        ("num_attention_heads", 5000, "5000 heads do not fit a hidden_size of 4096"),
        ("text_config", ["x"], r"text_config must hold settings, not \['x'\]"),
        ("tie_word_embeddings", "no", "tie_word_embeddings must be true or false, not 'no'"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused_by_its_key(key, value, reason):
    with pytest.raises(ValueError, match=reason):
        architecture(LLAMA_8B | {key: value})
