"""The network that images are compared by (setting `evaluation.features`): the pipeline's own CLIP, another
open_clip model, or the Inception of FID.

The setting names a checkpoint on this machine: a file with the state dict of FID's Inception, or an open_clip
model written like `clip.pretrained`. Nothing is downloaded, and no code in a file is run: torch-fidelity would
unpickle any path it gets, so `pretrained.torch_container` reads the tensors, and they are compared with those of its network by name and shape.

Axes: B images, D features, K classes (0 where the network has none).
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from thousandwords import components
from thousandwords.core.config import ConfigError
from thousandwords.core.files import fingerprint, sha256_of
from thousandwords.core.weight_files import weights_problem
from thousandwords.pretrained.torch_container import read_state_dict

SETTING = "params.yaml: evaluation.features"
# of pytorch-fid and torch-fidelity; the name ends in its sha256
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
ACCEPTED = f"a file such as {PUBLISHED}, or an open_clip checkpoint as 'local-dir:FOLDER' or 'MODEL:FILE'; null is the own CLIP"
LAYERS = ["2048", "logits_unbiased"]  # for FID, KID, precision and recall; for the Inception Score
UNUSED = "num_batches_tracked"  # of batch normalization: some files have them, no figure needs them


@dataclass(frozen=True)
class FigureNames:
    """The keys of the blocks in metrics.json."""

    frechet: str
    kernel: str
    precision_recall: str
    inception_score: str = ""  # empty where the network has no classes


CLIP_FIGURES = FigureNames("clip_frechet", "clip_kernel", "clip_precision")
INCEPTION_FIGURES = FigureNames("fid", "kid", "precision", "inception_score")


@dataclass(frozen=True)
class Extractor:
    """A network that turns images into features, and how it is described in the protocol."""

    network: nn.Module
    extract: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    names: FigureNames
    description: str
    preprocessing: str
    sha256: str | None = None  # of the checkpoint; None for the own CLIP: the protocol has its fingerprint

    def to_device(self, images: Tensor) -> Tensor:
        """The images on the network's device."""
        return images.to(next(self.network.parameters()).device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> features (B, D) and logits (B, K), on the CPU."""
        features, logits = self.extract(self.network, self.to_device(images))
        return features.cpu(), logits.cpu()

    def protocol(self) -> dict[str, str | None]:
        """What metrics.json says of the network in its block `protocol`."""
        return {
            "features": self.description,
            "features_sha256": self.sha256,
            "features_preprocessing": self.preprocessing,
        }


def load_extractor(setting: str) -> Extractor:
    """The network that `evaluation.features` names; raises ConfigError, one sentence, if it cannot be read."""
    if Path(setting).exists():
        return _load_inception(Path(setting))
    model, colon, location = setting.partition(":")
    if not colon or model == "hf-hub":
        raise ConfigError(f"{SETTING} is {setting!r}, but there is no such file. Give {ACCEPTED}")
    if not (Path(location).is_dir() if model == "local-dir" else Path(location).is_file()):
        kind = "folder" if model == "local-dir" else "file"
        raise ConfigError(
            f"{SETTING} is {setting!r}, but there is no {kind} {location!r} (nothing is downloaded). Give {ACCEPTED}"
        )
    return _load_open_clip(setting, Path(location))


def scorer_extractor(scorer: nn.Module) -> Extractor:
    """The pipeline's own scorer as an extractor."""
    description = "the image tower of models/scorer, this pipeline's own CLIP, unit vectors; not Inception: no FID, no KID"
    preprocessing = "floats in [0, 1], as the scorer takes them"
    return Extractor(scorer, _unit_vectors, CLIP_FIGURES, description, preprocessing)


def _load_open_clip(setting: str, location: Path) -> Extractor:
    _, config_class = components.component("scorers", "clip")
    try:
        # the checkpoint's own image size replaces the 224
        network = components.build("scorers", "clip", config_class(pretrained=setting), image_size=224)
    except ValueError as error:
        message = f"params.yaml: {_one_line(error)}"
        raise ConfigError(message.replace("clip.pretrained", "evaluation.features")) from error
    name = setting.partition(":")[0]
    description = f"the image tower of {name} from {location.name}, by open_clip, unit vectors; not Inception: no FID, no KID"
    height, width = network.image_size
    preprocessing = f"resized to {height} x {width} by {network.interpolation} with antialiasing, normalized as the checkpoint says"
    network.eval().requires_grad_(False)
    return Extractor(network, _unit_vectors, CLIP_FIGURES, description, preprocessing, _sha256(location))


def _unit_vectors(scorer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return scorer.embed_images(images), images.new_zeros(len(images), 0)


def _sha256(path: Path) -> str:
    """The sha256 of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return sha256_of(path)
    return fingerprint({file.name: sha256_of(file) for file in sorted(path.iterdir()) if file.is_file()})


def _load_inception(file: Path) -> Extractor:
    network, sha256 = build_inception(_read_state_dict(file), file), sha256_of(file)
    is_published = PUBLISHED.endswith(f"-{sha256[:8]}.pth")
    description = (
        f"Inception v3 of 2015-12-05 from {file.name}, by torch-fidelity: 2048 pool features, logits without bias; "
        + ("the published weights" if is_published else f"not the bytes of the published {PUBLISHED}")
    )
    preprocessing = "uint8, resized to 299 x 299 as TensorFlow 1 did (bilinear, no antialiasing)"
    return Extractor(network, _pool_and_logits, INCEPTION_FIGURES, description, preprocessing, sha256)


def build_inception(state: Mapping[str, object], source: Path) -> nn.Module:
    """torch-fidelity's network with these weights; raises ConfigError that names the tensors that do not fit."""
    with torch.device("meta"):
        network = _empty_inception()
    shapes = {
        name: tensor.shape for name, tensor in network.state_dict().items() if not name.endswith(UNUSED)
    }
    weights = {name: tensor for name, tensor in state.items() if not str(name).endswith(UNUSED)}
    if problems := _weight_problems(shapes, weights):
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ConfigError(
            f"{SETTING}, {source}, does not hold FID's Inception: {', '.join(problems[:3])}{more}. Give {ACCEPTED}"
        )
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _weight_problems(shapes: Mapping[str, torch.Size], weights: Mapping[str, object]) -> list[str]:
    """Why `weights` cannot be loaded, a few words each; empty if they can."""
    problems = [f"it lacks {name}" for name in shapes if name not in weights]
    problems += [f"it has {str(name)[:60]!r}" for name in weights if name not in shapes]
    for name in shapes.keys() & weights.keys():
        tensor = weights[name]
        is_dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided
        if not is_dense or not tensor.is_floating_point():
            problems.append(f"{name} holds no floating-point numbers")
        elif tensor.shape != shapes[name]:
            problems.append(f"{name} is {tuple(tensor.shape)} and should be {tuple(shapes[name])}")
        elif not tensor.isfinite().all():
            problems.append(f"{name} has numbers that are not finite")
    return sorted(problems)


def _empty_inception() -> nn.Module:
    """The network without weights: its constructor would download or unpickle, so it gets an empty file."""
    # imported here because it takes more than a second
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Inception(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: Mapping, **options: bool) -> object:
            return super().load_state_dict(state, **options) if state else None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Inception("inception-v3-compat", LAYERS, feature_extractor_weights_path=empty)


def _pool_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return network((images * 255).round().clamp(0, 255).to(torch.uint8))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__


def _read_state_dict(file: Path) -> Mapping[str, object]:
    """The state dict in a file of torch.save or safetensors, without running its code; raises ConfigError."""
    if problem := weights_problem(file):
        raise ConfigError(f"{SETTING}, {file}, {problem}. Give {ACCEPTED}")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        _, arrays = read_state_dict(file)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # a damaged file raises anything
        raise ConfigError(
            f"{SETTING}, {file}, is not a file of weights, or is damaged, or would run code when loaded, which is "
            f"never allowed ({_one_line(error)[:200]}). Fetch {PUBLISHED} from its publisher"
        ) from error
