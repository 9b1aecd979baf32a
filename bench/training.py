"""python -m bench.training [--threads 2]: a generator's training step on a CPU, in sequences per second.

Compared with the widely used DALLE of dalle-pytorch (bench/_peer.py says how it differs) and with the same
model in plain PyTorch (bench/_plain.py). In float32 unless the row says bfloat16, all with the same fused
AdamW: forward, backward, clip, step. The steps alternate in one run. On a busy machine set
GOMP_SPINCOUNT=1000 OMP_WAIT_POLICY=PASSIVE: threads that spin while waiting distort it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import _peer, _plain
from bench import _results as results
from bench._results import Row, seconds
from thousandwords.core.command_line import one_sentence
from thousandwords.generators.transformer.model import Transformer, TransformerConfig
from thousandwords.nn.malloc import keep_freed_memory
from thousandwords.training import optimizers

Step = Callable[[], None]


@dataclass(frozen=True)
class Size:
    """The size of a model and of its batch: `batch` sequences of text + side * side tokens."""

    layers: int
    width: int
    heads: int
    text: int
    side: int
    batch: int
    text_vocab: int = 512
    image_vocab: int = 512

    def __str__(self) -> str:
        length = f"{self.text} + {self.side**2} tokens"
        return f"width {self.width}, {self.layers} layers, {self.heads} heads, {length}, batch {self.batch}"


SMALL = Size(4, 192, 6, 33, 8, 32)
TINY = Size(1, 16, 1, 4, 2, 2)
LARGE = Size(6, 256, 8, 64, 16, 8, 4096, 1024)


def batch(size: Size) -> tuple[Tensor, Tensor]:
    """Captions of half the length, and images."""
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(size.text_vocab, (size.batch, size.text), generator=rng)
    text[:, size.text // 2 :] = -1
    return text, torch.randint(size.image_vocab, (size.batch, size.side**2), generator=rng)


def step_of(model: nn.Module, loss: Callable[[], Tensor], in_bfloat16: bool = False) -> Step:
    """One update of the model: forward, backward, clip, AdamW; optionally with products in bfloat16."""
    optimizer = optimizers.adamw(model, 0.01, 0.9, 0.96, 1e-8)
    optimizers.set_learning_rate(optimizer, 1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()

    return step


def build_model(size: Size) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=size.layers, width=size.width, num_heads=size.heads)
    return Transformer(config, size.text_vocab, size.text, size.image_vocab, (size.side,)).train()


def fast_step(size: Size, in_bfloat16: bool = False) -> tuple[nn.Module, Step]:
    (text, tokens), rng, model = batch(size), torch.Generator(), build_model(size)
    return model, step_of(model, lambda: model.loss(text, tokens, 0, rng)[0], in_bfloat16)


def plain_step(size: Size) -> Step:
    (text, tokens), model = batch(size), build_model(size)
    return step_of(model, lambda: _plain.loss(model, text, tokens))


def peer_step(size: Size, attention: str, in_bfloat16: bool = False) -> tuple[nn.Module, Step]:
    text, tokens = batch(size)
    torch.manual_seed(0)
    sizes = (size.layers, size.width, size.heads, size.text, size.side, size.text_vocab, size.image_vocab)
    peer = _peer.build(*sizes, attention).train()
    return peer, step_of(peer, lambda: peer.loss(text, tokens), in_bfloat16)


def against_plain(size: Size) -> Row:
    fast, plain = seconds(fast_step(size)[1], plain_step(size))
    return row(
        "train_vs_plain", size, "in float32, the same model", fast, "the model in plain PyTorch", plain
    )


def against_peer(id: str, size: Size, attention: str, in_bfloat16: bool = False) -> Row:
    (model, step), (peer, slow_step) = fast_step(size, in_bfloat16), peer_step(size, attention, in_bfloat16)
    fast, slow = seconds(step, slow_step)
    weights = f"{_peer.count_parameters(model) / 1e6:.1f} against {_peer.count_parameters(peer) / 1e6:.1f} million weights"
    what = f"in {'bfloat16' if in_bfloat16 else 'float32'}, {weights}"
    return row(id, size, what, fast, f"dalle-pytorch 1.6.6, {attention} attention", slow)


def against_machine(size: Size) -> list[Row]:
    """The rate of a matrix product, and the share of it that a training step reaches; for make plan."""
    left, right = torch.randn(2, 1024, 1024)
    model, step = fast_step(size)
    taken, product = seconds(step, lambda: left @ right)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.loss(*batch(size), 0, torch.Generator())
    operations, rate = (
        3 * counter.get_total_flops(),
        2 * 1024**3 / product,
    )  # the backward pass counts as two forward passes
    return [
        Row("cpu_matmul", "matrix product", "1,024 x 1,024, float32", rate / 1e12, "TFLOP/s"),
        Row(
            "cpu_train",
            "a training step in float32",
            str(size),
            operations / taken / 1e12,
            "TFLOP/s",
            "the matrix product",
            rate / 1e12,
        ),
    ]


def row(id: str, size: Size, what: str, fast: float, against: str, slow: float) -> Row:
    figure, limit = size.batch / fast, size.batch / slow
    return Row(id, f"a training step {what}", str(size), figure, "sequences/s", against, limit)


def main(argv: list[str] | None = None) -> None:
    arguments = results.parser_of(__doc__)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument(
        "--quick", action="store_true", help="a tiny size without the peer, to test the code"
    )
    options = arguments.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as in training; it helps the peer as well
    small = TINY if options.quick else SMALL
    rows = [*against_machine(small), against_plain(small)]
    if not options.quick and _peer.install():
        rows += [
            against_peer("train_vs_peer", SMALL, "full"),
            against_peer("train_vs_peer_pattern", SMALL, "pattern"),
            against_peer("train_vs_peer_large", LARGE, "full"),
            against_peer("train_vs_peer_bfloat16", SMALL, "full", in_bfloat16=True),
        ]
    results.finish(rows, options.out)


if __name__ == "__main__":
    with one_sentence("training"):
        main()
