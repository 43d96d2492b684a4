"""What belongs to another project is not there, whatever a request's body names."""

import pytest
from django.test import Client

from labeling.models import ApiToken
from tests.factories import MembershipFactory, PromptFactory, bearer
from training.models import ModelVersion


@pytest.mark.django_db
def test_models_of_another_project_are_named_in_vain(storage):
    theirs, mine = MembershipFactory(role="lead").project, MembershipFactory(role="lead")
    PromptFactory(project=mine.project)
    kind = ModelVersion.Kind
    names = {"base": kind.BASE, "policy": kind.POLICY, "reward": kind.REWARD}
    for name, of_kind in names.items():
        path = "runs/7/model" if of_kind != kind.BASE else str(storage / "elsewhere")
        theirs.models.create(name=f"their-{name}", kind=of_kind, path=path)
    both = ["their-base", "their-policy"]
    ppo = {"reward_models": "their-reward", "judge_model": "their-base"}
    asked = [
        ("runs", {"kind": "dpo", "base_model": "runs/7/model"}),
        ("runs", {"kind": "dpo", "base_model": "runs/7"}),
        ("runs", {"kind": "dpo", "base_model": str(storage / "elsewhere")}),
        ("runs", {"kind": "ppo", "base_model": "their-base", "settings": ppo}),
        ("merges", {"name": "new", "method": "linear", "models": both}),
        ("playground", {"text": "Hello", "model_a": both[0], "model_b": both[1]}),
        ("rounds", {"models": both[:1]}),
        ("rounds", {"scorer": "their-reward"}),
        ("arenas", {"models": both}),
        ("judges", {"name": "a judge", "model": "file:///etc/passwd"}),
        ("judges", {"name": "a judge", "model": "http://169.254.169.254/x"}),
        ("judges", {"name": "a judge", "model": "data/runs/7/model"}),
    ]
    headers = bearer(mine.user, *ApiToken.Scope.values)
    for route, body in asked:
        answer = Client().post(
            f"/api/projects/{mine.project.slug}/{route}/", body, "application/json", headers=headers
        )
        assert answer.status_code == 400, (route, body, answer.content)
    for made in ("runs", "merges", "sides_by_side", "rounds", "arenas"):
        assert not getattr(mine.project, made).exists(), made
