"""Merges that mergekit carries out, as a program of its own."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from training.ml.merge_recipe import MergeRecipe, OnTensor


def mergekit_program() -> str | None:
    """Where the program mergekit is, if it is installed."""
    return shutil.which("mergekit-yaml")


def mergekit_config(recipe: MergeRecipe) -> dict[str, Any]:
    """The configuration that mergekit reads, of the settings that its method knows."""
    method = recipe.mergekit_method
    parameters: dict[str, Any] = {}
    if method in ("slerp", "nuslerp"):
        parameters["t"] = recipe.t
    models = []
    for folder, weight in zip(recipe.models, recipe.shares, strict=True):
        settings: dict[str, Any] = {}
        if method not in ("slerp", "model_stock", "karcher"):
            settings["weight"] = weight
        if method in ("ties", "dare_linear", "dare_ties", "della", "della_linear") or (
            method.startswith("breadcrumbs")
        ):
            settings["density"] = recipe.density
        models.append({"model": folder} | ({"parameters": settings} if settings else {}))
    config: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32"}
    if recipe.base or method == "slerp":
        config["base_model"] = recipe.base or recipe.models[0]
    if parameters:
        config["parameters"] = parameters
    out = {"base": None, "float32": "float32", "bfloat16": "bfloat16"}[recipe.dtype]
    if out:
        config["out_dtype"] = out
    return config


def call_mergekit(recipe: MergeRecipe, folder: Path, on_tensor: OnTensor) -> str:
    """Have mergekit write the model; its last lines.

    Raises: ValueError if it is not installed or fails; what `on_tensor` raises ends it.
    """
    program = mergekit_program()
    if program is None:
        raise ValueError(
            "mergekit is not installed on this worker: pip install mergekit in an environment of "
            "its own, and put mergekit-yaml on the PATH"
        )
    plan, log = folder / "mergekit.yml", folder / "mergekit.log"
    plan.write_text(json.dumps(mergekit_config(recipe), indent=2))  # JSON is YAML
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - a program of this machine, no shell
            [program, str(plan), str(folder)],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            while process.poll() is None:
                on_tensor(0, 1)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    lines = log.read_text(errors="replace").splitlines()[-5:]
    log.unlink()
    if process.returncode or not any(folder.glob("*.safetensors")):
        raise ValueError(f"mergekit failed: {' '.join(lines)[-500:] or process.returncode}")
    return "\n".join(lines)
