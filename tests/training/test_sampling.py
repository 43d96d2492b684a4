import json

import pytest
from django.core.management import CommandError, call_command

from labeling.models import Comparison
from tests.training.projects import labeled_project
from training.models import ModelVersion
from training.sampling import sample_comparisons

pytestmark = pytest.mark.django_db


def test_responses_of_a_model_become_comparisons_that_wait_for_labels(tiny_model):
    project = labeled_project(5)

    counts = sample_comparisons(project, tiny_model, limit=3, max_new_tokens=6, seed=1)

    new = Comparison.objects.filter(metadata__sampled_from=tiny_model)
    assert counts["created"] == new.count() > 0
    assert counts["created"] + counts["same"] == 3 - counts["empty"] - counts["duplicates"]
    one = new.first()
    assert (one.open_places, one.preferences.count()) == (1, 0)
    assert {one.response_a.source, one.response_b.source} == {tiny_model}
    assert one.response_a.messages != one.response_b.messages


def test_sampling_again_with_the_same_seed_adds_nothing(tiny_model):
    project = labeled_project(3)
    first = sample_comparisons(project, tiny_model, max_new_tokens=6)

    again = sample_comparisons(project, tiny_model, max_new_tokens=6)

    assert (again["created"], again["duplicates"]) == (0, first["created"])


def test_three_responses_make_three_comparisons_and_a_prompt_too_long_none(tiny_model):
    project = labeled_project(1)
    counts = sample_comparisons(project, tiny_model, n=3, max_new_tokens=6)
    assert counts["created"] == 3

    too_long = sample_comparisons(project, tiny_model, max_new_tokens=250)
    assert (too_long["too_long"], too_long["prompts"], too_long["created"]) == (1, 0, 0)


def test_the_command_prints_its_counts_and_refuses_a_reward_model(tiny_model, capsys):
    project = labeled_project(2)
    call_command(
        "sample",
        "--model",
        tiny_model,
        "--project",
        project.slug,
        "--max-new-tokens",
        "4",
        "--json",
    )
    assert json.loads(capsys.readouterr().out)["prompts"] == 2

    ModelVersion.objects.create(project=project, name="reward-1", kind="reward", path="runs/1")
    with pytest.raises(CommandError, match="reward-1 is a reward model: it scores responses"):
        call_command("sample", "--model", "reward-1", "--project", project.slug)
