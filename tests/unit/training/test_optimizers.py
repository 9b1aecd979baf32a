"""The optimizer is AdamW as the textbook has it, decay is for matrices, and the average is the average."""
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thousandwords import optim

# --- the learning rate -----------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_along_a_line_and_falls_along_a_cosine():
    rates = [optim.learning_rate(step, 1.0, 0.2, warmup_steps=4, steps=14) for step in (0, 1, 3, 4, 9, 13, 14, 99)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.6, 0.21957739, 0.2, 0.2])


def test_without_a_warm_up_the_first_update_has_the_whole_rate():
    assert [optim.learning_rate(step, 0.1, 0.0, 0, 2) for step in (0, 1, 2)] == pytest.approx([0.1, 0.05, 0.0])


def test_a_warm_up_may_last_longer_than_the_training():
    assert [optim.learning_rate(step, 1.0, 0.0, 8, 4) for step in (0, 3)] == [0.125, 0.5]


@given(st.integers(0, 500), st.integers(0, 300), st.integers(1, 500), st.floats(0, 1))
def test_the_learning_rate_stays_between_0_and_its_peak(step, warmup_steps, steps, final):
    rate = optim.learning_rate(step, 1.0, final, warmup_steps, steps)
    assert 0 <= rate <= 1 + 1e-12 and (rate >= final - 1e-12 or step < warmup_steps)


def test_every_group_gets_the_rate():
    optimizer = optim.adamw(nn.Linear(3, 2), 0.1, 0.9, 0.99, 1e-8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]

    optim.set_learning_rate(optimizer, 0.125)

    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


# --- AdamW -----------------------------------------------------------------------------------------------------------


def some_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 2), nn.Embedding(4, 2))


def test_only_matrices_and_kernels_decay():
    model = some_model()
    decayed, left_alone = optim.parameter_groups(model, 0.3)

    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.3 and left_alone["weight_decay"] == 0
    assert [names[parameter] for parameter in decayed["params"]] == ["0.weight", "3.weight", "4.weight"]
    assert [names[parameter] for parameter in left_alone["params"]] == ["0.bias", "1.weight", "1.bias", "3.bias"]


def test_a_frozen_parameter_is_in_no_group():
    model = some_model()
    model[0].requires_grad_(False)
    groups = optim.parameter_groups(model, 0.3)
    assert sum(len(group["params"]) for group in groups) == 5


def test_a_model_without_vectors_has_one_group():
    assert len(optim.adamw(nn.Linear(3, 2, bias=False), 0.1, 0.9, 0.99, 1e-8).param_groups) == 1


def plain_adamw(weight, gradients, rates, decay, beta1, beta2, epsilon, limit=math.inf):
    """AdamW written down from arXiv 1711.05101, algorithm 2, one number at a time; its variance never above `limit`."""
    mean, square = [0.0] * len(weight), [0.0] * len(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        for i, slope in enumerate(gradient):
            mean[i] = beta1 * mean[i] + (1 - beta1) * slope
            square[i] = min(limit, beta2 * square[i] + (1 - beta2) * slope**2)
            update = (mean[i] / (1 - beta1**step)) / (math.sqrt(square[i] / (1 - beta2**step)) + epsilon)
            weight[i] = weight[i] - rate * decay * weight[i] - rate * update
    return weight


@pytest.mark.parametrize("limit", [None, 1e9, 0.02])
def test_it_steps_as_a_plain_adamw_does(limit):
    model = nn.Linear(4, 1).double()
    gradients = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rates = [0.1, 0.2, 0.3, 0.2, 0.1, 0.05]
    settings = {"beta1": 0.9, "beta2": 0.96, "epsilon": 1e-6, "limit": limit or math.inf}
    wanted_weight = plain_adamw(model.weight[0].tolist(), gradients[:, :4].tolist(), rates, 0.3, **settings)
    wanted_bias = plain_adamw(model.bias.tolist(), gradients[:, 4:].tolist(), rates, 0.0, **settings)

    optimizer = optim.adamw(model, 0.3, 0.9, 0.96, 1e-6, variance_limit=limit)
    for gradient, rate in zip(gradients, rates, strict=True):
        model.weight.grad, model.bias.grad = gradient[None, :4].clone(), gradient[4:].clone()
        optim.set_learning_rate(optimizer, rate)
        optimizer.step()

    assert model.weight[0].tolist() == pytest.approx(wanted_weight, abs=1e-12)
    assert model.bias.tolist() == pytest.approx(wanted_bias, abs=1e-12)


# --- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "gradient"), [(None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (0.1, [0.06, 0.08])]
)
def test_a_gradient_is_scaled_to_the_limit_and_its_norm_before_is_told(limit, gradient):
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for weight, slope in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.tensor([slope])

    norm = optim.clip_gradients(weights, limit)

    assert norm.item() == 5.0
    assert [weight.grad.item() for weight in weights] == pytest.approx(gradient, rel=1e-5)


# --- the moving average ----------------------------------------------------------------------------------------------


