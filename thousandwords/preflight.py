"""Read every setting of params.yaml and build every model on the meta device, before any long work."""

import os
from pathlib import Path

import torch

from thousandwords import components
from thousandwords.core.config import ConfigError, check_keys, model_block, section
from thousandwords.core.errors import UserError
from thousandwords.core.init_models import (
    ModelConfig,
    fingerprint_of,
    fix_of,
    init_folder,
    part_of,
    registered_version,
)
from thousandwords.core.model_files import read_header
from thousandwords.core.params import paths_in
from thousandwords.data.loader import CaptionConfig, DecoderConfig
from thousandwords.data.recaptions import RecaptionConfig
from thousandwords.data.token_shards import TokensConfig
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.features import load_extractor
from thousandwords.evaluation.gate import GateConfig
from thousandwords.inference.config import PromptsConfig, check_guidance, check_prompt
from thousandwords.inference.inpainting import read_images_to_inpaint, rows_to_keep, top_rows
from thousandwords.inference.package import check_device
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig
from thousandwords.parallel.engine import read_engine_config
from thousandwords.parallel.ray_address import check_address
from thousandwords.pretrained import tokenizer_init
from thousandwords.pretrained.image_losses import build_image_losses
from thousandwords.text.bpe import read_config
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import check_model
from thousandwords.training.tuning import freeze

SECTIONS = (
    "seed", "device", "data", "text_tokenizer", "captioner", "image_tokenizer", "decoder", "tokens", "generator", "scorer",
    "sampling", "evaluation",
)  # fmt: skip
# no output of a stage depends on them: conditions for a champion, the processes that do the work, and a record
OPTIONAL = ("gate", "engine", "budget")
TRAINED = {name: f"{name}s" for name in ("image_tokenizer", "decoder", "generator", "scorer", "captioner")}


def check_params(params: dict, seed: int) -> None:
    """Raise ConfigError or another UserError: one sentence that names the key and the fix."""
    check_keys(params, "the file", SECTIONS, OPTIONAL)
    for name, path in paths_in(params).items():
        if path.startswith("~"):
            raise ConfigError(
                f"params.yaml: {name} is {path!r}; ~ is not replaced. Write the whole path: {os.path.expanduser(path)}"
            )
    engine = read_engine_config(params)
    if engine.kind == "ray":
        check_address(engine.address)
    if params["device"] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"params.yaml: device is {params['device']!r}; it can be: auto, cpu, cuda")
    if params["device"] == "cuda":
        check_device("cuda")
    data = section(params["data"], "data", DataConfig)
    ingest.check_path(data)
    ingest.check_source(data)
    read_config(params["text_tokenizer"])
    tokens = section(params["tokens"], "tokens", TokensConfig)
    evaluation = section(params["evaluation"], "evaluation", EvaluationConfig)
    if evaluation.features:
        load_extractor(evaluation.features)
    section(params.get("gate", {}), "gate", GateConfig)
    sampling = section(params["sampling"], "sampling", PromptsConfig)
    for number, prompt in enumerate(sampling.prompts):
        check_prompt(prompt, f"params.yaml: sampling.prompts[{number}]")
    if sampling.inpaint:
        list(read_images_to_inpaint(sampling.inpaint))
    check_models(params)
    check_crops(params, data, tokens)


def check_models(params: dict) -> None:
    """Build every model on torch's meta device: sizes that do not fit together fail at once."""
    trainings, image_losses = {}, {}
    for name, family in TRAINED.items():
        block = params[name] or {}
        if init_folder(block, name):  # build_from reads its settings
            components.component(family, block.get("kind"))
        else:
            config = components.model_config(family, block, name)
            if getattr(config, "pretrained", None):
                try:
                    config.check_weights()
                except ValueError as error:
                    raise ConfigError(f"params.yaml: {name}.{error}") from error
        if name == "image_tokenizer":
            image_losses[name] = tokenizer_init.check_block(block)
        elif name == "generator":
            tune = model_block(block, name, CaptionConfig).tune
        elif name == "captioner":
            check_captioner(block, params)
        elif name == "decoder":
            image_losses[name] = model_block(block, name, DecoderConfig)
        else:
            model_block(block, name, ModelConfig)
        if "training" in block:
            trainings[name] = section(block["training"], f"{name}.training", TrainingConfig)
    sampling = section(params["sampling"], "sampling", PromptsConfig)
    check_trained_on(params)
    try:
        models = build_models(params)
        check_guidance(sampling.guidance, models["generator"].config)
        freeze(models["generator"], tune)
        for name, config in image_losses.items():
            size = models["image_tokenizer"].image_size
            if config.adversary and name in trainings and config.adversary.start >= trainings[name].steps:
                raise ConfigError(
                    f"params.yaml: {name}.adversary.start is {config.adversary.start}, but {name}.training.steps is "
                    f"{trainings[name].steps}, so it would never take part. Set a lower start"
                )
            models[name].training_only = build_image_losses(config, size, name)
        for name, model in models.items():
            if name in trainings:  # an imported tokenizer is not trained
                check_model(model, trainings[name])
        scales = models["image_tokenizer"].scales
        # with several grids a kind may inpaint nothing, and sample_images says so
        if sampling.inpaint and (len(scales) == 1 or models["generator"].keeps_parts):
            top_rows(scales[-1], rows_to_keep(sampling.inpaint_keep_share, scales[-1]))
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: {error}") from error


