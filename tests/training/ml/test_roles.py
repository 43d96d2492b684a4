import pytest
import torch

from tests.training.reward_models import save_reward_model
from training.ml import roles as roles_module
from training.ml.data import chat_tokens
from training.ml.loading import load_causal, load_reward_model, load_tokenizer
from training.ml.logprobs import response_logps
from training.ml.lora_layers import QuickLinear
from training.ml.ppo_config import PPORecipe
from training.ml.reward_model import score
from training.ml.roles import (
    CRITIC,
    POLICY,
    REFERENCE,
    Roles,
    as_batch,
    can_share,
    reward_role,
    rewards,
    token_logps,
    token_values,
)
from training.ml.rollouts import Rollout

ROLLOUTS = [
    Rollout([40, 41, 42, 43], [50, 51, 52, 53, 54, 1], True),
    Rollout([44, 45], [60, 61], False),
    Rollout([46, 47, 48], [70, 1], True),
]


@pytest.fixture(scope="module")
def reward_models(tiny_model, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("reward models")
    return [save_reward_model(tiny_model, folder / str(seed), seed=seed) for seed in (1, 2)]


def made(base: str, models: list[str] | None = None, **settings) -> Roles:
    torch.manual_seed(0)
    recipe = PPORecipe(base_model=base, dtype="float32", lora_rank=4, **settings)
    return Roles(recipe, models or [], critic=True)


def shaken(roles: Roles) -> Roles:
    """The policy has learned something: its adapter is no longer nothing."""
    for parameter in roles.trained(POLICY).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return roles


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_reward_model_on_the_shared_base_scores_as_it_does_alone(
    tiny_model, tmp_path, reward_models, method
):
    folders = reward_models
    if method == "qlora":
        folders = [save_reward_model(tiny_model, tmp_path, seed=3, method="qlora")]
    roles = shaken(made(tiny_model, folders, method=method))
    tokenizer = load_tokenizer(tiny_model)
    talks = [
        [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": text}]
        for text in ("At the river.", "I do not know, but the coast is calm.", "")
    ]

    for place, folder in enumerate(folders):
        assert can_share(folder, tiny_model, method)
        model, theirs = load_reward_model(folder, dtype="float32")
        alone = score(model, theirs, talks, dtype="float32")
        rows = [chat_tokens(tokenizer, talk) for talk in talks]
        shared = rewards(roles, reward_role(place), rows, tokenizer.pad_token_id)
        assert shared.tolist() == pytest.approx(alone, abs=1e-5)


def test_a_model_beside_4_bits_does_not_share_a_whole_base(tiny_model, tmp_path, reward_models):
    assert not can_share(reward_models[0], tiny_model, "qlora")
    assert not can_share(tiny_model, tiny_model, "lora")  # no adapter
    quantised = save_reward_model(tiny_model, tmp_path, method="qlora")
    assert not can_share(quantised, tiny_model, "lora")


def test_the_reference_is_the_base_and_the_critic_begins_as_the_reward_model(
    tiny_model, reward_models
):
    roles = shaken(made(tiny_model, reward_models))
    batch = as_batch(roles, ROLLOUTS, 0)
    base = load_causal(tiny_model, dtype="float32")
    alone = response_logps(
        base, [r.prompt_ids for r in ROLLOUTS], [r.response_ids for r in ROLLOUTS], 0
    )

    with roles.acting(REFERENCE):
        reference, _entropy = token_logps(roles, batch, 1.0)
    with roles.acting(POLICY):
        policy, _entropy = token_logps(roles, batch, 1.0)
    sums = [part.sum().item() for part in reference.split(batch.lengths)]
    assert sums == pytest.approx(alone.tolist(), abs=1e-4)
    assert not torch.allclose(policy, reference, atol=1e-2)

    with roles.acting(CRITIC):
        values = token_values(roles, batch)
    before_last = [(r.prompt_ids + r.response_ids)[:-1] for r in ROLLOUTS]
    scores = rewards(roles, reward_role(0), before_last, 0)
    last = [part[-1].item() for part in values.split(batch.lengths)]
    assert last == pytest.approx(scores.tolist(), abs=1e-5)


def test_a_policy_that_starts_from_an_adapter_is_held_near_that(tiny_model, tmp_path):
    first = shaken(made(tiny_model))
    first.save_policy(tmp_path / "policy")
    second = made(str(tmp_path / "policy"))
    batch = as_batch(second, ROLLOUTS, 0)

    with first.acting(POLICY):
        left, _entropy = token_logps(first, batch, 1.0)
    for role in (POLICY, REFERENCE):
        with second.acting(role):
            assert torch.equal(token_logps(second, batch, 1.0)[0], left)
    shaken(second)
    with second.acting(POLICY):
        assert not torch.allclose(token_logps(second, batch, 1.0)[0], left, atol=1e-2)
    with second.acting(REFERENCE):
        assert torch.equal(token_logps(second, batch, 1.0)[0], left)


def test_logits_in_pieces_give_the_same_numbers_and_gradients(tiny_model, monkeypatch):
    roles = shaken(made(tiny_model))
    batch = as_batch(roles, ROLLOUTS, 0)
    found = []
    # Of frozen words the way back is told on the way there; with the entropy it is the library's.
    for kept, entropy in ((2**24, True), (3 * 300, True), (2**24, False), (3 * 300, False)):
        monkeypatch.setattr(roles_module, "KEPT_LOGITS", kept)
        with roles.acting(POLICY, learning=True):
            logps, entropies = token_logps(roles, batch, 0.7, entropy=entropy)
            (logps * torch.arange(len(logps))).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in roles.trained(POLICY).values()])
        found.append((logps.detach(), gradient, entropies))
        for parameter in roles.trained(POLICY).values():
            parameter.grad = None
    whole, *others = found
    for other in others:
        assert torch.allclose(whole[0], other[0], atol=1e-4, rtol=1e-4)
        assert torch.allclose(whole[1], other[1], atol=1e-4, rtol=1e-4)
    assert torch.allclose(whole[2], others[0][2], atol=1e-4, rtol=1e-4)
    assert whole[1].abs().max() > 0


def test_quick_layers_say_and_learn_what_those_of_the_library_do(tiny_model, reward_models):
    roles = shaken(made(tiny_model, reward_models))
    batch = as_batch(roles, ROLLOUTS, 0)
    layers = [module for module in roles.model.modules() if type(module) is QuickLinear]
    assert len(layers) == 14  # all linear layers of two
    found = []
    for kind in (QuickLinear, QuickLinear.__bases__[0]):
        for layer in layers:
            layer.__class__ = kind
        with roles.acting(POLICY, learning=True):
            logps, _none = token_logps(roles, batch, 1.0)
            (logps * torch.arange(len(logps))).sum().backward()
        with roles.acting(CRITIC, learning=True):
            values = token_values(roles, batch)
            values.square().sum().backward()
        parameters = [p for role in (POLICY, CRITIC) for p in roles.trained(role).values()]
        found.append([logps.detach(), values.detach(), *(p.grad for p in parameters)])
        for parameter in parameters:
            parameter.grad = None
    for quick, usual in zip(*found, strict=True):
        assert torch.allclose(quick, usual, atol=1e-4, rtol=1e-4)
