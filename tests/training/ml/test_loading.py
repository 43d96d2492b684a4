import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model
from transformers import BertConfig, BertTokenizer

from training.ml.config import DPORecipe, RewardRecipe
from training.ml.loading import (
    ModelMissing,
    adapter_config,
    load_causal,
    load_reward_model,
    load_scorer,
    load_tokenizer,
    longest_allowed,
    revision,
    train_in_float32,
)


def test_a_4_bit_base_is_nf4_with_double_quantisation_and_its_head_is_not_quantised(tiny_model):
    model = load_scorer(tiny_model, method="qlora", dtype="float32")

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * 7  # q, k, v, o, gate, up, down in two layers
    assert {layer.weight.quant_state.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)
    assert type(model.score) is torch.nn.Linear


def test_measuring_in_eval_mode_leaves_the_4_bit_weights_as_they_are(tiny_model):
    model = load_causal(tiny_model, method="qlora", dtype="float32").eval()
    before = [m.weight.data.clone() for m in model.modules() if isinstance(m, Linear4bit)]

    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))

    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert all(torch.equal(b, m.weight.data) for b, m in zip(before, layers, strict=True))
    assert all(layer.weight.quant_state.nested for layer in layers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_head_and_norms_are_trained_in_float32_beside_the_adapters(tiny_model, method, dtype):
    recipe = RewardRecipe(base_model=tiny_model, method=method, dtype=dtype)
    base = load_scorer(tiny_model, method=method, dtype=dtype)
    model = get_peft_model(base, adapter_config(base, recipe, task="SEQ_CLS"))
    train_in_float32(model)

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    kinds = ("score.", "input_layernorm.", "post_attention_layernorm.", "model.norm.")
    whole = [name for name in trained if "lora_" not in name]
    assert all(any(kind in name for name in whole) for kind in kinds)
    assert len(whole) == 1 + 2 * 2 + 1
    assert any("lora_B" in name for name in trained)


def test_with_trained_norms_off_only_head_and_adapters_are_trained(tiny_model):
    recipe = RewardRecipe(base_model=tiny_model, train_norms=False, target_modules="q_proj")
    base = load_scorer(tiny_model)
    model = get_peft_model(base, adapter_config(base, recipe, task="SEQ_CLS"))

    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name in trained if "lora_" not in name] == [
        "base_model.model.score.modules_to_save.default.weight"
    ]
    assert {name.split(".")[6] for name in trained if "lora_" in name} == {"q_proj"}


def test_a_layer_that_the_model_does_not_have_is_named_with_those_it_has(tiny_model):
    recipe = RewardRecipe(base_model=tiny_model, target_modules="q_proj,c_attn")

    with pytest.raises(ValueError, match="no layer c_attn; its linear layers are down_proj, gate_"):
        adapter_config(load_scorer(tiny_model), recipe, task="SEQ_CLS")


def test_a_missing_model_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelMissing, match=r"^there is no model folder /nowhere/at/all$"):
        load_tokenizer("/nowhere/at/all")
    with pytest.raises(ModelMissing, match=r"holds no model \(no config.json\)$"):
        load_causal(str(tmp_path))
    with pytest.raises(ModelMissing, match="holds no reward model"):
        load_reward_model(tmp_path)


def test_a_base_without_safetensors_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "pickled"
    model = load_causal(tiny_model)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")

    with pytest.raises(ModelMissing, match="has no weights as safetensors"):
        load_causal(str(folder))


@pytest.fixture
def foreign_model(tmp_path, monkeypatch):
    """A folder whose model and tokenizer want to run code of their own, and somebody who says y."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    ran = tmp_path / "ran"
    (folder / "foreign.py").write_text(f"open({str(ran)!r}, 'w').close()\nForeign = object\n")
    classes = {
        "AutoConfig": "foreign.Foreign",
        "AutoModelForCausalLM": "foreign.Foreign",
        "AutoTokenizer": ["foreign.Foreign", None],
    }
    config = {"model_type": "foreign", "auto_map": classes}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    return folder


@pytest.mark.parametrize(
    "load",
    [load_tokenizer, load_causal, load_scorer, lambda name: longest_allowed(name, 10)],
    ids=["tokenizer", "causal", "scorer", "context"],
)
def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(foreign_model, capsys, load):
    with pytest.raises(ModelMissing, match=r"foreign cannot be loaded without code of its own, "):
        load(str(foreign_model))

    assert not (foreign_model.parent / "ran").exists()
    assert "Do you wish to run" not in capsys.readouterr().out


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of a policy: an adapter, and its base beside it."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    model = load_causal(str(base))
    recipe = DPORecipe(base_model=str(base))
    get_peft_model(model, adapter_config(model, recipe, task="CAUSAL_LM")).save_pretrained(
        tmp_path / "policy", save_embedding_layers=False
    )
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.parametrize("load", [load_causal, load_reward_model])
def test_an_adapter_that_is_no_safetensors_is_refused(adapter, load):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (adapter / "ran",))

    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Trap(), adapter / "adapter_model.bin")
    (adapter / "other.safetensors").touch()

    with pytest.raises(ModelMissing, match=r"policy has no adapter_model.safetensors$"):
        load(str(adapter))

    assert not (adapter / "ran").exists()


def test_the_revision_of_an_adapter_changes_with_the_base_beneath_it(adapter):
    before = revision(str(adapter))
    assert revision(str(adapter)) == before

    base = load_causal(str(adapter.parent / "base"))
    with torch.no_grad():
        base.model.norm.weight[0] += 1
    base.save_pretrained(adapter.parent / "base")

    assert revision(str(adapter)) != before


def test_the_revision_changes_with_the_weights_and_not_with_the_folder(tiny_model, tmp_path):
    model = load_causal(tiny_model)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "two")
    assert revision(str(tmp_path / "one")) == revision(str(tmp_path / "two"))

    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(tmp_path / "two")
    assert revision(str(tmp_path / "one")) != revision(str(tmp_path / "two"))


def test_an_encoders_marks_stand_for_beginning_and_end(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "why", "not"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text(BertConfig(vocab_size=7).to_json_string())

    tokenizer = load_tokenizer(str(tmp_path / "bert"))

    assert (tokenizer.bos_token, tokenizer.eos_token) == ("[CLS]", "[SEP]")
    assert tokenizer.pad_token == "[PAD]"
