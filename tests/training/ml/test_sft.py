from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import sft
from training.ml.config import PretrainRecipe, SFTRecipe
from training.ml.data import tokenize_examples, to_imitate
from training.ml.loading import load_causal, load_tokenizer

PAIRS = polite_pairs(36)


def train(folder: Path, base: str, **settings):
    recipe = SFTRecipe(
        **{"base_model": base, "max_steps": 4, "batch_size": 4, "dtype": "float32"} | settings
    )
    reports = []
    metrics = sft.train(recipe, PAIRS[:24], PAIRS[24:], folder, reports.append)
    return metrics, reports


def test_one(tiny_model, tmp_path):
    metrics, reports = train(tmp_path, tiny_model)
    print(metrics)
    print([r for r in reports if r.values])
