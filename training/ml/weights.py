"""What a folder of weights holds, from the headers of its safetensors files: no torch needed."""

import json
import struct
from pathlib import Path

WORD_LAYERS = ("embed", "wte", "wpe", "lm_head", "score", "classifier")
"""Two-dimensional too, but tables of words and heads: adapters go elsewhere."""


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in the folder's safetensors files.

    Raises: ValueError if a file is not safetensors.
    Source: https://huggingface.co/docs/safetensors: eight bytes of header length, then JSON.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > path.stat().st_size:
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(length))
        except (struct.error, ValueError) as error:
            raise ValueError(f"{path.name} is not a safetensors file: {error}") from error
        header.pop("__metadata__", None)
        shapes |= {name: entry["shape"] for name, entry in header.items()}
    return shapes


def linear_layers(folder: Path) -> dict[str, list[int]]:
    """Paths of the layers that adapters can be put on, such as model.layers.0.self_attn.q_proj,
    with the shapes of their weights."""
    found = {}
    for tensor, shape in tensor_shapes(folder).items():
        path, _dot, kind = tensor.rpartition(".")
        name = path.rpartition(".")[2]
        if len(shape) == 2 and kind == "weight" and not any(word in name for word in WORD_LAYERS):
            found[path] = shape
    return found
