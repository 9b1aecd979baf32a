"""A substitute for the package of DALL-E's released tokenizer, with the same class names.

Python can import the package only inside `importable()`, as on the machine where the weights were saved.
"""

import contextlib
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.image_tokenizers.dvae.model import DVAEConfig
from thousandwords.pretrained import dalle_release

Sizes = dict[str, int]  # by the names of DVAEConfig
SMALL: Sizes = {"vocab_size": 12, "width": 8, "groups": 3, "blocks_per_group": 2, "codebook_width": 8}
SMALL["stem_kernel"] = 7


class Conv2d(nn.Module):
    def __init__(self, n_in: int, n_out: int, kw: int):
        super().__init__()
        self.n_in, self.n_out, self.kw = n_in, n_out, kw
        self.use_float16, self.device, self.requires_grad = True, torch.device("cpu"), False
        self.w = nn.Parameter(
            torch.randn(n_out, n_in, kw, kw) * (2 / (n_in * kw * kw)) ** 0.5, requires_grad=False
        )
        self.b = nn.Parameter(torch.randn(n_out) / 50, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class _Block(nn.Module):
    kernels: tuple[int, ...]

    def __init__(self, n_in: int, n_out: int, n_layers: int):
        super().__init__()
        self.n_in, self.n_out, self.n_layers = n_in, n_out, n_layers
        self.n_hid, self.post_gain = n_out // 4, 1 / n_layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = [n_in, self.n_hid, self.n_hid, self.n_hid, n_out]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, kernel in enumerate(self.kernels, start=1):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = Conv2d(widths[number - 1], widths[number], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class EncoderBlock(_Block):
    kernels = (3, 3, 3, 1)


class DecoderBlock(_Block):
    kernels = (1, 3, 3, 3)


class _Network(nn.Module):
    def __init__(
        self, block: type, first: Conv2d, widths: list[int], sizes: Sizes, between: dict, last: Conv2d
    ):
        super().__init__()
        self.device = torch.device("cpu")
        groups, blocks, layers = len(widths) - 1, sizes["blocks_per_group"], OrderedDict(input=first)
        for group in range(groups):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(blocks):
                n_in = widths[group] if number == 0 else widths[group + 1]
                parts[f"block_{number + 1}"] = block(n_in, widths[group + 1], groups * blocks)
            if group < groups - 1:
                parts |= {name: make() for name, make in between.items()}
            layers[f"group_{group + 1}"] = nn.Sequential(parts)
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=last))
        self.blocks = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(_Network):
    def __init__(self, sizes: Sizes):
        widths = [sizes["width"] * 2**group for group in range(sizes["groups"])]
        first, last = Conv2d(3, widths[0], sizes["stem_kernel"]), Conv2d(widths[-1], sizes["vocab_size"], 1)
        between = {"pool": lambda: nn.MaxPool2d(2)}
        super().__init__(EncoderBlock, first, [widths[0], *widths], sizes, between, last)


class Decoder(_Network):
    def __init__(self, sizes: Sizes):
        widths = [sizes["width"] * 2**group for group in reversed(range(sizes["groups"]))]
        first, last = Conv2d(sizes["vocab_size"], sizes["codebook_width"], 1), Conv2d(widths[-1], 6, 1)
        between = {"upsample": lambda: nn.Upsample(scale_factor=2, mode="nearest")}
        super().__init__(DecoderBlock, first, [sizes["codebook_width"], *widths], sizes, between, last)


MODULES = {"encoder": (Encoder, EncoderBlock), "decoder": (Decoder, DecoderBlock), "utils": (Conv2d,)}


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """The classes are in `dall_e.encoder`, `.decoder` and `.utils`, where a pickle looks for them."""
    modules = {"dall_e": types.ModuleType("dall_e")}
    before = {cls: cls.__module__ for classes in MODULES.values() for cls in classes}
    for name, classes in MODULES.items():
        module = modules[f"dall_e.{name}"] = types.ModuleType(f"dall_e.{name}")
        for cls in classes:
            cls.__module__ = module.__name__
            setattr(module, cls.__name__, cls)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        for cls, name in before.items():
            cls.__module__ = name


def save(network: nn.Module, path: Path, container: str) -> None:
    """torch.save of the whole module, "zip" or "legacy", as the released files were written."""
    with importable(), warnings.catch_warnings():  # the legacy container tries to store it
        warnings.filterwarnings("ignore", "Couldn't retrieve source code")
        torch.save(network, path, _use_new_zipfile_serialization=container == "zip")


def write_release(
    folder: Path, container: str, sizes: Sizes = SMALL, seed: int = 0
) -> tuple[Encoder, Decoder]:
    """Save an encoder and a decoder with random weights as encoder.pkl and decoder.pkl."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Encoder(sizes), Decoder(sizes)
    for network, name in zip(networks, ("encoder.pkl", "decoder.pkl"), strict=True):
        save(network, folder / name, container)
    return networks


def pickles_in(folder: Path) -> dict[str, Path]:
    return {"encoder": folder / "encoder.pkl", "decoder": folder / "decoder.pkl"}


def import_small(folder: Path, out: Path | None = None, **settings: object) -> Path:
    """Import what `write_release` wrote to a folder, as a tokenizer of images of 16 pixels."""
    out, config = out or folder / "imported", DVAEConfig(**SMALL)
    settings = {"pickles": pickles_in(folder), "config": config, "image_size": 16} | settings
    dalle_release.import_weights(out=out, **settings)
    return out
