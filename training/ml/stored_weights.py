"""A model's weights as it computes with them, one tensor at a time."""

import math
import re
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from training.ml.loading import made_by, number_format
from training.ml.merge_recipe import at_hand, base_of, is_head, settings_of
from training.ml.methods import IN_4_BITS
from training.ml.weights import WORD_LAYERS

FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What safetensors calls them."""
PEFT_PREFIX = "base_model.model."


class Weights(Protocol):
    """Tensors by the names of the base's files."""

    names: list[str]

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32."""


class Files:
    """A whole model's safetensors; weights stored in 4 bits are turned back into numbers."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._opened: dict[str, Any] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            opened: Any = safe_open(path, framework="pt")
            self._opened |= dict.fromkeys(opened.keys(), opened)
        # Beside a weight in 4 bits stand its scales, under its name with more behind it.
        self.names = [n for n in self._opened if not re.search(r"\.(weight|bias)\.", n)]

    def tensor(self, name: str) -> Tensor:
        stored: Tensor = self._opened[name].get_tensor(name)
        parts = [n for n in self._opened if n.startswith(f"{name}.")]
        if parts:
            stored = self._from_4_bits(stored, parts)
        return stored.float()

    def dtype(self, name: str) -> torch.dtype:
        """The number format of a stored tensor; float32 for one that is packed."""
        return FORMATS.get(self._opened[name].get_slice(name).get_dtype(), torch.float32)

    def _from_4_bits(self, stored: Tensor, parts: list[str]) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState.from_dict(
            {part: self._opened[part].get_tensor(part) for part in parts},
            device=torch.device("cpu"),
        )
        turned: Tensor = dequantize_4bit(stored, state)
        return turned


class Rounded:
    """A base as QLoRA holds it: linear layers in 4 bits and back, all else as it is.

    As training/ml/loading.py loads it, on a machine of this kind: the adapter was learned beside
    these numbers, so it is merged into them.
    """

    def __init__(self, base: Weights, *, turned: bool) -> None:
        self.base, self.names, self.turned = base, base.names, turned

    def tensor(self, name: str) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        tensor = self.base.tensor(name)
        if tensor.ndim != 2 or not name.endswith(".weight") or _is_of_words(name):
            return tensor
        numbers = number_format("auto")
        held = tensor.T if self.turned else tensor
        packed, state = quantize_4bit(
            held.to(numbers).contiguous(), quant_type="nf4", compress_statistics=True
        )
        back: Tensor = dequantize_4bit(packed, state).float()
        return back.T if self.turned else back


def _is_of_words(name: str) -> bool:
    return any(word in name for word in WORD_LAYERS)


class Adapted:
    """A base with an adapter: W + ΔW."""

    def __init__(self, folder: str) -> None:
        base = open_weights(base_of(folder))
        self.settings = settings_of(folder)
        self.turned = bool(self.settings.get("fan_in_fan_out"))
        rounded = made_by(folder) in IN_4_BITS
        self.base: Weights = Rounded(base, turned=self.turned) if rounded else base
        path = Path(folder) / "adapter_model.safetensors"
        stored = load_file(path)
        self.stored = {key.removeprefix(PEFT_PREFIX): stored[key].float() for key in stored}
        self.parts = self._by_tensor(folder)
        self.names = [*base.names, *(name for name in self.parts if name not in base.names)]

    def tensor(self, name: str) -> Tensor:
        if name not in self.base.names:
            return self.parts[name]["whole"]
        weight = self.base.tensor(name)
        change = self.change(name, weight)
        return weight if change is None else weight + change

    def change(self, name: str, weight: Tensor) -> Tensor | None:
        """What the adapter adds to this weight; None where it adds nothing.

        LoRA: s·BA with s = alpha / r, or alpha / √r of rsLoRA (Hu et al. 2021, arXiv:2106.09685,
        section 4.1; Kalajdzievski 2023, arXiv:2312.03732). DoRA: m·(W + s·BA)/‖W + s·BA‖ − W, the
        length of each output's row (Liu et al. 2024, arXiv:2402.09353, eq. 5). (IA)³: W·l − W
        (Liu et al. 2022, arXiv:2205.05638, section 3.3). Layers trained whole: W′ − W.
        """
        parts = self.parts.get(name)
        if parts is None:
            return None
        if "whole" in parts:
            return parts["whole"] - weight
        if "ia3_l" in parts:
            factor = parts["ia3_l"].T if self.turned else parts["ia3_l"]
            factor = factor.flatten() if weight.ndim == 1 else factor
            return weight * factor - weight
        product = parts["lora_B.weight"] @ parts["lora_A.weight"]  # (outputs, inputs)
        change = self.scale(name, len(parts["lora_A.weight"])) * product
        if "lora_magnitude_vector" in parts:
            plain = weight.T if self.turned else weight
            moved = plain + change
            length = moved.norm(dim=1, keepdim=True)  # of each output
            change = parts["lora_magnitude_vector"].reshape(-1, 1) * moved / length - plain
        return change.T if self.turned else change

    def scale(self, name: str, rank: int) -> float:
        """What the product of the two matrices of a layer is multiplied by."""
        alpha = self.settings["lora_alpha"]
        layer = name.removesuffix(".weight")
        for pattern, value in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                alpha = value
        return float(alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank))

    def _by_tensor(self, folder: str) -> dict[str, dict[str, Tensor]]:
        """The adapter's tensors by the name of the base's tensor that they change.

        Raises: ValueError for a kind of adapter that is not known here.
        """
        found: dict[str, dict[str, Tensor]] = {}
        kinds = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "ia3_l")
        for key, tensor in self.stored.items():
            kind = next((kind for kind in kinds if key.endswith(f".{kind}")), "whole")
            layer = key.removesuffix(f".{kind}")
            name = self._in_base(
                key if kind == "whole" else f"{layer}.weight", is_new=kind == "whole"
            )
            if name not in self.base.names and not is_head(name):
                raise ValueError(f"{folder} holds {key}, which this cannot merge")
            found.setdefault(name, {})[kind] = tensor
            if kind == "ia3_l" and tensor.shape[-1] == 1:  # of outputs: the bias is scaled as well
                bias = self._in_base(f"{layer}.bias", is_new=True)
                if bias in self.base.names:
                    found.setdefault(bias, {})[kind] = tensor
        return found

    def _in_base(self, name: str, *, is_new: bool) -> str:
        """The base's own name of a tensor: older files leave out the model's first word."""
        for wanted in (name, name.partition(".")[2]):
            if wanted in self.base.names:
                return wanted
        if not is_new:
            raise ValueError(f"the adapter changes {name}, which the base's files do not hold")
        return name


def open_weights(folder: str) -> Weights:
    """The weights that a model computes with, of a whole model or of an adapter over its base."""
    folder = at_hand(folder)
    return Adapted(folder) if base_of(folder) else Files(folder)
