"""Gradient scaling per residual block (arXiv 2102.12092 appendix D): values, and unchanged gradients."""

import dataclasses

import pytest
import torch
from torch import nn

from tests.helpers import tiny_models
from thousandwords.core.errors import UserError
from thousandwords.nn.grad_scaling import GradientScale, GradientScales, ResidualPath
from thousandwords.nn.transformer_layers import Layer, dense_attention
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import Stopped, check_model, fit
from thousandwords.training.train_state import NotFinite

CONFIG = TrainingConfig(
    **{"steps": 6, "batch_size": 4, "learning_rate": 0.01, "clip_norm": 4.0, "ema_decay": 0.9},
    **{"log_every": 1, "evaluate_every": 9, "checkpoint_every": 9, "precision": "float16"},
)


def scales(count: int = 2, replicas: int = 1) -> GradientScales:
    return GradientScales([ResidualPath(GradientScale(), ()) for _ in range(count)], replicas)


# --- the rule ------------------------------------------------------------


@pytest.mark.paper("generator: precision")
def test_a_thousand_finite_updates_double_a_scale_and_one_that_is_not_finite_divides_it_by_the_root_of_2():
    grad_scales = scales()
    assert grad_scales.values.tolist() == [8192, 8192]  # 2 ** 13

    for _ in range(1000):
        grad_scales.update(torch.tensor([True, True]))
    assert grad_scales.values.tolist() == pytest.approx([16384, 16384])

    grad_scales.update(torch.tensor([True, False]))
    assert grad_scales.values.tolist() == pytest.approx([16384 * 2 ** (1 / 1000), 16384 / 2**0.5])


def test_a_scale_is_not_divided_again_within_125_updates():
    grad_scales, history = scales(1), [8192.0]
    for _ in range(252):
        grad_scales.update(torch.tensor([False]))
        history.append(grad_scales.values.item())

    assert [number for number in range(1, 253) if history[number] < history[number - 1]] == [1, 127]


@pytest.mark.paper("generator: precision")
@pytest.mark.parametrize("replicas", [1, 8])
def test_scales_are_2_to_the_7_to_2_to_the_24_times_the_replicas(replicas):
    grad_scales, finite = scales(replicas=replicas), torch.tensor([True, False])
    assert grad_scales.values.tolist() == [2.0**13 * replicas] * 2

    grad_scales.values = torch.tensor([2.0**24, 2.0**7], dtype=torch.float64) * replicas
    grad_scales.update(finite)

    assert grad_scales.values.tolist() == [2.0**24 * replicas, 2.0**7 * replicas]
    assert grad_scales.are_exhausted(finite) and not grad_scales.are_exhausted(torch.tensor([True, True]))


# --- the gradients ------------------------------------------------------------


