"""What pictures are compared by (`evaluation.features`): the pipeline's own CLIP, another open_clip model, or FID's Inception.

The setting names a checkpoint on this machine: a file that holds the state dict of FID's Inception (published as
pt_inception-2015-12-05-6726825d.pth; as it is, or as safetensors), or an open_clip model as `clip.pretrained` names it. Nothing
is downloaded and nothing that a file carries is run: torch-fidelity itself would unpickle whatever it is handed, so it gets no
path, but tensors that were read here and whose names and shapes were compared with those of its network.

Only Inception's figures are called FID, KID and Inception Score.

Axes: B pictures, D features, K classes (0 where the network has none).
"""
from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from thousandwords import components
from thousandwords.config import ConfigError
from thousandwords.files import fingerprint, sha256_of

SETTING = "params.yaml: evaluation.features"
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"    # as pytorch-fid and torch-fidelity publish it: its name ends in its sha256
FORMS = f"a file such as {PUBLISHED}, or an open_clip checkpoint as 'local-dir:FOLDER' or 'MODEL:FILE'; null is the own CLIP"
LAYERS = ["2048", "logits_unbiased"]    # torch-fidelity's for FID, KID, precision and recall, and for the Inception Score
UNUSED = "num_batches_tracked"    # batches that a normalisation has seen; some files have them, no figure needs them
BROKEN = (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError,
          TypeError, AttributeError, AssertionError, ImportError, OverflowError, MemoryError, struct.error)    # of files' readers


@dataclass(frozen=True)
class Names:
    """What the blocks of metrics.json are called."""

    frechet: str
    kernel: str
    spread: str    # precision and recall
    score: str = ""    # of the classes; none where there are none


OF_CLIP = Names("clip_frechet", "clip_kernel", "clip_precision")
OF_INCEPTION = Names("fid", "kid", "precision", "inception_score")


@dataclass(frozen=True)
class Extractor:
    """A network, and what of it goes into the protocol."""

    network: nn.Module
    look: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    names: Names
    what: str    # in words
    preprocessing: str
    sha256: str | None = None    # of the checkpoint's file; None of the own CLIP, whose fingerprint the protocol has anyway

    def place(self, pictures: Tensor) -> Tensor:
        """The pictures on the network's device."""
        return pictures.to(next(self.network.parameters()).device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1], on any device -> features (B, D) and logits (B, K), on the CPU."""
        features, logits = self.look(self.network, self.place(pictures))
        return features.cpu(), logits.cpu()

    def protocol(self) -> dict[str, str | None]:
        return {"features": self.what, "features_sha256": self.sha256, "features_preprocessing": self.preprocessing}


def extractor(setting: str) -> Extractor:
    """What `evaluation.features` names; raises ConfigError, one sentence, where nothing can be read from there."""
    if Path(setting).is_file():
        return _inception(Path(setting))
    model, colon, place = setting.partition(":")
    if not colon or model == "hf-hub":
        raise ConfigError(f"{SETTING} is {setting!r}, but there is no such file. Give {FORMS}")
    if not (Path(place).is_dir() if model == "local-dir" else Path(place).is_file()):
        kind = "folder" if model == "local-dir" else "file"
        raise ConfigError(f"{SETTING} is {setting!r}, but there is no {kind} {place!r} (nothing is downloaded). Give {FORMS}")
    return _open_clip(setting, Path(place))


# --- CLIP ------------------------------------------------------------------------------------------------------------


def own_clip(scorer: nn.Module) -> Extractor:
    """The pipeline's own scorer."""
    what = "the image tower of models/scorer, this pipeline's own CLIP, unit vectors; not Inception: no FID, no KID"
    return Extractor(scorer, _unit_vectors, OF_CLIP, what, "floats in [0, 1], as the scorer takes them")


