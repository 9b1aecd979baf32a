"""AdamW and Muon equal their references; the moving average has its closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thousandwords.training import optimizers


def muon(parameters: list[nn.Parameter], weight_decay: float = 0.0, lr_scale: float = 1.0) -> optimizers.Muon:
    return optimizers.Muon([{"params": parameters, "lr_scale": lr_scale}], weight_decay)


def step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    optimizers.set_learning_rate(optimizer, rate)
    optimizer.step()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_learning_rate_warms_up_along_a_line_and_falls_along_a_cosine():
    rates = [
        optimizers.learning_rate(step, 1.0, 0.2, warmup_steps=4, steps=14)
        for step in (0, 1, 3, 4, 9, 13, 14, 99)
    ]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.6, 0.21957739, 0.2, 0.2])


@pytest.mark.paper("generator: optimizer")
def test_adamw_has_what_muon_does_not_train_and_only_matrices_and_kernels_decay():
    layers = nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 2), nn.Embedding(4, 2)
    model = nn.Sequential(*layers)
    model[0].bias.requires_grad_(False)  # in no group
    optimizer = optimizers.adamw(model, 0.3, 0.9, 0.99, 1e-8, exclude=[model[4].weight])
    decayed, undecayed = optimizer.param_groups

    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.3 and undecayed["weight_decay"] == 0
    assert [names[parameter] for parameter in decayed["params"]] == ["0.weight", "3.weight"]
    assert [names[parameter] for parameter in undecayed["params"]] == ["1.weight", "1.bias", "3.bias"]


def plain_adamw(weight, gradients, rates, decay, beta1, beta2, epsilon, limit=math.inf):
    """AdamW after arXiv 1711.05101, algorithm 2, number by number, with its variance clipped at `limit`."""
    mean, square = [0.0] * len(weight), [0.0] * len(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        for i, value in enumerate(gradient):
            mean[i] = beta1 * mean[i] + (1 - beta1) * value
            square[i] = min(limit, beta2 * square[i] + (1 - beta2) * value**2)
            update = (mean[i] / (1 - beta1**step)) / (math.sqrt(square[i] / (1 - beta2**step)) + epsilon)
            weight[i] = weight[i] - rate * decay * weight[i] - rate * update
    return weight


@pytest.mark.paper("tokenizer: optimizer")
@pytest.mark.parametrize("limit", [None, 1e9, 0.02])
def test_adamw_steps_as_the_plain_reference_does(limit):
    model = nn.Linear(4, 1).double()
    gradients = torch.randn(6, 5, dtype=torch.float64, generator=rng())
    rates = [0.1, 0.2, 0.3, 0.2, 0.1, 0.05]
    settings = {"beta1": 0.9, "beta2": 0.96, "epsilon": 1e-6, "limit": limit or math.inf}
    expected_weight = plain_adamw(model.weight[0].tolist(), gradients[:, :4].tolist(), rates, 0.3, **settings)
    expected_bias = plain_adamw(model.bias.tolist(), gradients[:, 4:].tolist(), rates, 0.0, **settings)

    optimizer = optimizers.adamw(model, 0.3, 0.9, 0.96, 1e-6, second_moment_clip=limit)
    for gradient, rate in zip(gradients, rates, strict=True):
        model.weight.grad, model.bias.grad = gradient[None, :4].clone(), gradient[4:].clone()
        step(optimizer, rate)

    assert model.weight[0].tolist() == pytest.approx(expected_weight, abs=1e-12)
    assert model.bias.tolist() == pytest.approx(expected_bias, abs=1e-12)


def averages(values: list[float], decay: float, **settings: bool) -> list[float]:
    """The average of a single weight, 0 at first, after it takes each of `values`."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = optimizers.MovingAverage(model, decay, **settings)
    result = []
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update(model)
        result.append(average.state["weight"].item())
    return result


