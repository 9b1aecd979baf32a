"""python -m bench.gpu [--cpu] [--minutes 8.5] [--parts rates,equal,...] [--out FILE]: one GPU, H200 class.

Needs only torch, numpy, pyarrow and pillow. A part that fails (out of memory, a compiler) says so in its row,
and so does a part skipped for lack of time. Weights are random: only the share of equal tokens depends on
them. With --cpu the same code runs on tiny sizes, to test it; its rows have their own ids.

Only necessary operations are counted: 2 per weight and position, and 4 per head width and pair of positions
that a mask allows; the backward pass counts twice. Recomputed or masked operations are not counted.
"""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import _results as results
from bench._results import Row
from thousandwords.core.command_line import one_sentence
from thousandwords.generators.transformer import decoding
from thousandwords.generators.transformer import model as transformer
from thousandwords.generators.transformer.masks import KINDS
from thousandwords.generators.transformer.model import Transformer
from thousandwords.image_tokenizers.dvae import float16
from thousandwords.image_tokenizers.dvae import model as dvae
from thousandwords.image_tokenizers.dvae.logit_laplace import to_model_range
from thousandwords.image_tokenizers.dvae.model import DiscreteVAE
from thousandwords.nn import chunked_cross_entropy
from thousandwords.nn.compile import Compiled, summarize_error
from thousandwords.training import optimizers


@dataclass(frozen=True)
class Sizes:
    """The sizes that are measured. Defaults: the generator of presets/gpu.yaml, the paper's dVAE and CLIP."""

    layers: int = 24
    heads: int = 32
    width: int = 2048
    text_vocab_size: int = 16384
    text_length: int = 256
    image_vocab_size: int = 8192
    side: int = 32
    batch: int = 16  # sequences per micro-batch; an update has `accumulation` of them
    accumulation: int = 4
    updates: int = 4
    candidates: int = 512
    rounds: int = 3
    dvae: dvae.DVAEConfig = dvae.DVAEConfig(init_gain=1.414, residual_gain=0.25)
    image_size: int = 256
    images: int = 64  # encoded at once
    clip_layers: int = 12
    matrix: int = 8192  # side of the matrices of the timed product
    copy_bytes: int = 2**32
    suffix: str = ""  # of the rows' ids

    @property
    def pixels(self) -> int:
        return self.image_size**2


TINY = Sizes(
    layers=4,
    heads=2,
    width=32,
    text_vocab_size=50,
    text_length=6,
    image_vocab_size=40,
    side=4,
    batch=2,
    accumulation=2,
    updates=1,
    candidates=6,
    rounds=1,
    dvae=dvae.DVAEConfig(vocab_size=40, width=8, groups=2, codebook_width=8),
    image_size=8,
    images=2,
    clip_layers=1,
    matrix=64,
    copy_bytes=2**16,
    suffix="_tiny",
)
SMALLER = {"layers": 4, "heads": 4, "width": 256}  # for the comparison with the plain reference


class OutOfTime(BaseException):
    """The time is over. Not an Exception, which the handling of compiler errors would catch."""


@dataclass
class Machine:
    """The device, and its rates as measured in this run."""

    device: torch.device
    matmul: float = math.nan  # operations per second, bfloat16
    copy: float = math.nan  # bytes per second, read and written

    @property
    def half(self) -> torch.dtype:
        return torch.bfloat16

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], rounds: int = 5, warmup: int = 2) -> float:
        """The median time of `rounds` calls, after untimed warm-up calls."""
        for _ in range(warmup):
            function()
        taken = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Peak memory in GB since then; nan without a GPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else math.nan


# ---- the parts: each returns rows


def rates(sizes: Sizes, machine: Machine) -> list[Row]:
    """The matrix product and the copy that all other figures are compared with."""
    left, right = torch.randn(2, sizes.matrix, sizes.matrix, device=machine.device, dtype=machine.half)
    machine.matmul = 2 * sizes.matrix**3 / machine.seconds(lambda: left @ right, rounds=10, warmup=3)
    source = torch.randint(0, 100, (sizes.copy_bytes,), dtype=torch.int8, device=machine.device)
    target = torch.empty_like(source)
    machine.copy = 2 * sizes.copy_bytes / machine.seconds(lambda: target.copy_(source), rounds=10)
    side = f"{sizes.matrix} x {sizes.matrix}, bfloat16"
    return [
        Row("gpu_matmul", "matrix product, random numbers", side, machine.matmul / 1e12, "TFLOP/s"),
        Row(
            "gpu_copy",
            "copy on the GPU, read and written",
            f"{sizes.copy_bytes / 1e9:.2g} GB",
            machine.copy / 1e9,
            "GB/s",
        ),
    ]


