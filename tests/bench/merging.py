"""How much memory and time a merge takes, on two Llamas made from a config.

python -m tests.bench.merging [--hidden 2048] [--layers 8] [--method ties]

The models are written once, tensor by tensor, in bfloat16. Memory is what the process holds of its
own (RssAnon, every 20 ms), without the pages of files that it reads; the check, which loads a whole
model, is told apart.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch

from training.ml import merging
from training.ml.merge_recipe import MergeRecipe


def shapes(hidden: int, layers: int, vocabulary: int = 32_000) -> dict[str, list[int]]:
    """Tensors of a Llama with a gated MLP of 2.75 times its width."""
    wide = hidden * 11 // 4
    found = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{at}self_attn.{name}.weight"] = [hidden, hidden]
        found |= {
            f"{at}mlp.gate_proj.weight": [wide, hidden],
            f"{at}mlp.up_proj.weight": [wide, hidden],
            f"{at}mlp.down_proj.weight": [hidden, wide],
            f"{at}input_layernorm.weight": [hidden],
            f"{at}post_attention_layernorm.weight": [hidden],
        }
    return found | {"lm_head.weight": [vocabulary, hidden]}


def save_llama(folder: Path, hidden: int, layers: int, seed: int) -> int:
    """A random Llama; its bytes."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    tensors = (
        (name, (0.02 * torch.randn(shape, generator=draw)).bfloat16())
        for name, shape in shapes(hidden, layers).items()
    )
    merging.write_shards(tensors, folder, merging.SHARD_BYTES)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


class Watch:
    """The largest amount of memory of its own that this process held."""

    def __enter__(self) -> "Watch":
        self.start = self.peak = _own_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, _own_bytes())

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--method", nargs="*", default=["linear", "slerp", "ties", "dare_ties"])
    chosen = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="merging-"))
    try:
        names = ["base", "one", "two"]
        sizes = [
            save_llama(root / name, chosen.hidden, chosen.layers, seed)
            for seed, name in enumerate(names)
        ]
        largest = 4 * 32_000 * chosen.hidden
        print(
            f"a model {sizes[0] / 1e9:.2f} GB, its largest tensor in float32 {largest / 1e9:.2f} GB"
        )
        print("method      seconds   MB/s read   peak GB   of one model")
        for method in chosen.method:
            base = str(root / "base") if method not in ("linear", "slerp") else ""
            recipe = MergeRecipe(
                method=method, models=(str(root / "one"), str(root / "two")), base=base
            )
            out = root / method
            out.mkdir()
            began = time.monotonic()
            with Watch() as watch:
                merging.write_merged(recipe, out, lambda done, total: None, merging.SHARD_BYTES)
            seconds = time.monotonic() - began
            read = sum(sizes) if base else sum(sizes[1:])
            held = watch.peak - watch.start
            print(
                f"{method:<11} {seconds:7.1f}   {read / seconds / 1e6:9.0f}   {held / 1e9:7.2f}   "
                f"{held / sizes[0]:.2f}"
            )
            shutil.rmtree(out)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
