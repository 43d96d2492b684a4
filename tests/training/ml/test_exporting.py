"""A merged model as GGUF: llama.cpp, which we did not write, gives the same log-probabilities."""

import json
import shutil
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

pytest.importorskip("gguf", reason="the converter is not installed: pip install '.[dev]'")

from tests.training.ml.test_merging import lora, save_adapter
from training.ml.exporting import save_gguf
from training.ml.gguf_shapes import why_no_gguf
from training.ml.loading import load_causal, load_tokenizer
from training.ml.merge_recipe import MergeRecipe
from training.ml.merging import merge


def test_other_shapes_are_refused_in_a_line(tiny_model, tmp_path):
    assert why_no_gguf(tiny_model) == ""
    for changed, words in [
        ({"architectures": ["Qwen2ForCausalLM"]}, "only Llama models .* this is Qwen2ForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scaled positions"),
        ({"attention_bias": True}, "biases"),
        ({"quantization_config": {"load_in_4bit": True}}, "stored quantised"),
    ]:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        config = json.loads((Path(tiny_model) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=words):
            save_gguf(folder, tmp_path / "x.gguf")
    (folder / "adapter_config.json").write_text("{}")
    assert "merge it into its base first" in why_no_gguf(str(folder))
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("numbers", "width"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_the_file_holds_every_number(tiny_model, tmp_path, numbers, width):
    import gguf

    file = tmp_path / f"{numbers}.gguf"
    found = save_gguf(Path(tiny_model), file, numbers)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert found["tensors"] == len(read)
    weights = load_causal(tiny_model, dtype="float32").state_dict()
    up = weights["model.layers.1.mlp.up_proj.weight"]
    stored = read["blk.1.ffn_up.weight"]
    assert stored.n_bytes == up.numel() * width
    data = torch.frombuffer(bytearray(stored.data.tobytes()), dtype=getattr(torch, numbers))
    assert torch.equal(data.reshape(up.shape).float(), up.to(getattr(torch, numbers)).float())


@pytest.mark.slow
def test_llama_cpp_reads_a_merged_model_and_says_the_same(tiny_model, tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp")
    # Of a seed that goes on with a whole character: of half a one llama.cpp tells no probability.
    adapter = save_adapter(tiny_model, tmp_path / "adapter", lora(), seed=4)
    merge(MergeRecipe(method="fold", models=(adapter,)), tmp_path / "merged")
    save_gguf(tmp_path / "merged", tmp_path / "merged.gguf")
    text = "Please tell me about the weather of the coast."
    settings = xllamacpp.CommonParams()
    settings.model.path = str(tmp_path / "merged.gguf")
    settings.port, settings.n_parallel, settings.n_ctx = 0, 1, 256
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    asked = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    request = Request(
        f"{server.listening_address}/v1/completions",
        data=json.dumps(asked).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=30) as answer:
        reply = json.load(answer)
    del server
    [place] = reply["choices"][0]["logprobs"]["content"]
    theirs = {top["id"]: top["logprob"] for top in place["top_logprobs"]}

    ids = load_tokenizer(tiny_model)(text, return_tensors="pt")["input_ids"]
    model = load_causal(str(tmp_path / "merged"), dtype="float32").eval()
    with torch.no_grad():
        ours = torch.log_softmax(model(input_ids=ids).logits[0, -1], dim=-1)
    assert len(theirs) == 5
    for token, logp in theirs.items():
        assert logp == pytest.approx(float(ours[token]), abs=1e-3)