def equal(sizes: Sizes, machine: Machine) -> list[Row]:
    """The fast paths compared with the plain reference, in float32, with fewer layers."""
    sizes = replace(sizes, **(SMALLER if not sizes.suffix else {}), batch=2)
    size = f"{sizes.layers} layers of {sizes.width}, {sizes.side} x {sizes.side} tokens, float32"
    fast, plain = (loss_and_gradients(sizes, machine, is_plain) for is_plain in (False, True))
    error = max(
        float((actual - expected).norm() / expected.norm())
        for actual, expected in zip(fast, plain, strict=True)
        if expected.norm() > 0
    )
    model, text = (
        generator(sizes, machine).eval().requires_grad_(False),
        captions(sizes, machine, 1).repeat(8, 1),
    )
    by_graph = model.sample(text, rngs(8))
    with mock.patch.object(transformer, "sample_with_cuda_graph", decoding.sample_one_by_one):
        share = float((by_graph == model.sample(text, rngs(8))).float().mean())
    return [
        Row(
            "gpu_equal_gradients",
            "largest relative error of loss and gradients, compared with the plain path",
            size,
            error,
            "",
            "bar",
            1e-3,
        ),
        Row(
            "gpu_equal_words",
            "tokens equal to those of the plain path, 8 images",
            size,
            share,
            "",
            "bar",
            1.0,
        ),
    ]


