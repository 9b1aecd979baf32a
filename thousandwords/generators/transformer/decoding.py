"""Sample token after token: the prefill, one token through a layer, and the loop, in Python or as a CUDA graph.

`layer_step` is `Layer.forward` written out for one position per candidate: calling the modules' own `forward`
takes more time in Python than the arithmetic. On a GPU one position is some hundred small kernels, which
Python launches more slowly than they run: they are captured as a CUDA graph and replayed. A graph has fixed
addresses, so everything that changes is in tensors: the position, the tokens, the caches.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.generators.transformer.attention import rotary
from thousandwords.generators.transformer.kv_cache import LayerCache, PrefixGroups, unique_rows
from thousandwords.nn.compile import log_once, summarize_error
from thousandwords.nn.grid_positions import rotate
from thousandwords.nn.logits import apply_guidance, sample_token, truncate
from thousandwords.nn.transformer_layers import Layer

MIN_MULTIPLICATIONS = 2**21  # of a layer's widest product: from here on two cores gain a fifth (measured)
WARMUP = 2  # positions sampled before the capture, in which libraries do what a capture does not allow


# --- one step of the model


def prefill(model: nn.Module, text: Tensor, beginning: Tensor) -> tuple[Tensor, list[LayerCache]]:
    """Text (B, T), first image tokens (B, P) -> logits (B, Vi) of the next token, and a cache per layer.

    The candidates of one caption repeat it: each unique row is computed once.
    """
    unique, rows = unique_rows(torch.cat([text, beginning], dim=1))
    text, beginning = unique[:, : model.text_length], unique[:, model.text_length :]
    hidden_states = torch.cat([model.embed_text(text), model.embed_image(beginning)], dim=1)
    groups, caches, length = PrefixGroups(rows), [], hidden_states.shape[1]
    angles = model.angles_of(length)
    for layer, kind in zip(model.layers, model.kinds, strict=True):
        mask = model.attention.mask(kind, length)
        caches.append(LayerCache(groups, model.prefix_length, model.attention.cache_layout(kind)))
        if len(caches) < len(model.layers):
            hidden_states = layer(hidden_states, rotary(caches[-1].prefill(mask), angles))
        else:
            hidden_states = prefill_last_layer(layer, hidden_states, caches[-1], mask[-1], angles)
    return model.lm_head(hidden_states, model.image_output)[rows], caches


def prefill_last_layer(
    layer: Layer, hidden_states: Tensor, cache: LayerCache, last_row: Tensor, angles: Tensor | None
) -> Tensor:
    """The last layer over a beginning (U, n, D): all positions cached, the output of the last one (U, D).

    `last_row` (n,) is the mask of the last position, `angles` (n, x / 2) are the rotary positions of all.
    """
    qkv = _linear(layer.attention.query_key_value, _normalized(layer.attention_norm, hidden_states))
    split = qkv.unflatten(-1, (3, layer.attention.num_heads, -1))
    queries, keys, values = split.transpose(1, 3).unbind(dim=2)  # (U, heads, n, head width)
    if angles is not None:
        queries, keys = rotate(queries, angles), rotate(keys, angles)
    cache.store(keys, values)
    attended = F.scaled_dot_product_attention(queries[:, :, -1:], keys, values, attn_mask=last_row[None])
    return _finish_layer(layer, hidden_states[:, -1], attended.flatten(1))


def decode_step(model: nn.Module, hidden_states: Tensor, position: int | Tensor, caches: Sequence) -> Tensor:
    """Embedded image tokens (B, D) at one raster position -> the logits (B, Vi) of the next token.

    With `StaticKVCache`s the position is a tensor (1,).
    """
    angles = None if model.angles is None else model.angles[model.prefix_length + position]
    for layer, cache in zip(model.layers, caches, strict=True):
        hidden_states = layer_step(layer, hidden_states, position, cache, angles)
    return model.lm_head(hidden_states, model.image_output)


def layer_step(
    layer: Layer, hidden_states: Tensor, position: int | Tensor, cache: LayerCache, angles: Tensor | None
) -> Tensor:
    """One new image position (B, D) through one layer, with the cached positions before it: (B, D)."""
    qkv = _linear(layer.attention.query_key_value, _normalized(layer.attention_norm, hidden_states))
    qkv = qkv.view(len(qkv), 3, layer.attention.num_heads, -1)
    if angles is not None:
        qkv[:, :2] = rotate(qkv[:, :2], angles)
    attended = cache.step(position, qkv)
    return _finish_layer(layer, hidden_states, attended)


def _finish_layer(layer: Layer, hidden_states: Tensor, attended: Tensor) -> Tensor:
    """Output map and MLP: hidden states (B, D), attended (B, heads * head width) -> (B, D)."""
    hidden_states = hidden_states + _linear(layer.attention.output, attended)
    activations = layer.mlp.activation(_linear(layer.mlp.hidden, _normalized(layer.mlp_norm, hidden_states)))
    return hidden_states + _linear(layer.mlp.output, activations)


def _linear(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, linear.weight, linear.bias)


def _normalized(norm: nn.LayerNorm, hidden_states: Tensor) -> Tensor:
    return F.layer_norm(hidden_states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@contextlib.contextmanager
def limit_threads(rows: int, widest: nn.Linear) -> Iterator[None]:
    """Limit torch to one CPU thread inside the block if a token of that many rows is too little work for more.

    The choice depends on sizes only, never on the machine's load: the same seed gives the same bits.
    """
    threads = torch.get_num_threads()
    is_small = widest.weight.device.type == "cpu" and rows * widest.weight.numel() < MIN_MULTIPLICATIONS
    try:
        torch.set_num_threads(1 if is_small else threads)
        yield
    finally:
        torch.set_num_threads(threads)


# --- the loop


@dataclass(frozen=True)
class DecodeState:
    """B images after the prefill: everything that the rest of their tokens follows from."""

    model: nn.Module  # the Transformer
    logits: list[Tensor]  # of the next token, (B, V): with the caption, and with guidance also without it
    caches: list[list[LayerCache]]  # for each of these, a cache per layer
    fixed_tokens: Tensor  # (B, L), -1 where a token is to be sampled
    first: int  # position of the next token
    uniform: Tensor  # (B, L) in [0, 1): a random number for each token
    truncation: tuple[float, int | None, float | None]  # temperature, top_k, top_p
    guidance: float

    def sample(self, logits: list[Tensor], uniform: Tensor) -> Tensor:
        """The next tokens (B,), by one random number (B,) each."""
        guided = apply_guidance(logits[0], logits[-1], self.guidance)
        return sample_token(truncate(guided, *self.truncation), uniform)


def sample_one_by_one(state: DecodeState) -> Tensor:
    """All tokens (B, L), sampled by a loop in Python."""
    model, logits, tokens = state.model, state.logits, state.fixed_tokens.clone()
    has_fixed = (tokens != UNKNOWN).any(dim=0).tolist()
    position_embeddings = model.position_embeddings()
    for position in range(state.first, tokens.shape[1]):
        token = state.sample(logits, state.uniform[:, position])
        if has_fixed[position]:
            token = token.where(tokens[:, position] == UNKNOWN, tokens[:, position])
        tokens[:, position] = token
        if position + 1 < tokens.shape[1]:
            hidden_states = model.image_embedding(token) + position_embeddings[position]
            logits = [decode_step(model, hidden_states, position, caches) for caches in state.caches]
    return tokens


def count_leading_fixed(fixed_tokens: Tensor) -> int:
    """How many tokens at the start are fixed in every row: [[7, 3, -1, 5], [7, 2, 4, 5]] -> 2."""
    return int((fixed_tokens != UNKNOWN).all(dim=0).long().cumprod(dim=0).sum())


# --- the loop on a GPU


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
        self.position_embeddings = state.model.position_embeddings()
        self.position = torch.tensor([state.first], device=self.tokens.device)

    def step(self) -> None:
        """Sample the token at `position`, compute the logits of the next, and move on by one."""
        state, position = self.state, self.position
        fixed = self.tokens.index_select(1, position)[:, 0]
        sampled = state.sample(self.logits, state.uniform.index_select(1, position)[:, 0])
        token = sampled.where(fixed == UNKNOWN, fixed)
        self.tokens.index_copy_(1, position, token[:, None])
        embedded = state.model.image_embedding(token)
        hidden_states = embedded + self.position_embeddings.index_select(0, position)
        for logits, caches in zip(self.logits, self.caches, strict=True):
            logits.copy_(decode_step(state.model, hidden_states, position, caches))
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
        reason = summarize_error(error)
        log_once(f"sampling could not be captured as a CUDA graph and runs token by token: {reason}")
        return step
    return graph.replay
