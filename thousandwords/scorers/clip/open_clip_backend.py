"""open_clip models: built from an architecture, or pretrained and named by one setting.

An architecture is what open_clip_config.json holds: {"model_cfg", "preprocess_cfg"} and, for a pretrained
model, its "source". Weights are safetensors, or a torch file opened with weights_only: no code is ever run.
"""

import contextlib
import difflib
import pickle
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir as find_checkpoint
from torch import Tensor, nn

from thousandwords.core.errors import UserError
from thousandwords.core.weight_files import weights_problem

FORMS = "'local-dir:FOLDER', 'MODEL:FILE', 'MODEL:TAG' (such as ViT-B-32:laion2b_s34b_b79k) or 'hf-hub:OWNER/NAME'"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SPECIAL_TOKENS = ("<start_of_text>", "<end_of_text>")
FULL_VOCAB_SIZE = 49_408  # 512 bytes, merges from the most frequent on, the special tokens
MIN_VOCAB_SIZE = 512 + len(SPECIAL_TOKENS)
LOAD_ERRORS = (RuntimeError, OSError, ValueError, LookupError, AssertionError, UserWarning)
LOAD_ERRORS += (pickle.UnpicklingError,)


def build(architecture: dict) -> nn.Module:
    """The model of an architecture, with first weights; nothing is downloaded."""
    sizes = deepcopy(architecture["model_cfg"])
    is_custom = sizes.pop("custom_text", False) or "hf_model_name" in sizes["text_cfg"]
    if "multimodal_cfg" in sizes:
        return open_clip.CoCa(**sizes)
    return open_clip.CustomTextCLIP(**sizes) if is_custom else open_clip.CLIP(**sizes)


def tokenizer(architecture: dict) -> Callable[[list[str]], Tensor]:
    """The function captions -> tokens (B, T) of an architecture."""
    text = architecture["model_cfg"]["text_cfg"]
    if text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(_model_and_weights(architecture["source"])[0])
    settings = text.get("tokenizer_kwargs") or {}
    full = open_clip.SimpleTokenizer(context_length=text.get("context_length", 77), **settings)
    vocab_size = text.get("vocab_size", FULL_VOCAB_SIZE)
    return reduce_vocabulary(full, vocab_size) if vocab_size < FULL_VOCAB_SIZE else full


def reduce_vocabulary(tokenizer: open_clip.SimpleTokenizer, vocab_size: int) -> open_clip.SimpleTokenizer:
    """Keep only the first merges of the tokenizer, in place: rare words are split into more tokens.

    Embeddings of tokens that never occur cost as much per update as those that do. The special tokens stay
    last: open_clip finds the end of a caption as its highest token.
    """
    tokens = [*list(tokenizer.encoder)[: vocab_size - len(SPECIAL_TOKENS)], *SPECIAL_TOKENS]
    tokenizer.encoder = {token: index for index, token in enumerate(tokens)}
    tokenizer.decoder = dict(enumerate(tokens))
    tokenizer.bpe_ranks = dict(list(tokenizer.bpe_ranks.items())[: vocab_size - MIN_VOCAB_SIZE])
    tokenizer.all_special_ids = [tokenizer.encoder[token] for token in SPECIAL_TOKENS]
    tokenizer.sot_token_id, tokenizer.eot_token_id = tokenizer.all_special_ids
    tokenizer.vocab_size = vocab_size
    return tokenizer


def load_pretrained(pretrained: str) -> tuple[nn.Module, dict]:
    """The pretrained model, and the architecture from which `build` can build it again; raises ValueError."""
    check_name(pretrained)
    name, weights = _model_and_weights(pretrained)
    _check_weights(pretrained, name, weights)
    with _translate_errors(pretrained):
        model = open_clip.create_model(name, weights, require_pretrained=True, weights_only=True)
    return model, _architecture(pretrained, name, model)


def check_pretrained(pretrained: str) -> None:
    """Raise ValueError unless local weights are there and fit their model, which is built without memory.

    What would be downloaded is checked by its name only.
    """
    check_name(pretrained)
    name, weights = _model_and_weights(pretrained)
    if not (path := _check_weights(pretrained, name, weights)):
        return
    with _translate_errors(pretrained):
        try:
            with torch.device("meta"):
                model = open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta")
        except (RuntimeError, NotImplementedError):
            return  # its construction needs numbers: the stage that builds it checks them
        open_clip.load_checkpoint(model, str(path), weights_only=True)


