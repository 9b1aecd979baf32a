"""From prompts to candidates: many rows at a time, each with its own random generator.

An image depends on (seed, prompt, candidate) and on the models, not on the batch it is sampled in (arXiv
2102.12092 §2.6 samples 512 candidates per caption).
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from thousandwords.inference.config import SamplingConfig
from thousandwords.text.bpe import TextTokenizer


def candidate_seed(seed: int, prompt: str, candidate: int) -> int:
    """One 63-bit seed per (seed, prompt, candidate), so that candidates are independent of each other."""
    digest = hashlib.sha256(f"{seed}\0{prompt}\0{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class CandidateBatch:
    """Candidates sampled together: for each its prompt, number and seed, and their tokens (B, L)."""

    prompt_ids: list[int]
    candidates: list[int]
    seeds: list[int]
    tokens: Tensor


def count_batches(num_prompts: int, settings: SamplingConfig) -> int:
    """The number of batches that all candidates of so many prompts make."""
    return -(-num_prompts * settings.candidates // settings.batch_size)


def sample_batch(
    generator: nn.Module,
    text_tokenizer: TextTokenizer,
    prompts: Sequence[str],
    settings: SamplingConfig,
    seed: int,
    number: int,
    fixed_tokens: Tensor | None = None,
) -> CandidateBatch:
    """Batch `number` of all candidates, prompt after prompt, `settings.batch_size` rows at a time.

    `fixed_tokens` (prompts, L): tokens that all candidates of a prompt share, -1 where one is to be sampled.
    """
    if fixed_tokens is not None:
        generator.check_fixed_tokens(fixed_tokens, len(prompts))
    first, num_rows = number * settings.batch_size, len(prompts) * settings.candidates
    rows = range(first, min(first + settings.batch_size, num_rows))
    prompt_ids = [row // settings.candidates for row in rows]
    candidates = [row % settings.candidates for row in rows]
    texts = [prompts[prompt] for prompt in prompt_ids]
    seeds = [candidate_seed(seed, *pair) for pair in zip(texts, candidates, strict=True)]
    generator = to_precision(generator, settings.precision)
    device = next(generator.parameters()).device
    tokens = generator.sample(
        text_tokenizer.encode(texts).to(device),
        [torch.Generator().manual_seed(row_seed) for row_seed in seeds],
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        guidance=settings.guidance,
        fixed_tokens=None if fixed_tokens is None else fixed_tokens[prompt_ids].to(device),
    )
    return CandidateBatch(prompt_ids, candidates, seeds, tokens.cpu())


# bfloat16 copies of generators; a copy lives as long as its original
_BFLOAT16_COPIES: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def to_precision(generator: nn.Module, precision: str) -> nn.Module:
    """The generator, or a cached copy with bfloat16 weights; the original is not changed."""
    if precision == "auto":
        precision = "bfloat16" if next(generator.parameters()).is_cuda else "float32"
    if precision == "float32":
        return generator
    if generator not in _BFLOAT16_COPIES:
        bfloat16_weights = {
            id(weight): nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
            for weight in generator.parameters()
        }
        # deepcopy takes the weights from its memo, so there is no second float32 copy
        _BFLOAT16_COPIES[generator] = copy.deepcopy(generator, bfloat16_weights)
    return _BFLOAT16_COPIES[generator]
