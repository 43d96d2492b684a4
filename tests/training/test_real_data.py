"""Real preferences through the product: import, freeze, train, measure."""

import json

import pytest
from django.core.management import call_command

from training.models import Run

pytestmark = [pytest.mark.django_db, pytest.mark.realdata, pytest.mark.slow]


def test_a_reward_model_trains_on_real_multi_turn_dialogues(shared_data, tiny_model, capsys):
    files = [
        str(shared_data / "hh-rlhf" / f"harmless-base.{s}.jsonl.gz") for s in ("train", "test")
    ]
    call_command("import_comparisons", *files, "--project", "harmless", "--create", "--json")
    assert json.loads(capsys.readouterr().out)["created"] == 1722

    call_command(
        "train", "reward", "--project", "harmless", "--base", tiny_model, "--test-share", "0.2",
        "--set", "max_steps=10", "--set", "lora_rank=4", "--set", "eval_every=10", "--wait",
        "--json",
    )  # fmt: skip

    printed = json.loads(capsys.readouterr().out)
    run = Run.objects.get()
    metrics, dataset = printed["metrics"], printed["dataset"]
    assert printed["status"] == "succeeded"
    assert dataset["train"] + dataset["test"] == run.dataset.counts["pairs"] == 1722
    # The tiny model's context is 256 tokens: most dialogues are longer, and every one is counted.
    assert metrics["n_train"] + metrics["too_long_train"] == dataset["train"]
    assert metrics["n"] + metrics["too_long_test"] == dataset["test"]
    assert metrics["accuracy"]["low"] < metrics["accuracy"]["value"] < metrics["accuracy"]["high"]


def test_longer_wins_in_44_percent_of_the_harmless_pairs(shared_data, capsys):
    from training.dataset_settings import settings_of_now
    from training.datasets import freeze, load_pairs
    from training.ml.data import n_chars
    from training.ml.evaluation import share_right

    files = [
        str(shared_data / "hh-rlhf" / f"harmless-base.{s}.jsonl.gz") for s in ("train", "test")
    ]
    call_command("import_comparisons", *files, "--project", "harmless", "--create", "--json")
    from labeling.models import Project

    train, test = load_pairs(
        freeze(Project.objects.get(slug="harmless"), settings_of_now("mixed", 0.2, 0))
    )
    longer = share_right([n_chars(p.chosen) - n_chars(p.rejected) for p in train + test])

    assert longer["n"] == 1722
    assert longer["value"] == pytest.approx(0.44, abs=0.01)
    assert {p.prompt_id for p in train}.isdisjoint({p.prompt_id for p in test})


def test_real_pairs_are_read_whole_with_the_baselines_of_the_reference_figures(shared_data):
    from tests.real_pairs import hh_rlhf, ukp_strict
    from training.ml.data import n_chars
    from training.ml.evaluation import share_right

    figures = json.loads((shared_data / "reference_figures.json").read_text())["datasets"]

    for half in ("harmless", "helpful"):
        sides = {split: hh_rlhf(shared_data, half, split) for split in ("train", "test")}
        for split, pairs in sides.items():
            known = figures["hh-rlhf"]["splits"][f"{half} {split}"]
            assert len(pairs) == known["pairs"]
            longer = [n_chars(p.chosen) - n_chars(p.rejected) for p in pairs]
            # The files' last turn is a whole shared prompt's answer in most records, not in all.
            assert share_right(longer)["value"] == pytest.approx(
                known["longer_response_preferred"], abs=0.01
            )
        prompts = [{p.prompt_id for p in pairs} for pairs in sides.values()]
        assert prompts[0].isdisjoint(prompts[1])
    debates = [debate for debate, _pair in ukp_strict(shared_data)]
    known = figures["ukpconvarg1"]["strict_pairs"]["linear_bt_leave_one_debate_out"]
    assert {name: debates.count(name) for name in known} == {
        n: f["pairs"] for n, f in known.items()
    }