def build_models(params: dict) -> dict[str, torch.nn.Module]:
    """The models of params.yaml on torch's meta device, by their sections; without a pretrained scorer."""
    image_size = section(params["data"], "data", DataConfig).image_size
    text = read_config(params["text_tokenizer"])

    def build(name: str, **sizes: object) -> torch.nn.Module:
        family, block = TRAINED[name], params[name]
        if folder := init_folder(block, name):
            return components.build_from(family, block, name, folder, load_weights=False, **sizes)
        return components.build(family, block["kind"], components.model_config(family, block, name), **sizes)

    with torch.device("meta"):
        if tokenizer_init.folder_of(params["image_tokenizer"]):
            tokenizer = tokenizer_init.architecture(params["image_tokenizer"], image_size)
        else:
            tokenizer = build("image_tokenizer", image_size=image_size)
        grids = {"vocab_size": tokenizer.vocab_size, "scales": tokenizer.scales}
        sizes = {"text_vocab_size": text.vocab_size, "text_length": text.text_length}
        sizes |= {"image_vocab_size": tokenizer.vocab_size, "scales": tokenizer.scales}
        sizes |= components.component("generators", params["generator"]["kind"])[0].sizes_for(tokenizer)
        models = {"image_tokenizer": tokenizer, "generator": build("generator", **sizes)}
        models["decoder"] = build("decoder", image_size=image_size, **grids)
        sizes = {"text_vocab_size": text.vocab_size, "text_length": text.text_length}
        models["captioner"] = build("captioner", image_size=image_size, **sizes)
        if not (params["scorer"].get(params["scorer"]["kind"]) or {}).get("pretrained"):
            models["scorer"] = build("scorer", image_size=image_size)
    return models


def check_captioner(block: dict, params: dict) -> None:
    """Check the section `captioner`, and that one kind of second captions is asked for."""
    settings = model_block(block, "captioner", RecaptionConfig)
    data = section(params["data"], "data", DataConfig)
    if block["kind"] != "none" and settings.recaption_share and data.recaption_share:
        raise ConfigError(
            f"params.yaml: data.recaption_share is {data.recaption_share} and captioner.recaption_share is "
            f"{settings.recaption_share}, but a pair has one second caption: a column of your data, or a captioner's. Set one "
            "of them to 0"
        )


def check_trained_on(params: dict) -> None:
    """Check that the generator of `generator.init` gets the tokens that it was trained on."""
    block = params["generator"]
    folder = init_folder(block, "generator")
    header = read_header(folder, fix_of("generator", folder)) if folder else {}
    for name in ("text_tokenizer", "image_tokenizer"):
        expected = header.get(name)
        given = init_folder(params[name], name)
        if expected is None or (given and fingerprint_of(given) == expected):
            continue
        found = f"this run trains another one ({name}.init is null)"
        if given:
            found = f"{name}.init is {given} (fingerprint {fingerprint_of(given)[:12]})"
        inside = Path(str(block["init"]))
        is_package = inside.is_dir() and part_of(inside, name) != inside
        fix = f"the folder of the {name} that it was trained with"
        if is_package or registered_version(block, "generator"):
            fix = block["init"]
        raise ConfigError(
            f"params.yaml: generator.init, {block['init']}, was trained on the tokens of the {name} with the "
            f"fingerprint {expected[:12]}, but {found}. Set {name}.init: {fix}"
        )


def check_crops(params: dict, data: DataConfig, tokens: TokensConfig) -> None:
    """Check that random crops have more of an image than the square that is cut out of it."""
    images = tokenizer_init.check_block(params["image_tokenizer"] or {})
    for name, settings in (("image_tokenizer", images), ("tokens", tokens)):
        if settings.augmentation == "paper" and data.keep == "square":
            raise ConfigError(
                f"params.yaml: {name}.augmentation is paper, but data.keep is square, which leaves nothing to crop. "
                "Set data.keep: whole"
            )
