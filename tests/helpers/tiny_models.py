"""Tiny models of every kind of every family, and tiny artefacts, for tests.

The sizes of a kind are in its own folder: thousandwords/<family>/<kind>/tiny.yaml.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from tests.helpers.paths import ROOT
from thousandwords import components
from thousandwords.core.config import section
from thousandwords.core.manifest import read_manifest
from thousandwords.data.token_shards import TokenHeader, TokenShardWriter
from thousandwords.generators.transformer.model import Transformer, TransformerConfig
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import PARTS, write_package
from thousandwords.text.bpe import TextTokenizer, TextTokenizerConfig, save, train
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import fit

SIDE = 16  # pixels
TEXT_VOCAB_SIZE, TEXT_LENGTH = 270, 8
IMAGE_VOCAB_SIZE, SCALES = 12, (4,)  # of a generator
SEVERAL_SCALES = (1, 2, 4)

# family -> kind -> settings of a model that is built, trained for a step and sampled from in milliseconds
TINY: dict[str, dict[str, dict]] = {
    family: {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in sorted((ROOT / "thousandwords" / family).glob("*/tiny.yaml"))
    }
    for family in components.CONTRACTS
}
ARGUMENTS = {
    "image_tokenizers": {"image_size": SIDE},
    "generators": {
        "text_vocab_size": TEXT_VOCAB_SIZE,
        "text_length": TEXT_LENGTH,
        "image_vocab_size": IMAGE_VOCAB_SIZE,
        "scales": SCALES,
    },
    "decoders": {"image_size": SIDE, "vocab_size": IMAGE_VOCAB_SIZE, "scales": SCALES},
    "scorers": {"image_size": SIDE},
    "captioners": {"image_size": SIDE, "text_vocab_size": TEXT_VOCAB_SIZE, "text_length": TEXT_LENGTH},
}
CAPTIONS = [
    "a red square above a blue circle",
    "a small green star on sand",
    "a large red star left of a yellow square",
    "ein roter Stern über dem Meer",
]


def every_kind(family: str) -> list[str]:
    """All kinds of a family, for pytest.mark.parametrize."""
    return components.kinds(family)


def tiny(family: str, kind: str, seed: int = 0, settings: dict | None = None, **sizes: object) -> nn.Module:
    """A tiny model of that kind, with other settings than its tiny.yaml if given, in evaluation mode; its first weights
    depend on the arguments only."""
    assert kind in TINY[family], (
        f"thousandwords/{family}/{kind} has no tiny.yaml: add one with the settings of a tiny model"
    )
    _, config_class = components.component(family, kind)
    config = section(TINY[family][kind] | (settings or {}), kind, config_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return components.build(family, kind, config, **(ARGUMENTS[family] | sizes)).eval()


def two_grids() -> nn.Module:
    """A tiny image tokenizer with the scales (2, 4)."""
    return tiny("image_tokenizers", "vqvae", settings={"scales": [2, 4]})


def tiny_transformer(
    num_layers: int = 3, kinds: list[str] | None = None, scales: tuple[int, ...] = SCALES, **settings
) -> Transformer:
    """A transformer with large first weights, so that every part of it changes the logits."""
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "width": 16, "kernel": 3, "init_std": 0.3} | settings
    config = TransformerConfig(num_layers=len(kinds) if kinds else num_layers, **sizes)
    model = Transformer(config, **(ARGUMENTS["generators"] | {"scales": scales}))
    model.kinds = kinds or model.kinds
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rngs(count: int, first: int = 0) -> list[torch.Generator]:
    """One random generator per row, for `sample`."""
    return [rng(first + row) for row in range(count)]


def random_images(count: int, seed: int = 0) -> Tensor:
    """(count, 3, SIDE, SIDE) in [0, 1], all different."""
    return torch.rand(count, 3, SIDE, SIDE, generator=rng(seed))


def captions_as_tokens(count: int) -> Tensor:
    """Captions of 3 to TEXT_LENGTH text tokens: (count, TEXT_LENGTH) int64, -1 where one has ended."""
    tokens = torch.randint(TEXT_VOCAB_SIZE, (count, TEXT_LENGTH), generator=rng(1))
    lengths = torch.randint(3, TEXT_LENGTH + 1, (count, 1), generator=rng(2))
    return tokens.where(torch.arange(TEXT_LENGTH) < lengths, -1)


def image_tokens(count: int, scales: tuple[int, ...] = SCALES) -> Tensor:
    """(count, L) int64."""
    return torch.randint(IMAGE_VOCAB_SIZE, (count, sum(side * side for side in scales)), generator=rng(3))


def fit_batch(model: nn.Module, config: TrainingConfig, batch: tuple, **arguments: object) -> tuple:
    """`fit` on one batch, the arguments of the model's loss: (weights, rows)."""
    return fit(
        model,
        config,
        batches_of=lambda step: [batch],
        loss_of=lambda model, batch, step, rng: model.loss(*batch, step, rng),
        **{"seed": 0} | arguments,
    )


