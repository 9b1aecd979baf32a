"""fit(): a run that was stopped and resumed is bit for bit the run that was never stopped."""

import dataclasses

import pytest
import torch
from torch import nn

from tests.helpers.tiny_models import tiny
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.rng import step_rng
from thousandwords.nn.adversary import AdversaryConfig
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import Stopped, fit
from thousandwords.training.train_state import NotFinite, autocast_dtype

STEPS, NAN = 7, float("nan")
TINY = TrainingConfig(
    **{"steps": STEPS, "batch_size": 2, "learning_rate": 0.1, "warmup_steps": 2, "weight_decay": 0.1},
    **{"clip_norm": 1.0, "ema_decay": 0.5, "log_every": 2, "evaluate_every": 3, "checkpoint_every": 2},
)


class LinearForMuon(nn.Linear):
    """A linear map whose matrix Muon trains, where that is set."""

    def muon_parameters(self):
        return [self.weight]


def linear(seed: int = 0, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(3, 2)


def batch_of(step: int) -> torch.Tensor:
    """Another batch (2, 3) at every step."""
    return torch.arange(6.0).view(2, 3) - step


def loss_of(model, batch, step, rng):
    """A loss with noise, and a value to log."""
    noise = torch.randn(2, 2, generator=rng)
    loss = (model(batch) - noise).square().mean()
    return loss, {"noise": noise[0, 0]}


def weight_sum(model: nn.Module) -> dict[str, float]:
    return {"weight_sum": float(model.weight.detach().sum())}


def run(model=None, config=TINY, *, seed=5, folder=None, **settings):
    """(model, averaged state, history rows) of a whole run, with its checkpoints in `folder`."""
    model = model or linear()
    defaults = {"batches_of": lambda step: [batch_of(step)], "loss_of": loss_of, "evaluate": weight_sum}
    checkpoints = folder and Checkpoints(folder)
    state, history = fit(model, config, seed=seed, checkpoints=checkpoints, **{**defaults, **settings})
    return model, state, history


def stopped(*arguments, folder, after=1, **settings):
    """A run that was asked to stop after that step."""
    done = []
    with pytest.raises(Stopped, match=f"stopped after step {after}$"):
        run(*arguments, folder=folder, is_stopped=lambda: done[-1] == after, progress=note(done), **settings)


def note(steps: list):
    """A `progress` that records every step."""
    return lambda step, _: steps.append(step)


def weights_after_each_step(model, weights: list):
    return lambda step, _: weights.append(model.weight.detach().clone())


def evaluation_of(values: list[float], name: str = "loss"):
    """An evaluation that returns the values of a list one after the other."""
    left = list(values)
    return lambda model: {name: left.pop(0)}


def assert_equal_runs(first, second) -> None:
    (model, state, rows), (other_model, other_state, other_rows) = first, second
    for name, tensor in model.state_dict().items():
        assert tensor.equal(other_model.state_dict()[name])
    assert state.keys() == other_state.keys() and all(state[name].equal(other_state[name]) for name in state)
    assert rows == other_rows


@pytest.fixture(scope="module")
def never_stopped():
    return run()


def test_the_same_seed_trains_the_same_model_and_another_seed_another(never_stopped):
    assert_equal_runs(run(), never_stopped)
    assert not run(seed=6)[0].weight.equal(never_stopped[0].weight)


@pytest.mark.parametrize("stop", [1, 4, STEPS - 1])
def test_a_run_that_was_asked_to_stop_resumes_as_if_never_stopped(never_stopped, tmp_path, stop):
    stopped(folder=tmp_path, after=stop)
    assert Checkpoints(tmp_path).newest().step == stop

    assert_equal_runs(run(linear(seed=9), folder=tmp_path), never_stopped)


def test_without_the_optimizers_moments_a_resumed_run_is_another(never_stopped, tmp_path):
    """The test above would notice a missing part: what a checkpoint holds is needed."""
    stopped(folder=tmp_path)
    saved = Checkpoints(tmp_path).newest()
    zeroed = {name: tensor * 0 if "exp_avg" in name else tensor for name, tensor in saved.tensors.items()}
    Checkpoints(tmp_path).save(1, zeroed, saved.state)

    assert not run(folder=tmp_path)[0].weight.equal(never_stopped[0].weight)


@pytest.fixture
def not_trained_again(tmp_path):
    """Checks that the finished run in this folder loads no batch and gives the same."""

    def check(whole, config=TINY) -> None:
        again = run(linear(9), config, folder=tmp_path, batches_of=lambda _: pytest.fail("it loaded a batch"))
        assert_equal_runs(again, whole)

    return check


def test_a_request_to_stop_after_the_last_step_is_no_stop(never_stopped, tmp_path, not_trained_again):
    done = []
    whole = run(folder=tmp_path, progress=note(done), is_stopped=lambda: done[-1] == STEPS)
    assert_equal_runs(whole, never_stopped)
    not_trained_again(whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"ema_decay": None},
        {"ema_warmup": True},
        {"precision": "bfloat16"},
        {"ema_every": 3},
        {"second_moment_clip": 0.01},
        {"muon_lr_scale": 5.0},
    ],
)
def test_resuming_works_with_other_settings_too(never_stopped, tmp_path, settings):
    config, kind = dataclasses.replace(TINY, **settings), LinearForMuon
    stopped(linear(0, kind), config, folder=tmp_path)
    whole = run(linear(0, kind), config)
    assert_equal_runs(run(linear(9, kind), config, folder=tmp_path), whole)
    assert not all(whole[1][name].equal(tensor) for name, tensor in never_stopped[1].items())


