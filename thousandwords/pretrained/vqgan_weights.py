"""The published tokenizers of taming-transformers and of LlamaGen, imported as our vqgan models.

A file is a state dict in a checkpoint beside optimizers, losses and other objects, which are not read. The sizes
follow from the shapes, so models of other sizes that were trained with the same code can be imported too; then
every name and shape is compared. Names differ: "encoder.level_2_block_1.path.conv_1.weight" of ours is
"encoder.down.1.block.0.conv1.weight" in taming-transformers and "encoder.conv_blocks.1.res.0.conv1.weight" in
LlamaGen, whose decoder counts levels from the coarsest.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from thousandwords import components
from thousandwords.pretrained.safe_pickle import RejectedPickle, printable
from thousandwords.pretrained.torch_container import OtherModel, check_finite, checked_sha256, read_state_dict

IMAGE_SIZE = 256  # pixels of the images they were trained on; their convolutions accept other sizes
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How one codebase names its parts, and what its shapes do not say."""

    parts: tuple[str, ...]  # where the weights are in a checkpoint, the first that is there
    ignored: tuple[str, ...]  # what the names of other things begin with
    levels: dict[str, str]  # the folder of the levels of each half
    is_coarsest_first: bool  # whether the decoder's levels count from the coarsest
    block: str
    middle: dict[str, str]
    settings: dict[str, object]


LAYOUTS = {
    "taming": Layout(
        parts=("state_dict",),
        ignored=("loss.",),
        levels={"encoder": "down", "decoder": "up"},
        is_coarsest_first=False,
        block="block",
        middle={"block_1": "block_1", "attention": "attn_1", "block_2": "block_2"},
        settings={
            **{"l2_normalize": False, "pixel_loss": "absolute"},
            **{"commitment_weight": 1.0, "codebook_weight": 0.25},
        },
    ),
    "llamagen": Layout(
        parts=("ema", "model", "state_dict"),
        ignored=("quantize.codebook_used",),
        levels={"encoder": "conv_blocks", "decoder": "conv_blocks"},
        is_coarsest_first=True,
        block="res",
        middle={"block_1": "0", "attention": "1", "block_2": "2"},
        settings={
            **{"l2_normalize": True, "pixel_loss": "squared"},
            **{"commitment_weight": 0.25, "codebook_weight": 1.0},
        },
    ),
}
CODES = {"nearest": "quantize.embedding.weight", "gumbel": "quantize.embed.weight"}
NAME_RULES = (  # our name -> name in both codebases, applied in this order
    (r"^encoder\.to_code\.", "quant_conv."),
    (r"^encoder\.to_logits\.", "quantize.proj."),
    (r"^decoder\.from_code\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.input\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.norm\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.output\.", r"\1.conv_out."),
    (r"\.path\.(norm|conv)_", r".\1"),
    (r"\.identity\.", ".nin_shortcut."),
    (r"\.query\.", ".q."),
    (r"\.key\.", ".k."),
    (r"\.value\.", ".v."),
    (r"\.output\.", ".proj_out."),
)


def import_weights(
    path: Path, layout: str, out: Path, expected_sha256: str | None = None, image_size: int = IMAGE_SIZE
) -> str:
    """Write the image tokenizer of a file to the folder `out`; return its fingerprint.

    `layout` is one of LAYOUTS. `expected_sha256`, if given, is compared; the header records `layout`, the file's
    sha256 in `pickle_sha256`, and in `pickle_part` where the weights are in it. Raises UserError before anything is written; nothing in the file is ever run.
    """
    sha256 = checked_sha256(path, expected_sha256)
    parts, ignored = LAYOUTS[layout].parts, LAYOUTS[layout].ignored
    check = partial(_check, layout=layout, image_size=image_size)
    part, arrays = read_state_dict(path, parts, ignored, check)
    check_finite(path, arrays)
    model = _model({name: array.shape for name, array in arrays.items()}, layout, image_size)
    names = published_names(model, layout)
    state = {name: torch.from_numpy(arrays[published]) for name, published in names.items()}
    metadata = {"layout": layout, "pickle_sha256": {"weights": sha256}, "pickle_part": part}
    return components.save(model, out, state, **metadata)


def published_names(model: nn.Module, layout: str) -> dict[str, str]:
    """{our name: the name in that codebase} of every tensor of a vqgan model."""
    levels = len(model.config.multipliers)
    names = {name: published_name(name, LAYOUTS[layout], levels) for name in model.state_dict()}
    return names | {"quantizer.vectors": CODES[model.config.quantizer]}


