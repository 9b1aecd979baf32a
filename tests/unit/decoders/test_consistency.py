"""The consistency decoder: a student that jumps in one step to where its teacher, rectified flow, comes in several."""

import pytest
import torch

from tests.helpers.tiny_models import fit_batch, image_tokens, random_images, rng, tiny
from thousandwords.decoders.consistency.model import ConsistencyConfig, ConsistencyDecoder
from thousandwords.decoders.flow.model import FlowConfig
from thousandwords.nn.image_losses import ImageLossConfig, PerceptualConfig
from thousandwords.nn.rectified_flow import noise_of
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS
from thousandwords.training.train_state import TrainState

TRUTH, DECODED = random_images(4), random_images(4, seed=1)


def decoder(**settings):
    return tiny("decoders", "consistency", settings={"sigma": 0.2, "steps": 1} | settings)


def record(monkeypatch, model, images_of) -> list[dict]:
    """Let the network predict `images_of(seen)`, and list what it sees."""
    calls = []

    def correction(tokens, stacked, time, role):
        seen = {"tokenizer": stacked[:, :3], "point": stacked[:, 3:], "time": time, "role": role}
        calls.append(seen)
        return images_of(seen) - stacked[:, :3]

    monkeypatch.setattr(model, "correction", correction)
    return calls


@pytest.mark.paper("decoders: one or two steps")
@pytest.mark.parametrize("steps", [1, 2])
def test_decoding_jumps_from_noise_and_then_from_between_its_image_and_new_noise(monkeypatch, steps):
    model, tokens = decoder(steps=steps), image_tokens(4)
    calls = record(monkeypatch, model, lambda seen: TRUTH * seen["time"][:, None, None, None])

    decoded = model.decode(tokens, DECODED)

    assert len(calls) == steps and all((seen["role"] == 1).all() for seen in calls)
    noise = noise_of(tokens, DECODED, steps)
    torch.testing.assert_close(calls[0]["point"], DECODED + 0.2 * noise[0])
    if steps == 2:
        torch.testing.assert_close(calls[1]["time"], torch.full((4,), 0.5))
        torch.testing.assert_close(calls[1]["point"], 0.5 * TRUTH + 0.5 * (DECODED + 0.2 * noise[1]))
    torch.testing.assert_close(decoded, TRUTH / steps)


@pytest.mark.paper("decoders: teacher")
def test_before_distill_from_all_images_teach_the_teacher_at_random_times(monkeypatch):
    model = decoder(distill_from=5)
    calls = record(monkeypatch, model, lambda seen: seen["tokenizer"])

    loss, logged = model.loss(TRUTH, image_tokens(4), DECODED, 4, rng())

    assert len(calls) == 1 and (calls[0]["role"] == 0).all() and len(set(calls[0]["time"].tolist())) == 4
    torch.testing.assert_close(loss, (DECODED - TRUTH).square().mean())
    assert logged["squared_error"].equal(loss)


@pytest.mark.paper("decoders: distillation", "decoders: boundary")
@pytest.mark.parametrize("teacher_steps", [1, 4])
def test_from_then_on_half_of_them_teach_the_student_its_own_image_of_the_teachers_next_point(
    monkeypatch, teacher_steps
):
    """At time 0 the next point itself."""
    model, of_teacher, of_student = decoder(distill_from=5, teacher_steps=teacher_steps), 0.25, 0.75

    def images_of(seen):
        value = torch.where(seen["role"] == 1, of_student, of_teacher)
        return value[:, None, None, None].expand_as(seen["point"])

    calls = record(monkeypatch, model, images_of)
    loss, _ = model.loss(TRUTH, image_tokens(4), DECODED, 5, rng())

    teacher, student, trained = calls
    assert trained["role"].tolist() == [0, 0, 1, 1]
    assert (teacher["role"] == 0).all() and (student["role"] == 1).all()
    time = trained["time"][2:]
    assert set((time * teacher_steps).tolist()) <= set(range(1, teacher_steps + 1))
    torch.testing.assert_close(teacher["point"], trained["point"][2:])
    torch.testing.assert_close(student["time"], time - 1 / teacher_steps)
    share = (student["time"] / time)[:, None, None, None]
    reached = share * teacher["point"] + (1 - share) * of_teacher
    torch.testing.assert_close(student["point"], reached)
    target = torch.where((student["time"] > 0)[:, None, None, None], of_student, reached)
    errors = torch.cat([of_teacher - TRUTH[:2], of_student - target])
    torch.testing.assert_close(loss, errors.square().mean())