@pytest.mark.parametrize("death", [0, 1, 2, 5, STEPS - 1])
def test_a_run_that_died_at_any_step_resumes_from_its_last_checkpoint(never_stopped, tmp_path, death):
    class PowerCut(BaseException):
        pass

    def failing_loss(model, batch, step, rng):
        if step == death:
            raise PowerCut
        return loss_of(model, batch, step, rng)

    with pytest.raises(PowerCut):
        run(folder=tmp_path, loss_of=failing_loss)

    resumed = []
    fresh = linear(seed=0 if death < 2 else 9)  # where there is a checkpoint, first weights do not matter
    assert_equal_runs(run(fresh, folder=tmp_path, progress=note(resumed)), never_stopped)
    assert resumed == list(range(death - death % 2 + 1, STEPS + 1))  # a checkpoint every 2 steps


def test_resuming_works_for_kernels_in_channels_last_layout(tmp_path):
    def train(seed, run=run, **settings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        settings["batches_of"] = lambda step: [torch.rand(2, 3, 5, 5, generator=step_rng(0, step))]
        settings["loss_of"] = lambda model, batch, *_: (model(batch).square().mean(), {})
        return run(model, **settings)

    train(0, stopped, folder=tmp_path)
    assert_equal_runs(train(9, folder=tmp_path), train(0))


@pytest.mark.parametrize(
    ("bad_term", "message"),
    [
        (lambda model: model.weight.sum() * NAN, "the loss is nan and the gradient norm nan"),
        (lambda model: (model.weight * 0).abs().sum().sqrt(), r"the loss is \d.* norm (nan|inf)"),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update(tmp_path, bad_term, message):
    def bad_loss(model, batch, step, rng):
        loss, logged = loss_of(model, batch, step, rng)
        return loss + (bad_term(model) if step == 3 else 0), logged

    model, before = linear(), []
    with pytest.raises(NotFinite, match=f"step 3: {message}; the weights were not changed. Lower training."):
        run(model, loss_of=bad_loss, folder=tmp_path, progress=weights_after_each_step(model, before))

    assert len(before) == 3 and model.weight.equal(before[-1])
    assert Checkpoints(tmp_path).newest().step == 2


def test_evaluation_uses_the_averaged_weights_and_restores_the_model():
    model, weights, evaluated = linear(), [], []

    def evaluate(module):
        assert module is model and not module.training and not torch.is_grad_enabled()
        evaluated.append(module.weight.clone())
        return {}

    config = dataclasses.replace(TINY, evaluate_every=1)
    _, state, _ = run(model, config, evaluate=evaluate, progress=weights_after_each_step(model, weights))

    assert model.training and model.weight.equal(weights[-1])
    assert len(evaluated) == STEPS and evaluated[-1].equal(state["weight"])
    torch.testing.assert_close(evaluated[0], linear().weight.lerp(weights[0], 0.5))


BEST = dataclasses.replace(TINY, steps=9, evaluate_every=2, keep="best", stop_after=2)


def lowest_at_step_4(model) -> dict[str, float]:
    """A held-out loss of the averaged weights that is 0 after step 4 of a run of BEST."""
    return {"loss": abs(weight_sum(model)["weight_sum"] - lowest_at_step_4.target)}


@pytest.fixture(scope="module")
def whole_best_run():
    sums = run(config=dataclasses.replace(BEST, keep="last", stop_after=None))[2]
    lowest_at_step_4.target = next(row["validation/weight_sum"] for row in sums if row["step"] == 4)
    return run(config=BEST, evaluate=lowest_at_step_4)


def test_the_kept_weights_have_the_lowest_held_out_loss_and_the_training_ends_early(whole_best_run):
    _, state, rows = whole_best_run
    losses = {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}

    model = linear()
    model.load_state_dict(state)
    assert lowest_at_step_4(model)["loss"] == min(losses.values()) == losses[4] == 0
    assert [*losses] == [2, 4, 6, 8]  # of 9 steps: two evaluations without a gain
    assert [row["step"] for row in rows if "is_kept" in row] == [4]


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_resumed_run_keeps_the_same_weights_and_ends_at_the_same_step(
    whole_best_run, tmp_path, stop, not_trained_again
):
    stopped(config=BEST, evaluate=lowest_at_step_4, folder=tmp_path, after=stop)

    resumed = run(linear(9), BEST, evaluate=lowest_at_step_4, folder=tmp_path)

    assert_equal_runs(resumed, whole_best_run)
    not_trained_again(resumed, BEST)


@pytest.mark.parametrize(
    ("name", "values", "kept", "last"),
    [
        ("psnr_hard", [20.0, 23.0, 22.0, 22.5], 4, 8),  # an image tokenizer's: the highest is best
        ("loss", [3.0, NAN, 2.0, NAN, NAN], 6, 10),  # no number is no gain
    ],
)
def test_the_best_weights_are_those_of_the_last_gain(name, values, kept, last):
    config = dataclasses.replace(BEST, steps=12)
    rows = run(config=config, evaluate=evaluation_of(values, name))[2]
    assert [row["step"] for row in rows if "is_kept" in row] == [kept] and rows[-1]["step"] == last


def test_the_curves_have_a_row_for_each_logged_or_evaluated_step():
    logged = []
    model, _, rows = run(
        config=dataclasses.replace(TINY, clip_norm=0.125),
        log=lambda step, values: logged.append({"step": step, **values}),
    )

    assert logged == rows
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 7]
    assert [row["step"] for row in rows if "validation/weight_sum" in row] == [3, 6, 7]
    assert list(rows[0]) == ["step", "loss", "noise", "gradient_norm", "learning_rate"]
    assert all(type(value) is float for row in rows for name, value in row.items() if name != "step")
    gradient = torch.cat([model.weight.grad.flatten(), model.bias.grad])
    assert gradient.norm().item() == pytest.approx(0.125, rel=1e-4)  # clipped
    assert rows[-1]["gradient_norm"] > 0.125


INTEL, AMD = {"cpu_name": "Intel Xeon", "avx512_bf16": True}, {"cpu_name": "AMD EPYC", "avx512_bf16": True}


@pytest.mark.parametrize(
    ("units", "is_faster"), [({}, False), (INTEL, False), (AMD, True), (INTEL | {"amx_bf16": True}, True)]
)
def test_matrix_products_are_in_bfloat16_where_that_is_faster_or_configured(monkeypatch, units, is_faster):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert autocast_dtype("auto", "cuda") == torch.bfloat16
    assert autocast_dtype("auto", "cpu") is None and autocast_dtype("float32", "cpu") is None
    assert autocast_dtype("bfloat16_if_supported", "cpu") == (torch.bfloat16 if is_faster else None)
    assert autocast_dtype("bfloat16", "cpu") == torch.bfloat16
    assert autocast_dtype("float16", "cpu") == torch.float16


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32():
    types = []

    def spy(model, batch, step, rng):
        types.append(model(batch).dtype)
        return loss_of(model, batch, step, rng)

    config = dataclasses.replace(TINY, precision="bfloat16", ema_decay=None)
    model, state, _ = run(config=config, loss_of=spy)

    assert set(types) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
    assert state["weight"].equal(model.weight)  # the last weights, without an average


@pytest.mark.paper("generator: schedule")
def test_the_rate_halves_when_the_validation_loss_stops_falling():
    plateau = {"schedule": "plateau", "patience": 1, "evaluate_every": 2, "log_every": 1}
    config = dataclasses.replace(TINY, steps=9, **plateau)
    _, _, rows = run(config=config, evaluate=evaluation_of([3.0, 2.0, 2.0, 1.0, 1.0]))
    # evaluated after updates 2, 4, 6, 8 and 9; no gain at the third
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])