def published_name(name: str, layout: Layout, levels: int) -> str:
    """The name of a tensor of ours in that codebase, in a trunk of so many levels."""

    def level_part(match: re.Match) -> str:
        half, level, part, number = match.groups()
        is_reversed = half == "decoder" and layout.is_coarsest_first
        index = levels - int(level) if is_reversed else int(level) - 1
        if part == "resize":
            part = {"encoder": "downsample", "decoder": "upsample"}[half]
        else:
            part = f"{layout.block if part == 'block' else 'attn'}.{int(number) - 1}"
        return f"{half}.{layout.levels[half]}.{index}.{part}."

    name = re.sub(r"^(\w+)\.level_(\d+)_(block|attention|resize)(?:_(\d+))?\.", level_part, name)
    name = re.sub(r"\.middle_(\w+)\.", lambda match: f".mid.{layout.middle[match[1]]}.", name)
    for pattern, replacement in NAME_RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _check(shapes: Shapes, layout: str, image_size: int) -> None:
    """Raise RejectedPickle unless these are exactly the names and shapes of one tokenizer of that layout."""
    if any(name.startswith("quantize.quant_resi") for name in shapes):
        raise OtherModel("holds VAR's tokenizer of several scales. Give --from var")
    for other in LAYOUTS:
        if other != layout and _first_conv(LAYOUTS[other]) in shapes:
            raise OtherModel(f"has the names of another codebase. Give --from {other}")
    model = _model(shapes, layout, image_size)
    names, ours = published_names(model, layout), components.shapes(model)
    check_shapes(shapes, {names[name]: shape for name, shape in ours.items()}, layout)


def check_shapes(shapes: Shapes, expected: Shapes, origin: str, part: str = "tokenizer") -> None:
    """Raise RejectedPickle unless the names and shapes are the expected ones of the tokenizer of `origin`, or another
    `part` of it."""
    all_names = expected.keys() | shapes.keys()
    if wrong := sorted(name for name in all_names if expected.get(name) != shapes.get(name)):
        first = wrong[0]
        raise RejectedPickle(
            f"does not fit the {part} of {origin}: {len(wrong)} tensors differ, the first is {printable(first)}: "
            f"expected {expected.get(first, 'none')}, found {shapes.get(first, 'none')}"
        )


def _model(shapes: Shapes, layout: str, image_size: int) -> nn.Module:
    """The vqgan model whose sizes the shapes say, on torch's meta device."""
    config_class = components.component("image_tokenizers", "vqgan")[1]
    try:
        with torch.device("meta"):
            config = config_class(**sizes_of(shapes, LAYOUTS[layout]), **LAYOUTS[layout].settings)
            return components.build("image_tokenizers", "vqgan", config, image_size=image_size)
    except ValueError as error:
        raise OtherModel(f"holds no tokenizer of {layout}: {error}") from error


def sizes_of(shapes: Shapes, layout: Layout) -> dict[str, object]:
    """The settings of VQGANConfig that shapes say; ValueError without a tensor that it needs."""

    def shape_of(name: str, axes: int) -> tuple[int, ...]:
        shape = shapes.get(name, ())
        if len(shape) != axes:
            raise ValueError(f"it has no {name} with {axes} axes")
        return shape

    def convs(name: str) -> list[int]:
        """The outputs of the convolutions of that name with {} = 0, 1, ..., as many as there are."""
        outputs = []
        while (conv := name.format(len(outputs))) in shapes:
            outputs.append(shape_of(conv, 4)[0])
        return outputs

    folder, block = f"encoder.{layout.levels['encoder']}", layout.block
    width, _, _, _ = shape_of("encoder.conv_in.weight", 4)
    quantizer = "gumbel" if CODES["gumbel"] in shapes else "nearest"
    vocab_size, code_width = shape_of(CODES[quantizer], 2)
    return {
        "vocab_size": vocab_size,
        "code_width": code_width,
        "quantizer": quantizer,
        "width": width,
        "multipliers": tuple(outputs // width for outputs in convs(f"{folder}.{{}}.{block}.0.conv1.weight")),
        "blocks": len(convs(f"{folder}.0.{block}.{{}}.conv1.weight")),
        "latent_width": shape_of("encoder.conv_out.weight", 4)[0],
        "attention": f"encoder.mid.{layout.middle['attention']}.q.weight" in shapes,
    }


def _first_conv(layout: Layout) -> str:
    return f"encoder.{layout.levels['encoder']}.0.{layout.block}.0.conv1.weight"