def test_before_the_student_is_taught_it_is_the_teacher():
    model = decoder()
    torch.nn.init.normal_(model.output[-1].weight, generator=rng())
    inputs = image_tokens(4), DECODED, TRUTH, torch.full((4,), 0.5)
    student, teacher = model._predict(*inputs, 1.0), model._predict(*inputs, 0.0)
    assert student.equal(teacher) and not student.equal(DECODED)


def test_the_targets_of_the_student_have_no_gradient_and_one_image_is_a_batch():
    model = decoder()
    torch.nn.init.ones_(
        model.output[-1].weight
    )  # before, teacher and student agree that it is the tokenizer's
    loss, _ = model.loss(TRUTH[:1], image_tokens(1), DECODED[:1], 0, rng())
    loss.backward()
    assert model.output[-1].weight.grad.abs().sum() > 0
    target = model._student_target(image_tokens(4), DECODED, TRUTH, torch.ones(4))
    assert not target.requires_grad


def test_one_step_chooses_an_image_as_several_steps_of_the_teacher_do_and_does_not_give_the_mean():
    """As the flow's test: all tokens are the same, each pixel is black or white, and the mean of both is gray."""
    tokens, gray = torch.zeros(32, 16, dtype=torch.int64), torch.full((32, 3, 8, 8), 0.5)
    images = torch.rand(32, 1, 8, 8, generator=rng(1)).round().expand(-1, 3, -1, -1)
    settings = {"sigma": 0.5, "steps": 1, "distill_from": 100}
    model = tiny("decoders", "consistency", settings=settings, image_size=8).train()
    fit_batch(model, TrainingConfig(400, 32, learning_rate=0.01), (images, tokens, gray))

    with torch.no_grad():
        contrast = float((model.eval().decode(tokens, gray) - gray).abs().mean())

    assert contrast > 0.2  # of 0.5; one step of the flow has less than 0.12


@pytest.mark.paper("decoders: network", "decoders: size")
def test_the_published_sizes_can_be_set_and_the_network_is_convolutions_that_see_both_images():
    """Of 256 pixels; 13 of the 14 levels' and blocks' widths follow from four numbers."""
    widths = (320, 640, 1024, 1024)
    with torch.device("meta"):
        model = ConsistencyDecoder(ConsistencyConfig(patch=1, widths=widths, blocks=3), 256, 8192, (32,))
    assert [len(level) for level in (*model.down, *model.up)] == [3] * 8
    assert [level.out_channels for level in model.tokens_in] == list(widths)
    assert model.input.in_channels == 2 * 3  # the noisy image and the tokenizer's
    leaves = {type(module).__name__ for module in model.modules() if not list(module.children())}
    assert leaves == {"Embedding", "Conv2d", "GroupNorm", "SiLU", "Identity"} | {"ImageLosses"}


@pytest.mark.paper("decoders: training")
def test_the_published_training_can_be_set():
    config = TrainingConfig(
        1000, 8, learning_rate=1e-4, final_learning_rate=1e-4, beta2=0.95, ema_decay=0.9999
    )
    state = TrainState(decoder(), config, SINGLE_PROCESS)
    assert [state.learning_rate(step) for step in (0, 999)] == [pytest.approx(1e-4)] * 2
    assert state.optimizers[0].defaults["betas"] == (0.9, 0.95) and state.average.decay == 0.9999
    assert ImageLossConfig(perceptual=PerceptualConfig("vgg16.pth", weight=0.1)).perceptual.weight == 0.1
    assert FlowConfig(steps=25).steps == 25
