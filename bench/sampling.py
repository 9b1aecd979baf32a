"""python -m bench.sampling: pictures drawn on a CPU, against the peer, against bare matrix products, and many of one caption.

`sample_vs_peer`: images a second of a batch of 32, each of a caption of its own, over those of the peer's `generate_images` as it
is published, full attention, `use_cache` on. Without guidance that code hands no cache on, so `sample_vs_mended_peer` holds us
against the peer with that one line mended; `sample_vs_peer_pattern` against its row, column and convolutional layers.
`decode_vs_matmul`: the matrix products that drawing cannot do without, run bare (the same shapes, nothing between them), over the
time of drawing: attention, norms, the draw itself and all waiting count as loss. `best_of_n`: 512 candidates of
one caption over 512 captions with one each.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import _peer
from bench import _results as results
from bench._results import Row, seconds
from thousandwords.generators.transformer import Config, Transformer

WORDS = 512  # in either vocabulary


def build(depth: int, width: int, heads: int, text_length: int, side: int) -> Transformer:
    """Our generator with fresh weights."""
    torch.manual_seed(0)
    config = Config(num_layers=depth, num_heads=heads, width=width)
    return Transformer(config, WORDS, text_length, WORDS, (side,)).eval()


def captions(rows: int, length: int) -> Tensor:
    """Different captions without a pad: (rows, length)."""
    return torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(1))


def draw(model: Transformer, text: Tensor) -> Tensor:
    return model.sample(text, [torch.Generator().manual_seed(row) for row in range(len(text))])


def against_peer(rows: int, depth: int, width: int, heads: int, text_length: int, side: int) -> list[Row]:
    """Images a second, ours and the peer's ways, in the same rounds."""
    if not _peer.installed():
        return []
    ours, text = build(depth, width, heads, text_length, side), captions(rows, text_length)
    one_caption = text[:1].expand(rows, -1).contiguous()
    peers = [peer(depth, width, heads, text_length, side, *way) for way in (("full", False), ("full", True), ("pattern", False))]
    works = [lambda: draw(ours, text), lambda: draw(ours, one_caption), *(lambda one=one: one.sample(text) for one in peers)]
    mine, shared, *theirs = (rows / taken for taken in seconds(*works, rounds=2, least=0.5))
    size = f"{depth} layers of {width}, {text_length} + {side * side} tokens, batch {rows}"
    against = ("dalle-pytorch, full attention", "the same, its cache mended by us", "dalle-pytorch, row, column, conv")
    names = ("sample_vs_peer", "sample_vs_mended_peer", "sample_vs_peer_pattern")
    return [
        *(
            Row(name, "drawing", size, mine, "images/s", told, peer, mine / peer)
            for name, told, peer in zip(names, against, theirs, strict=True)
        ),
        Row("sample_one_vs_peer", "drawing, one caption", size, shared, "images/s", against[0], theirs[0], shared / theirs[0]),
    ]


def peer(depth: int, width: int, heads: int, text_length: int, side: int, kind: str, is_mended: bool) -> _peer.Peer:
    sizes = (depth, width, heads, text_length, side, WORDS, WORDS)
    return _peer.build(*sizes, kind, for_sampling=True, is_mended=is_mended).eval()


def against_matmul(rows: int, depth: int, width: int, heads: int, text_length: int, side: int, name: str) -> Row:
    """What share of the time of drawing the bare matrix products would take."""
    model, text = build(depth, width, heads, text_length, side), captions(1, text_length).expand(rows, -1).contiguous()
    maps = [one for layer in model.layers for one in layer.modules() if isinstance(one, nn.Linear)] + [model.image_output]
    inputs = {one.in_features: torch.randn(rows, one.in_features) for one in maps}
    steps = side * side

    @torch.no_grad()
    def bare() -> None:
        for _ in range(steps):
            for one in maps:
                F.linear(inputs[one.in_features], one.weight, one.bias)

    operations = 2 * rows * steps * sum(one.weight.numel() for one in maps)
    ours, plain = (operations / taken / 1e9 for taken in seconds(lambda: draw(model, text), bare, rounds=3, least=0.5))
    size = f"{depth} layers of {width}, {text_length} + {steps} tokens, {rows} of one caption"
    return Row(name, "cached decode", size, ours, "GFLOP/s", "its matrix products alone", plain, ours / plain)


def best_of(count: int, depth: int, width: int, heads: int, text_length: int, side: int) -> Row:
    """The candidates of one caption against as many captions."""
    model, text = build(depth, width, heads, text_length, side), captions(count, text_length)
    one = text[:1].expand(count, -1).contiguous()
    shared, apart = seconds(lambda: draw(model, one), lambda: draw(model, text), rounds=2, least=0.1)
    size = f"{depth} layers of {width}, {text_length} + {side * side} tokens"
    return Row("best_of_n", f"{count} candidates of one caption", size, shared, "s", f"{count} captions", apart, shared / apart)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and no peer, to see that all of it runs")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="where the rows are added")
    options = parser.parse_args(argv)
    if options.quick:
        rows = [against_matmul(8, 1, 16, 1, 4, 2, "decode_vs_matmul"), best_of(8, 1, 16, 1, 4, 2)]
    else:
        rows = [
            *against_peer(32, 4, 192, 6, 33, 8),
            decode := against_matmul(256, 4, 256, 4, 24, 8, "decode_vs_matmul"),
            against_matmul(32, 4, 192, 6, 33, 8, "decode_vs_matmul_small"),
            Row("cpu_draw", decode.what, decode.size, decode.figure / 1e3, "TFLOP/s"),
            best_of(512, 2, 128, 2, 256, 8),
        ]
    results.record(rows, options.out)
    print(results.table(rows))


if __name__ == "__main__":
    main()
