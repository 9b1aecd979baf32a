"""The published tokenizer of VAR (arXiv 2404.02905), imported as our multi_scale model.

A file is a plain state dict. Names are those of taming-transformers, but query, key and value of an attention are one
tensor. The sizes follow from the shapes, except for the scales.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from thousandwords import components
from thousandwords.core.config import ConfigError, section
from thousandwords.pretrained.torch_container import OtherModel, check_finite, checked_sha256, read_state_dict
from thousandwords.pretrained.vqgan_weights import LAYOUTS, Shapes, check_shapes, published_name, sizes_of

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of the published models of 256 pixels
IGNORED = ("quantize.ema_vocab_hit_SV",)  # how often each code was used
MIDDLE = "encoder.mid.attn_1.qkv.weight"
# of a tokenizer that is trained no further, or its decoder alone
SETTINGS = {"codebook": "gradient", "first_steps_without_codes": 0, "restart_every": None, "stop_share": 0.0}


def import_weights(
    path: Path, out: Path, expected_sha256: str | None = None, scales: Sequence[int] = SCALES
) -> str:
    """Write the image tokenizer of a file to the folder `out`; return its fingerprint.

    `expected_sha256`, if given, is compared; the header records the file's in `pickle_sha256`, and in `pickle_part` where
    the weights are in it. Raises UserError before anything is written; nothing in the file is ever run.
    """
    sha256 = checked_sha256(path, expected_sha256)
    part, arrays = read_state_dict(path, (), IGNORED, partial(_check, scales=scales))
    check_finite(path, arrays)
    model = _model({name: array.shape for name, array in arrays.items()}, scales)
    published = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = {name: _ours(published, *source) for name, source in published_names(model).items()}
    state["quantizer.usage"] = torch.full((model.vocab_size,), 1 / model.vocab_size)
    metadata = {"layout": "var", "pickle_sha256": {"weights": sha256}, "pickle_part": part}
    return components.save(model, out, state, **metadata)


def published_names(model: nn.Module) -> dict[str, tuple[str, int | None]]:
    """{our name: (the published name, which third of that tensor or None for all)} of a multi_scale model's tensors."""
    levels, names = len(model.config.vqgan.multipliers), {}
    for name in model.state_dict().keys() - {"quantizer.usage"}:
        published = published_name(name, LAYOUTS["taming"], levels)
        published = published.replace("residual.phi.", "quantize.quant_resi.qresi_ls.")
        published = published.replace("quantizer.vectors", "quantize.embedding.weight")
        part = re.search(r"\.([qkv])\.(weight|bias)$", published)
        third = "qkv".index(part[1]) if part else None
        names[name] = re.sub(r"\.[qkv]\.(weight|bias)$", r".qkv.\1", published), third
    return names


def _ours(published: dict[str, Tensor], name: str, third: int | None) -> Tensor:
    return published[name] if third is None else published[name].chunk(3)[third].clone()


def _check(shapes: Shapes, scales: Sequence[int]) -> None:
    """Raise RejectedPickle unless these are exactly the names and shapes of one tokenizer of VAR."""
    model = _model(shapes, scales)
    ours, expected = components.shapes(model), {}
    for name, (published, third) in published_names(model).items():
        first, *others = ours[name]
        expected[published] = (first if third is None else 3 * first, *others)
    check_shapes(shapes, expected, "VAR")


def _model(shapes: Shapes, scales: Sequence[int]) -> nn.Module:
    """The multi_scale model whose sizes the shapes say, on torch's meta device."""
    config_class = components.component("image_tokenizers", "multi_scale")[1]
    phi = [name for name in shapes if re.fullmatch(r"quantize\.quant_resi\.qresi_ls\.\d+\.weight", name)]
    try:
        sizes = sizes_of(shapes, LAYOUTS["taming"])
        trunk = {name: sizes[name] for name in ("width", "multipliers", "blocks")} | {
            "attention": MIDDLE in shapes
        }
        values = {"vocab_size": sizes["vocab_size"], "latent_width": sizes["code_width"], "num_phi": len(phi)}
        values |= {"scales": scales, "trunk": "vqgan", "vqgan": trunk}
        config = section(values | SETTINGS, "multi_scale", config_class)
        with torch.device("meta"):
            image_size = config.scales[-1] * config.sizes.cell
            return components.build("image_tokenizers", "multi_scale", config, image_size=image_size)
    except (ConfigError, ValueError) as error:
        raise OtherModel(f"holds no tokenizer of VAR: {str(error).removeprefix('params.yaml: ')}") from error
