import pytest
import torch

from training.ml.galore import GaLoreAdamW, directions, project, project_back


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((4, 3), [-0.064901, 0.046193, 0.194856, 0.270754, 0.423483, 0.561455, 0.574436, 0.670875,
                  0.772548, 0.827312, 0.995731, 1.146783]),
        ((3, 4), [0.005262, 0.058615, 0.159433, 0.304568, 0.409567, 0.545697, 0.58182, 0.682551,
                  0.749591, 0.87196, 1.009438, 1.141915]),
    ],
)  # fmt: skip
def test_five_steps_give_the_numbers_of_the_package_galore_torch(shape, matrix):
    """galore-torch 1.0, AdamW with rank 2, update_proj_gap 2, scale 0.25, proj_type "std"."""
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(shape) / 10)
    bias = torch.nn.Parameter(torch.tensor([0.5]))
    optimizer = GaLoreAdamW(
        [{"params": [weight], "rank": 2, "gap": 2}, {"params": [bias]}], lr=0.1, weight_decay=0.01
    )
    for step in range(5):
        weight.grad = torch.sin(torch.arange(12.0) * (step + 1) + step).reshape(shape)
        bias.grad = torch.tensor([0.3 * (step + 1)])
        optimizer.step()

    assert weight.flatten().tolist() == pytest.approx(matrix, abs=1e-5)
    assert bias.item() == pytest.approx(0.0138824, abs=1e-6)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_with_all_directions_kept_nothing_of_a_gradient_is_lost(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept = directions(gradient, 3)

    back = project_back(project(gradient, kept), kept, gradient.shape)

    assert torch.allclose(back, gradient, atol=1e-5)


def test_the_averages_are_as_small_as_the_rank_and_all_state_is_tensors():
    weight = torch.nn.Parameter(torch.zeros(64, 16))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 2, "gap": 10}], lr=0.1)
    weight.grad = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    optimizer.step()

    state = optimizer.state[weight]
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "directions": (2, 16), "exp_avg": (64, 2), "exp_avg_sq": (64, 2), "step": (),
    }  # fmt: skip