@pytest.mark.paper("tokenizer: learning rate")
def test_the_cosine_can_end_before_the_training():
    _, _, rows = run(config=dataclasses.replace(TINY, decay_steps=4, final_learning_rate=0.01, log_every=1))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.05, 0.1, 0.1, 0.055, 0.01, 0.01, 0.01])


@pytest.mark.paper("generator: EMA")
def test_the_average_is_updated_every_ema_every_updates():
    model, weights = linear(), []
    config = dataclasses.replace(TINY, ema_every=3, ema_decay=0.5, evaluate_every=99)

    _, state, _ = run(model, config, progress=weights_after_each_step(model, weights))

    first = linear().weight
    expected = 0.5 * (0.5 * first + 0.5 * weights[2]) + 0.5 * weights[5]  # after updates 3 and 6 of 7
    torch.testing.assert_close(state["weight"], expected)


def test_the_gradient_of_a_batch_is_the_mean_over_its_micro_batches():
    def plain(model, batch, step, rng):
        return model(batch).square().mean(), {"parts": 1.0}

    config = dataclasses.replace(TINY, ema_decay=None)
    whole, _, rows = run(config=config, loss_of=plain)
    accumulated, _, other = run(
        config=dataclasses.replace(config, gradient_accumulation=2),
        loss_of=plain,
        batches_of=lambda step: [batch_of(step)[:1], batch_of(step)[1:]],
    )

    torch.testing.assert_close(accumulated.weight, whole.weight)
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


