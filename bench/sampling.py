"""python -m bench.sampling: sampling on a CPU, compared with the peer and with bare matrix products.

`sample_vs_peer`: images per second of a batch of 32 different captions, over those of the peer's published
`generate_images`, full attention, `use_cache` on. Without guidance that code does not pass its cache on;
`sample_vs_mended_peer` compares with the peer after a fix of that line, `sample_vs_peer_pattern` with its
row, column and convolutional layers. `decode_vs_matmul`: the time of the matrix products that sampling needs
(the same shapes, nothing between them) over the time of sampling; attention, norms, the sampling of tokens
and all waiting count as loss. `best_of_n`: 512 candidates of one caption over 512 captions with one each.
`next_scale_first`, `next_scale_bulk`: the generator of the preset next_scale compared with that of the default, whole
images of first weights, without decoding: seconds for one image of one prompt, and images per second of 256 captions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import _peer
from bench import _results as results
from bench._results import Row, seconds
from thousandwords import components
from thousandwords.core.command_line import one_sentence
from thousandwords.generators.base import Generator
from thousandwords.generators.transformer.model import Transformer, TransformerConfig
from thousandwords.planning.presets import read_preset

VOCAB_SIZE = 512  # of text and image


def build(depth: int, width: int, heads: int, text_length: int, side: int) -> Transformer:
    """A generator with first weights."""
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=depth, num_heads=heads, width=width)
    return Transformer(config, VOCAB_SIZE, text_length, VOCAB_SIZE, (side,)).eval()


def captions(rows: int, length: int) -> Tensor:
    """Different captions without a pad: (rows, length)."""
    return torch.randint(VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(1))


def of_preset(name: str) -> Generator:
    """The generator of a preset with first weights, and an untrained tokenizer's codes."""
    torch.manual_seed(0)
    params, parts = read_preset(name), {}
    for family, section in (("image_tokenizers", "image_tokenizer"), ("generators", "generator")):
        parts[family] = params[section]["kind"], components.model_config(family, params[section], section)
    tokenizer = components.build(
        "image_tokenizers", *parts["image_tokenizers"], image_size=params["data"]["image_size"]
    )
    text = params["text_tokenizer"]
    sizes = {"text_vocab_size": text["vocab_size"], "text_length": text["text_length"]}
    sizes |= {"image_vocab_size": tokenizer.vocab_size, "scales": tokenizer.scales}
    sizes |= components.component("generators", parts["generators"][0])[0].sizes_for(tokenizer)
    return components.build("generators", *parts["generators"], **sizes).eval()


def sample(model: Generator, text: Tensor) -> Tensor:
    return model.sample(text, [torch.Generator().manual_seed(row) for row in range(len(text))])


def against_peer(rows: int, depth: int, width: int, heads: int, text_length: int, side: int) -> list[Row]:
    """Images per second of this generator and of three variants of the peer, in the same rounds."""
    if not _peer.install():
        return []
    model, text = build(depth, width, heads, text_length, side), captions(rows, text_length)
    one_caption = text[:1].expand(rows, -1).contiguous()
    peers = [
        build_peer(depth, width, heads, text_length, side, *variant)
        for variant in (("full", False), ("full", True), ("pattern", False))
    ]
    functions = [
        lambda: sample(model, text),
        lambda: sample(model, one_caption),
        *(lambda peer=peer: peer.sample(text) for peer in peers),
    ]
    ours, one_caption_rate, *peer_rates = (
        rows / taken for taken in seconds(*functions, rounds=2, min_seconds=0.5)
    )
    size = f"{depth} layers of {width}, {text_length} + {side * side} tokens, batch {rows}"
    against = (
        "dalle-pytorch, full attention",
        "the same, with its cache fixed",
        "dalle-pytorch, row, column, conv",
    )
    names = ("sample_vs_peer", "sample_vs_mended_peer", "sample_vs_peer_pattern")
    return [
        *(
            Row(name, "sampling", size, ours, "images/s", label, rate)
            for name, label, rate in zip(names, against, peer_rates, strict=True)
        ),
        Row(
            "sample_one_vs_peer",
            "sampling, one caption",
            size,
            one_caption_rate,
            "images/s",
            against[0],
            peer_rates[0],
        ),
    ]


