"""The parts of a training that `adversary` and `perceptual` of params.yaml set, with the weights they name.

A perceptual network is the image tower of a trained scorer, or VGG-16 from a file that the user has. A file is read
without running code, and every name and shape in it is compared.
"""

from functools import partial
from pathlib import Path

import torch

from thousandwords import components
from thousandwords.core.config import ConfigError
from thousandwords.core.init_models import perceptual_folder
from thousandwords.core.weight_files import weights_problem
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses, PerceptualConfig
from thousandwords.nn.perceptual import VGG16, VGG_SMALLEST_IMAGE, VGG_WIDTHS, PerceptualDistance
from thousandwords.pretrained.safe_pickle import printable
from thousandwords.pretrained.torch_container import OtherModel, check_finite, read_state_dict

Shapes = dict[str, tuple[int, ...]]


def build_image_losses(config: ImageLossConfig, image_size: int, name: str) -> ImageLosses:
    """The parts that the section `name` of params.yaml sets; raises UserError where they do not fit its images."""
    try:
        if config.adversary:
            config.adversary.check_image_size(image_size)
        perceptual = load_distance(config.perceptual, image_size, name) if config.perceptual else None
    except ConfigError:  # has its place already
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: {name}.{error}") from error
    return ImageLosses(config, perceptual)


def load_distance(config: PerceptualConfig, image_size: int, name: str) -> PerceptualDistance:
    """The distance by the features of the network that a block `perceptual` names, with its weights."""
    if folder := perceptual_folder(config.network, name):
        if config.lpips:
            raise ValueError(
                "perceptual.lpips is for VGG-16, but perceptual.network is a scorer. Set it to null"
            )
        return PerceptualDistance(components.load("scorers", folder, fix=f"cp -r FOLDER {folder}"))
    if image_size < VGG_SMALLEST_IMAGE:
        raise ValueError(
            f"perceptual.network is VGG-16, which needs images of {VGG_SMALLEST_IMAGE} pixels or more, but image_size is "
            f"{image_size}. Set {name}.perceptual: null"
        )
    network = VGG16()
    setting, ours = f"params.yaml: {name}.perceptual.network", components.shapes(network)
    network.load_state_dict(_read(Path(config.network), setting, ours, "VGG-16", ignored=("classifier.",)))
    if config.lpips is None:
        return PerceptualDistance(network)
    shapes = {f"lin{part}.model.1.weight": (1, widths[-1], 1, 1) for part, widths in enumerate(VGG_WIDTHS)}
    setting = f"params.yaml: {name}.perceptual.lpips"
    weights = _read(Path(config.lpips), setting, shapes, "LPIPS' linear weights for VGG-16")
    return PerceptualDistance(network, [weights[name].flatten() for name in shapes])


def _read(
    path: Path, setting: str, shapes: Shapes, content: str, ignored: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a torch file, which has to have exactly these names and shapes."""
    if problem := weights_problem(path):
        raise ConfigError(f"{setting}, {path}, {problem}")
    _, arrays = read_state_dict(path, (), ignored, partial(_check, expected=shapes, content=content))
    check_finite(path, arrays)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _check(shapes: Shapes, expected: Shapes, content: str) -> None:
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        raise OtherModel(
            f"does not hold {content}: {len(wrong)} tensors differ, the first is {printable(wrong[0])}: expected "
            f"{expected.get(wrong[0], 'none')}, found {shapes.get(wrong[0], 'none')}"
        )