def averaged(values: list[float], decay: float, **settings: bool) -> list[float]:
    """The average after each of the `values` that a single weight, 0 at first, takes on."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = optim.MovingAverage(model, decay, **settings)
    found = []
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update(model)
        found.append(average.state["weight"].item())
    return found


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20), st.floats(0, 0.999))
def test_the_average_has_its_closed_form(values, decay):
    last = len(values) - 1
    closed = sum((1 - decay) * decay ** (last - i) * value for i, value in enumerate(values))
    assert averaged(values, decay)[-1] == pytest.approx(closed, abs=1e-4)


def test_a_constant_weight_is_approached_by_the_powers_of_the_decay():
    assert averaged([1.0, 1.0, 1.0], 0.5) == [0.5, 0.75, 0.875]


def test_a_warmed_up_average_begins_near_the_weights():
    found = averaged([1.0, 2.0, 3.0], 0.999, is_warmed_up=True)
    assert found == pytest.approx([0.9, 0.9 * 2 / 11 + 2 * 9 / 11, (0.9 * 2 / 11 + 2 * 9 / 11) / 4 + 3 * 3 / 4])


def test_a_warm_up_never_exceeds_the_decay_it_warms_up_to():
    assert averaged([1.0, 1.0], 0.05, is_warmed_up=True) == pytest.approx([0.95, 0.9975])


def test_counters_are_copied_and_buffers_averaged():
    model = nn.BatchNorm1d(2)
    average = optim.MovingAverage(model, 0.5)

    model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update(model)

    assert average.state["num_batches_tracked"].item() == 1
    assert average.state["running_mean"].tolist() == pytest.approx([0.1, 0.2])


def test_averaging_leaves_the_model_alone():
    model = nn.Linear(2, 2)
    weight = model.weight.detach().clone()
    average = optim.MovingAverage(model, 0.5)
    nn.init.zeros_(model.weight)
    average.update(model)
    assert model.weight.eq(0).all() and average.state["weight"].equal(weight / 2)


def test_muon_steps_all_directions_of_a_matrix_alike_at_its_own_rate():
    """One step of a gradient of singular values 100 and 1 moves both directions by nearly the same (Newton-Schulz is rough)."""
    matrix = nn.Parameter(torch.zeros(2, 2))
    optimizer = optim.muon([matrix], 0.0, rate_factor=5.0)
    matrix.grad = torch.diag(torch.tensor([100.0, 1.0]))
    optim.set_learning_rate(optimizer, 0.01)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert matrix.diag().tolist() == pytest.approx([-0.05, -0.05], rel=0.4)


def test_muon_takes_a_kernel_for_the_matrix_of_its_outputs():
    kernel, matrix = nn.Parameter(torch.zeros(4, 2, 3, 3)), nn.Parameter(torch.zeros(4, 18))
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    matrix.grad = torch.randn(4, 18, generator=torch.Generator().manual_seed(0))
    kernel.grad = matrix.grad.reshape(4, 2, 3, 3).to(memory_format=torch.channels_last)
    for parameter in (kernel, matrix):
        optimizer = optim.muon([parameter], 0.0, 1.0)
        optim.set_learning_rate(optimizer, 0.01)
        optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix * 0.04 * 18**0.5, atol=2e-4, rtol=0)  # at a rate of its own


def test_muon_leaves_what_has_no_gradient_alone_and_treats_others_as_if_it_were_not_there():
    resting, moving, alone = (nn.Parameter(torch.ones(3, 3)) for _ in range(3))
    moving.grad = alone.grad = torch.eye(3)
    for parameters in ([resting, moving], [alone]):
        optimizer = optim.muon(parameters, 0.1, 1.0)
        optim.set_learning_rate(optimizer, 0.1)
        optimizer.step()
    assert resting.eq(1).all() and moving.equal(alone) and not moving.equal(resting)


def test_muon_over_equal_shapes_at_once_is_torchs_muon_one_by_one():
    """Ten steps with shapes of both kinds and one without a gradient: the weights, what is remembered, and its names."""
    shapes = [(24, 8), (8, 8), (24, 8), (8, 32), (8, 8)]
    ours, theirs = ([nn.Parameter(torch.randn(shape, generator=some(7))) for shape in shapes] for _ in range(2))
    together = optim.muon(ours, 0.1, rate_factor=5.0)
    group = {"params": theirs, "rate_factor": 5.0}
    apart = torch.optim.Muon([group], lr=0.0, weight_decay=0.1, momentum=0.95, nesterov=True)

    for step in range(10):
        for number, (one, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
            one.grad = torch.randn(one.shape, generator=some(100 * step + number))
            other.grad = one.grad.clone()
        for optimizer in (together, apart):
            optim.set_learning_rate(optimizer, 0.02)
            optimizer.step()

    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # a direction in bfloat16, at a rate of 0.1
    found, wanted = together.state_dict(), apart.state_dict()
    assert found["state"].keys() == wanted["state"].keys()
    for number, state in wanted["state"].items():
        assert found["state"][number].keys() == state.keys()
        torch.testing.assert_close(found["state"][number]["momentum_buffer"], state["momentum_buffer"])


def some(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_muon_trains_adamw_leaves_alone():
    model = nn.Linear(3, 2)
    groups = optim.adamw(model, 0.1, 0.9, 0.99, 1e-8, without=[model.weight]).param_groups
    assert [one is model.bias for group in groups for one in group["params"]] == [True]
