"""A reward model as judge: its numbers are those of training, alone and in batches."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, LlamaConfig

from judges.ml import reward
from judges.ml.config import JudgeRecipe, ModelUnusable
from judges.ml.questions import Sample
from judges.ml.reward import load_reward_model
from tests.judges.conftest import LLAMA, save_tokenizer
from tests.training.tiny import polite_pairs

RECIPE = JudgeRecipe(mode="reward")


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def samples() -> list[Sample]:
    return [
        Sample(
            said("user", "How do I boil an egg? " * n),
            said("assistant", "Ten minutes. " * (5 - n)),
            said("assistant", "Put it in water, then wait." * n),
        )
        for n in range(1, 5)
    ]


def save_classifier(folder, *, chat: bool = False, n_labels: int = 1, max_context: int = 512):
    tokenizer = save_tokenizer(folder, chat=chat)
    config = LlamaConfig(
        **LLAMA,
        vocab_size=len(tokenizer),
        num_labels=n_labels,
        max_position_embeddings=max_context,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.15,
    )
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def rewards_alone(folder, messages) -> list[float]:
    """Each conversation alone, in the template of its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = tokenizer.eos_token_id
    found = []
    for conversation in messages:
        text = tokenizer.apply_chat_template(
            conversation,
            chat_template=tokenizer.chat_template or reward.PLAIN_TEMPLATE,
            tokenize=False,
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(model(ids).logits[0].tolist())
    return found


def judged(loaded, given):
    return dict(pair for batch in loaded.judge(given) for pair in batch)


@pytest.mark.parametrize("chat", [False, True])
def test_rewards_in_batches_are_those_of_one_conversation_alone(tmp_path, chat):
    save_classifier(tmp_path, chat=chat)

    together = judged(load_reward_model(str(tmp_path), RECIPE, "cpu", 10**6), samples())
    alone = judged(load_reward_model(str(tmp_path), RECIPE, "cpu", 1), samples())

    for index, sample in enumerate(samples()):
        [for_a], [for_b] = rewards_alone(
            tmp_path, [[*sample.prompt, *sample.a], [*sample.prompt, *sample.b]]
        )
        outcome = together[index]
        assert outcome.score_a == pytest.approx(for_a, abs=1e-4)
        assert outcome.score_b == pytest.approx(for_b, abs=1e-4)
        assert outcome.prob_a == pytest.approx(
            1 / (1 + torch.exp(torch.tensor(for_b - for_a)).item()), abs=1e-4
        )
        assert alone[index].prob_a == pytest.approx(outcome.prob_a, abs=1e-5)
        assert outcome.parsed
    assert len({round(outcome.prob_a, 4) for outcome in together.values()}) == 4


def test_a_reward_model_that_was_trained_here_scores_as_training_says(tmp_path):
    from tests.training.tiny import save_tiny_model
    from training.ml import reward_model
    from training.ml.config import RewardRecipe
    from training.ml.data import PLAIN_TEMPLATE
    from training.ml.loading import load_reward_model as load_trained

    pairs = polite_pairs(8)
    base = save_tiny_model(tmp_path / "base")
    recipe = RewardRecipe(base_model=str(base), max_steps=2, learning_rate=0.02, batch_size=4)
    reward_model.train(recipe, pairs, pairs, tmp_path / "run", lambda report: None)
    folder = tmp_path / "run" / "model"

    outcomes = judged(
        load_reward_model(str(folder), RECIPE, "cpu"),
        [Sample(pair.prompt, pair.chosen, pair.rejected) for pair in pairs],
    )

    model, tokenizer = load_trained(folder, dtype="float32")
    for index, pair in enumerate(pairs):
        expected = reward_model.score(
            model, tokenizer, [pair.prompt + pair.chosen, pair.prompt + pair.rejected]
        )
        assert outcomes[index].score_a == pytest.approx(expected[0], abs=1e-5)
        assert outcomes[index].score_b == pytest.approx(expected[1], abs=1e-5)
    assert PLAIN_TEMPLATE.startswith(reward.PLAIN_TEMPLATE)  # the rest opens an answer


def test_of_two_labels_the_second_speaks_for_the_response(tmp_path):
    save_classifier(tmp_path, n_labels=2)

    outcome = judged(load_reward_model(str(tmp_path), RECIPE, "cpu"), samples()[:1])[0]

    conversation = [*samples()[0].prompt, *samples()[0].a]
    [(bad, good)] = rewards_alone(tmp_path, [conversation])
    assert outcome.score_a == pytest.approx(good - bad, abs=1e-4)


def test_a_long_prompt_loses_its_oldest_turns_and_a_response_that_does_not_fit_is_told(tmp_path):
    save_classifier(tmp_path, max_context=160)
    old = [*said("user", "An old matter. " * 40), *said("assistant", "I see.")]
    asked = Sample(
        [*old, *said("user", "And now?")], said("assistant", "One."), said("assistant", "Two.")
    )
    without = Sample(asked.prompt[1:], asked.a, asked.b)
    long = Sample(said("user", "Why?"), said("assistant", "So. " * 400), asked.b)
    loaded = load_reward_model(str(tmp_path), RECIPE, "cpu")

    outcomes = judged(loaded, [asked, without, long])

    assert outcomes[0].n_tokens_cut > 0
    assert outcomes[0].score_a == pytest.approx(outcomes[1].score_a, abs=1e-5)
    assert "does not fit" in outcomes[2].problem
    assert outcomes[2].score_a is None


def test_an_encoder_judges_too(tmp_path):
    tokenizer = save_tokenizer(tmp_path)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        max_position_embeddings=256,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    loaded = load_reward_model(str(tmp_path), RECIPE, "cpu", 10**6)

    outcomes = judged(loaded, samples())

    [[expected]] = rewards_alone(tmp_path, [[*samples()[2].prompt, *samples()[2].b]])
    assert outcomes[2].score_b == pytest.approx(expected, abs=1e-4)


def test_what_gives_no_reward_is_refused_in_one_line(tmp_path, tiny_judge):
    many = save_classifier(tmp_path / "many", n_labels=5)
    pickled = tmp_path / "pickled"
    save_classifier(pickled)
    weights = AutoModelForSequenceClassification.from_pretrained(pickled).state_dict()
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    adapter = tmp_path / "adapter"
    save_tokenizer(adapter)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(many), "modules_to_save": ["score"]})
    )
    (adapter / "adapter_model.bin").write_bytes(b"")

    for folder, message in (
        (tmp_path / "none" / "here", "there is no model folder"),
        (many, "gives 5 numbers; a reward model gives one"),
        (pickled, "safetensors"),
        (adapter, "no file adapter_model.safetensors"),
        (tiny_judge, "no weights for score"),  # a language model: its head would be random
    ):
        with pytest.raises(ModelUnusable, match=message) as caught:
            load_reward_model(str(folder), RECIPE, "cpu")
        assert "\n" not in str(caught.value)


def test_a_batch_that_memory_does_not_hold_is_made_smaller(tmp_path):
    scorer = load_reward_model(str(save_classifier(tmp_path / "rm")), RECIPE, "cpu")
    whole = dict(pair for batch in scorer.judge(samples()) for pair in batch)
    forward = scorer.model.forward

    def small_only(input_ids, **options):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **options)

    scorer.model.forward = small_only
    found = dict(pair for batch in scorer.judge(samples()) for pair in batch)

    assert scorer.counts["out_of_memory"] == 2  # 4 comparisons, 2, then one at a time
    assert [found[k].prob_a for k in range(4)] == pytest.approx(
        [whole[k].prob_a for k in range(4)], abs=1e-6
    )

    def too_small(**_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer.model.forward = too_small
    [[(_place, alone)]] = scorer.judge(samples()[:1])
    assert alone.problem == "One comparison alone needs more memory than cpu has."