@contextlib.contextmanager
def _translate_errors(pretrained: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings(action="ignore"):
            # weights trained with QuickGELU score worse under GELU, and open_clip only warns
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            yield
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:400]
        message = f"clip.pretrained {pretrained!r} could not be loaded. {_fix(error)} ({reason})"
        raise UserError(message) from error


def check_name(pretrained: str) -> None:
    """Raise ValueError unless `pretrained` has one of the forms, with a model that open_clip knows."""
    model, _, rest = pretrained.partition(":")
    if not model or not rest:
        raise ValueError(f"clip.pretrained is {pretrained!r}; write {FORMS}")
    if model not in ("local-dir", "hf-hub", *open_clip.list_models()):
        close = difflib.get_close_matches(model, open_clip.list_models(), n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "open_clip.list_models() lists those it knows"
        raise ValueError(f"clip.pretrained names {model!r}, a model that open_clip does not know. {hint}")


def _model_and_weights(pretrained: str) -> tuple[str, str | None]:
    """ "ViT-B-32:b.safetensors" -> ("ViT-B-32", "b.safetensors"), "local-dir:b" -> ("local-dir:b", None)"""
    model, _, rest = pretrained.partition(":")
    return (pretrained, None) if model in ("local-dir", "hf-hub") else (model, rest)


def _check_weights(pretrained: str, name: str, weights: str | None) -> Path | None:
    """The local file of weights, None for one to download; UserError if it is missing or of another kind."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise UserError(
                f"clip.pretrained is {pretrained!r}, but there is no folder {folder}. Write {FORMS}"
            )
        found = find_checkpoint(folder)
        if found is None or not (folder / "open_clip_config.json").is_file():
            raise UserError(
                f"clip.pretrained is {pretrained!r}, but that folder lacks open_clip_config.json or weights "
                f"(.safetensors, .bin or .pth). Put both there"
            )
        path = Path(found)
    elif weights is None or weights in (tags := open_clip.list_pretrained_tags_by_model(name)):
        return None
    else:
        path = Path(weights)
        if path.suffix not in SUFFIXES or not path.exists():
            missing = (
                f"there is no file {weights}"
                if not path.exists() and ("/" in weights or path.suffix in SUFFIXES)
                else (
                    f"{weights!r} is neither a file that ends in {', '.join(SUFFIXES)} nor one of the tags of {name}: "
                    f"{', '.join(tags) or 'there are none'}"
                )
            )
            raise UserError(f"clip.pretrained is {pretrained!r}, but {missing}. Write {FORMS}")
    if problem := weights_problem(path):
        raise UserError(f"clip.pretrained is {pretrained!r}, but {path} {problem}")
    return path


def _fix(error: Exception) -> str:
    """How to fix an error of open_clip's loading."""
    text = str(error)
    if "QuickGELU" in text:
        return "Name the model's -quickgelu variant"
    if any(sign in text for sign in ("size mismatch", "Missing key", "Unexpected key", "width changed")):
        return "The weights belong to another architecture: name the model they were trained as"
    if "weights_only" in text or "Weights only" in text:
        return "The file would run code as it loads: convert it to safetensors where you trust it"
    if any(sign in text for sign in ("download", "Hub", "connect", "resolve")):
        return "Download it on a machine with a network and give the file or folder here"
    return "It is damaged, or holds no weights of this model: fetch it again"


def _architecture(pretrained: str, name: str, model: nn.Module) -> dict:
    """What open_clip_config.json would hold, without parts that would download weights of their own."""
    sizes = deepcopy(open_clip.get_model_config(name))
    if "timm_model_name" in sizes["vision_cfg"]:
        sizes["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in sizes["text_cfg"]:
        sizes["text_cfg"]["hf_model_pretrained"] = False
    return {"source": pretrained, "model_cfg": sizes, "preprocess_cfg": deepcopy(model.visual.preprocess_cfg)}