def _open_clip(setting: str, place: Path) -> Extractor:
    _, config = components.component("scorers", "clip")
    try:
        network = components.build("scorers", "clip", config(pretrained=setting), image_size=224)    # or the checkpoint's own
    except ValueError as error:
        raise ConfigError(f"params.yaml: {_in_a_line(error).replace('clip.pretrained', 'evaluation.features')}") from error
    name = setting.partition(":")[0]
    what = f"the image tower of {name} from {place.name}, by open_clip, unit vectors; not Inception: no FID, no KID"
    height, width = network.image_size
    resized = f"resized to {height} x {width} by {network.interpolation} with antialiasing, normalised as the checkpoint says"
    return Extractor(network.eval().requires_grad_(False), _unit_vectors, OF_CLIP, what, resized, _sha256(place))


def _unit_vectors(scorer: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
    return scorer.embed_images(pictures), pictures.new_zeros(len(pictures), 0)


def _sha256(place: Path) -> str:
    """Of a file, or of what a folder's files are called and hold."""
    if place.is_file():
        return sha256_of(place)
    return fingerprint({path.name: sha256_of(path) for path in sorted(place.iterdir()) if path.is_file()})


# --- Inception -------------------------------------------------------------------------------------------------------


def _inception(file: Path) -> Extractor:
    network, digest = inception(_read(file), file), sha256_of(file)
    is_published = PUBLISHED.endswith(f"-{digest[:8]}.pth")
    what = (f"Inception v3 of 2015-12-05 from {file.name}, by torch-fidelity: 2048 pool features, logits without bias; "
            + ("the published weights" if is_published else f"not the bytes of the published {PUBLISHED}"))    # fmt: skip
    resized = "uint8, resized to 299 x 299 as TensorFlow 1 did (bilinear, no antialiasing)"
    return Extractor(network, _pool_and_logits, OF_INCEPTION, what, resized, digest)


def inception(state: Mapping[str, object], source: Path) -> nn.Module:
    """torch-fidelity's network with these weights; raises ConfigError that names what is missing, too much or misshapen."""
    with torch.device("meta"):
        network = _bare_inception()
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if not name.endswith(UNUSED)}
    found = {name: tensor for name, tensor in state.items() if not str(name).endswith(UNUSED)}
    wrong = [*_misfits(wanted, found)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ConfigError(f"{SETTING}, {source}, does not hold FID's Inception: {', '.join(wrong[:3])}{more}. Give {FORMS}")
    network.load_state_dict({name: tensor.float() for name, tensor in found.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _misfits(wanted: Mapping[str, torch.Size], found: Mapping[str, object]) -> list[str]:
    """What keeps tensors from being these weights, each in a few words."""
    wrong = [f"it lacks {name}" for name in wanted if name not in found]
    wrong += [f"it has {str(name)[:60]!r}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        tensor = found[name]
        is_plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or not tensor.is_floating_point():
            wrong.append(f"{name} holds no floating-point numbers")
        elif tensor.shape != wanted[name]:
            wrong.append(f"{name} is {tuple(tensor.shape)} and should be {tuple(wanted[name])}")
        elif not tensor.isfinite().all():
            wrong.append(f"{name} has numbers that are not finite")
    return sorted(wrong)


def _bare_inception() -> nn.Module:
    """The network before its weights: its own constructor would download them, or unpickle a file; it is handed an empty one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # late: it takes a second and more

    class Inception(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: Mapping, **options: bool) -> object:
            return super().load_state_dict(state, **options) if state else None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Inception("inception-v3-compat", LAYERS, feature_extractor_weights_path=empty)


def _pool_and_logits(network: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
    return network((pictures * 255).round().clamp(0, 255).to(torch.uint8))


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__


def _read(file: Path) -> Mapping[str, object]:
    """The state dict in a file of torch.save or safetensors; raises ConfigError. Nothing in it is ever run."""
    try:
        with warnings.catch_warnings(action="ignore"):    # torch's own guesses, beside the one sentence
            is_plain = file.suffix == ".safetensors"
            state = safetensors.torch.load_file(file) if is_plain else torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = _in_a_line(error)[:120]
        raise ConfigError(f"{SETTING}, {file}, is no file of weights, or is damaged, or would run code as it loads, which "
                          f"nothing here does ({reason}). Fetch {PUBLISHED} from its publisher") from error    # fmt: skip
    if not isinstance(state, Mapping):
        raise ConfigError(f"{SETTING}, {file}, holds no state dict but a {type(state).__name__}. Give {FORMS}")
    return state