@pytest.mark.paper("tokenizer: optimizer")
@settings(max_examples=25)
@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20), st.floats(0, 0.999))
def test_the_average_has_its_closed_form(values, decay):
    last = len(values) - 1
    closed = sum((1 - decay) * decay ** (last - i) * value for i, value in enumerate(values))
    assert averages(values, decay)[-1] == pytest.approx(closed, abs=1e-4)


def test_an_average_with_warm_up_begins_near_the_weights():
    actual = averages([1.0, 2.0, 3.0], 0.999, has_warmup=True)
    second = 0.9 * 2 / 11 + 2 * 9 / 11
    assert actual == pytest.approx([0.9, second, second / 4 + 3 * 3 / 4])
    assert averages([1.0, 1.0], 0.05, has_warmup=True) == pytest.approx([0.95, 0.9975])  # never above it


def test_counters_are_copied_and_buffers_averaged():
    model = nn.BatchNorm1d(2)
    average = optimizers.MovingAverage(model, 0.5)

    model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update(model)

    assert average.state["num_batches_tracked"].item() == 1
    assert average.state["running_mean"].tolist() == pytest.approx([0.1, 0.2])


def test_muon_treats_a_kernel_as_a_matrix():
    kernel, matrix = nn.Parameter(torch.zeros(4, 2, 3, 3)), nn.Parameter(torch.zeros(4, 18))
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    matrix.grad = torch.randn(4, 18, generator=rng())
    kernel.grad = matrix.grad.reshape(4, 2, 3, 3).to(memory_format=torch.channels_last)
    for parameter in (kernel, matrix):
        step(muon([parameter]), 0.01)
    expected = matrix * 0.04 * 18**0.5  # at the rate of kernels
    torch.testing.assert_close(kernel.flatten(1), expected, atol=2e-4, rtol=0)


def test_muon_equals_torchs_muon(monkeypatch):
    """Weights, momenta and state names, with tall and wide shapes and a parameter without a gradient.

    torch iterates in bfloat16, as ours does where the CPU has units for it.
    """
    monkeypatch.setattr(optimizers, "has_bfloat16_units", lambda device: True)
    shapes = [(24, 8), (8, 8), (24, 8), (8, 32), (8, 8)]
    parameters, reference_parameters = (
        [nn.Parameter(torch.randn(shape, generator=rng(7))) for shape in shapes] for _ in range(2)
    )
    optimizer = muon(parameters, 0.1, lr_scale=5.0)
    group = {"params": reference_parameters, "lr_scale": 5.0}
    reference = torch.optim.Muon([group], lr=0.0, weight_decay=0.1, momentum=0.95, nesterov=True)

    pairs = list(zip(parameters, reference_parameters, strict=True))
    for seed in range(10):
        for number, (parameter, other) in enumerate(pairs[:-1]):
            parameter.grad = torch.randn(parameter.shape, generator=rng(100 * seed + number))
            other.grad = parameter.grad.clone()
        for each in (optimizer, reference):
            step(each, 0.02)

    for parameter, other in pairs:  # a direction in bfloat16, at a rate of 0.1
        torch.testing.assert_close(parameter, other, atol=2e-3, rtol=0)
    actual, expected = optimizer.state_dict(), reference.state_dict()
    assert actual["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert actual["state"][number].keys() == state.keys()
        torch.testing.assert_close(actual["state"][number]["momentum_buffer"], state["momentum_buffer"])


@pytest.mark.parametrize(("has_units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_iterates_in_bfloat16_only_where_the_cpu_has_units_for_it(monkeypatch, has_units, dtype):
    dtypes = []
    monkeypatch.setattr(optimizers, "has_bfloat16_units", lambda device: has_units)
    monkeypatch.setattr(optimizers, "orthogonalize", lambda matrices, dtype: dtypes.append(dtype) or matrices)
    weight = nn.Parameter(torch.ones(8, 4))
    weight.grad = torch.ones(8, 4)

    muon([weight]).step()

    assert dtypes == [dtype]
