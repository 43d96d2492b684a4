"""The demo's loop in small: the same code, fewer comparisons and steps."""

import pytest

from config.demo import DemoError, DemoSettings, remove_demo, results_file, run_demo
from config.management.commands.demo import table
from judges.models import Verdict
from labeling import microworld
from labeling.models import Comparison, Preference, Project, Rater
from training.models import Dataset, ModelVersion, Run

SMALL = DemoSettings(
    n_prompts=60,
    per_prompt=1,
    test_share=0.3,
    n_judged=10,
    n_new=5,
    samples_per_prompt=1,
    n_base_texts=400,
    n_judge_texts=300,
    base={
        "layers": 1,
        "hidden": 64,
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "muon_learning_rate": 0.03,
    },
    judge={"steps": 60, "batch_size": 4, "learning_rate": 5e-3},
    reward={"learning_rate": 1e-3, "max_steps": 4, "batch_size": 4},
    sft={"learning_rate": 1e-3, "max_steps": 4, "batch_size": 4},
    dpo={"learning_rate": 1e-3, "max_steps": 4, "batch_size": 4},
    ppo={"steps": 2, "prompts_per_step": 8, "max_new_tokens": 16, "minibatches": 1, "epochs": 1},
)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_loop_runs_from_nothing_and_a_second_time_from_what_is_there(storage):
    told = []
    results = run_demo(SMALL, lambda what, done, total: told.append((what, done, total)))

    project = Project.objects.get(slug="microworld")
    first = Comparison.objects.filter(project=project, external_id__startswith="comparisons-")
    assert 50 <= first.count() <= 60  # some pairs of responses may be equal
    people = Preference.objects.current().filter(rater__kind=Rater.Kind.PERSON)
    assert people.filter(comparison__in=first).count() == 5 * first.count()
    assert set(people.values_list("rater__name", flat=True)) == {
        rater.name for rater in microworld.RATERS
    }
    assert Verdict.objects.count() == 10
    assert Preference.objects.current().of_judges().count() == 10

    rows = {row["what"].strip(): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == 29
    for row in rows.values():
        assert row["n"] > 0, row
        if row["low"] is not None:  # ten verdicts are few
            assert row["low"] <= row["value"] <= row["high"], row
    held_out = Dataset.objects.first().counts["test"]
    assert rows["Reward model with people's labels"]["n"] == held_out
    assert rows["Judge: same response in both orders"]["n"] <= 10
    start = rows["True utility of the start"]["value"]
    new = rows["True utility of the DPO policy"]["value"]
    assert results["gain"]["value"] == pytest.approx(new - start)

    # No prompt is on both sides, and the policy was measured on held-out prompts alone.
    trained_on = set(first.filter(metadata__split="train").values_list("prompt_id", flat=True))
    test_side = first.filter(metadata__split="test")
    assert not trained_on & set(test_side.values_list("prompt_id", flat=True))
    asked = {sample["prompt"] for sample in results["samples"]}
    assert asked <= {p.prompt.messages[-1]["content"] for p in test_side.select_related("prompt")}

    # The new policy's responses are the next comparisons, and open to people.
    new_ones = Comparison.objects.filter(project=project).exclude(pk__in=first)
    assert new_ones.count() == results["new_comparisons"] > 0
    policy = ModelVersion.objects.get(kind="policy", name=results["models"]["policy"])
    for comparison in new_ones:
        sources = {comparison.response_a.source, comparison.response_b.source}
        assert sources == {results["models"]["base"], policy.name}
        assert comparison.open_places == 1
    for what in ("base model learns to write", "judge compares", "DPO trains the policy"):
        steps = [(done, total) for name, done, total in told if name == what]
        assert steps[-1][0] == steps[-1][1] > 0, what
    text = "\n".join(table(results))
    assert "Reward model with the truth" in text
    assert "open to people" in text

    told.clear()
    kept = run_demo(SMALL, lambda what, done, total: told.append((what, done, total)))
    assert (kept, told) == (results, [])

    results_file(SMALL).unlink()
    again = run_demo(SMALL, lambda what, done, total: told.append((what, done, total)))

    assert again["rows"] == results["rows"]
    assert again["models"] == results["models"]
    assert Run.objects.count() == 4
    assert Comparison.objects.filter(project=project).count() == first.count() + new_ones.count()
    assert Verdict.objects.count() == 10
    assert not {what for what, _done, _total in told} & {
        "base model learns to write",
        "judge learns to compare",
        "judge compares",
        "reward model trains",
        "DPO trains the policy",
    }

    other = DemoSettings(**{**vars(SMALL), "votes": 2})
    with pytest.raises(DemoError, match="--fresh"):
        run_demo(other)

    remove_demo("microworld")

    assert not Project.objects.filter(slug="microworld").exists()
    assert not Run.objects.exists()
    assert (storage / "models" / results["models"]["base"] / "config.json").exists()
