"""The released weights of DALL-E's tokenizer (openai/DALL-E) as a tokenizer of ours, once and for all.

The published `encoder.pkl` and `decoder.pkl` are whole pickled torch modules. They are read without being run, every name,
shape and gain is compared with our own architecture, and what is left is a folder of safetensors and JSON. Their names
read "blocks.group_1.block_2.res_path.conv_3.w" where ours read "encoder.group_1_block_2.path.conv_3.weight".
"""
from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from thousandwords import components
from thousandwords.errors import UserError
from thousandwords.files import sha256_of
from thousandwords.torch_files import MOST_FILE_BYTES, Contents, read_tensors
from thousandwords.unpickling import RefusedPickle, shown

HALVES = {"encoder": "dall_e.encoder.Encoder", "decoder": "dall_e.decoder.Decoder"}
IMAGE_SIZE = 256  # pixels of the pictures it was trained on; its convolutions take others too
RENAMED = (  # ours -> theirs, in this order
    (r"weight$", "w"),
    (r"bias$", "b"),
    (r"^codebook\.", "input."),
    (r"^output\.", "output.conv."),
    (r"^(group_\d+)_(block_\d+)\.", r"\1.\2."),
    (r"\.identity\.", ".id_path."),
    (r"\.path\.", ".res_path."),
)


def convert(
    pickles: dict[str, Path],
    out: Path,
    pins: dict[str, str | None] | None = None,
    config: object | None = None,
    image_size: int = IMAGE_SIZE,
) -> str:
    """Writes the tokenizer of {"encoder": path, "decoder": path} to the folder `out`; returns its fingerprint.

    `pins` are the sha256 that a file has to have; `config` is the dvae.Config of the architecture, the paper's when None.
    The header keeps both sha256 as `pickle_sha256`. Raises UserError; nothing is written then, and never is a file run.
    """
    digests = {half: _digest(pickles[half], (pins or {}).get(half)) for half in HALVES}
    model = _architecture(config, image_size)
    state: dict[str, torch.Tensor] = {}
    for half in HALVES:
        wanted = _wanted(model, half)
        arrays = read_tensors(pickles[half], lambda contents, half=half, wanted=wanted: _check(contents, half, wanted, model))
        _check_finite(pickles[half], arrays)
        state |= {f"{half}.{name}": torch.from_numpy(arrays[released_name(name)]) for name in _half(model, half)}
    return components.save(model, out, state, pickle_sha256=digests)


def released_name(name: str) -> str:
    """"group_1_block_2.path.conv_3.weight" -> "blocks.group_1.block_2.res_path.conv_3.w" """
    for ours, theirs in RENAMED:
        name = re.sub(ours, theirs, name)
    return f"blocks.{name}"


def _digest(path: Path, pin: str | None) -> str:
    """The sha256 of a file; raises UserError where there is no file, it is too long, or it is not the one pinned."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}. Fetch it from where it was published")
    if Path(path).stat().st_size > MOST_FILE_BYTES:
        raise UserError(f"{path} has more than {MOST_FILE_BYTES:,} bytes, the most that a released tokenizer has")
    found = sha256_of(path)
    if pin is not None and found != pin.lower():
        raise UserError(f"{path} is not the file that was pinned: its sha256 should be {pin}, found {found}. Fetch it again")
    return found


def _architecture(config: object | None, image_size: int) -> nn.Module:
    """Our dVAE of that size, without memory: only names and shapes are looked at."""
    _, config_class = components.component("tokenizers", "dvae")
    with torch.device("meta"):
        return components.build("tokenizers", "dvae", config_class() if config is None else config, image_size=image_size)


def _half(model: nn.Module, half: str) -> dict[str, torch.Tensor]:
    return getattr(model, half).state_dict()


def _wanted(model: nn.Module, half: str) -> dict[str, tuple[int, ...]]:
    """The released names of one half, and their shapes."""
    return {released_name(name): tuple(tensor.shape) for name, tensor in _half(model, half).items()}


def _check(contents: Contents, half: str, wanted: dict[str, tuple[int, ...]], model: nn.Module) -> None:
    """Raises RefusedPickle unless a file holds that half, with the very names, shapes and gains."""
    kind = str(contents.modules[""].kind)
    if kind != HALVES[half]:
        raise RefusedPickle(f"holds {kind}, but {HALVES[half]} was wanted (were the two files swapped?)")
    found = {name: tensor.shape for name, tensor in contents.tensors.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        first = wrong[0]
        raise RefusedPickle(
            f"does not fit the {half}: {len(wrong)} tensors differ, the first is {shown(first)}: "
            f"wanted {wanted.get(first, 'none')}, found {found.get(first, 'none')}"
        )
    for path, module in contents.modules.items():
        gain = (module.state or {}).get("post_gain", model.config.path_gain)
        if type(gain) is not float or not math.isclose(gain, model.config.path_gain):
            raise RefusedPickle(f"has a gain at {shown(path)} that is not {model.config.path_gain}, the one of the {half}")


def _check_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has numbers that are not finite, the first in {wrong[0]}. Fetch it again")
