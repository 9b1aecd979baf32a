"""The published class-conditional transformers of VAR (arXiv 2404.02905), imported as our next_scale generators.

A file is a plain state dict, or one in a checkpoint of VAR's trainer. A class is a caption of one token, its number: a
text tokenizer in which "0" to "999" are one token each is written beside the generator. The codes and convolutions of
the image tokenizer, which the file does not have, come from a folder that `var_weights` wrote. Not imported: models
whose blocks share one AdaLN (VAR-d36 of 512 pixels).
"""

from functools import partial
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn

from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.pretrained.torch_container import OtherModel, check_finite, checked_sha256, read_state_dict
from thousandwords.pretrained.vqgan_weights import Shapes, check_shapes
from thousandwords.text import bpe

MAX_FILE_BYTES = 2**34  # VAR-d30 has 8 GB
PARTS = ("trainer.var_wo_ddp",)  # where the weights are in a checkpoint of the trainer
# what follows from the scales, and the biases of keys, which are 0
IGNORED = ("attn_bias_for_masking", "lvl_1L", *(f"blocks.{block}.attn.zero_k_bias" for block in range(100)))
SETTINGS = {
    **{"text_layers": 0, "attention": "block_causal", "adaptive_norms": True, "rotary_extent": None},
    **{"positions": "absolute", "activation": "tanh_gelu"},
}
# VAR's AdaLN gives two gates, two scales and two shifts; ours gate, scale and shift of attention, then of the MLP
ADAPTIVE_ORDER = (0, 2, 4, 1, 3, 5)


def import_weights(path: Path, image_tokenizer: Path, out: Path, expected_sha256: str | None = None) -> str:
    """Write `out`/generator and `out`/text_tokenizer from a file; return the generator's fingerprint.

    `image_tokenizer` is the folder of the imported tokenizer that the model was trained with. `expected_sha256`, if given,
    is compared; the header records the file's in `pickle_sha256`, and in `pickle_part` where the weights are in it.
    Raises UserError before anything is written; nothing in the file is ever run.
    """
    fix = "python -m thousandwords import-weights --from var"
    tokenizer = components.load("image_tokenizers", image_tokenizer, fix)
    if tokenizer.header["kind"] != "multi_scale":
        raise UserError(
            f"{image_tokenizer} holds an image tokenizer of the kind {tokenizer.header['kind']}, but VAR's transformer was "
            f"trained with VAR's multi_scale. Give --image-tokenizer the folder that this writes: {fix}"
        )
    sha256 = checked_sha256(path, expected_sha256, MAX_FILE_BYTES)
    check = partial(_check, tokenizer=tokenizer)
    part, arrays = read_state_dict(path, PARTS, IGNORED, check, MAX_FILE_BYTES)
    check_finite(path, arrays)
    published = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = our_weights(published, tokenizer)
    model = build({name: tuple(tensor.shape) for name, tensor in published.items()}, tokenizer)
    text_tokenizer = bpe.save(class_tokenizer(len(published["class_emb.weight"]) - 1), out / "text_tokenizer")
    metadata = {"layout": "var_transformer", "pickle_sha256": {"weights": sha256}, "pickle_part": part}
    metadata |= {"text_tokenizer": text_tokenizer, "image_tokenizer": tokenizer.fingerprint}
    return components.save(model, out / "generator", state, **metadata)


def class_tokenizer(num_classes: int) -> bpe.TextTokenizer:
    """Captions "0", "1", ... to one token each, the number itself; the 256 bytes, which mean no class, have the tokens
    after them."""
    ids, merges = {}, []
    for number in range(num_classes):
        digits = str(number)
        merges.append(("Ġ" + digits[:-1], digits[-1]))  # 207 is 20 and 7; "Ġ" is the space before a word
        ids["Ġ" + digits] = number
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        ids[byte] = len(ids)
    library = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    known_words = frozenset(str(number) for number in range(num_classes))
    return bpe.TextTokenizer(library, text_length=1, known_words=known_words)


def published_shapes(
    num_layers: int, num_heads: int, width: int, num_classes: int, tokenizer: nn.Module
) -> Shapes:
    """{name: shape} of a published transformer of these sizes, without IGNORED."""
    codes, channels = tokenizer.codebook.shape
    shapes = {
        "class_emb.weight": (num_classes + 1, width),
        "pos_start": (1, tokenizer.scales[0] ** 2, width),
        "pos_1LC": (1, tokenizer.num_tokens, width),
        "lvl_embed.weight": (len(tokenizer.scales), width),
        **_linear("word_embed", channels, width),
        **_linear("head_nm.ada_lin.1", width, 2 * width),
        **_linear("head", width, codes),
    }
    for block in (f"blocks.{number}" for number in range(num_layers)):
        shapes |= {
            f"{block}.attn.scale_mul_1H11": (1, num_heads, 1, 1),
            f"{block}.attn.mat_qkv.weight": (3 * width, width),
            f"{block}.attn.q_bias": (width,),
            f"{block}.attn.v_bias": (width,),
            **_linear(f"{block}.attn.proj", width, width),
            **_linear(f"{block}.ffn.fc1", width, 4 * width),
            **_linear(f"{block}.ffn.fc2", 4 * width, width),
            **_linear(f"{block}.ada_lin.1", width, 6 * width),
        }
    return shapes


