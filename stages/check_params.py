"""Reads every knob of params.yaml before any long work: misspelt keys, wrong types, missing folders, empty prompts.

DVC clears a stage's old outputs before it runs it; this check comes first, so a typing error costs nothing.
"""
from __future__ import annotations

from pathlib import Path

import torch

from stages import _pretrained
from stages._stage import Stage, arguments, stage
from thousandwords import components, pairs, text, training
from thousandwords.config import ConfigError, check_keys, section
from thousandwords.drawing import Prompts, check_guidance, check_prompt
from thousandwords.errors import UserError
from thousandwords.evaluation import Config as EvaluationConfig
from thousandwords.files import write_bytes
from thousandwords.package import check_device
from thousandwords.shards import Config as TokensConfig

SECTIONS = (
    "seed",
    "device",
    "data",
    "text_tokenizer",
    "image_tokenizer",
    "tokens",
    "generator",
    "scorer",
    "sampling",
    "evaluation",
)
TRAINED = {"image_tokenizer": "tokenizers", "generator": "generators", "scorer": "scorers"}


def check_params(params: dict, seed: int) -> None:
    """Raises ConfigError or another UserError: one sentence that names the key and the mend."""
    check_keys(params, "the file", SECTIONS)
    if params["device"] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"params.yaml: device is {params['device']!r}; it can be: auto, cpu, cuda")
    if params["device"] == "cuda":
        check_device("cuda")
    data = section(params["data"], "data", pairs.Config)
    pairs.check_source(data)
    words = section(params["text_tokenizer"], "text_tokenizer", text.Config)
    section(params["tokens"], "tokens", TokensConfig)
    section(params["evaluation"], "evaluation", EvaluationConfig)
    for number, prompt in enumerate(section(params["sampling"], "sampling", Prompts).prompts):
        check_prompt(prompt, f"params.yaml: sampling.prompts[{number}]")
    check_models(params, data.image_size, words)


def check_models(params: dict, image_size: int, words: text.Config) -> None:
    """Builds every model on torch's meta device: sizes that do not fit together show at once, and cost no memory."""
    configs = {}
    for name, family in TRAINED.items():
        block = params[name] or {}
        configs[name] = components.model_config(family, block, name)
        if name == "image_tokenizer":
            _pretrained.check_block(block)
        else:
            check_keys(block, name, ["kind", block["kind"], "training"])
        if "training" in block:
            section(block["training"], f"{name}.training", training.Config)
    check_guidance(section(params["sampling"], "sampling", Prompts).guidance, configs["generator"])
    try:
        with torch.device("meta"):
            tokenizer = _tokenizer(params, configs, image_size)
            _build(
                params,
                "generator",
                configs,
                text_vocab_size=words.vocab_size,
                text_length=words.text_length,
                image_vocab_size=tokenizer.vocab_size,
                scales=tokenizer.scales,
            )
        if getattr(configs["scorer"], "pretrained", None) is None:
            _build(params, "scorer", configs, image_size=image_size)
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: {error}") from error


def _tokenizer(params: dict, configs: dict, image_size: int) -> torch.nn.Module:
    if _pretrained.folder_of(params["image_tokenizer"]):
        return _pretrained.architecture(params["image_tokenizer"], image_size)
    return _build(params, "image_tokenizer", configs, image_size=image_size)


def _build(params: dict, name: str, configs: dict, **sizes: object) -> torch.nn.Module:
    return components.build(TRAINED[name], params[name]["kind"], configs[name], **sizes)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "out", argv=argv)
    with stage("check_params", options, *SECTIONS[1:]) as run:
        _check(options.out, run)


def _check(out: Path, run: Stage) -> None:
    check_params(run.params, run.seed)
    write_bytes(out, b"ok\n")  # always the same bytes: later stages wait for the check, but do not rerun for it


if __name__ == "__main__":
    main()