def build_peer(
    depth: int, width: int, heads: int, text_length: int, side: int, kind: str, is_fixed: bool
) -> _peer.Peer:
    sizes = (depth, width, heads, text_length, side, VOCAB_SIZE, VOCAB_SIZE)
    return _peer.build(*sizes, kind, for_sampling=True, is_fixed=is_fixed).eval()


def against_matmul(
    rows: int, depth: int, width: int, heads: int, text_length: int, side: int, name: str
) -> Row:
    """The time of the bare matrix products as a share of the time of sampling."""
    model, text = (
        build(depth, width, heads, text_length, side),
        captions(1, text_length).expand(rows, -1).contiguous(),
    )
    maps = [module for layer in model.layers for module in layer.modules() if isinstance(module, nn.Linear)]
    maps.append(model.image_output)
    inputs = {linear.in_features: torch.randn(rows, linear.in_features) for linear in maps}
    steps = side * side

    @torch.no_grad()
    def bare_products() -> None:
        for _ in range(steps):
            for linear in maps:
                F.linear(inputs[linear.in_features], linear.weight, linear.bias)

    operations = 2 * rows * steps * sum(linear.weight.numel() for linear in maps)
    ours, plain = (
        operations / taken / 1e9
        for taken in seconds(lambda: sample(model, text), bare_products, rounds=3, min_seconds=0.5)
    )
    size = f"{depth} layers of {width}, {text_length} + {steps} tokens, {rows} of one caption"
    return Row(name, "cached decode", size, ours, "GFLOP/s", "its matrix products alone", plain)


def best_of(count: int, depth: int, width: int, heads: int, text_length: int, side: int) -> Row:
    """The candidates of one caption compared with as many captions."""
    model, text = build(depth, width, heads, text_length, side), captions(count, text_length)
    one_caption = text[:1].expand(count, -1).contiguous()
    shared, separate = seconds(
        lambda: sample(model, one_caption), lambda: sample(model, text), rounds=2, min_seconds=0.1
    )
    size = f"{depth} layers of {width}, {text_length} + {side * side} tokens"
    return Row(
        "best_of_n", f"{count} candidates of one caption", size, shared, "s", f"{count} captions", separate
    )


def by_scales(count: int) -> list[Row]:
    """The generator that predicts a grid at a time compared with the one that predicts a token at a time."""
    by_scale, by_token = of_preset("next_scale"), of_preset("default")
    text = captions(count, by_scale.text_length)
    one, one_by_token, bulk, bulk_by_token = seconds(
        *(
            lambda model=model, rows=rows: sample(model, rows)
            for rows in (text[:1], text)
            for model in (by_scale, by_token)
        ),
        rounds=5,
        min_seconds=0.1,
    )
    size = f"presets next_scale ({len(by_scale.scales)} passes) and default ({by_token.image_length})"
    against = "the preset default's"
    return [
        Row("next_scale_first", "one image of one prompt", size, one, "s", against, one_by_token),
        Row(
            "next_scale_bulk",
            f"{count} captions",
            size,
            count / bulk,
            "images/s",
            against,
            count / bulk_by_token,
        ),
    ]


def main(argv: list[str] | None = None) -> None:
    arguments = results.parser_of(__doc__)
    arguments.add_argument(
        "--quick", action="store_true", help="tiny sizes without the peer, to test the code"
    )
    options = arguments.parse_args(argv)
    if options.quick:
        rows = [
            against_matmul(8, 1, 16, 1, 4, 2, "decode_vs_matmul"),
            best_of(8, 1, 16, 1, 4, 2),
            *by_scales(2),
        ]
    else:
        rows = [
            *against_peer(32, 4, 192, 6, 33, 8),
            decode := against_matmul(256, 4, 256, 4, 24, 8, "decode_vs_matmul"),
            against_matmul(32, 4, 192, 6, 33, 8, "decode_vs_matmul_small"),
            Row("cpu_draw", decode.what, decode.size, decode.figure / 1e3, "TFLOP/s"),
            best_of(512, 2, 128, 2, 256, 8),
            *by_scales(256),
        ]
    results.finish(rows, options.out)


if __name__ == "__main__":
    with one_sentence("sampling"):
        main()