def our_weights(published: dict[str, Tensor], tokenizer: nn.Module) -> dict[str, Tensor]:
    """The weights of a next_scale generator from those of VAR and of its image tokenizer."""
    num_classes = len(published["class_emb.weight"]) - 1
    classes, no_class = published["class_emb.weight"].split([num_classes, 1])
    positions = published["pos_1LC"][0].clone()
    positions[: tokenizer.scales[0] ** 2] += published["pos_start"][0]
    state = {
        "text_embedding.weight": torch.cat([classes, no_class.expand(bpe.BYTES, -1)]),
        "start_embedding.weight": no_class.clone(),
        "position_embedding.weight": positions,
        "scale_embedding.weight": published["lvl_embed.weight"],
        "latents.codebook": tokenizer.codebook.clone(),
    }
    residual = tokenizer.residual.state_dict()
    state |= {f"latents.residual.{name}": tensor.clone() for name, tensor in residual.items()}
    linears = {"latent_input": "word_embed", "output_modulation.linear": "head_nm.ada_lin.1"}
    linears["image_output"] = "head"
    for number in range(_count_layers({name: tuple(tensor.shape) for name, tensor in published.items()})):
        ours, block = f"layers.{number}", f"blocks.{number}"
        attention = f"{block}.attn"
        query, value = published[f"{attention}.q_bias"], published[f"{attention}.v_bias"]
        state |= {
            f"{ours}.unit.log_scale": published[f"{attention}.scale_mul_1H11"].flatten(),
            f"{ours}.attention.query_key_value.weight": published[f"{attention}.mat_qkv.weight"],
            f"{ours}.attention.query_key_value.bias": torch.cat([query, torch.zeros_like(query), value]),
        }
        for name in ("weight", "bias"):
            sixths = published[f"{block}.ada_lin.1.{name}"].chunk(6)
            state[f"{ours}.modulation.linear.{name}"] = torch.cat([sixths[i] for i in ADAPTIVE_ORDER])
        linears |= {f"{ours}.attention.output": f"{attention}.proj"}
        linears |= {f"{ours}.mlp.hidden": f"{block}.ffn.fc1", f"{ours}.mlp.output": f"{block}.ffn.fc2"}
    for ours, origin in linears.items():
        state |= {f"{ours}.{name}": published[f"{origin}.{name}"] for name in ("weight", "bias")}
    return state


def build(shapes: Shapes, tokenizer: nn.Module) -> nn.Module:
    """The next_scale generator whose sizes the shapes say, on torch's meta device."""
    sizes = _sizes(shapes)
    num_classes = sizes.pop("num_classes")
    model_class, config_class = components.component("generators", "next_scale")
    try:
        with torch.device("meta"):
            return components.build(
                "generators",
                "next_scale",
                config_class(**sizes, **SETTINGS),
                text_vocab_size=num_classes + bpe.BYTES,
                text_length=1,
                image_vocab_size=tokenizer.vocab_size,
                scales=tokenizer.scales,
                **model_class.sizes_for(tokenizer),
            )
    except ValueError as error:
        raise OtherModel(f"holds no transformer of VAR: {error}") from error


def _check(shapes: Shapes, tokenizer: nn.Module) -> None:
    """Raise RejectedPickle unless these are exactly the names and shapes of one transformer of VAR."""
    check_shapes(shapes, published_shapes(**_sizes(shapes), tokenizer=tokenizer), "VAR", "transformer")
    build(shapes, tokenizer)


def _sizes(shapes: Shapes) -> dict[str, int]:
    classes, scale = shapes.get("class_emb.weight", ()), shapes.get("blocks.0.attn.scale_mul_1H11", ())
    if len(classes) != 2 or len(scale) != 4 or classes[0] < 2:
        raise OtherModel(
            "holds no transformer of VAR: it has no class_emb.weight with 2 axes and blocks.0.attn.scale_mul_1H11 with 4"
        )
    return {
        "num_layers": _count_layers(shapes),
        "num_heads": scale[1],
        "width": classes[1],
        "num_classes": classes[0] - 1,
    }


def _count_layers(shapes: Shapes) -> int:
    count = 0
    while f"blocks.{count}.attn.mat_qkv.weight" in shapes:
        count += 1
    return count


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
