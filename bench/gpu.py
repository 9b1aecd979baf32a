"""python -m bench.gpu [--cpu] [--minutes 8.5] [--parts rates,equal,...] [--out FILE]: what one GPU of the H200 class gives.

Needs torch, numpy, pyarrow and pillow alone. Each part is on guard: one that fails (out of memory, a compiler) says so in its
row, and what no time is left for is skipped and says so. Weights are random: no figure but the share of equal words hangs on
them. With --cpu the same code runs on tiny sizes, to see that it runs; its rows have names of their own.

Operations are counted as those that are needed: 2 a weight and position, and 4 a head's width for each pair of positions that a
mask lets see; the backward pass twice that; what is computed again, or under a mask in vain, is not counted.
"""
from __future__ import annotations

import argparse
import contextlib
import math
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import _results as results
from bench._results import Row
from thousandwords import optim
from thousandwords.compiling import Compiled, in_short
from thousandwords.generators import _loss, transformer
from thousandwords.generators._masks import KINDS
from thousandwords.generators.transformer import Transformer
from thousandwords.tokenizers import _halves, dvae
from thousandwords.tokenizers._likelihood import to_model_range
from thousandwords.tokenizers.dvae import DiscreteVAE


@dataclass(frozen=True)
class Sizes:
    """What is measured. The defaults are presets/gpu.yaml's generator and the paper's dVAE and CLIP."""

    layers: int = 24
    heads: int = 32
    width: int = 2048
    text_words: int = 16384
    text_length: int = 256
    image_words: int = 8192
    side: int = 32
    batch: int = 16  # sequences at once, of which an update takes `accumulation`
    accumulation: int = 4
    updates: int = 4
    candidates: int = 512
    rounds: int = 3
    dvae: dvae.Config = dvae.Config(init_gain=1.414, residual_gain=0.25)
    image_size: int = 256
    pictures: int = 64  # encoded at once
    clip_layers: int = 12
    matrix: int = 8192  # a side of the matrices whose product is timed
    copied: int = 2**32  # bytes
    suffix: str = ""  # of the rows' ids

    @property
    def pixels(self) -> int:
        return self.image_size**2


TINY = Sizes(
    layers=4, heads=2, width=32, text_words=50, text_length=6, image_words=40, side=4, batch=2, accumulation=2, updates=1,
    candidates=6, rounds=1, dvae=dvae.Config(vocab_size=40, width=8, groups=2, codebook_width=8), image_size=8, pictures=2,
    clip_layers=1, matrix=64, copied=2**16, suffix="_tiny",
)  # fmt: skip
SMALLER = {"layers": 4, "heads": 4, "width": 256}  # where the plain reference is asked for the same words


class OutOfTime(BaseException):
    """The minutes are over. No Exception, which guards against failing compilers would take for one of theirs."""


