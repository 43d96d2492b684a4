import pytest

from training.ml.config import DPORecipe, RewardRecipe, make_recipe
from training.ml.settings import targets


def test_settings_given_as_text_get_the_types_of_the_recipe():
    recipe = make_recipe(
        "dpo",
        {"base_model": "m", "beta": "0.3", "batch_size": "2", "train_norms": "no", "epochs": "2"},
    )

    assert recipe == DPORecipe(
        base_model="m", beta=0.3, batch_size=2, train_norms=False, epochs=2.0
    )


def test_an_unknown_setting_is_named_and_the_known_ones_are_listed():
    with pytest.raises(ValueError, match="reward has no setting 'beta'; it has base_model, loss"):
        make_recipe("reward", {"base_model": "m", "beta": "0.3"})


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="unknown recipe 'kto'; there are reward, dpo"):
        make_recipe("kto", {"base_model": "m"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        ({"batch_size": "2.5"}, "batch_size must be a whole number"),
        ({"batch_size": 2.7}, "batch_size must be a whole number, not 2.7"),
        ({"batch_size": float("inf")}, "batch_size must be a whole number, not inf"),
        ({"learning_rate": "nan"}, "learning_rate must be a number, not 'nan'"),
        ({"epochs": "inf"}, "epochs must be a number, not 'inf'"),
        ({"train_norms": "maybe"}, "train_norms must be true or false"),
        ({"method": "magic"}, "method is 'magic'; it must be one of lora, qlora"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"lora_rank": 100_000}, "lora_rank must be at most 4096"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
        ({"batch_size": 2**31}, "batch_size must be at most 2147483647"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"seed": 2**31}, "seed must be below 2147483648"),
        ({"lora_dropout": 1}, r"lora_dropout must lie in \[0, 1\)"),
        ({"target_modules": " , "}, "target_modules names no layer"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        make_recipe("reward", {"base_model": "m", **given})


def test_targets_are_all_linear_layers_or_the_named_ones():
    assert targets(RewardRecipe(base_model="m")) == "all-linear"
    assert targets(RewardRecipe(base_model="m", target_modules="q_proj, v_proj")) == [
        "q_proj",
        "v_proj",
    ]
