"""How candidates are sampled: the section `sampling` of params.yaml."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.text.normalize import normalize

MIN_TEMPERATURE = 1e-6  # far below it, logits divided by the temperature overflow float32


@dataclass(frozen=True)
class SamplingConfig:
    """How candidates are sampled: the section `sampling` of params.yaml, without the choice of prompts."""

    candidates: int = 512  # N per prompt (paper §2.6)
    temperature: float = 1.0  # 1: the model's own probabilities
    top_k: int | None = None  # keep the k likeliest tokens; null: all
    top_p: float | None = None  # keep the fewest tokens that hold this probability; null: all
    guidance: float = 1.0  # above 1: closer to the caption, if the generator was trained with caption_dropout
    batch_size: int = 256  # candidates sampled at a time; changes the speed, never an image
    # of the generator's weights: bfloat16 is faster, but gives other tokens; auto: bfloat16 on a GPU
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name, is_valid, needed in (
            ("candidates", self.candidates >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("guidance", 0 <= self.guidance < math.inf, "0 or more; 1 changes nothing"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more, or null for all tokens"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1], or null for all tokens"),
        ):
            if not is_valid:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it needs to be {needed}")
        if self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"sampling.temperature is {self.temperature}; the minimum is {MIN_TEMPERATURE}. "
                "For the likeliest token set top_k to 1"
            )


@dataclass(frozen=True)
class PromptsConfig(SamplingConfig):
    """The section `sampling` of params.yaml."""

    prompts_per_split: int = 64  # captions taken from each held-out split, one per image
    prompts: tuple[str, ...] = ()  # further prompts of your own
    inpaint: str | None = None  # folder of captioned images to inpaint: their top rows are kept; null: none
    inpaint_keep_share: float = 0.5  # share of the grid's rows that is kept, to the nearest row

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.inpaint_keep_share < 1:
            raise ValueError(
                f"sampling.inpaint_keep_share is {self.inpaint_keep_share}; it needs to be between 0 and 1, "
                "to leave rows to sample"
            )


def replace_settings(settings: SamplingConfig, **changes: object) -> SamplingConfig:
    """The settings with some of them replaced; raises ConfigError where one is of another type or out of range."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in changes.items()}
    return section(dataclasses.asdict(settings) | plain, "sampling", type(settings), file="")


def check_guidance(guidance: float, generator_config: object) -> None:
    """Raise ConfigError for guidance that a generator of this config was never trained for."""
    if guidance != 1 and not getattr(generator_config, "caption_dropout", 0):
        kind = type(generator_config).__module__.split(".")[-2]  # a kind is a folder
        raise ConfigError(
            f"sampling.guidance is {guidance}, but the generator was trained without caption dropout, so it "
            f"cannot sample without a caption. Train it with generator.{kind}.caption_dropout (0.1, say), or "
            "leave guidance at 1"
        )


class EmptyPrompt(UserError):
    """A prompt without any text."""


def check_prompt(prompt: str, where: str = "the prompt") -> str:
    """The prompt, normalized as the models read it; raises EmptyPrompt, or UserError for what is no text."""
    if not isinstance(prompt, str):
        raise UserError(f"{where} is {prompt!r}. Give it as text")
    clean = normalize(prompt)
    if not clean:
        raise EmptyPrompt(f'{where} is empty. Say what to generate, for example "a small red star on sand"')
    try:
        clean.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding reach Python as lone surrogates
        raise UserError(
            f"{where} is not text in UTF-8: {prompt!r}. Type it again, or save it as UTF-8"
        ) from error
    return clean
