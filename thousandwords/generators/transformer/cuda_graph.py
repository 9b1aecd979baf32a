"""Sample token after token on a GPU: the work of one position is captured as a CUDA graph and replayed.

One position is some hundred small kernels, and Python takes longer to launch each than the GPU to run it. A
graph has fixed addresses, so everything that changes is in tensors: the position, the tokens, the caches.
Cache, layers and truncation are those of sample_one_by_one; a test holds the tokens of both equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.generators.transformer.decode_loop import DecodeState
from thousandwords.generators.transformer.kv_cache import LayerCache
from thousandwords.nn.compile import log_once, summarize_error
from thousandwords.nn.logits import apply_guidance, sample_token, truncate

WARMUP = 2  # positions sampled before the capture, in which libraries do what a capture does not allow


class StaticKVCache:
    """A `LayerCache` whose position is a tensor (1,) on its device; `layer_step` calls its `step`."""

    def __init__(self, cache: LayerCache) -> None:
        layout, device = cache.layout, cache.own.device
        self.cache, self.has_lines = cache, layout.num_lines > 1
        self.line = torch.tensor(layout.line, device=device)
        slot = torch.tensor(layout.slot, device=device)
        self.index = self.line * layout.num_slots + slot  # among all slots of all lines

    def step(self, position: Tensor, qkv: Tensor) -> Tensor:
        """As `LayerCache.step`: queries, keys and values (B, 3, heads, x) -> (B, heads * x)."""
        cache, own = self.cache, self.cache.own
        slots = own.view(*own.shape[:3], -1, own.shape[-1])
        slots.index_copy_(3, self.index.index_select(0, position), qkv[:, 1:].transpose(0, 1)[:, :, :, None])
        line = own.index_select(3, self.line.index_select(0, position)) if self.has_lines else own
        keys, values = line[:, :, :, 0].flatten(1, 2)  # (B * heads, slots, x)
        bias = cache.layout.attention_bias.index_select(0, position)[0].to(keys.dtype)
        return cache.attend_separately(qkv[:, 0] * qkv.shape[-1] ** -0.5, keys, values, bias)


class StaticDecoder:
    """A `DecodeState` that is updated in place, in tensors whose addresses stay the same."""

    def __init__(self, state: DecodeState) -> None:
        self.state = state
        self.logits = [logits.clone() for logits in state.logits]
        self.caches = [[StaticKVCache(cache) for cache in caches] for caches in state.caches]
        self.tokens = state.fixed_tokens.clone()
        self.position = torch.tensor([state.first], device=self.tokens.device)

    def step(self) -> None:
        """Sample the token at `position`, compute the logits of the next, and move on by one."""
        state, position = self.state, self.position
        fixed = self.tokens.index_select(1, position)[:, 0]
        logits = truncate(apply_guidance(self.logits[0], self.logits[-1], state.guidance), *state.truncation)
        sampled = sample_token(logits, state.uniform.index_select(1, position)[:, 0])
        token = sampled.where(fixed == UNKNOWN, fixed)
        self.tokens.index_copy_(1, position, token[:, None])
        hidden_states = state.embed(token) + state.position_embeddings.index_select(0, position)
        for logits, caches in zip(self.logits, self.caches, strict=True):
            logits.copy_(state.decode_step(hidden_states, position, caches))
        position.add_(1)


@torch.no_grad()
def sample_with_cuda_graph(state: DecodeState) -> Tensor:
    """All tokens (B, L); without a GPU the same steps, not captured."""
    decoder = StaticDecoder(state)
    remaining = decoder.tokens.shape[1] - state.first
    for _ in range(min(WARMUP, remaining)):
        decoder.step()
    step = capture(decoder.step) if remaining > WARMUP and decoder.tokens.is_cuda else decoder.step
    for _ in range(remaining - WARMUP):
        step()
    return decoder.tokens


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, recorded but not yet run; the step itself where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        log_once(
            f"sampling could not be captured as a CUDA graph and runs token by token: {summarize_error(error)}"
        )
        return step
    return graph.replay
