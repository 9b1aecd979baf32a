"""From prompts to candidates: many rows at a time, each with a random generator of its own.

Used by the bulk stage and by the package alike, so a picture is the same whichever of them drew it: it depends on (seed,
prompt, candidate) and on the models, not on the batch it was drawn in (arXiv 2102.12092 §2.6 draws 512 candidates a caption).
"""
from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from thousandwords.config import ConfigError
from thousandwords.errors import UserError
from thousandwords.images import fit_square, to_float
from thousandwords.text import TextTokenizer, normalise

COLDEST = 1e-6  # far below it, logits divided by the temperature are no float32 any more


@dataclass(frozen=True)
class Settings:
    """How candidates are drawn: the block `sampling` of params.yaml, less the choice of prompts."""

    candidates: int = 512  # N, drawn per prompt (paper §2.6)
    temperature: float = 1.0  # 1: the model's own probabilities
    top_k: int | None = None  # keep the k likeliest words; null: all
    top_p: float | None = None  # keep the fewest words that hold this probability; null: all
    guidance: float = 1.0  # above 1: closer to the caption, if the generator was trained with caption_dropout
    batch_size: int = 256  # candidates drawn at a time; changes the speed, never a picture
    # of the weights that draw: bfloat16 halves their memory and reads several times faster, other words come out; auto: on a GPU
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it needs to be 1 or more")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"sampling.temperature is {self.temperature}; it needs to be above 0")
        if self.temperature < COLDEST:
            raise ValueError(
                f"sampling.temperature is {self.temperature}; the least is {COLDEST}. For the likeliest word set top_k to 1"
            )
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"sampling.guidance is {self.guidance}; it needs to be 0 or more; 1 changes nothing")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"sampling.top_k is {self.top_k}; it needs to be 1 or more, or null for all words")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}; it needs to be in (0, 1], or null for all words")


@dataclass(frozen=True)
class Prompts(Settings):
    """The section `sampling` of params.yaml."""

    prompts_per_split: int = 64  # captions taken from each held-out split, one per picture
    prompts: tuple[str, ...] = ()  # further prompts, in your own words
    complete: str | None = None  # a folder of captioned pictures whose top rows are given and the rest drawn; null: none
    complete_share: float = 0.5  # of the grid's rows, given; to the nearest row

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.complete_share < 1:
            raise ValueError(
                f"sampling.complete_share is {self.complete_share}; it needs to be between 0 and 1, to leave rows to draw"
            )


