"""Quiet-STaR: its formulas, its columns against thoughts drawn one by one, and a run."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.training.tiny import save_tiny_model
from training.ml import quiet_star
from training.ml.config import make_recipe
from training.ml.data import text_pieces
from training.ml.loading import load_causal, load_tokenizer
from training.ml.logprobs import response_logps
from training.ml.quiet_star import (
    THOUGHTS,
    Thoughts,
    draw_thoughts,
    load_thinking,
    mixed_logps,
    new_thoughts,
    plain_losses,
    read_columns,
    reinforce_losses,
    step_loss,
    thought_mask,
    thought_rewards,
    told,
    write_on,
)
from training.ml.quiet_star_config import QuietStarRecipe

TEXTS = [f"The boat {i} is calm, and its {i} rowers are kind." for i in range(14)]
ROWS = [[9, 4, 7, 3, 8, 6], [5, 4, 9, 2], [7, 7]]
PAD = 0


@pytest.fixture(scope="module")
def base(settled_imports, tmp_path_factory) -> str:
    """Folder of a random Llama of one layer."""
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "one", hidden_size=16, layers=1))


def recipe_of(base: str, **chosen) -> QuietStarRecipe:
    small = {
        "max_steps": 2, "batch_size": 4, "dtype": "float32", "lora_rank": 2, "thought_length": 2,
        "learning_rate": 5e-3, "checkpoint_every": 1, "eval_every": 2,
    }  # fmt: skip
    made = make_recipe("quiet_star", small | chosen | {"base_model": base, "text": "boats.txt"})
    assert isinstance(made, QuietStarRecipe)
    return made


@pytest.fixture(scope="module")
def thinking():
    """A GPT-2, whose norms are float64 if it is (Llama's are not), and thoughts whose weights
    differ from place to place."""
    torch.manual_seed(1)
    small = GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    thoughts = Thoughts(16).double()
    torch.nn.init.normal_(thoughts.marks)
    torch.nn.init.normal_(thoughts.mixing[-1].weight)
    return GPT2LMHeadModel(small).double(), thoughts


def likeliest(logits):
    return logits.argmax(dim=-1)


def test_mixing_by_hand():
    plain, thinking = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.1, 0.9]).log()

    mixed = mixed_logps(plain, thinking, torch.tensor([0.5])).exp()

    # √(0.8 · 0.1) = 0.282843 and √(0.2 · 0.9) = 0.424264, which sum to 0.707107.
    assert mixed.tolist() == pytest.approx([0.4, 0.6], abs=1e-6)
    assert torch.equal(
        mixed_logps(plain, thinking, torch.tensor([0.0])), torch.log_softmax(plain, dim=-1)
    )


def test_rewards_and_reinforce_by_hand():
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -2.0]], requires_grad=True)  # (thoughts, places)
    drawn = torch.tensor([[-4.0, -5.0], [-6.0, -7.0]], requires_grad=True)

    rewards = thought_rewards(logps)
    kept = reinforce_losses(rewards, drawn, only_helpful=True)
    both = reinforce_losses(rewards, drawn, only_helpful=False)
    kept.sum().backward()

    assert rewards.tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    assert kept.tolist() == [[4.0, 0.0], [0.0, 0.0]]
    assert both.tolist() == [[4.0, 0.0], [-6.0, 0.0]]
    assert drawn.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    assert logps.grad is None


def test_a_place_sees_its_own_column_and_the_text_above_it():
    seen = thought_mask(2, 3)  # places: text 0 and 1, then two lines below each

    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 1, 0, 1, 0, 1],
    ]


@torch.no_grad()
def test_columns_give_what_each_thought_gives_alone(thinking):
    """Every thought drawn after its own prefix, token by token, without mask or cache."""
    model, thoughts = thinking
    ids = torch.tensor([ROWS[0]])
    table, n, length, true_tokens = model.get_input_embeddings(), 5, 2, 3

    drawn = draw_thoughts(model, thoughts, ids[:, :n], length, likeliest)
    columns = read_columns(model, thoughts, ids, drawn, true_tokens)

    for j in range(n):
        row = [*table(ids[0, : j + 1]), thoughts.mark(0)]
        alone, said = [], []
        for _k in range(length):
            hidden = model.transformer(inputs_embeds=torch.stack(row)[None]).last_hidden_state[
                0, -1
            ]
            alone.append(hidden)
            said.append(int(model.lm_head(hidden).argmax()))
            row.append(table.weight[said[-1]])
        row += [thoughts.mark(1), *table(ids[0, j + 1 : j + true_tokens])]
        whole = model.transformer(inputs_embeds=torch.stack(row)[None]).last_hidden_state[0]
        assert drawn[0, :, j].tolist() == said
        for k in range(length):
            assert torch.allclose(columns.thinking[k][0, j], alone[k], rtol=0, atol=1e-12)
        for m in range(min(true_tokens, n - j)):
            there = j + 1 + length + 1 + m
            assert torch.allclose(columns.talking[m][0, j], whole[there], rtol=0, atol=1e-12)
        assert torch.allclose(columns.plain[0, j], whole[j], rtol=0, atol=1e-12)


def test_the_plain_part_has_the_gradients_of_an_ordinary_model(thinking):
    """The same weights under transformers' own forward pass and loss, text by text, in float64."""
    model, thoughts = thinking
    recipe = recipe_of("x", policy_weight=0.0)
    ids, mask = quiet_star.pad_right(ROWS, PAD)
    n_tokens = sum(len(row) - 1 for row in ROWS)
    batch = {
        "ids": ids,
        "mask": mask,
        "weight": torch.full((3,), 1 / n_tokens, dtype=torch.float64),
    }

    def gradients(loss):
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    with_plain, shown = step_loss(recipe, model, thoughts, batch, likeliest)
    without = recipe_of("x", policy_weight=0.0, plain_weight=0.0)
    only_talk, _shown = step_loss(without, model, thoughts, batch, likeliest)
    summed = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
        summed = summed + torch.nn.functional.cross_entropy(
            logits, torch.tensor(row[1:]), reduction="sum"
        )

    assert shown["loss"].item() == pytest.approx(summed.item() / n_tokens)
    ours, talk = gradients(with_plain), gradients(only_talk)
    for found, rest, reference in zip(ours, talk, gradients(summed / n_tokens), strict=True):
        assert torch.allclose(found - rest, reference, rtol=0, atol=1e-12)


def test_a_text_written_with_thoughts_has_the_numbers_of_one_measured_with_them(thinking):
    """Token by token from a cache, against all columns at once; in float64."""
    model, thoughts = thinking
    words = Tokenizer(WordLevel({str(n): n for n in range(20)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)

    found = write_on(model, tokenizer, thoughts, 2, "947", max_new_tokens=6)

    (measured,) = told(model, thoughts, [[9, 4, 7, *found.ids]], 2, PAD)
    assert found.logps == pytest.approx([-loss for loss in measured.with_thoughts[2:]], abs=1e-12)
    assert found.mixing == pytest.approx(measured.mixing[2:], abs=1e-12)
    assert found.thoughts == measured.thoughts[2:]
    assert len(set(found.mixing)) > 1

    drawn = [
        write_on(model, tokenizer, thoughts, 2, "947", max_new_tokens=9, temperature=5, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert min(drawn[0].logps) < min(found.logps)
    with pytest.raises(ValueError, match="a text of 37 tokens with its thought exceeds"):
        write_on(model, tokenizer, thoughts, 2, "947", max_new_tokens=30)
    with pytest.raises(ValueError, match="there is no text to write on"):
        write_on(model, tokenizer, thoughts, 2, "", max_new_tokens=3)


def test_a_mixing_weight_of_zero_gives_the_loss_of_the_model_alone(base):
    model, tokenizer = load_causal(base, dtype="float32"), load_tokenizer(base)
    thoughts = new_thoughts(recipe_of(base), model, tokenizer)
    torch.nn.init.constant_(thoughts.mixing[-1].bias, -math.inf)

    found = told(model, thoughts, ROWS, 2, PAD)

    assert [one.with_thoughts for one in found] == [one.without for one in found]
    assert {w for one in found for w in one.mixing} == {0.0}
    for one, alone in zip(found, plain_losses(model, ROWS, PAD), strict=True):
        assert one.without == pytest.approx(alone, abs=1e-5)


def test_reinforce_makes_a_better_thought_likelier(thinking):
    """Two thoughts, one after each place drawn on purpose: the gradient of REINFORCE raises the
    log-probability of that which makes the next token likelier."""
    model, thoughts = thinking
    ids = torch.tensor([[9, 4, 7]] * 2)
    drawn = torch.tensor([[[11, 12]], [[13, 14]]])  # (thoughts, one token, places)

    columns = read_columns(model, thoughts, ids, drawn, 1)
    wanted = ids[:, 1:].reshape(-1)
    logps, _mixing = quiet_star.told_logps(
        model, thoughts, columns.plain.flatten(0, 1), columns.talking[0].flatten(0, 1), wanted
    )
    rewards = thought_rewards(logps.view(2, 2))
    said = torch.log_softmax(model.lm_head(columns.thinking[0]), dim=-1)
    said = said.gather(-1, drawn.permute(0, 2, 1)).squeeze(-1)  # (thoughts, places)
    reinforce_losses(rewards, said, only_helpful=True).sum().backward()
    step = {p: p.grad for p in model.parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter, gradient in step.items():
            parameter -= 1e-4 * gradient
        after = torch.log_softmax(
            model.lm_head(read_columns(model, thoughts, ids, drawn, 1).thinking[0]), dim=-1
        )
        for parameter, gradient in step.items():
            parameter += 1e-4 * gradient
    after = after.gather(-1, drawn.permute(0, 2, 1)).squeeze(-1)

    assert float(rewards.abs().min()) > 0
    assert float(((after - said) * rewards.clamp(min=0)).sum()) > 0


class Cut(Exception):
    pass


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """(metrics, reports, folder) of one whole run."""
    folder, reports = tmp_path_factory.mktemp("run"), []
    metrics = quiet_star.train(recipe_of(base), TEXTS[:8], TEXTS[8:], folder, reports.append)
    return metrics, reports, folder


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name} {name}": tensor
        for path in (folder / "model").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_a_run_leaves_an_ordinary_model_and_its_thoughts_beside_it(base, trained):
    metrics, reports, folder = trained
    tokenizer = load_tokenizer(base)
    rows = [piece for text in TEXTS[8:] for piece in text_pieces(text, text, tokenizer, 128)]

    ordinary = load_causal(str(folder / "model"), dtype="float32")
    plain = response_logps(
        ordinary, [r.prompt_ids for r in rows], [r.response_ids for r in rows], PAD
    )
    model, _tokenizer, thoughts, length = load_thinking(folder / "model", dtype="float32")
    found = told(model, thoughts, [r.prompt_ids + r.response_ids for r in rows], length, PAD)

    n = sum(len(row.response_ids) for row in rows)
    assert -float(plain.sum()) / n == pytest.approx(metrics["loss"]["value"], abs=1e-4)
    measured = sum(sum(one.with_thoughts) for one in found) / n
    assert measured == pytest.approx(metrics["thought_loss"]["value"], abs=1e-4)
    assert metrics["thought_benefit"]["value"] == pytest.approx(
        metrics["loss"]["value"] - metrics["thought_loss"]["value"]
    )
    assert metrics["trained_parameters"] > thoughts.marks.numel()
    points = [r.values for r in reports if r.split == "train" and r.values]
    assert {"loss", "thought_loss", "thought_benefit", "mixing_weight", "thought_reward"} < {
        *points[0]
    }
    assert points[0]["mixing_weight"] == pytest.approx(0.1, abs=1e-3)
    assert all(point["thought_reward"] >= 0 for point in points)
    helped = metrics["where_thoughts_help"]
    assert sum(part["gain"]["n"] for part in helped["difficulty"]) == n
    assert len(helped["places"]) == 10
    gains = [place["gain"] for place in helped["places"]]
    assert gains == sorted(gains, reverse=True)


def test_a_run_of_all_weights_that_was_cut_short_resumes_to_the_same_numbers(base, tmp_path):
    recipe = recipe_of(base, method="full")

    def cut_at_2(report):
        if report.step >= 2:
            raise Cut

    with pytest.raises(Cut):
        quiet_star.train(recipe, TEXTS[:8], TEXTS[8:], tmp_path / "cut", cut_at_2)
    again = quiet_star.train(recipe, TEXTS[:8], TEXTS[8:], tmp_path / "cut", lambda report: None)
    whole = tmp_path / "whole"
    metrics = quiet_star.train(recipe, TEXTS[:8], TEXTS[8:], whole, lambda report: None)

    first, second = saved(whole), saved(tmp_path / "cut")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any("thoughts." in name.split(" ")[1] for name in first)
    assert {THOUGHTS} < {name.split(" ")[0] for name in first}
    assert metrics | {"seconds": 0} == again | {"seconds": 0}


def test_tokens_are_listed_by_one_half_of_the_texts_and_measured_on_the_other(base):
    """Token 7 gains on the first half alone, 8 on both: chance must not look like a gain."""
    rows, losses, units = [], [], []
    for text in range(4):
        ids = [3, *[7, 8] * 5]
        gain = [1.0 if text % 2 == 0 else 0.0, 0.5] * 5
        rows.append(
            quiet_star.Told(ids, gain, [0.0] * 10, [0.1] * 10, [[1]] * 10)  # gains are the losses
        )
        losses.append([float(i) for i in range(10)])
        units.append(str(text))

    found = quiet_star.where_thoughts_help(rows, losses, units, load_tokenizer(base))

    assert [(row["gain"]["value"], row["gain"]["n"]) for row in found["tokens"]] == [
        (0.0, 10),
        (0.5, 10),
    ]
    assert {place["gain"] for place in found["places"]} == {1.0}
    assert [part["gain"]["n"] for part in found["difficulty"]] == [10] * 4


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"n_thoughts": 1}, "n_thoughts must lie between 2 and 16"),
        ({"thought_length": 0}, "thought_length must lie between 1 and 64"),
        ({"first_mixing": 1}, "first_mixing must lie between 0 and 1"),
        ({"start_like": ""}, "start_like must name some words"),
        ({"policy_weight": -1}, "policy_weight must not be negative"),
    ],
)
def test_settings_without_sense_are_refused(base, chosen, reason):
    with pytest.raises(ValueError, match=reason):
        recipe_of(base, **chosen)


def test_texts_may_be_shorter_than_the_tokens_that_a_thought_has_to_tell(base, tmp_path):
    recipe = recipe_of(base, max_steps=1, true_tokens=40)
    metrics = quiet_star.train(recipe, ["calm.", "clear"], ["calm."], tmp_path, lambda report: None)
    assert math.isfinite(metrics["thought_loss"]["value"])
