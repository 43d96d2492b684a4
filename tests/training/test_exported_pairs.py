"""Exported pairs as TRL itself takes them: opened by `datasets`, one step of both trainers."""

from pathlib import Path

import pytest

from labeling.export import export_file
from tests.factories import ComparisonFactory, PreferenceFactory, ProjectFactory, RaterFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(params=["trl", "trl-chat"])
def pairs(request, tmp_path: Path):
    """Eight pairs of one rater each, two of several turns, as `datasets` opens the file."""
    import datasets

    project = ProjectFactory()
    rater = RaterFactory(project=project)
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
    ]
    for n in range(8):
        asked = [*(turns if n < 2 else []), {"role": "user", "content": f"Question {n}?"}]
        comparison = ComparisonFactory(project=project, prompt__messages=asked)
        strength = [None, 1, 2, 3][n % 4]
        PreferenceFactory(comparison=comparison, rater=rater, choice="ab"[n % 2], strength=strength)
    path = tmp_path / "pairs.jsonl"
    export_file(project, path, request.param)
    return datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )


def test_datasets_opens_the_file_with_a_type_for_every_column(pairs):
    assert pairs.num_rows == 8
    assert pairs[0]["chosen"]
    assert {
        name: pairs.features[name].dtype for name in ("margin", "prob", "n_raters", "rule")
    } == {
        "margin": "float64",
        "prob": "float64",
        "n_raters": "int64",
        "rule": "string",
    }


def test_the_reward_trainer_takes_the_file_unchanged(pairs, tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    settings = RewardConfig(
        output_dir=str(tmp_path / "reward"),
        per_device_train_batch_size=4,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = RewardTrainer(
        model=model, args=settings, train_dataset=pairs, processing_class=tokenizer
    )
    assert trainer.train().global_step == 1


def test_the_dpo_trainer_takes_the_file_unchanged(pairs, tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    settings = DPOConfig(
        output_dir=str(tmp_path / "dpo"),
        per_device_train_batch_size=4,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = DPOTrainer(
        model=model, args=settings, train_dataset=pairs, processing_class=tokenizer
    )
    assert trainer.train().global_step == 1
