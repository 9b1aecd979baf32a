"""The peer that our generator is measured against: DALLE of PyPI's dalle-pytorch, beside the torch that is there.

It is installed into .bench/peer, never into the project's environment, from bench/peer.lock (hashes). Of what it imports, only
einops and rotary-embedding-torch are at work in what is measured; the rest (VQGAN, OpenAI's weights, tokenizers) is stood in for
by empty modules while it is imported.

It is not the same model: its MLP is gated (16 width^2 weights a layer where ours has 12), it turns queries, keys and values, and
it shifts a quarter of the channels by a cell. Depth, width, heads, lengths and vocabularies are the same.
"""
from __future__ import annotations

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
# names that the peer's modules import and that nothing measured uses
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
    """The peer is not here and cannot be fetched; says why in one line."""


def installed() -> bool:
    """Puts the peer into .bench/peer unless it is there; False, and a line that says so, where no registry answers."""
    try:
        _install()
    except NoPeer as reason:
        print(f"left out: everything against dalle-pytorch. {reason}", file=sys.stderr)
        return False
    return True


def _install() -> None:
    if (FOLDER / "lock").exists() and (FOLDER / "lock").read_bytes() == LOCK.read_bytes():
        return
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--upgrade"]
    command = [sys.executable, "-m", "pip", *words, "--target", str(FOLDER), "-r", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise NoPeer(f"pip could not install bench/peer.lock into {FOLDER.relative_to(ROOT)}: {last}")
    (FOLDER / "lock").write_bytes(LOCK.read_bytes())  # last: a half-finished folder is done again


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules for what the peer imports and does not use here; gone again once it is imported."""
    made = [name for name in UNUSED if name not in sys.modules]
    for name in made:
        module: Any = ModuleType(name)
        for attribute in UNUSED[name]:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


def imported() -> ModuleType:
    """The module `dalle_pytorch.dalle_pytorch` of .bench/peer."""
    if "dalle_pytorch" not in sys.modules:
        package: Any = ModuleType("dalle_pytorch")  # in place of its __init__, which asks for pkg_resources of old setuptools
        package.__path__ = [str(FOLDER / "dalle_pytorch")]
        sys.modules["dalle_pytorch"] = package
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # last, so that nothing of the project's own environment is hidden
    with _stand_ins():
        return importlib.import_module("dalle_pytorch.dalle_pytorch")


class Peer(nn.Module):
    """The peer behind our words: text (B, T) with -1 for pads, tokens (B, L) in raster order."""

    def __init__(self, dalle: nn.Module) -> None:
        super().__init__()
        self.dalle = dalle

    def loss(self, text: Tensor, tokens: Tensor) -> Tensor:
        """Its own loss: text and image weighted 1 to 7, pads counted as words of their own."""
        return self.dalle(text + 1, tokens, return_loss=True)  # 0 is its pad

    def sample(self, text: Tensor, use_cache: bool = True) -> Tensor:
        """Image tokens (B, L) by its own loop and filter (the better half of the words), each row read and drawn alone."""
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
    is_mended: bool = False,
) -> Peer:
    """The peer at these sizes, attending to everything before or by its row, column and convolutional layers.

    `for_sampling` makes row and column layers ones that its cache knows ("optimize_for_inference"); the weights stay the same.
    `is_mended` makes its drawing without guidance use the cache that it is told to use, which as published it does not.
    """
    library = imported()
    dalle = (_mended(library) if is_mended else library.DALLE)(
        dim=width,
        vae=_words_only(library, image_side, image_vocab),
        num_text_tokens=text_vocab + 1,
        text_seq_len=text_length,
        depth=depth,
        heads=heads,
        dim_head=width // heads,
        attn_types=ATTENTION[attention],
        optimize_for_inference=for_sampling,
    )
    return Peer(dalle)


def _mended(library: ModuleType) -> type[nn.Module]:
    class Cached(library.DALLE):
        """As it comes, its loop forgets the cache where no guidance is asked for (forward_with_cond_scale): here it keeps it."""

        def forward_with_cond_scale(self, *args: Any, cond_scale: float = 1, cache: Any = None, **words: Any) -> Tensor:
            if cond_scale == 1:
                return self(*args, cache=cache, **words)
            return super().forward_with_cond_scale(*args, cond_scale=cond_scale, cache=cache, **words)

    return Cached


def _words_only(library: ModuleType, side: int, words: int) -> nn.Module:
    """The least image tokenizer that the peer takes; its decoder hands back the words, so that only drawing them is timed."""

    class Words(library.DiscreteVAE):
        def decode(self, img_seq: Tensor) -> Tensor:
            return img_seq

    return Words(image_size=2 * side, num_tokens=words, codebook_dim=1, num_layers=1, hidden_dim=1)


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


if __name__ == "__main__":
    installed()
    torch.manual_seed(0)
    for kind in ATTENTION:
        peer = build(4, 192, 6, 33, 8, 512, 512, kind)
        print(kind, f"{parameters(peer):,} weights")
