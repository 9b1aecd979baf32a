"""Minutes -> settings: steps, width, depth, grid, batch, validation share and dropout of a run on your own images.

They follow from the number of pairs, the seconds of one update measured on this device, and the minutes. The result is
a whole params.yaml; nothing is resolved later. docs/training.md has the table.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from thousandwords.components import WithDecoder
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.files import unit_hash
from thousandwords.inference.package import Package
from thousandwords.preflight import build_models
from thousandwords.training.config import TrainingConfig
from thousandwords.training.train_state import autocast_dtype, build_optimizers
from thousandwords.training.tuning import freeze

STARTUP_SECONDS = 75.0  # ten stages start, read and evaluate, whatever the budget
STARTUP_SHARE = 0.12  # of the minutes: evaluations, samples, the report
ENCODING = 1 / 3  # of the seconds of an update per image: one of its three passes
SHARES = {"image_tokenizer": 0.4, "generator": 0.6}  # of the seconds that are left for training
SCORER_SHARE = 0.8  # of the tokenizer's seconds, with which it runs in parallel
DECODER_SHARE = 0.35  # of the tokenizer's seconds, for a decoder
# with fewer there is none, and the tokenizer has the time; 200 gained 0.7 dB on scenes, which was not weighed against
# a longer training of the tokenizer
ENOUGH_DECODER_UPDATES = 400
Measure = Callable[[dict, str], float]  # params, name of a model -> seconds of one of its updates
MIN_STEPS = {"image_tokenizer": 100, "decoder": 100, "generator": 60, "scorer": 60}
MAX_STEPS = {"image_tokenizer": 20_000, "decoder": 20_000, "generator": 40_000, "scorer": 5_000}
# first guesses, as the shares and seconds above: beyond these a model of these sizes only memorizes (images are reread with benefit: the tokenizer underfits)
MAX_EPOCHS = {"image_tokenizer": 400, "decoder": 400, "generator": 40, "scorer": 40}
ENOUGH_UPDATES = 1_000  # of the generator; `auto` takes the largest size that gets them
# of the base's peak learning rates, for models that go on from trained ones: with the rates of a first training they
# forget what the new images do not show. A first guess between a tenth and a quarter
GOING_ON_RATE = 0.125
MIXTURE_RATE = 0.5  # instead, where the images before are read too: more was learned, and no more forgotten
DECODER_RATE = 0.001  # of an image tokenizer that goes on: its tokens do not change, so it forgets little


@dataclass(frozen=True)
class Size:
    """What `size` stands for."""

    grid: int  # tokens a side
    vocab_size: int
    tokenizer_width: int
    width: int
    num_layers: int
    num_heads: int
    min_pairs: int  # below, `auto` takes a smaller one


SIZES = {
    "small": Size(8, 512, 64, 128, 4, 8, 0),
    "medium": Size(16, 1024, 64, 128, 4, 8, 1_000),
    "large": Size(16, 1024, 96, 256, 6, 8, 10_000),
}


@dataclass(frozen=True)
class BudgetConfig:
    """The section `budget` of params.yaml: where its numbers came from. No stage reads it."""

    minutes: float
    size: Literal["auto", "small", "medium", "large"] = "auto"
    pairs: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.minutes < math.inf:
            raise ValueError(f"budget.minutes is {self.minutes:g}; it needs to be 2 or more")


@dataclass(frozen=True)
class Device:
    """Where the run will work, and what was measured there before its settings are known."""

    measure: Measure
    parallel: bool = True  # whether stages run in parallel
    preparing: float = 0.0  # seconds until all pairs are prepared


@dataclass(frozen=True)
class Seconds:
    """What was measured on this device."""

    updates: dict[str, float]  # of one update of each model that is trained
    data: float  # of preparing and encoding all pairs


def num_held_out(num_pairs: int) -> int:
    """At least min(64, a tenth), and 5 % of many pairs: num_held_out(60) -> 6, num_held_out(10_000) -> 500."""
    if num_pairs < 2:
        raise UserError(f"{num_pairs} pair; training needs 2 or more: one to learn from, one held out")
    return max(1, min(64, math.ceil(num_pairs / 10)), round(num_pairs * 0.05))


def validation_share(groups: Sequence[str], seed: int) -> float:
    """The `data.validation_share` that holds out `num_held_out` of these pairs, given the group of each."""
    values = sorted(unit_hash(group, seed) for group in groups)
    count = num_held_out(len(values))
    if values[0] == values[-1]:
        raise UserError("every pair is in the same group, so none can be held out. Change data.group_by")
    while count < len(values) and values[count] == values[count - 1]:  # a group stays together
        count += 1
    if count == len(values):
        count = values.index(values[-1])
    low, high = values[count - 1], values[count]
    middle = (low + high) / 2
    return next(share for digits in range(3, 20) if low < (share := round(middle, digits)) <= high)


def text_length(num_words: int) -> int:
    """Tokens that a caption of so many words needs, as a multiple of 8: text_length(5) -> 16"""
    return min(128, max(16, 8 * math.ceil((num_words * 1.6 + 2) / 8)))


def steps_for(name: str, seconds: float, seconds_per_update: float, num_train: int, batch_size: int) -> int:
    """Updates that fit into the seconds, no more than MAX_EPOCHS, no fewer than MIN_STEPS."""
    in_time = int(seconds / seconds_per_update)
    in_epochs = MAX_EPOCHS[name] * num_train // batch_size
    # few pairs: some updates are needed to learn anything, time allowing
    return max(
        min(in_time, max(in_epochs, 2 * MIN_STEPS[name]), MAX_STEPS[name]),
        min(MIN_STEPS[name], max(in_time, 10)),
    )


def training_seconds(minutes: float, parallel: bool, data_seconds: float = 0.0) -> dict[str, float]:
    """Seconds for the training of each model, beside `data_seconds` of preparing and encoding all pairs; without `parallel`
    stages the scorer takes its own."""
    left = 60 * minutes - STARTUP_SECONDS - STARTUP_SHARE * 60 * minutes - data_seconds
    left = max(left, 10.0)
    if not parallel:
        left /= 1 + SCORER_SHARE * SHARES["image_tokenizer"]
    seconds = {name: share * left for name, share in SHARES.items()}
    return seconds | {"scorer": SCORER_SHARE * seconds["image_tokenizer"]}


def resolve(
    base: dict, data: dict, budget: BudgetConfig, num_words: int, device: Device
) -> tuple[dict, Seconds]:
    """(a whole params.yaml: the settings of `base`, with those that follow from the budget; what was measured).

    `data` is the resolved section.
    """
    names = list(SIZES) if budget.size == "auto" else [budget.size]
    names = [name for name in names if budget.size != "auto" or budget.pairs >= SIZES[name].min_pairs]
    chosen: dict = {}
    for name in names:  # the largest whose generator gets enough updates
        params = _sized(base, data, budget, num_words, SIZES[name])
        measured = _measured(params, device, [*SHARES])
        left = training_seconds(budget.minutes, device.parallel, measured.data)
        if chosen and left["generator"] / measured.updates["generator"] < ENOUGH_UPDATES:
            break
        chosen, seconds = params, measured
    if "training" in chosen["decoder"]:
        seconds.updates["decoder"] = device.measure(chosen, "decoder")
        left = training_seconds(budget.minutes, device.parallel, seconds.data)["image_tokenizer"]
        if DECODER_SHARE * left < ENOUGH_DECODER_UPDATES * seconds.updates["decoder"]:
            chosen["decoder"] = {"kind": "none"}
            del seconds.updates["decoder"]
    seconds.updates["scorer"] = device.measure(chosen, "scorer")
    num_train = _set_lengths(chosen, budget, device, seconds)
    steps = chosen["image_tokenizer"]["training"]["steps"]
    chosen["image_tokenizer"]["dvae"] |= dict.fromkeys(
        ("temperature_steps", "decoder_only_from"), steps * 9 // 10
    )
    transformer = chosen["generator"]
    epochs = transformer["training"]["steps"] * transformer["training"]["batch_size"] / num_train
    transformer["transformer"]["dropout"] = 0.1 if epochs > 10 else 0.0
    return chosen, seconds


def resolve_from(
    package: Package, init: str, base: dict, data: dict, budget: BudgetConfig, device: Device
) -> tuple[dict, Seconds]:
    """As `resolve`, with models that go on from those of a package that `init` names: the sizes are the
    models' own, the rates lower, the steps from the budget. Of the image tokenizer only the decoder is trained: tokens
    stay valid, and new forms are drawn."""
    params = _with_batches(base, data, budget)
    params["text_tokenizer"] = {"init": init}
    training = params["image_tokenizer"]["training"] | {"learning_rate": DECODER_RATE}
    kind = package.image_tokenizer.built_as["kind"]
    params["image_tokenizer"] = {"kind": kind, "init": init, "tune": "decoder", "training": training}
    names = [*SHARES, "scorer"]
    if isinstance(package.image_tokenizer, WithDecoder):
        training = params["decoder"]["training"]
        training["learning_rate"] *= MIXTURE_RATE
        kind = package.image_tokenizer.decoder.built_as["kind"]
        paint = package.image_tokenizer.decoder.header.get("paint", "all")
        params["decoder"] = {"kind": kind, "init": init, "paint": paint, "training": training}
        names.append("decoder")
    else:
        params["decoder"] = {"kind": "none"}
    tuned = {"tune": "all", "bpe_dropout": params["generator"]["bpe_dropout"]}
    if getattr(package.generator, "min_steps", 0):  # what it learned in random orders it has learned
        tuned["transformer"] = {"random_order_steps": [0, 0]}
    for name, model, settings in (("generator", package.generator, tuned), ("scorer", package.scorer, {})):
        training = params[name]["training"]
        training["learning_rate"] *= MIXTURE_RATE if data["source"] == "mixture" else GOING_ON_RATE
        params[name] = {"kind": model.built_as["kind"], "init": init, **settings, "training": training}
    for name in ("temperature", "top_k", "top_p", "guidance"):
        params["sampling"][name] = getattr(package.settings, name)
    seconds = _measured(params, device, names)
    _set_lengths(params, budget, device, seconds)
    return params, seconds


def planned_minutes(params: dict, seconds: Seconds) -> float:
    """Minutes of a run on own images: its data, its trainings, start-up, evaluations and report."""
    trained = {name: params[name]["training"]["steps"] * value for name, value in seconds.updates.items()}
    share = STARTUP_SHARE * params["budget"]["minutes"]
    # two stages run in parallel
    beside = max(trained.get("image_tokenizer", 0.0) + trained.get("decoder", 0.0), trained["scorer"])
    return (STARTUP_SECONDS + seconds.data + beside + trained["generator"]) / 60 + share


def _measured(params: dict, device: Device, names: list[str]) -> Seconds:
    """The seconds of an update of these models, of preparing (measured before) and of encoding all pairs."""
    updates = {name: device.measure(params, name) for name in names}
    per_image = ENCODING * updates["image_tokenizer"] / params["image_tokenizer"]["training"]["batch_size"]
    return Seconds(updates, device.preparing + params["budget"]["pairs"] * per_image)


def _set_lengths(params: dict, budget: BudgetConfig, device: Device, seconds: Seconds) -> int:
    """Set the steps of each model that was measured, and what follows from them; the number of training pairs."""
    num_train = budget.pairs - num_held_out(budget.pairs)
    left = training_seconds(budget.minutes, device.parallel, seconds.data)
    if "decoder" in seconds.updates:
        left["decoder"] = DECODER_SHARE * left["image_tokenizer"]
        left["image_tokenizer"] -= left["decoder"]
    for name, rate in seconds.updates.items():
        training = params[name]["training"]
        training |= _schedule(steps_for(name, left[name], rate, num_train, training["batch_size"]))
        if name in ("image_tokenizer", "decoder"):
            # the last tenth, of the decoder alone, counts; and going on they are worse while the rate is high
            training["stop_after"] = None
    return num_train


def _schedule(steps: int) -> dict:
    """Lengths in updates, and the best weights where the training can keep them."""
    every = max(1, steps // 10)
    lengths = {
        "steps": steps,
        "warmup_steps": min(100, steps // 10),
        "log_every": max(1, min(50, steps // 20)),
    }
    return lengths | {"evaluate_every": every, "checkpoint_every": every, "keep": "best", "stop_after": 5}


def _sized(base: dict, data: dict, budget: BudgetConfig, num_words: int, size: Size) -> dict:
    """The settings of `base` with this size, before the lengths of the trainings."""
    params = _with_batches(base, data, budget)
    length = text_length(num_words)
    params["text_tokenizer"] = {"vocab_size": 512 if budget.pairs < 1_000 else 2048, "text_length": length}
    cell = data["image_size"] // size.grid  # pixels
    tokenizer = params["image_tokenizer"]["dvae"]
    groups = 2 if cell >= 8 else 1
    tokenizer |= {"vocab_size": size.vocab_size, "width": size.tokenizer_width, "groups": groups}
    tokenizer["patch"] = cell // 2 ** (groups - 1)
    # on scenes these gave sharper images than the base, and fewer, more consistent tokens, which were easier to predict
    tokenizer["usage_entropy_weight"] = 0.02
    params["image_tokenizer"]["training"]["learning_rate"] = 0.004
    transformer = {"num_layers": size.num_layers, "num_heads": size.num_heads, "width": size.width}
    params["generator"]["transformer"] |= transformer
    params["scorer"]["clip"]["context_length"] = max(20, length)
    params["sampling"]["top_p"] = 0.8 if size.grid == 8 else 0.95
    # on emoji CLIP found 64 % of the captions with both, 60 % without (intervals overlap); sampling takes twice as long
    if size.grid > 8:
        params["generator"]["transformer"]["caption_dropout"], params["sampling"]["guidance"] = 0.1, 2.0
    return params


def _with_batches(base: dict, data: dict, budget: BudgetConfig) -> dict:
    """The settings of `base` with the data, the batches, and what else follows from the number of pairs."""
    params = copy.deepcopy(base)
    params["data"] = data
    params["budget"] = dataclasses.asdict(budget)
    params["generator"]["bpe_dropout"] = 0.1 if budget.pairs < 20_000 else 0.0
    num_train = budget.pairs - num_held_out(budget.pairs)
    batches = {"image_tokenizer": 16, "generator": 32, "scorer": 64}
    if "training" in params["decoder"]:
        batches["decoder"] = 16
    for name, batch_size in batches.items():
        params[name]["training"]["batch_size"] = batch_of(batch_size, num_train)
        params[name]["training"]["precision"] = "bfloat16_if_supported"
    prompts_per_split = 16 if budget.minutes < 10 else 32
    params["sampling"] |= {"prompts": [], "candidates": 16, "prompts_per_split": prompts_per_split}
    return params


def batch_of(batch_size: int, num_train: int) -> int:
    """The batch, halved until an epoch has two: batch_of(32, 54) -> 16"""
    while batch_size > 4 and 2 * batch_size > num_train:
        batch_size //= 2
    return batch_size


def measure_update(params: dict, name: str, device: str, seconds: float = 2.0) -> float:
    """Seconds of one update of this model on the device: some updates on random inputs."""
    config = section(params[name]["training"], f"{name}.training", TrainingConfig)
    model = build_models(params)[name].to_empty(device=device)
    rng = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    for buffer in model.buffers():
        buffer.fill_(int(buffer.is_floating_point()))
    model.train()
    optimizers = build_optimizers(model, config)
    dtype = autocast_dtype(config.precision, device)
    size = params["data"]["image_size"]
    images = torch.rand(config.batch_size, 3, size, size, device=device)

    def zeros(length: int) -> torch.Tensor:
        return torch.zeros(config.batch_size, length, dtype=torch.int64, device=device)

    inputs: tuple = (images,)
    if name == "scorer":
        inputs = (images, ["a caption of some words"] * config.batch_size)
    elif name != "image_tokenizer":
        tokens = zeros(sum(side**2 for side in model.scales))
        inputs = (images, tokens, images) if name == "decoder" else (zeros(model.text_length), tokens)
    if is_tuned := params[name].get("tune") == "decoder":
        freeze(model, ("decoder.*",), name)

    def update() -> None:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss, _ = model.decoder_loss(images, 0) if is_tuned else model.loss(*inputs, 0, rng)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for a GPU

    update()  # the first is slow
    started, count = time.monotonic(), 0
    while count < 2 or (time.monotonic() - started < seconds and count < 50):
        update()
        count += 1
    return (time.monotonic() - started) / count
