"""Read every setting of params.yaml and build every model on the meta device, before any long work."""

import torch

from thousandwords import components
from thousandwords.core.config import ConfigError, check_keys, model_block, section
from thousandwords.core.errors import UserError
from thousandwords.data.loader import CaptionConfig
from thousandwords.data.token_shards import TokensConfig
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.features import load_extractor
from thousandwords.evaluation.gate import GateConfig
from thousandwords.inference.config import PromptsConfig, check_guidance, check_prompt
from thousandwords.inference.inpainting import grid_side, read_images_to_inpaint, rows_to_keep, top_rows
from thousandwords.inference.package import check_device
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig
from thousandwords.parallel.engine import read_engine_config
from thousandwords.pretrained import tokenizer_init
from thousandwords.text.bpe import TextTokenizerConfig
from thousandwords.training.config import TrainingConfig
from thousandwords.training.loop import check_model

SECTIONS = (
    "seed", "device", "data", "text_tokenizer", "image_tokenizer", "tokens", "generator", "scorer", "sampling",
    "evaluation",
)  # fmt: skip
# no output of a stage depends on them: conditions for a champion, and the processes that do the work
OPTIONAL = ("gate", "engine")
TRAINED = {"image_tokenizer": "image_tokenizers", "generator": "generators", "scorer": "scorers"}


def check_params(params: dict, seed: int) -> None:
    """Raise ConfigError or another UserError: one sentence that names the key and the fix."""
    check_keys(params, "the file", SECTIONS, OPTIONAL)
    read_engine_config(params)
    if params["device"] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"params.yaml: device is {params['device']!r}; it can be: auto, cpu, cuda")
    if params["device"] == "cuda":
        check_device("cuda")
    data = section(params["data"], "data", DataConfig)
    ingest.check_source(data)
    section(params["text_tokenizer"], "text_tokenizer", TextTokenizerConfig)
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
    configs, trainings = {}, {}
    for name, family in TRAINED.items():
        block = params[name] or {}
        configs[name] = components.model_config(family, block, name)
        if name == "image_tokenizer":
            tokenizer_init.check_block(block)
        elif name == "generator":
            model_block(block, name, CaptionConfig)
        else:
            check_keys(block, name, ["kind", block["kind"], "training"])
        if "training" in block:
            trainings[name] = section(block["training"], f"{name}.training", TrainingConfig)
    sampling = section(params["sampling"], "sampling", PromptsConfig)
    check_guidance(sampling.guidance, configs["generator"])
    try:
        models = build_models(params)
        for name, model in models.items():
            if name in trainings:  # an imported tokenizer is not trained
                check_model(model, trainings[name])
        if sampling.inpaint:
            side = grid_side(models["image_tokenizer"].scales)
            top_rows(side, rows_to_keep(sampling.inpaint_keep_share, side))
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: {error}") from error


def build_models(params: dict) -> dict[str, torch.nn.Module]:
    """The models of params.yaml on torch's meta device, by their sections; without a pretrained scorer."""
    image_size = section(params["data"], "data", DataConfig).image_size
    text = section(params["text_tokenizer"], "text_tokenizer", TextTokenizerConfig)

    def build(name: str, **sizes: object) -> torch.nn.Module:
        config = components.model_config(TRAINED[name], params[name], name)
        return components.build(TRAINED[name], params[name]["kind"], config, **sizes)

    with torch.device("meta"):
        if tokenizer_init.folder_of(params["image_tokenizer"]):
            tokenizer = tokenizer_init.architecture(params["image_tokenizer"], image_size)
        else:
            tokenizer = build("image_tokenizer", image_size=image_size)
        sizes = {"text_vocab_size": text.vocab_size, "text_length": text.text_length}
        sizes |= {"image_vocab_size": tokenizer.vocab_size, "scales": tokenizer.scales}
        models = {"image_tokenizer": tokenizer, "generator": build("generator", **sizes)}
        if not (params["scorer"].get(params["scorer"]["kind"]) or {}).get("pretrained"):
            models["scorer"] = build("scorer", image_size=image_size)
    return models


def check_crops(params: dict, data: DataConfig, tokens: TokensConfig) -> None:
    """Check that random crops have more of an image than the square that is cut out of it."""
    images = tokenizer_init.check_block(params["image_tokenizer"] or {})
    for name, settings in (("image_tokenizer", images), ("tokens", tokens)):
        if settings.augmentation == "paper" and data.keep == "square":
            raise ConfigError(
                f"params.yaml: {name}.augmentation is paper, but data.keep is square, which leaves nothing to crop. "
                "Set data.keep: whole"
            )