def gradients(layer: Layer, hidden_states: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    hidden_states = hidden_states.clone().requires_grad_()
    attend = dense_attention(torch.ones(5, 5, dtype=torch.bool).tril())
    layer(hidden_states, attend).square().mean().backward()
    return [hidden_states.grad, *(parameter.grad for parameter in layer.parameters())]


def test_a_scale_that_is_a_power_of_two_changes_no_gradient_after_unscaling():
    torch.manual_seed(0)
    layer, hidden_states = Layer(16, 2), torch.randn(3, 5, 16)
    plain = gradients(layer, hidden_states)

    grad_scales = GradientScales(layer.residual_paths())
    grad_scales.set()
    scaled = gradients(layer, hidden_states)
    assert scaled[0].equal(plain[0])  # the gradient of the residual stream has no scale
    assert scaled[3].equal(plain[3] * 8192)
    grad_scales.unscale()

    for parameter, grad in zip(layer.parameters(), plain[1:], strict=True):
        assert parameter.grad.equal(grad)


def test_an_overflow_in_one_path_reaches_neither_the_residual_stream_nor_the_other_path():
    torch.manual_seed(0)
    layer = Layer(16, 2)
    grad_scales = GradientScales(layer.residual_paths())
    grad_scales.values = torch.tensor([8192.0, 2.0**60], dtype=torch.float64)
    grad_scales.set()

    with torch.autocast("cpu", torch.float16):
        grads = gradients(layer, torch.randn(3, 5, 16))

    assert grad_scales.are_finite().tolist() == [True, False]
    assert grads[0].isfinite().all()


# --- training ------------------------------------------------------------


def train(config: TrainingConfig = CONFIG, before=lambda model, step: None, **settings):
    model = tiny_models.tiny("generators", "transformer")
    text, tokens = tiny_models.captions_as_tokens(4), tiny_models.image_tokens(4)
    weights = []

    def batches_of(step: int) -> list:
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        before(model, step)
        return [(text, tokens)]

    settings = {"loss_of": lambda model, batch, step, rng: model.loss(*batch, step, rng)} | settings
    state, history = fit(model, config, batches_of=batches_of, seed=0, **settings)
    return model, state, history, weights


def test_float16_trains_like_float32_and_parameters_and_gradients_stay_in_float32():
    model, _, rows, _ = train()
    _, _, exact, _ = train(dataclasses.replace(CONFIG, precision="float32"))

    assert rows[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.02)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.paper("generator: precision")
def test_only_matrix_products_are_in_float16_not_logits_or_embeddings():
    model, types = tiny_models.tiny("generators", "transformer"), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm):
            module.register_forward_hook(lambda *call, name=name: types.update({name: call[-1].dtype}))

    with torch.autocast("cpu", torch.float16):
        logits = model.logits(tiny_models.captions_as_tokens(2), tiny_models.image_tokens(2))

    assert {tensor.dtype for tensor in logits} == {torch.float32}
    parts = ("attention.query_key_value", "attention.output", "mlp.hidden", "mlp.output")
    float16_modules = {name for name, dtype in types.items() if dtype == torch.float16}
    assert float16_modules == {f"layers.{layer}.{part}" for layer in range(3) for part in parts}


def overflowing_at(bad_step: int):
    """Make the gradients of the first path infinite at one step."""

    def before(model, step):
        parameter = model.residual_paths()[0].parameters[0]
        if step == bad_step:
            model.hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
        elif step == bad_step + 1:
            model.hook.remove()

    return before


@pytest.mark.paper("generator: precision")
def test_an_update_with_an_overflow_is_skipped_and_the_scale_shrinks():
    _, _, normal_rows, _ = train()
    _, _, rows, weights = train(before=overflowing_at(2))

    assert "is_skipped" not in normal_rows[2] and rows[2]["is_skipped"] == 1
    assert all(weights[3][name].equal(before) for name, before in weights[2].items())
    assert not weights[4]["image_output.weight"].equal(weights[3]["image_output.weight"])


def nan_loss(model, batch, step, rng):
    return model.loss(*batch, step, rng)[0] * float("nan"), {}


@pytest.mark.parametrize(
    ("settings", "loss"), [({"before": overflowing_at(0)}, "3.*"), ({"loss_of": nan_loss}, "nan")]
)
def test_gradients_that_overflow_at_every_scale_stop_the_run(monkeypatch, settings, loss):
    monkeypatch.setattr("thousandwords.nn.grad_scaling.INITIAL_SCALE", 2.0**7)
    message = f"step 0: the loss is {loss}, and float16 cannot hold the gradients at any scale; .* bfloat16"
    with pytest.raises(NotFinite, match=message):
        train(**settings)


def test_a_resumed_float16_run_continues_with_its_scales(tmp_path):
    steps_done = []
    uninterrupted = train(before=overflowing_at(1))
    stop = {"progress": lambda step, _: steps_done.append(step), "is_stopped": lambda: steps_done[-1] == 3}
    with pytest.raises(Stopped):
        train(before=overflowing_at(1), checkpoints=Checkpoints(tmp_path), **stop)
    values = Checkpoints(tmp_path).newest().tensors["scales/values"]
    assert values[0] < values[1]

    resumed = train(checkpoints=Checkpoints(tmp_path))

    assert all(resumed[1][name].equal(tensor) for name, tensor in uninterrupted[1].items())


def test_float16_is_rejected_for_a_model_without_named_residual_paths():
    message = "training.precision is float16, but this model has no residual_paths"
    with pytest.raises(UserError, match=message):
        check_model(nn.Linear(2, 2), CONFIG)
