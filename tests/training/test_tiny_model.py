"""A tiny model from nothing: its tokenizer, its training, its folder."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.ml.tiny_model import Text, TinyRecipe, pretrain, train_tokenizer

RECIPE = TinyRecipe(
    vocabulary=300, hidden=32, layers=2, heads=2, steps=100, batch_size=8, learning_rate=1e-2
)


def texts(n=200):
    """A language of four words that a model can learn in seconds."""
    rng = random.Random(0)
    animals = {"cow": "moo", "cat": "meow"}
    found = []
    for _ in range(n):
        animal = rng.choice(list(animals))
        found.append(
            Text("", f"The {animal} says<|assistant|>{animals[animal]} {animals[animal]}<|end|>")
        )
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    losses = []
    result = pretrain(
        RECIPE, texts(), folder, on_step=lambda s, n, loss: losses.append((s, n, loss))
    )
    return folder, result, losses


def test_every_text_survives_the_tokenizer(tmp_path):
    tokenizer = train_tokenizer(["The cow says moo", "Why?"], tmp_path, vocabulary=280)

    for text in ("The cow says moo", "  spaces \n\n tabs\t", "naïve 日本語 🐄", "x = {1: 2}"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) <= 280


def test_the_chat_template_leaves_the_prompt_a_prefix_of_the_answered_dialogue(tmp_path):
    train_tokenizer(["The cow says moo"], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    answer = [{"role": "assistant", "content": "Yes"}]
    more = [*prompt, *answer, {"role": "user", "content": "Thanks"}]

    def text(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    opened = text(prompt, add_generation_prompt=True)
    assert opened == "<|system|>Be kind.<|user|>Hi<|assistant|>"
    assert text(prompt + answer) == f"{opened}Yes<|end|>"
    assert text(more) == f"{opened}Yes<|end|>Thanks"
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_loss_falls_and_each_step_is_told(trained):
    _folder, result, losses = trained

    assert [step for step, _total, _loss in losses] == list(range(1, 101))
    assert {total for _step, total, _loss in losses} == {100}
    assert losses[0][2] > 5  # close to log(300): it knows nothing
    assert result["loss"] < 1
    assert result["loss"] == pytest.approx(sum(loss for *_, loss in losses[-10:]) / 10)


def test_the_folder_loads_like_any_other_model_and_writes_the_language(trained):
    folder, result, _losses = trained
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "The cat says"}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        max_new_tokens=8,
        do_sample=False,
    )

    answer = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "meow meow"
    assert (folder / "model.safetensors").exists()
    assert not list(folder.glob("*.bin"))
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]


def test_only_what_is_to_be_learned_counts(tmp_path):
    """The first half is noise that nobody can foresee; the loss leaves it out."""
    rng = random.Random(1)
    noisy = [Text(f"{rng.random()}", " moo<|end|>") for _ in range(64)]

    result = pretrain(RECIPE, noisy, tmp_path)

    assert result["loss"] < 0.2
    assert result["tokens"] < 100 * 8 * 6


def test_going_on_from_a_folder_keeps_its_tokenizer_and_what_it_knows(trained, tmp_path):
    folder, _result, losses = trained
    again = []

    pretrain(
        TinyRecipe(steps=3, batch_size=8),
        texts(),
        tmp_path,
        start=folder,
        on_step=lambda step, total, loss: again.append(loss),
    )

    assert again[0] < losses[0][2] / 5
    assert (tmp_path / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_equal_seeds_give_equal_weights(tmp_path):
    short = TinyRecipe(vocabulary=300, hidden=32, layers=2, heads=2, steps=3, batch_size=8, seed=5)
    models = []
    for name in ("one", "two"):
        pretrain(short, texts(40), tmp_path / name)
        models.append(AutoModelForCausalLM.from_pretrained(tmp_path / name))

    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)


def test_no_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no texts"):
        pretrain(RECIPE, [], tmp_path)