def tiny_text() -> TextTokenizer:
    """A BPE of TEXT_VOCAB_SIZE tokens, most of them bytes."""
    return train(CAPTIONS * 3, TextTokenizerConfig(TEXT_VOCAB_SIZE, TEXT_LENGTH))


def write_parts(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Tiny models that fit together, as the stages write them: {part: its folder}."""
    parts = {name: folder / name for name in PARTS}
    save(tiny_text(), parts["text_tokenizer"])
    fingerprint = components.save(tiny("image_tokenizers", "dvae", seed), parts["image_tokenizer"])
    components.save(tiny("decoders", "unet", seed), parts["decoder"], image_tokenizer=fingerprint)
    components.save(tiny("generators", "transformer", seed), parts["generator"])
    components.save(tiny("scorers", "clip", seed), parts["scorer"])
    return parts


def fitting_package(
    folder: Path, image_tokenizer: nn.Module | None = None, kind: str = "transformer"
) -> Path:
    """A package of tiny models, whose generator samples the image tokenizer's tokens and names both tokenizers."""
    parts = write_parts(folder)
    if image_tokenizer is not None:
        fingerprint = components.save(image_tokenizer, parts["image_tokenizer"])
        decoder = tiny("decoders", "unet", scales=image_tokenizer.scales)
        components.save(decoder, parts["decoder"], image_tokenizer=fingerprint)
    tokenizers = ("text_tokenizer", "image_tokenizer")
    fingerprints = {name: read_manifest(parts[name])["sha256"] for name in tokenizers}
    tokenizer = components.load("image_tokenizers", parts["image_tokenizer"])
    sizes = {"image_vocab_size": tokenizer.vocab_size, "scales": tokenizer.scales}
    generator_class, _ = components.component("generators", kind)
    model = tiny("generators", kind, **sizes, **generator_class.sizes_for(tokenizer))
    model.use_tokenizer(tokenizer)
    components.save(model, parts["generator"], **fingerprints)
    write_package(folder / "package", parts, SamplingConfig(), {})
    return folder / "package"


HEADER = TokenHeader("dvae", "3f9c" * 16, IMAGE_VOCAB_SIZE, SCALES, SIDE)


def write_shards(
    folder: Path, splits: dict[str, int], header: TokenHeader = HEADER, rows_per_shard: int = 4
) -> None:
    """Token shards of {split: rows}; row 3 of train has the key "train-3" and two captions."""
    with TokenShardWriter(folder, header, rows_per_shard) as shards:
        for split, count in splits.items():
            keys = [f"{split}-{row}" for row in range(count)]
            captions = [[CAPTIONS[row % len(CAPTIONS)], f"image {row}"] for row in range(count)]
            shards.write(split, keys, captions, shard_tokens(count, header))


def shard_tokens(count: int, header: TokenHeader = HEADER) -> Tensor:
    """The tokens that `write_shards` writes: (count, views * L) int64."""
    return torch.randint(header.vocab_size, (count, header.views * header.length), generator=rng(4))


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    """The same bytes with one bit flipped."""
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def flips(path: Path, count: int) -> Iterator[int]:
    """Flip one bit at each of `count` positions from the first byte of a file to its last, one at a time."""
    whole = path.read_bytes()
    for number in range(count):
        position = number * (len(whole) - 1) // (count - 1)
        path.write_bytes(flipped(whole, position, bit=number % 8))
        yield position
    path.write_bytes(whole)
