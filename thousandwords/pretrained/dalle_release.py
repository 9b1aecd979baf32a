"""The image tokenizer of the DALL-E release (openai/DALL-E), imported as one of our dVAE models.

The published `encoder.pkl` and `decoder.pkl` are pickled torch modules. They are read without being run,
every name, shape and gain is compared with our architecture, and the result is a folder of safetensors and
JSON. Parameter names differ: "blocks.group_1.block_2.res_path.conv_3.w" is our
"encoder.group_1_block_2.path.conv_3.weight".
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of
from thousandwords.pretrained.safe_pickle import Network, RejectedPickle, printable
from thousandwords.pretrained.torch_container import MAX_FILE_BYTES, read_tensors

HALVES = {"encoder": "dall_e.encoder.Encoder", "decoder": "dall_e.decoder.Decoder"}
IMAGE_SIZE = 256  # pixels of the images it was trained on; its convolutions accept other sizes
NAME_RULES = (  # our name -> name in the release, applied in this order
    (r"weight$", "w"),
    (r"bias$", "b"),
    (r"^codebook\.", "input."),
    (r"^output\.", "output.conv."),
    (r"^(group_\d+)_(block_\d+)\.", r"\1.\2."),
    (r"\.identity\.", ".id_path."),
    (r"\.path\.", ".res_path."),
)


def import_weights(
    pickles: dict[str, Path],
    out: Path,
    expected_sha256: dict[str, str | None] | None = None,
    config: object | None = None,
    image_size: int = IMAGE_SIZE,
) -> str:
    """Write the image tokenizer of {"encoder": path, "decoder": path} to the folder `out`; returns its
    fingerprint.

    `expected_sha256` of a file, if given, is compared; `config` is the DVAEConfig of the architecture,
    default: the paper's. The header records both sha256 as `pickle_sha256`. Raises UserError before anything
    is written; no file is ever run.
    """
    digests = {half: _checked_sha256(pickles[half], (expected_sha256 or {}).get(half)) for half in HALVES}
    model = _architecture(config, image_size)
    state: dict[str, torch.Tensor] = {}
    for half in HALVES:
        shapes = _release_shapes(model, half)
        arrays = read_tensors(
            pickles[half], lambda network, half=half, shapes=shapes: _check(network, half, shapes, model)
        )
        _check_finite(pickles[half], arrays)
        names = _state_dict(model, half)
        state |= {f"{half}.{name}": torch.from_numpy(arrays[release_name(name)]) for name in names}
    return components.save(model, out, state, pickle_sha256=digests)


def release_name(name: str) -> str:
    """ "group_1_block_2.path.conv_3.weight" -> "blocks.group_1.block_2.res_path.conv_3.w" """
    for pattern, replacement in NAME_RULES:
        name = re.sub(pattern, replacement, name)
    return f"blocks.{name}"


def _checked_sha256(path: Path, expected_sha256: str | None) -> str:
    """The sha256 of a file; raises UserError if it is missing, too large, or not the expected one."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}. Download it from where it was published")
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise UserError(
            f"{path} has more than {MAX_FILE_BYTES:,} bytes, the maximum for a file of the DALL-E release"
        )
    sha256 = sha256_of(path)
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise UserError(
            f"{path} is not the expected file: its sha256 should be {expected_sha256}, found {sha256}. Download it again"
        )
    return sha256


def _architecture(config: object | None, image_size: int) -> nn.Module:
    """Our dVAE of that size on the meta device: only names and shapes are needed."""
    _, config_class = components.component("image_tokenizers", "dvae")
    with torch.device("meta"):
        return components.build(
            "image_tokenizers", "dvae", config_class() if config is None else config, image_size=image_size
        )


def _state_dict(model: nn.Module, half: str) -> dict[str, torch.Tensor]:
    return getattr(model, half).state_dict()


def _release_shapes(model: nn.Module, half: str) -> dict[str, tuple[int, ...]]:
    """{name in the release: shape} of one half."""
    return {release_name(name): tuple(tensor.shape) for name, tensor in _state_dict(model, half).items()}


def _check(
    network: Network, half: str, expected_shapes: dict[str, tuple[int, ...]], model: nn.Module
) -> None:
    """Raise RejectedPickle unless a file holds that half, with exactly our names, shapes and gains."""
    kind = str(network.modules[""].kind)
    if kind != HALVES[half]:
        raise RejectedPickle(f"holds {kind}, but {HALVES[half]} was expected (are the two files swapped?)")
    shapes = {name: tensor.shape for name, tensor in network.tensors.items()}
    names = expected_shapes.keys() | shapes.keys()
    if wrong := sorted(name for name in names if expected_shapes.get(name) != shapes.get(name)):
        first = wrong[0]
        raise RejectedPickle(
            f"does not fit the {half}: {len(wrong)} tensors differ, the first is {printable(first)}: "
            f"expected {expected_shapes.get(first, 'none')}, found {shapes.get(first, 'none')}"
        )
    for path, module in network.modules.items():
        gain = (module.state or {}).get("post_gain", model.config.path_gain)
        if type(gain) is not float or not math.isclose(gain, model.config.path_gain):
            raise RejectedPickle(
                f"has a gain at {printable(path)} that is not {model.config.path_gain}, the gain of the {half}"
            )


def _check_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has numbers that are not finite, the first in {wrong[0]}. Download it again")
