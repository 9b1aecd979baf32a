"""Reads every knob of params.yaml before any long work: misspelt keys, wrong types, missing folders, empty prompts.

DVC clears a stage's old outputs before it runs it; this check comes first, so a typing error costs nothing.
"""
from __future__ import annotations

from pathlib import Path

import torch

from stages import _pretrained
from stages._engine import read_engine
from stages._stage import Stage, arguments, stage
from thousandwords import components, features, pairs, text, training
from thousandwords.completion import read_completions, rows_of, side_of, top_rows
from thousandwords.config import ConfigError, check_keys, model_block, section
from thousandwords.drawing import Prompts, check_guidance, check_prompt
from thousandwords.errors import UserError
from thousandwords.evaluation import Config as EvaluationConfig
from thousandwords.files import write_bytes
from thousandwords.gate import Config as GateConfig
from thousandwords.loader import CaptionSettings
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
OPTIONAL = ("gate", "engine")  # no stage's outputs hang on them: what the registry takes for champion, who does the work
TRAINED = {"image_tokenizer": "tokenizers", "generator": "generators", "scorer": "scorers"}


def check_params(params: dict, seed: int) -> None:
    """Raises ConfigError or another UserError: one sentence that names the key and the mend."""
    check_keys(params, "the file", SECTIONS, OPTIONAL)
    read_engine(params)
    if params["device"] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"params.yaml: device is {params['device']!r}; it can be: auto, cpu, cuda")
    if params["device"] == "cuda":
        check_device("cuda")
    data = section(params["data"], "data", pairs.Config)
    pairs.check_source(data)
    words = section(params["text_tokenizer"], "text_tokenizer", text.Config)
    tokens = section(params["tokens"], "tokens", TokensConfig)
    evaluation = section(params["evaluation"], "evaluation", EvaluationConfig)
    if evaluation.features:
        features.extractor(evaluation.features)
    section(params.get("gate", {}), "gate", GateConfig)
    sampling = section(params["sampling"], "sampling", Prompts)
    for number, prompt in enumerate(sampling.prompts):
        check_prompt(prompt, f"params.yaml: sampling.prompts[{number}]")
    if sampling.complete:
        list(read_completions(sampling.complete))
    check_models(params, data.image_size, words)
    check_crops(params, data, tokens)


def check_models(params: dict, image_size: int, words: text.Config) -> None:
    """Builds every model on torch's meta device: sizes that do not fit together show at once, and cost no memory."""
    configs, trainings = {}, {}
    for name, family in TRAINED.items():
        block = params[name] or {}
        configs[name] = components.model_config(family, block, name)
        if name == "image_tokenizer":
            _pretrained.check_block(block)
        elif name == "generator":
            model_block(block, name, CaptionSettings)
        else:
            check_keys(block, name, ["kind", block["kind"], "training"])
        if "training" in block:
            trainings[name] = section(block["training"], f"{name}.training", training.Config)
    sampling = section(params["sampling"], "sampling", Prompts)
    check_guidance(sampling.guidance, configs["generator"])
    try:
        with torch.device("meta"):
            tokenizer = _tokenizer(params, configs, image_size)
            generator = _build(
                params,
                "generator",
                configs,
                text_vocab_size=words.vocab_size,
                text_length=words.text_length,
                image_vocab_size=tokenizer.vocab_size,
                scales=tokenizer.scales,
            )
        for name, model in (("image_tokenizer", tokenizer), ("generator", generator)):
            if name in trainings:  # else it is taken over as it is
                training.check_model(model, trainings[name])
        if sampling.complete:
            side = side_of(tokenizer.scales)
            top_rows(side, rows_of(sampling.complete_share, side))
        if getattr(configs["scorer"], "pretrained", None) is None:
            training.check_model(_build(params, "scorer", configs, image_size=image_size), trainings["scorer"])
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: {error}") from error


def check_crops(params: dict, data: pairs.Config, tokens: TokensConfig) -> None:
    """Random crops need more of a picture than the square that is cut out of it."""
    pictures = _pretrained.check_block(params["image_tokenizer"] or {})
    for name, settings in (("image_tokenizer", pictures), ("tokens", tokens)):
        if settings.augmentation == "paper" and data.keep == "square":
            raise ConfigError(
                f"params.yaml: {name}.augmentation is paper, but data.keep is square, which leaves nothing to crop. "
                "Set data.keep: whole"
            )


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
