"""The peer that the generator is compared with: DALLE of PyPI's dalle-pytorch.

It is installed into .bench/peer, never into the project's environment, from bench/peer.lock (hashes). Of its
imports, the benchmarks use only einops and rotary-embedding-torch; the rest (VQGAN, OpenAI's weights,
tokenizers) is replaced by empty modules during its import.

It is not the same model: its MLP is gated (16 width^2 weights per layer instead of 12), it rotates queries,
keys and values, and it shifts a quarter of the channels by one cell. Depth, width, heads, lengths and
vocabularies are the same.
"""

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
FOLDER, LOCK = ROOT / ".bench" / "peer", Path(__file__).parent / "peer.lock"
ATTENTION = {"full": ("full",), "pattern": ("axial_row", "axial_col", "axial_row", "conv_like")}
# what the peer's modules import and the benchmarks do not use
UNUSED = {
    "axial_positional_embedding": ["AxialPositionalEmbedding"],
    "omegaconf": ["OmegaConf"],
    "taming": [],
    "taming.models": [],
    "taming.models.vqgan": ["VQModel", "GumbelVQ"],
    "requests": [],
    "pkg_resources": ["get_distribution"],
}


class NoPeer(Exception):
    """The peer is missing and cannot be downloaded; the message says why in one line."""


def install() -> bool:
    """Install the peer into .bench/peer if needed; False, with a message, where no registry answers."""
    try:
        _pip_install()
    except NoPeer as reason:
        print(f"left out: everything against dalle-pytorch. {reason}", file=sys.stderr)
        return False
    return True


def _pip_install() -> None:
    if (FOLDER / "lock").exists() and (FOLDER / "lock").read_bytes() == LOCK.read_bytes():
        return
    options = [
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--upgrade",
    ]
    command = [sys.executable, "-m", "pip", *options, "--target", str(FOLDER), "-r", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise NoPeer(f"pip could not install bench/peer.lock into {FOLDER.relative_to(ROOT)}: {last}")
    (FOLDER / "lock").write_bytes(LOCK.read_bytes())  # last: a half-finished folder is installed again


@contextlib.contextmanager
def _empty_modules() -> Iterator[None]:
    """Empty modules for what the peer imports and does not use here, during its import."""
    missing = [name for name in UNUSED if name not in sys.modules]
    for name in missing:
        module: Any = ModuleType(name)
        for attribute in UNUSED[name]:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def import_peer() -> ModuleType:
    """The module `dalle_pytorch.dalle_pytorch` of .bench/peer."""
    if "dalle_pytorch" not in sys.modules:
        # instead of its __init__, which needs pkg_resources of old setuptools
        package: Any = ModuleType("dalle_pytorch")
        package.__path__ = [str(FOLDER / "dalle_pytorch")]
        sys.modules["dalle_pytorch"] = package
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # last, so that it hides nothing of the project's own environment
    with _empty_modules():
        return importlib.import_module("dalle_pytorch.dalle_pytorch")


class Peer(nn.Module):
    """The peer with this project's tokens: text (B, T) with -1 for pads, tokens (B, L) in raster order."""

    def __init__(self, dalle: nn.Module) -> None:
        super().__init__()
        self.dalle = dalle

    def loss(self, text: Tensor, tokens: Tensor) -> Tensor:
        """Its own loss: text and image weighted 1 to 7, pads counted as tokens."""
        return self.dalle(text + 1, tokens, return_loss=True)  # 0 is its pad

    def sample(self, text: Tensor, use_cache: bool = True) -> Tensor:
        """Image tokens (B, L) by its own loop and filter (the likelier half of the tokens), row by row."""
        return self.dalle.generate_images(text + 1, use_cache=use_cache)


def build(
    depth: int,
    width: int,
    heads: int,
    text_length: int,
    image_side: int,
    text_vocab: int,
    image_vocab: int,
    attention: Literal["full", "pattern"] = "full",
    *,
    for_sampling: bool = False,
    is_fixed: bool = False,
) -> Peer:
    """The peer at these sizes, with full attention or with its row, column and convolutional layers.

    `for_sampling` makes row and column layers support its cache ("optimize_for_inference"); the weights stay
    the same. `is_fixed` makes its sampling without guidance use its cache, which the published code does not.
    """
    library = import_peer()
    dalle = (_fixed(library) if is_fixed else library.DALLE)(
        dim=width,
        vae=_tokens_only(library, image_side, image_vocab),
        num_text_tokens=text_vocab + 1,
        text_seq_len=text_length,
        depth=depth,
        heads=heads,
        dim_head=width // heads,
        attn_types=ATTENTION[attention],
        optimize_for_inference=for_sampling,
    )
    return Peer(dalle)


def _fixed(library: ModuleType) -> type[nn.Module]:
    class Cached(library.DALLE):
        """Without guidance the published forward_with_cond_scale drops the cache; this one passes it on."""

        def forward_with_cond_scale(
            self, *args: Any, cond_scale: float = 1, cache: Any = None, **options: Any
        ) -> Tensor:
            if cond_scale == 1:
                return self(*args, cache=cache, **options)
            return super().forward_with_cond_scale(*args, cond_scale=cond_scale, cache=cache, **options)

    return Cached


def _tokens_only(library: ModuleType, side: int, vocab_size: int) -> nn.Module:
    """The smallest image tokenizer that the peer accepts; its decoder returns the tokens unchanged."""

    class Tokens(library.DiscreteVAE):
        def decode(self, img_seq: Tensor) -> Tensor:
            return img_seq

    return Tokens(image_size=2 * side, num_tokens=vocab_size, codebook_dim=1, num_layers=1, hidden_dim=1)


def count_parameters(model: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


if __name__ == "__main__":
    install()
    torch.manual_seed(0)
    for kind in ATTENTION:
        peer = build(4, 192, 6, 33, 8, 512, 512, kind)
        print(kind, f"{count_parameters(peer):,} weights")