@dataclass
class Machine:
    """What the card itself gives, as measured in this run."""

    device: torch.device
    matmul: float = math.nan  # operations a second, bfloat16
    copy: float = math.nan  # bytes a second, read and written

    @property
    def half(self) -> torch.dtype:
        return torch.bfloat16

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int = 5, warm: int = 2) -> float:
        """The median of some calls, after some untimed ones."""
        for _ in range(warm):
            work()
        taken = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """GB held at once since then; nan without a GPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else math.nan


# ---- the parts: each gives rows


def rates(sizes: Sizes, machine: Machine) -> list[Row]:
    """The matrix product and the copy that all else is held against."""
    left, right = torch.randn(2, sizes.matrix, sizes.matrix, device=machine.device, dtype=machine.half)
    machine.matmul = 2 * sizes.matrix**3 / machine.seconds(lambda: left @ right, rounds=10, warm=3)
    source = torch.randint(0, 100, (sizes.copied,), dtype=torch.int8, device=machine.device)
    target = torch.empty_like(source)
    machine.copy = 2 * sizes.copied / machine.seconds(lambda: target.copy_(source), rounds=10)
    side = f"{sizes.matrix} x {sizes.matrix}, bfloat16"
    return [
        Row("gpu_matmul", "matrix product, random numbers", side, machine.matmul / 1e12, "TFLOP/s"),
        Row("gpu_copy", "copy on the card, read and written", f"{sizes.copied / 1e9:.2g} GB", machine.copy / 1e9, "GB/s"),
    ]


def equal(sizes: Sizes, machine: Machine) -> list[Row]:
    """The fast paths against the plain reference, in float32, on fewer layers."""
    sizes = replace(sizes, **(SMALLER if not sizes.suffix else {}), batch=2)
    told = f"{sizes.layers} layers of {sizes.width}, {sizes.side} x {sizes.side} words, float32"
    fast, plain = (learned(sizes, machine, is_plain) for is_plain in (False, True))
    apart = max(float((one - other).norm() / other.norm()) for one, other in zip(fast, plain, strict=True) if other.norm() > 0)
    model, text = generator(sizes, machine).eval().requires_grad_(False), captions(sizes, machine, 1).repeat(8, 1)
    drawn = [model.sample(text, rngs(8))]
    model._draw_rest_on_device = model._draw_rest  # the plain path, word by word
    drawn.append(model.sample(text, rngs(8)))
    share = float((drawn[0] == drawn[1]).float().mean())
    return [
        Row("gpu_equal_gradients", "loss and gradients apart from the plain path's, relative, the worst", told, apart, "",
            "bar", 1e-3, apart / 1e-3),
        Row("gpu_equal_words", "words drawn as by the plain path, 8 pictures", told, share, "", "bar", 1.0, share),
    ]  # fmt: skip


def train(sizes: Sizes, machine: Machine) -> list[Row]:
    """Whole updates of the generator in bfloat16: the library's way, and the plain one on a quarter of a batch."""
    fast, told = first_that_fits(sizes, machine)
    share = fast * operations(sizes) / machine.matmul
    size = f"{weights(sizes) / 1e9:.2g} B weights, {positions(sizes)} positions, {sizes.batch} x {sizes.accumulation}, bfloat16"
    row = Row("gpu_train", f"training, sequences a second ({told})", size, fast, "1/s",
              "the card's own matrix product", machine.matmul / operations(sizes), share)  # fmt: skip
    few = replace(sizes, batch=max(1, sizes.batch // 4), accumulation=1, updates=2)
    plain, _ = updated(few, machine, is_plain=True)
    return [row, Row("gpu_train_plain", "the same under whole masks, uncompiled, all logits at once", size, plain, "1/s",
                     "gpu_train", fast, plain / fast)]  # fmt: skip


def best_of(sizes: Sizes, machine: Machine) -> list[Row]:
    """Candidates of one caption: drawn, decoded, ranked; and the most memory it took."""
    model = generator(sizes, machine).eval().requires_grad_(False).to(machine.half)
    tokenizer, (scorer, who) = image_tokenizer(sizes, machine), ranker(sizes, machine)
    machine.forget_peak()
    together, taken = sizes.candidates, []
    while not taken:
        try:
            taken = [drawn_decoded_ranked(model, tokenizer, scorer, sizes, machine, together) for _ in range(sizes.rounds)]
        except torch.OutOfMemoryError:
            together //= 2
            machine.forget_peak()
            if together < 16:
                raise
    middle = [statistics.median(one) for one in zip(*taken, strict=True)]
    total, bound = sum(middle), best_of_bound(sizes, machine, tokenizer)
    size = f"{sizes.candidates} of {sizes.image_size} x {sizes.image_size}, {together} at a time, bfloat16; ranked by {who}"
    parts = "drawn {:.2f}, decoded {:.2f}, ranked {:.2f} s; the first time {:.2f}".format(*middle, sum(taken[0]))
    return [
        Row("gpu_best_of_512", f"the best of {sizes.candidates} candidates ({parts})", size, total, "s",
            "operations and bytes at this card's own rates", bound, total / bound),
        Row("gpu_memory", "the most memory meanwhile", size, machine.peak(), "GB"),
    ]  # fmt: skip


def draw_compiled(sizes: Sizes, machine: Machine) -> list[Row]:
    """Drawing alone, as the library does it and with each layer's step compiled: whether compiling would pay."""
    model = generator(sizes, machine).eval().requires_grad_(False).to(machine.half)
    text, plain = captions(sizes, machine, 1).expand(sizes.candidates, -1), transformer.read_one

    def draw() -> Tensor:
        return model.sample(text, rngs(sizes.candidates))

    before = machine.seconds(draw, rounds=1, warm=1)
    transformer.read_one = Compiled(plain, "a layer's step")
    if machine.device.type != "cuda":
        transformer.read_one.is_broken = True  # half a minute of compiling on a CPU would show nothing
    try:
        after = machine.seconds(draw, rounds=1, warm=1)
        told = "not compiled" if transformer.read_one.is_broken else "compiled"
    finally:
        transformer.read_one = plain
    return [Row("gpu_draw_compiled", f"drawing, a layer's step {told}", f"{sizes.candidates} candidates, bfloat16", after, "s",
                "uncompiled", before, after / before)]  # fmt: skip


def profile(sizes: Sizes, machine: Machine) -> list[Row]:
    """No row: tables of what an update and a drawing of a few words spend their time on, on stdout."""
    few = replace(sizes, accumulation=1, updates=1)
    with plain_profile(machine):
        updated(few, machine, is_plain=False)
    model = generator(sizes, machine).eval().requires_grad_(False).to(machine.half)
    given = torch.zeros(sizes.candidates, sizes.side**2, dtype=torch.int64, device=machine.device)
    given[:, -20:] = -1
    with plain_profile(machine):
        model.sample(captions(sizes, machine, 1).expand(sizes.candidates, -1), rngs(sizes.candidates), given=given)
    return []


@contextlib.contextmanager
def plain_profile(machine: Machine) -> Iterator[None]:
    """Prints the 15 operations that took longest meanwhile."""
    kind = "cuda" if machine.device.type == "cuda" else "cpu"
    with torch.profiler.profile() as profiled:
        yield
    averages = profiled.key_averages()
    print(averages.table(sort_by=f"self_{kind}_time_total", row_limit=15, max_name_column_width=60))


def encode(sizes: Sizes, machine: Machine) -> list[Row]:
    """Pictures a second into words, as tokenize_pairs does it, and compiled; and how many words are float32's."""
    tokenizer, images = image_tokenizer(sizes, machine), pictures(sizes, machine)
    pixels = to_model_range(images)
    work = operations_of_encoding(tokenizer, pixels[:1])
    size = f"{sizes.image_size} x {sizes.image_size}, {sizes.pictures} at once, {work / 1e9:.3g} GFLOP each"

    def row(id: str, what: str, function: Callable[[], object]) -> Row:
        rate, most = sizes.pictures / machine.seconds(function), machine.matmul / work
        return Row(id, what, size, rate, "1/s", "the card's own matrix product", most, rate / most)

    def in_halves() -> Tensor | None:
        return _halves.encoded_in_halves(tokenizer.encoder, pixels)

    with torch.no_grad(), exact_convolutions():
        exact = tokenizer._logits(images).argmax(dim=-1).flatten(1)
        rows = [row("gpu_encode_float32", "encoding in float32", lambda: tokenizer._logits(images))]
    found = in_halves()
    share = math.nan if found is None else float((found == exact).float().mean())
    rows.append(row("gpu_encode", "encoding in float16", in_halves))
    rows.append(Row("gpu_encode_equal", "words that are float32's", size, share, "", "bar", 0.99, share / 0.99))
    if machine.device.type == "cuda":
        with compiled_halves(tokenizer) as compiled:
            fast = row("gpu_encode_compiled", "the same compiled", in_halves)
        rows.append(replace(fast, what="the same, which could not be compiled" if compiled.is_broken else fast.what))
    return rows


@contextlib.contextmanager
def compiled_halves(tokenizer: DiscreteVAE) -> Iterator[Compiled]:
    """The encoder's convolutions compiled for as long."""
    plain, layers = _halves.in_halves, tokenizer.encoder[:-1]
    compiled = Compiled(lambda inputs: plain(layers, inputs), "encoding")
    _halves.in_halves = lambda _, inputs: compiled(inputs)
    try:
        yield compiled
    finally:
        _halves.in_halves = plain


PARTS: dict[str, tuple[Callable[[Sizes, Machine], list[Row]], float]] = {  # with the seconds that a part may take
    "rates": (rates, 15),
    "best": (best_of, 90),
    "train": (train, 150),
    "encode": (encode, 60),
    "equal": (equal, 60),
    "draw_compiled": (draw_compiled, 90),
}
ASKED_FOR = {"profile": (profile, 90)}


# ---- the generator


def generator(sizes: Sizes, machine: Machine, is_plain: bool = False, **settings: object) -> Transformer:
    """A generator with random weights; a plain one attends under whole masks, uncompiled."""
    torch.manual_seed(0)
    if is_plain:
        settings |= {"attention": "dense", "compile": False}
    config = transformer.Config(num_layers=sizes.layers, num_heads=sizes.heads, width=sizes.width, **settings)
    with torch.device(machine.device):
        return Transformer(config, sizes.text_words, sizes.text_length, sizes.image_words, (sizes.side,))


def captions(sizes: Sizes, machine: Machine, rows: int) -> Tensor:
    text = torch.randint(sizes.text_words, (rows, sizes.text_length), generator=torch.Generator().manual_seed(0))
    text[:, sizes.text_length // 8 :] = -1  # a caption of 256 places has some 30 words
    return text.to(machine.device)


def rngs(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def positions(sizes: Sizes) -> int:
    return sizes.text_length + 1 + sizes.side**2


def weights(sizes: Sizes) -> int:
    """Of the layers' matrices and the two output maps: what a position is multiplied by."""
    return 12 * sizes.layers * sizes.width**2 + sizes.width * (sizes.text_words + sizes.image_words)


def operations(sizes: Sizes) -> float:
    """Of one sequence in training, forward and backward."""
    model = narrow(sizes)
    seen = {kind: int(model.get_buffer(f"{kind}_mask").sum()) for kind in KINDS}
    layers = 2 * 12 * sizes.width**2 * sizes.layers * positions(sizes)
    attention = 4 * sizes.width * sum(seen[kind] for kind in model.kinds)
    outputs = 2 * sizes.width * (sizes.text_length * sizes.text_words + sizes.side**2 * sizes.image_words)
    return 3.0 * (layers + attention + outputs)


def narrow(sizes: Sizes) -> Transformer:
    """The same layers and masks, one number wide: to count with."""
    config = transformer.Config(num_layers=sizes.layers, num_heads=1, width=1)
    return Transformer(config, 2, sizes.text_length, 2, (sizes.side,))


@contextlib.contextmanager
def plain_loss(is_plain: bool) -> Iterator[None]:
    """All logits in memory at once, as before."""
    border = _loss.LARGE
    _loss.LARGE = 2**62 if is_plain else border
    try:
        yield
    finally:
        _loss.LARGE = border


def batch(sizes: Sizes, machine: Machine) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(sizes.image_words, (sizes.batch, sizes.side**2), generator=torch.Generator().manual_seed(1))
    return captions(sizes, machine, sizes.batch), tokens.to(machine.device)


def learned(sizes: Sizes, machine: Machine, is_plain: bool) -> list[Tensor]:
    """The loss and all gradients of one batch, in float32."""
    with plain_loss(is_plain):
        model = generator(sizes, machine, is_plain, init_std=0.1)
        loss = model.loss(*batch(sizes, machine), 0, torch.Generator())[0]
        loss.backward()
    return [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]


def first_that_fits(sizes: Sizes, machine: Machine) -> tuple[float, str]:
    """(sequences a second, how) of the first way that fits the memory: all kept, then layers recomputed."""
    for recompute in (False, True):
        try:
            return updated(sizes, machine, is_plain=False, recompute=recompute)
        except torch.OutOfMemoryError:
            machine.forget_peak()
    return updated(replace(sizes, batch=max(1, sizes.batch // 4)), machine, is_plain=False, recompute=True)


def updated(sizes: Sizes, machine: Machine, is_plain: bool, **settings: object) -> tuple[float, str]:
    """(sequences a second, how) of whole updates: micro-batches in bfloat16, the norm of the gradient, AdamW."""
    machine.forget_peak()
    with plain_loss(is_plain):
        model = generator(sizes, machine, is_plain, **settings).train()
        optimizer = optim.adamw(model, 0.045, 0.9, 0.96, 1e-8)
        optim.set_learning_rate(optimizer, 1e-4)
        rows, rng = batch(sizes, machine), torch.Generator(device=machine.device)

        def update() -> None:
            optimizer.zero_grad(set_to_none=True)
            for _ in range(sizes.accumulation):
                with torch.autocast(machine.device.type, machine.half):
                    loss = model.loss(*rows, 0, rng)[0]
                (loss / sizes.accumulation).backward()
            optim.clip_gradients(model.parameters(), 4.0)
            optimizer.step()

        taken = machine.seconds(update, rounds=sizes.updates, warm=1)
    how = "layers recomputed" if settings.get("recompute") else "all activations kept"
    told = f"{how}, layers {'uncompiled' if model._compiled.compiled is None or model._compiled.is_broken else 'compiled'}"
    return sizes.batch * sizes.accumulation / taken, f"{told}, {attention_of(model)}, {machine.peak():.3g} GB"


def attention_of(model: Transformer) -> str:
    if not model._flexible:
        return "no FlexAttention"
    return "FlexAttention failed" if any(one.is_broken for one in model._flexible.values()) else "FlexAttention"


# ---- best of many


def image_tokenizer(sizes: Sizes, machine: Machine) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(sizes.dvae, sizes.image_size).to(machine.device).eval().requires_grad_(False)


def drawn_decoded_ranked(
    model: Transformer, tokenizer: DiscreteVAE, scorer: nn.Module, sizes: Sizes, machine: Machine, together: int
) -> list[float]:
    """The seconds that drawing, decoding and ranking took."""
    text, generators = captions(sizes, machine, 1), rngs(sizes.candidates)
    times, start = [], time.perf_counter()

    def lap() -> None:
        machine.wait()
        times.append(time.perf_counter() - start - sum(times))

    starts = range(0, sizes.candidates, together)
    drawn = [model.sample(text.expand(len(part), -1), part) for one in starts if (part := generators[one : one + together])]
    lap()
    images = torch.cat([tokenizer.decode(part) for part in torch.cat(drawn).split(sizes.pictures)])
    lap()
    with torch.no_grad():
        scores = torch.cat([scorer.score(part, ["a caption"] * len(part)) for part in images.split(sizes.pictures)])
    scores.argsort(descending=True).cpu()
    lap()
    return times


def best_of_bound(sizes: Sizes, machine: Machine, tokenizer: DiscreteVAE) -> float:
    """Seconds at this card's own rates: products, or reading their weights, whichever is longer; keys and values; decoding.

    The weights and what is kept are in bfloat16, and each is read once for every word; writing is not counted.
    """
    model = narrow(sizes)
    slots = sum(model._window(kind).slots for kind in model.kinds)
    read = 12 * sizes.layers * sizes.width**2 + sizes.width * sizes.image_words
    products = max(2 * read * sizes.candidates / machine.matmul, 2 * read / machine.copy)
    kept = 2 * 2 * sizes.candidates * sizes.width * slots / machine.copy
    decoding = operations_of_decoding(tokenizer) * sizes.candidates / machine.matmul
    return sizes.side**2 * (products + kept) + decoding


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
    """float32 is float32: torch lets convolutions round to TF32 otherwise."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def pictures(sizes: Sizes, machine: Machine) -> Tensor:
    """Smooth random pictures (B, 3, H, W) with some noise: neither flat nor all noise, as photographs are."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(sizes.pictures, 3, 8, 8, generator=rng)
    smooth = F.interpolate(coarse, size=(sizes.image_size, sizes.image_size), mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1).to(machine.device)


class StandIn(nn.Module):
    """The sizes of ViT-B/32 in plain torch, for machines without open_clip: the same work, and scores that mean nothing."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.patches, self.words = nn.Conv2d(3, 768, 32, 32), nn.Embedding(49408, 512)
        self.seen, self.read = self._tower(768, 12, layers), self._tower(512, 8, layers)
        self.of_image, self.of_text = nn.Linear(768, 512), nn.Linear(512, 512)

    @staticmethod
    def _tower(width: int, heads: int, layers: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """Images (B, 3, H, W), B captions -> (B,)."""
        with torch.autocast(images.device.type, torch.bfloat16):
            patches = self.patches(F.interpolate(images, size=(224, 224), mode="bilinear")).flatten(2).transpose(1, 2)
            image = self.of_image(self.seen(patches).mean(dim=1))
            tokens = torch.zeros(1, 77, dtype=torch.int64, device=images.device)  # one caption, read once
            text = self.of_text(self.read(self.words(tokens))[:, -1])
        return F.cosine_similarity(image.float(), text.float())


def ranker(sizes: Sizes, machine: Machine) -> tuple[nn.Module, str]:
    """CLIP with random weights, and who it is."""
    torch.manual_seed(0)
    try:
        if sizes.suffix:
            raise ImportError("tiny")
        from thousandwords.scorers import clip

        model, who = clip.CLIP(clip.Config(), sizes.image_size), "open_clip's ViT-B/32"
    except ImportError:
        model, who = StandIn(sizes.clip_layers), "a stand-in of ViT-B/32's sizes (no open_clip)"
    return model.to(machine.device).eval().requires_grad_(False), who


# ---- one run


def measured(names: list[str], sizes: Sizes, machine: Machine, minutes: float) -> Iterator[list[Row]]:
    """The rows of each part, one part after the other; a part that fails, or has no time left, has one row that says so."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        part, needed = (PARTS | ASKED_FOR)[name]
        left = end - time.monotonic()
        if left < (0 if sizes.suffix else needed):
            rows = [failed(name, f"skipped: {left:.0f} s are left, and it may take {needed:.0f}")]
        else:
            rows = guarded(name, part, sizes, machine, left)
        yield [replace(row, id=row.id + sizes.suffix) for row in rows]


def guarded(name: str, part: Callable[[Sizes, Machine], list[Row]], sizes: Sizes, machine: Machine, left: float) -> list[Row]:
    """The rows of a part, or one that tells what became of it."""
    started = time.monotonic()
    try:
        with alarm(left):
            rows = part(sizes, machine)
    except (Exception, OutOfTime) as error:  # whatever it is, the other parts are still worth measuring
        rows = [failed(name, f"failed: {in_short(error)}")]
    machine.forget_peak()
    print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return rows


def failed(name: str, why: str) -> Row:
    return Row(f"gpu_{name}_missing", why, "", math.nan, "")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises OutOfTime when they are over."""

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to see that all of it runs")
    parser.add_argument("--minutes", type=float, default=8.5, help="no part is begun that may take longer than what is left")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in this order, rates first; and profile")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="where the rows are added")
    options = parser.parse_args(argv)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --cpu tries the same code on tiny sizes")
    names = ["rates", *(name for name in options.parts.split(",") if name != "rates")]
    if unknown := set(names) - set(PARTS | ASKED_FOR):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS | ASKED_FOR)}")
    sizes, machine = (TINY, Machine(torch.device("cpu"))) if options.cpu else (Sizes(), Machine(torch.device("cuda")))
    rows = []
    for found in measured(names, sizes, machine, options.minutes):
        results.record(found, options.out)  # at once: what was measured is not lost with what comes after
        rows += found
    print(f"{results.machine()}, torch {torch.__version__}\n\n{results.table(rows)}")


if __name__ == "__main__":
    main()
