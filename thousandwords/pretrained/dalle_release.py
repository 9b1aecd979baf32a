"""The image tokenizer of the DALL-E release (openai/DALL-E), imported as one of our dVAE models.

The published `encoder.pkl` and `decoder.pkl` are pickled torch modules. They are read without being run,
every name, shape and gain is compared with our architecture, and the result is a folder of safetensors and
JSON. Parameter names differ: "blocks.group_1.block_2.res_path.conv_3.w" is our
"encoder.group_1_block_2.path.conv_3.weight".
"""

import math
import re
from functools import partial
from pathlib import Path

import torch

from thousandwords import components
from thousandwords.pretrained.safe_pickle import Network, RejectedPickle, printable
from thousandwords.pretrained.torch_container import check_finite, checked_sha256, read_tensors

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
    """Write the image tokenizer of {"encoder": path, "decoder": path} to the folder `out`; return its fingerprint.

    `expected_sha256` of a file, if given, is compared; `config` is the DVAEConfig of the architecture,
    default: the paper's. The header records both sha256 as `pickle_sha256`. Raises UserError before anything
    is written; no file is ever run.
    """
    digests = {half: checked_sha256(pickles[half], (expected_sha256 or {}).get(half)) for half in HALVES}
    with torch.device("meta"):  # only names and shapes are needed
        config = config or components.component("image_tokenizers", "dvae")[1]()
        model = components.build("image_tokenizers", "dvae", config, image_size=image_size)
    state: dict[str, torch.Tensor] = {}
    for half, kind in HALVES.items():
        ours = getattr(model, half).state_dict()
        shapes = {release_name(name): tuple(tensor.shape) for name, tensor in ours.items()}
        check = partial(_check, half=half, kind=kind, expected_shapes=shapes, gain=model.config.path_gain)
        arrays = read_tensors(pickles[half], check)
        check_finite(pickles[half], arrays)
        state |= {f"{half}.{name}": torch.from_numpy(arrays[release_name(name)]) for name in ours}
    return components.save(model, out, state, pickle_sha256=digests)


def release_name(name: str) -> str:
    """ "group_1_block_2.path.conv_3.weight" -> "blocks.group_1.block_2.res_path.conv_3.w" """
    for pattern, replacement in NAME_RULES:
        name = re.sub(pattern, replacement, name)
    return f"blocks.{name}"


def _check(network: Network, half: str, kind: str, expected_shapes: dict[str, tuple], gain: float) -> None:
    """Raise RejectedPickle unless a file holds that half, with exactly our names, shapes and gain."""
    found = network.modules[""].kind
    if found != kind:
        raise RejectedPickle(f"holds {found}, but {kind} was expected (are the two files swapped?)")
    shapes = {name: tensor.shape for name, tensor in network.tensors.items()}
    names = expected_shapes.keys() | shapes.keys()
    if wrong := sorted(name for name in names if expected_shapes.get(name) != shapes.get(name)):
        first = wrong[0]
        raise RejectedPickle(
            f"does not fit the {half}: {len(wrong)} tensors differ, the first is {printable(first)}: "
            f"expected {expected_shapes.get(first, 'none')}, found {shapes.get(first, 'none')}"
        )
    for path, module in network.modules.items():
        value = (module.state or {}).get("post_gain", gain)
        if type(value) is not float or not math.isclose(value, gain):
            raise RejectedPickle(
                f"has a gain at {printable(path)} that is not {gain}, the gain of the {half}"
            )
