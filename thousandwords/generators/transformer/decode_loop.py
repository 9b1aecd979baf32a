"""Sample token after token: the state of a batch after the prefill, and the loop in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.generators.transformer.kv_cache import LayerCache
from thousandwords.nn.logits import apply_guidance, sample_token, truncate


@dataclass(frozen=True)
class DecodeState:
    """B images after the prefill: everything that the rest of their tokens follows from."""

    decode_step: Callable[
        [Tensor, int | Tensor, Sequence], Tensor
    ]  # hidden states, position, caches -> logits (B, V)
    embed: Callable[[Tensor], Tensor]  # tokens (B,) -> (B, D)
    position_embeddings: Tensor  # (L, D), added to them
    logits: list[Tensor]  # of the next token, (B, V): with the caption, and with guidance also without it
    caches: list[list[LayerCache]]  # for each of these, a cache per layer
    fixed_tokens: Tensor  # (B, L), -1 where a token is to be sampled
    first: int  # position of the next token
    uniform: Tensor  # (B, L) in [0, 1): a random number for each token
    truncation: tuple[float, int | None, float | None]  # temperature, top_k, top_p
    guidance: float


def sample_one_by_one(state: DecodeState) -> Tensor:
    """All tokens (B, L), sampled by a loop in Python."""
    logits, tokens = state.logits, state.fixed_tokens.clone()
    has_fixed = (state.fixed_tokens != UNKNOWN).any(dim=0).tolist()
    for position in range(state.first, tokens.shape[1]):
        guided = apply_guidance(logits[0], logits[-1], state.guidance)
        token = sample_token(truncate(guided, *state.truncation), state.uniform[:, position])
        if has_fixed[position]:
            token = token.where(tokens[:, position] == UNKNOWN, tokens[:, position])
        tokens[:, position] = token
        if position + 1 < tokens.shape[1]:
            hidden_states = state.embed(token) + state.position_embeddings[position]
            logits = [state.decode_step(hidden_states, position, caches) for caches in state.caches]
    return tokens


def count_leading_fixed(fixed_tokens: Tensor) -> int:
    """How many tokens at the start are fixed in every row: [[7, 3, -1, 5], [7, 2, 4, 5]] -> 2."""
    return int((fixed_tokens != UNKNOWN).all(dim=0).long().cumprod(dim=0).sum())