def with_adversary() -> nn.Module:
    model = tiny("decoders", "unet")
    model.training_only = ImageLosses(ImageLossConfig(AdversaryConfig(start=3, width=16, layers=1)))
    return model


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (linear, {"muon_lr_scale": 5.0}, "this model has no muon_parameters. Set it to null"),
        (lambda: tiny("scorers", "clip"), {"gradient_accumulation": 2}, "all pairs of a batch. Set it to 1"),
        (lambda: tiny("image_tokenizers", "vqvae"), {"strategy": "fsdp"}, "moves its codes .* Set it to ddp"),
        (with_adversary, {"strategy": "fsdp"}, "the adversary of this model needs whole .* Set it to ddp"),
        (
            linear,
            {"schedule": "plateau"},
            "is plateau, but this model's evaluation returns no loss. Set it to c",
        ),
        (linear, {"keep": "best"}, "is best, but this model's evaluation returns no loss. Set it to last"),
        (linear, {"stop_after": 3}, "is 3, but this model's evaluation returns no loss. Set it to null"),
    ],
)
def test_a_setting_that_the_model_does_not_support_is_rejected(make, settings, message):
    with pytest.raises(UserError, match=message):
        run(make(), dataclasses.replace(TINY, **settings))


@pytest.mark.parametrize("start", [0, 4])
def test_each_micro_batch_of_a_step_has_its_own_random_generator_on_the_device_of_the_model(tmp_path, start):
    seeds, state = [], torch.get_rng_state()

    def spy(model, batch, step, rng):
        assert rng.device == model.weight.device
        seeds.append((step, rng.initial_seed()))
        return loss_of(model, batch[:1].repeat(2, 1), step, rng)

    if start:
        stopped(folder=tmp_path, after=start)
    run(loss_of=spy, folder=tmp_path, batches_of=lambda step: [batch_of(step)] * 2)

    parts = [(step, part) for step in range(start, STEPS) for part in (0, 1)]
    assert seeds == [(step, step_rng(5, step, part=part).initial_seed()) for step, part in parts]
    assert len(set(seeds)) == len(seeds) and torch.get_rng_state().equal(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_gets_a_generator_on_the_gpu():
    def on_gpu(model, batch, step, rng):
        return model(batch.cuda() + torch.randn(2, 3, generator=rng, device="cuda")).square().mean(), {}

    assert run(linear().cuda(), loss_of=on_gpu)[0].weight.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it needs to be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; it needs to be 1 or more"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; it needs to be 1 or more"),
        ({"stop_after": 0}, "stop_after is 0; it needs to be 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it needs to be above 0"),
        ({"learning_rate": NAN}, "learning_rate is nan; it needs to be above 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it needs to be above 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it needs to be above 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it needs to be 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it needs to be 0 or more"),
        ({"beta2": 1.0}, "beta2 is 1.0; it needs to be in [0, 1)"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it needs to be in [0, 1)"),
        ({"keep": "first"}, "keep is 'first'; it can be: best, last"),
        ({"precision": "float8"}, "precision is 'float8'; it can be: auto, float32, bfloat16,"),
        ({"num_processes": 4}, "batch_size is 6, which 4 processes with 1 micro-batches each cannot share"),
        ({"num_processes": 2, "gradient_accumulation": 2}, "make it a multiple of 4"),
        ({"strategy": "fsdp", "powersgd_rank": 2}, "powersgd_rank has no effect with training.strategy fsdp"),
        ({"strategy": "fsdp", "muon_lr_scale": 5.0}, "muon_lr_scale needs whole matrices"),
    ],
)
def test_a_setting_out_of_range_or_that_does_not_fit_another_is_rejected_by_its_full_name(settings, sentence):
    values = {"steps": 1, "batch_size": 6, "learning_rate": 0.1, **settings}
    with pytest.raises(ConfigError) as caught:
        section(values, "generator.training", TrainingConfig)
    message = str(caught.value)
    assert message.startswith("params.yaml: generator.training.") and sentence in message
