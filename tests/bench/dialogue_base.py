"""Make the small base model that docs/benchmarks.md trains reward models on.

    python -m tests.bench.dialogue_base FOLDER

A Llama of two layers with its own tokenizer, pre-trained on the training dialogues of hh-rlhf
*helpful* (../shared/data). The harmless pairs, on which reward models are measured, stay unseen.
"""

import gzip
import json
import os
import re
import sys
from pathlib import Path

from training.ml.tiny_model import Text, TinyRecipe, pretrain

RECIPE = TinyRecipe(
    vocabulary=2048, hidden=128, layers=2, heads=4, context=2048, steps=1200, batch_size=4
)
ROLES = {"Human": "user", "Assistant": "assistant"}


def dialogues(path: Path) -> list[Text]:
    """Every dialogue of the file as the tokenizer's chat template writes it."""
    texts = []
    for record in json.loads(gzip.decompress(path.read_bytes())):
        for dialogue in record["text"]:
            parts = re.split(r"\n\n(Human|Assistant):", dialogue)[1:]
            turns = zip(parts[::2], parts[1::2], strict=True)
            learned = "".join(f"<|{ROLES[who]}|>{said.strip()}<|end|>" for who, said in turns)
            texts.append(Text(read="", learned=learned))
    return texts


def show(step: int, steps: int, loss: float) -> None:
    if step % 100 == 0:
        print(f"step {step} of {steps}  loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    shared = Path(os.environ.get("PREFLOOP_SHARED", "../shared"))
    texts = dialogues(shared / "data" / "hh-rlhf" / "helpful-base.train.json.gz")
    print(pretrain(RECIPE, texts, Path(sys.argv[1]), on_step=show))