def train(sizes: Sizes, machine: Machine) -> list[Row]:
    """Whole updates of the generator in bfloat16, and plain ones on a quarter of a batch."""
    fast, how = first_that_fits(sizes, machine)
    size = f"{weights(sizes) / 1e9:.2g} B weights, {positions(sizes)} positions, {sizes.batch} x {sizes.accumulation}, bfloat16"
    trained = Row(
        "gpu_train",
        f"training, sequences per second ({how})",
        size,
        fast,
        "1/s",
        "the GPU's own matrix product",
        machine.matmul / operations(sizes),
    )
    few = replace(sizes, batch=max(1, sizes.batch // 4), accumulation=1, updates=2)
    plain, _ = train_updates(few, machine, is_plain=True)
    return [
        trained,
        Row(
            "gpu_train_plain",
            "the same with dense attention, uncompiled, all logits at once",
            size,
            plain,
            "1/s",
            "gpu_train",
            fast,
        ),
    ]


def best_of(sizes: Sizes, machine: Machine) -> list[Row]:
    """Candidates of one caption: sampled, decoded, ranked; and the peak memory."""
    model = generator(sizes, machine).eval().requires_grad_(False).to(machine.half)
    tokenizer, (scorer, scorer_name) = image_tokenizer(sizes, machine), ranker(sizes, machine)
    machine.reset_peak()
    batch_size, taken = sizes.candidates, []
    while not taken:
        try:
            taken = [
                sample_decode_rank(model, tokenizer, scorer, sizes, machine, batch_size)
                for _ in range(sizes.rounds)
            ]
        except torch.OutOfMemoryError:
            batch_size //= 2
            machine.reset_peak()
            if batch_size < 16:
                raise
    medians = [statistics.median(times) for times in zip(*taken, strict=True)]
    total, bound = sum(medians), best_of_bound(sizes, machine, tokenizer)
    size = f"{sizes.candidates} of {sizes.image_size} x {sizes.image_size}, {batch_size} at a time, bfloat16; ranked by {scorer_name}"
    parts = "sampled {:.2f}, decoded {:.2f}, ranked {:.2f} s; the first time {:.2f}".format(
        *medians, sum(taken[0])
    )
    return [
        Row(
            "gpu_best_of_512",
            f"the best of {sizes.candidates} candidates ({parts})",
            size,
            total,
            "s",
            "operations and bytes at this GPU's own rates",
            bound,
        ),
        Row("gpu_memory", "peak memory", size, machine.peak(), "GB"),
    ]


def profile(sizes: Sizes, machine: Machine) -> list[Row]:
    """No row: prints how an update, and the sampling of a few tokens, spend their time."""
    few = replace(sizes, accumulation=1, updates=1)
    with print_profile(machine):
        train_updates(few, machine, is_plain=False)
    model = generator(sizes, machine).eval().requires_grad_(False).to(machine.half)
    fixed_tokens = torch.zeros(sizes.candidates, sizes.side**2, dtype=torch.int64, device=machine.device)
    fixed_tokens[:, -20:] = -1
    with print_profile(machine):
        model.sample(
            captions(sizes, machine, 1).expand(sizes.candidates, -1),
            rngs(sizes.candidates),
            fixed_tokens=fixed_tokens,
        )
    return []


@contextlib.contextmanager
def print_profile(machine: Machine) -> Iterator[None]:
    """Print the 15 operations that took longest inside the block."""
    kind = "cuda" if machine.device.type == "cuda" else "cpu"
    with torch.profiler.profile() as profiled:
        yield
    averages = profiled.key_averages()
    print(averages.table(sort_by=f"self_{kind}_time_total", row_limit=15, max_name_column_width=60))


def encode(sizes: Sizes, machine: Machine) -> list[Row]:
    """Images encoded per second, plain and compiled; the share of tokens equal to those of float32."""
    tokenizer, images = image_tokenizer(sizes, machine), random_images(sizes, machine)
    pixels = to_model_range(images)
    operations_per_image = operations_of_encoding(tokenizer, pixels[:1])
    size = f"{sizes.image_size} x {sizes.image_size}, {sizes.images} at once, {operations_per_image / 1e9:.3g} GFLOP each"

    def row(id: str, what: str, function: Callable[[], object]) -> Row:
        rate = sizes.images / machine.seconds(function)
        limit = machine.matmul / operations_per_image
        return Row(id, what, size, rate, "1/s", "the GPU's own matrix product", limit)

    def encode_half() -> Tensor | None:
        return float16.encode_float16(tokenizer.encoder, pixels)

    with torch.no_grad(), exact_convolutions():
        exact = tokenizer._logits(images).argmax(dim=-1).flatten(1)
        rows = [row("gpu_encode_float32", "encoding in float32", lambda: tokenizer._logits(images))]
    tokens = encode_half()
    share = math.nan if tokens is None else float((tokens == exact).float().mean())
    rows.append(row("gpu_encode", "encoding in float16", encode_half))
    rows.append(Row("gpu_encode_equal", "tokens equal to those of float32", size, share, "", "bar", 0.99))
    if machine.device.type == "cuda":
        with compiled_encoder(tokenizer) as compiled:
            fast = row("gpu_encode_compiled", "the same compiled", encode_half)
        rows.append(
            replace(fast, what="the same, which could not be compiled" if compiled.is_broken else fast.what)
        )
    return rows


@contextlib.contextmanager
def compiled_encoder(tokenizer: DiscreteVAE) -> Iterator[Compiled]:
    """The encoder's convolutions, compiled inside the block."""
    plain, layers = float16.run_float16, tokenizer.encoder[:-1]
    compiled = Compiled(lambda inputs: plain(layers, inputs), "encoding")
    float16.run_float16 = lambda _, inputs: compiled(inputs)
    try:
        yield compiled
    finally:
        float16.run_float16 = plain


PARTS: dict[str, tuple[Callable[[Sizes, Machine], list[Row]], float]] = {  # with the seconds a part may take
    "rates": (rates, 15),
    "best": (best_of, 90),
    "train": (train, 150),
    "encode": (encode, 60),
    "equal": (equal, 60),
}
OPTIONAL_PARTS = {"profile": (profile, 90)}


# ---- the generator


def generator(sizes: Sizes, machine: Machine, is_plain: bool = False, **settings: object) -> Transformer:
    """A generator with random weights; a plain one has dense attention and is not compiled."""
    torch.manual_seed(0)
    if is_plain:
        settings |= {"attention": "dense", "compile": False}
    config = transformer.TransformerConfig(
        num_layers=sizes.layers, num_heads=sizes.heads, width=sizes.width, **settings
    )
    with torch.device(machine.device):
        return Transformer(
            config, sizes.text_vocab_size, sizes.text_length, sizes.image_vocab_size, (sizes.side,)
        )


def captions(sizes: Sizes, machine: Machine, rows: int) -> Tensor:
    text = torch.randint(
        sizes.text_vocab_size, (rows, sizes.text_length), generator=torch.Generator().manual_seed(0)
    )
    text[:, sizes.text_length // 8 :] = -1  # a caption of 256 positions has some 30 text tokens
    return text.to(machine.device)


def rngs(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def positions(sizes: Sizes) -> int:
    return sizes.text_length + 1 + sizes.side**2


def weights(sizes: Sizes) -> int:
    """The weights of the layers' matrices and the two output maps, which every position is multiplied by."""
    return 12 * sizes.layers * sizes.width**2 + sizes.width * (sizes.text_vocab_size + sizes.image_vocab_size)


def operations(sizes: Sizes) -> float:
    """The operations of one sequence in training, forward and backward."""
    model = narrow(sizes)
    num_pairs = {kind: int(model.attention.mask(kind).sum()) for kind in KINDS}
    layers = 2 * 12 * sizes.width**2 * sizes.layers * positions(sizes)
    attention = 4 * sizes.width * sum(num_pairs[kind] for kind in model.kinds)
    outputs = (
        2 * sizes.width * (sizes.text_length * sizes.text_vocab_size + sizes.side**2 * sizes.image_vocab_size)
    )
    return 3.0 * (layers + attention + outputs)


def narrow(sizes: Sizes) -> Transformer:
    """The same layers and masks with width 1, for counting."""
    config = transformer.TransformerConfig(num_layers=sizes.layers, num_heads=1, width=1)
    return Transformer(config, 2, sizes.text_length, 2, (sizes.side,))


@contextlib.contextmanager
def plain_loss(is_plain: bool) -> Iterator[None]:
    """All logits in memory at once."""
    limit = chunked_cross_entropy.MIN_CHUNKED_LOGITS
    chunked_cross_entropy.MIN_CHUNKED_LOGITS = 2**62 if is_plain else limit
    try:
        yield
    finally:
        chunked_cross_entropy.MIN_CHUNKED_LOGITS = limit


def batch(sizes: Sizes, machine: Machine) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(
        sizes.image_vocab_size, (sizes.batch, sizes.side**2), generator=torch.Generator().manual_seed(1)
    )
    return captions(sizes, machine, sizes.batch), tokens.to(machine.device)


def loss_and_gradients(sizes: Sizes, machine: Machine, is_plain: bool) -> list[Tensor]:
    """The loss and all gradients of one batch, in float32."""
    with plain_loss(is_plain):
        model = generator(sizes, machine, is_plain, init_std=0.1)
        loss = model.loss(*batch(sizes, machine), 0, torch.Generator())[0]
        loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def first_that_fits(sizes: Sizes, machine: Machine) -> tuple[float, str]:
    """Sequences per second, and how: with all activations kept if they fit, else with recomputed layers."""
    for activation_checkpointing in (False, True):
        try:
            return train_updates(
                sizes, machine, is_plain=False, activation_checkpointing=activation_checkpointing
            )
        except torch.OutOfMemoryError:
            machine.reset_peak()
    return train_updates(
        replace(sizes, batch=max(1, sizes.batch // 4)), machine, is_plain=False, activation_checkpointing=True
    )


def train_updates(sizes: Sizes, machine: Machine, is_plain: bool, **settings: object) -> tuple[float, str]:
    """Sequences per second, and how, of whole updates: bfloat16, gradient clipping, AdamW."""
    machine.reset_peak()
    with plain_loss(is_plain):
        model = generator(sizes, machine, is_plain, **settings).train()
        optimizer = optimizers.adamw(model, 0.045, 0.9, 0.96, 1e-8)
        optimizers.set_learning_rate(optimizer, 1e-4)
        rows, rng = batch(sizes, machine), torch.Generator(device=machine.device)

        def update() -> None:
            optimizer.zero_grad(set_to_none=True)
            for _ in range(sizes.accumulation):
                with torch.autocast(machine.device.type, machine.half):
                    loss = model.loss(*rows, 0, rng)[0]
                (loss / sizes.accumulation).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
            optimizer.step()

        taken = machine.seconds(update, rounds=sizes.updates, warmup=1)
    how = "layers recomputed" if settings.get("activation_checkpointing") else "all activations kept"
    layer = model.compiled_layer
    how += f", layers {'uncompiled' if layer.compiled is None or layer.is_broken else 'compiled'}"
    return sizes.batch * sizes.accumulation / taken, f"{how}, {attention_of(model)}, {machine.peak():.3g} GB"


def attention_of(model: Transformer) -> str:
    attends = model.attention.flex.values()
    if not attends:
        return "no FlexAttention"
    return "FlexAttention failed" if any(attend.is_broken for attend in attends) else "FlexAttention"


# ---- best of many


def image_tokenizer(sizes: Sizes, machine: Machine) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(sizes.dvae, sizes.image_size).to(machine.device).eval().requires_grad_(False)


def sample_decode_rank(
    model: Transformer,
    tokenizer: DiscreteVAE,
    scorer: nn.Module,
    sizes: Sizes,
    machine: Machine,
    batch_size: int,
) -> list[float]:
    """The seconds of sampling, decoding and ranking."""
    text, generators = captions(sizes, machine, 1), rngs(sizes.candidates)
    times, begin = [], time.perf_counter()

    def lap() -> None:
        machine.wait()
        times.append(time.perf_counter() - begin - sum(times))

    starts = range(0, sizes.candidates, batch_size)
    tokens = [
        model.sample(text.expand(len(part), -1), part)
        for start in starts
        if (part := generators[start : start + batch_size])
    ]
    lap()
    images = torch.cat([tokenizer.decode(part) for part in torch.cat(tokens).split(sizes.images)])
    lap()
    with torch.no_grad():
        scores = torch.cat(
            [scorer.score(part, ["a caption"] * len(part)) for part in images.split(sizes.images)]
        )
    scores.argsort(descending=True).cpu()
    lap()
    return times


def best_of_bound(sizes: Sizes, machine: Machine, tokenizer: DiscreteVAE) -> float:
    """Seconds at this GPU's own rates: products or reading weights, the longer; caches; decoding.

    Weights and caches are in bfloat16, and each is read once per token; writing is not counted.
    """
    model = narrow(sizes)
    slots = sum(model.attention.cache_layout(kind).num_slots for kind in model.kinds)
    num_weights = 12 * sizes.layers * sizes.width**2 + sizes.width * sizes.image_vocab_size
    products = max(2 * num_weights * sizes.candidates / machine.matmul, 2 * num_weights / machine.copy)
    caches = 2 * 2 * sizes.candidates * sizes.width * slots / machine.copy
    decoding = operations_of_decoding(tokenizer) * sizes.candidates / machine.matmul
    return sizes.side**2 * (products + caches) + decoding


def operations_of_encoding(tokenizer: DiscreteVAE, pixels: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer.encoder(pixels)
    return counter.get_total_flops()


def operations_of_decoding(tokenizer: DiscreteVAE) -> int:
    side = tokenizer.scales[0]
    vectors = torch.zeros(1, tokenizer.config.codebook_width, side, side, device=tokenizer.codebook.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer.decoder[1:](vectors)
    return counter.get_total_flops()


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in float32; by default torch lets them round to TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def random_images(sizes: Sizes, machine: Machine) -> Tensor:
    """Smooth random images (B, 3, H, W) with some noise: neither flat nor all noise, like photographs."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(sizes.images, 3, 8, 8, generator=rng)
    smooth = F.interpolate(
        coarse, size=(sizes.image_size, sizes.image_size), mode="bicubic", align_corners=False
    )
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1).to(machine.device)


class RandomCLIP(nn.Module):
    """The sizes of ViT-B/32 in plain torch, for machines without open_clip; its scores are meaningless."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.patches, self.tokens = nn.Conv2d(3, 768, 32, 32), nn.Embedding(49408, 512)
        self.image_tower, self.text_tower = self._tower(768, 12, layers), self._tower(512, 8, layers)
        self.image_output, self.text_output = nn.Linear(768, 512), nn.Linear(512, 512)

    @staticmethod
    def _tower(width: int, heads: int, layers: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """Images (B, 3, H, W), B captions -> (B,)."""
        with torch.autocast(images.device.type, torch.bfloat16):
            patches = (
                self.patches(F.interpolate(images, size=(224, 224), mode="bilinear"))
                .flatten(2)
                .transpose(1, 2)
            )
            image = self.image_output(self.image_tower(patches).mean(dim=1))
            tokens = torch.zeros(1, 77, dtype=torch.int64, device=images.device)  # one caption, embedded once
            text = self.text_output(self.text_tower(self.tokens(tokens))[:, -1])
        return F.cosine_similarity(image.float(), text.float())


def ranker(sizes: Sizes, machine: Machine) -> tuple[nn.Module, str]:
    """CLIP with random weights, and its name."""
    torch.manual_seed(0)
    try:
        if sizes.suffix:
            raise ImportError("tiny")
        from thousandwords.scorers.clip.model import CLIP, CLIPConfig

        model, name = CLIP(CLIPConfig(), sizes.image_size), "open_clip's ViT-B/32"
    except ImportError:
        model, name = RandomCLIP(sizes.clip_layers), "a model of ViT-B/32's sizes (no open_clip)"
    return model.to(machine.device).eval().requires_grad_(False), name


# ---- one run


def measure(names: list[str], sizes: Sizes, machine: Machine, minutes: float) -> Iterator[list[Row]]:
    """The rows of each part; a part that fails or has no time left has one row that says so."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        part, max_seconds = (PARTS | OPTIONAL_PARTS)[name]
        left = end - time.monotonic()
        if left < (0 if sizes.suffix else max_seconds):
            rows = [failed(name, f"skipped: {left:.0f} s are left, and it may take {max_seconds:.0f}")]
        else:
            rows = run_part(name, part, sizes, machine, left)
        yield [replace(row, id=row.id + sizes.suffix) for row in rows]


def run_part(
    name: str, part: Callable[[Sizes, Machine], list[Row]], sizes: Sizes, machine: Machine, left: float
) -> list[Row]:
    """The rows of a part, or one that says why it failed."""
    started = time.monotonic()
    try:
        with alarm(left):
            rows = part(sizes, machine)
    except (Exception, OutOfTime) as error:  # whatever the error, the other parts still run
        rows = [failed(name, f"failed: {summarize_error(error)}")]
    machine.reset_peak()
    print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return rows


def failed(name: str, why: str) -> Row:
    return Row(f"gpu_{name}_missing", why, "", math.nan, "")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block after that many seconds."""

    def ring(*_: object) -> None:
        raise OutOfTime(f"after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(argv: list[str] | None = None) -> None:
    arguments = results.parser_of(__doc__)
    arguments.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to test the code")
    arguments.add_argument(
        "--minutes",
        type=float,
        default=8.5,
        help="no part is started that may take longer than the time left",
    )
    arguments.add_argument(
        "--parts", default=",".join(PARTS), help="parts in this order, rates first; profile is optional"
    )
    options = arguments.parse_args(argv)
    if not options.cpu and not torch.cuda.is_available():
        arguments.error("torch sees no GPU here; --cpu runs the same code on tiny sizes")
    names = ["rates", *(name for name in options.parts.split(",") if name != "rates")]
    if unknown := set(names) - set(PARTS | OPTIONAL_PARTS):
        arguments.error(
            f"there is no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS | OPTIONAL_PARTS)}"
        )
    sizes, machine = (
        (TINY, Machine(torch.device("cpu"))) if options.cpu else (Sizes(), Machine(torch.device("cuda")))
    )
    rows = []
    for part_rows in measure(names, sizes, machine, options.minutes):
        results.record(part_rows, options.out)  # at once, in case a later part ends the process
        rows += part_rows
    print(f"{results.machine()}, torch {torch.__version__}\n\n{results.table(rows)}")


if __name__ == "__main__":
    with one_sentence("gpu"):
        main()