def changed(settings: Settings, **changes: object) -> Settings:
    """The settings with some of them replaced; raises ConfigError where one is out of range."""
    try:
        return dataclasses.replace(settings, **changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_guidance(guidance: float, generator_config: object) -> None:
    """Raises ConfigError for guidance that a generator of this Config was never trained for."""
    if guidance != 1 and not getattr(generator_config, "caption_dropout", 0):
        raise ConfigError(
            f"sampling.guidance is {guidance}, but the generator never saw a hidden caption, so it knows of nothing to "
            "move away from. Train it with generator.transformer.caption_dropout (0.1, say), or leave guidance at 1"
        )


class EmptyPrompt(UserError):
    """A prompt without a word."""


def check_prompt(prompt: str, where: str = "the prompt") -> str:
    """The prompt in the form models read; raises EmptyPrompt."""
    clean = normalise(prompt)
    if not clean:
        raise EmptyPrompt(f'{where} is empty. Say what to draw, for example "a small red star on sand"')
    try:
        clean.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding reach Python as lone surrogates
        raise UserError(f"{where} is not text in UTF-8: {prompt!r}. Type it again, or save it as UTF-8") from error
    return clean


def candidate_seed(seed: int, prompt: str, candidate: int) -> int:
    """One 63-bit seed per (seed, prompt, candidate): no picture knows of its neighbours."""
    digest = hashlib.sha256(f"{seed}\0{prompt}\0{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Drawn:
    """Some candidates, drawn together: which prompt each is for, which of its candidates, its seed, its words (B, L)."""

    prompt_ids: list[int]
    candidates: list[int]
    seeds: list[int]
    tokens: Tensor


def draw_candidates(
    generator: nn.Module,
    words: TextTokenizer,
    prompts: Sequence[str],
    settings: Settings,
    seed: int,
    given: Tensor | None = None,
) -> Iterator[Drawn]:
    """All candidates of all prompts, prompt after prompt, `settings.batch_size` rows at a time.

    `given` (prompts, L) holds the words that all candidates of a prompt have, -1 where one is to be drawn; None: nowhere.
    """
    check_guidance(settings.guidance, generator.config)
    if given is not None:
        generator.check_given(given, len(prompts))
    for number in range(count_batches(len(prompts), settings)):
        yield draw_batch(generator, words, prompts, settings, seed, number, given)


def count_batches(prompts: int, settings: Settings) -> int:
    """How many batches all candidates of so many prompts make."""
    return -(-prompts * settings.candidates // settings.batch_size)


def draw_batch(
    generator: nn.Module,
    words: TextTokenizer,
    prompts: Sequence[str],
    settings: Settings,
    seed: int,
    number: int,
    given: Tensor | None = None,
) -> Drawn:
    """Batch `number` of those that `draw_candidates` gives, without the others."""
    first, all_rows = number * settings.batch_size, len(prompts) * settings.candidates
    rows = [divmod(row, settings.candidates) for row in range(first, min(first + settings.batch_size, all_rows))]
    prompt_ids, candidates = [row[0] for row in rows], [row[1] for row in rows]
    seeds = [candidate_seed(seed, prompts[prompt], candidate) for prompt, candidate in rows]
    generator = in_precision(generator, settings.precision)
    device = next(generator.parameters()).device
    tokens = generator.sample(
        words.encode([prompts[prompt] for prompt in prompt_ids]).to(device),
        [torch.Generator().manual_seed(one) for one in seeds],
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        guidance=settings.guidance,
        given=None if given is None else given[prompt_ids].to(device),
    )
    return Drawn(prompt_ids, candidates, seeds, tokens.cpu())


_IN_BFLOAT16: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()  # copies, for as long as there is the original


def in_precision(generator: nn.Module, precision: str) -> nn.Module:
    """The generator, or a copy of it whose weights are in bfloat16, made once; the original is left as it is."""
    if precision == "auto":
        precision = "bfloat16" if next(generator.parameters()).is_cuda else "float32"
    if precision == "float32":
        return generator
    if generator not in _IN_BFLOAT16:
        halved = {id(weight): nn.Parameter(weight.detach().bfloat16(), requires_grad=False) for weight in generator.parameters()}
        _IN_BFLOAT16[generator] = copy.deepcopy(generator, halved)  # what is in the memo is taken from it: no second float32 copy
    return _IN_BFLOAT16[generator]


@torch.no_grad()
def encode_in_parts(tokenizer: nn.Module, pictures: Sequence[np.ndarray], batch_size: int | None = None) -> Tensor:
    """Pictures uint8 (H, W, 3) of any size, cropped and resized as in training -> words (B, L), a few at a time."""
    device, size = next(tokenizer.parameters()).device, tokenizer.image_size
    fitted, together = np.stack([fit_square(picture, size) for picture in pictures]), batch_size or tokenizer.images_at_once
    starts = range(0, len(fitted), together)
    return torch.cat([tokenizer.encode(to_float(fitted[one : one + together]).to(device)).cpu() for one in starts])


def decode_in_parts(tokenizer: nn.Module, tokens: Tensor, batch_size: int | None = None) -> Tensor:
    """Words (B, L) -> pictures (B, 3, H, W), a few at a time so that memory stays small."""
    device = next(tokenizer.parameters()).device
    parts = [tokenizer.decode(part.to(device)).cpu() for part in tokens.split(batch_size or tokenizer.images_at_once)]
    return torch.cat(parts)


def score_in_parts(scorer: nn.Module, pictures: Tensor, prompt: str, batch_size: int = 64) -> Tensor:
    """The scorer's opinion of pictures (B, 3, H, W) of one prompt, on whatever device it lives: (B,) on the CPU."""
    device = next(scorer.parameters()).device
    parts = [scorer.score(part.to(device), [prompt] * len(part)).cpu() for part in pictures.split(batch_size)]
    return torch.cat(parts)
