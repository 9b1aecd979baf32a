"""The autoregressive transformer over text and image tokens of arXiv 2102.12092, section 2.2, at any size.

The sequence is start-of-text, T text positions, start-of-image, L image positions. Text and image tokens have
their own embeddings and output maps, so neither can be predicted at the other's positions. A text position
without a token has a pad embedding of its own, and no part in the loss: most pads are certain. Not in the paper:
several grids (`scales` of the image tokenizer), one after the other in one sequence; rotary positions; random orders of
the image tokens in a first part of the training (RAR, arXiv 2411.00776). After it, in likelihood and in sampling, the
order is raster.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.core.special_tokens import PAD, UNKNOWN
from thousandwords.generators.base import Generator, check_rngs, drop_captions
from thousandwords.generators.transformer.attention import AttentionBackends, rotary
from thousandwords.generators.transformer.decoding import (
    DecodeState,
    count_leading_fixed,
    limit_threads,
    prefill,
    sample_one_by_one,
    sample_with_cuda_graph,
)
from thousandwords.generators.transformer.masks import layer_kinds
from thousandwords.nn.chunked_cross_entropy import output_logits, output_loss
from thousandwords.nn.compile import Compiled, should_compile
from thousandwords.nn.grad_scaling import ResidualPath
from thousandwords.nn.grid_positions import cells_of, rotary_angles
from thousandwords.nn.logits import log_prob, uniforms
from thousandwords.nn.malloc import keep_freed_memory
from thousandwords.nn.quantizers import without_autocast
from thousandwords.nn.transformer_layers import Attend, Layer


@dataclass(frozen=True)
class TransformerConfig:
    # what a model that goes on from another (`generator.init`) may set anew
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"text_loss_weight", "image_loss_weight", "init_std", "dropout", "caption_dropout"}
        | {"attention", "compile", "activation_checkpointing", "random_order_steps"}
    )
    num_layers: int = 64  # paper
    num_heads: int = 62  # paper; a head is width / num_heads wide, 64 in the paper
    width: int = 3968  # paper
    kernel: int = 11  # side of the convolutional layer's neighborhood, odd; paper
    text_loss_weight: float = 0.125  # paper, 1/8
    image_loss_weight: float = 0.875  # paper, 7/8
    init_std: float = 0.02  # of weights and embeddings; not in the paper, GPT-2's
    activation: Literal["gelu", "quick_gelu", "relu", "swiglu"] = "gelu"  # of the MLP; the paper does not say
    # 2-D rotary positions of image tokens, every grid stretched to this (LlamaGen: its side); null: none
    rotary_extent: float | None = None
    # updates [first, end]: the share of images with a random order of tokens falls from 1 to 0 between them (RAR: half and
    # three quarters of the training); all layers then see all tokens before. null: raster order, the paper's layers
    random_order_steps: tuple[int, int] | None = None
    dropout: float = 0.0  # of each layer's residual branches, in training; the paper does not say
    # in training: under the whole mask, by FlexAttention (needs a GPU); auto: the faster
    attention: Literal["auto", "dense", "flex"] = "auto"
    compile: bool | Literal["auto"] = "auto"  # torch.compile of a layer in training; auto: on a GPU
    activation_checkpointing: bool = False  # recompute each layer's activations: less memory, more time
    caption_dropout: float = 0.0  # share of captions dropped in training, for guidance; 0 in the paper

    def __post_init__(self):
        check_minimums(self, "transformer", num_layers=1, num_heads=1, width=1)
        if self.width % self.num_heads:
            raise ValueError(
                f"transformer.width is {self.width}, which {self.num_heads} heads cannot share evenly; "
                "make it a multiple of transformer.num_heads"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"transformer.kernel is {self.kernel}; a neighborhood has an odd side (paper: 11)"
            )
        check_minimums(self, "transformer", text_loss_weight=0, image_loss_weight=0)
        for name in ("caption_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"transformer.{name} is {getattr(self, name)}; it needs to be in [0, 1)")
        check_positive(self, "transformer", "init_std", "rotary_extent")
        first, end = self.random_order_steps or (0, 0)
        if not 0 <= first <= end:
            raise ValueError(
                f"transformer.random_order_steps is [{first}, {end}]; give two updates, the second not before the first"
            )
        head_width = self.width // self.num_heads
        if self.rotary_extent is not None and head_width % 4:
            raise ValueError(
                f"transformer.width {self.width} over {self.num_heads} heads makes heads of {head_width} channels; rotary "
                "positions in two dimensions need a multiple of 4. Set transformer.num_heads, or rotary_extent: null"
            )


class Transformer(Generator):
    """Image tokens after the text tokens of their caption, by row, column and convolutional attention."""

    config_class = TransformerConfig
    image_head = ("image_output.*",)

    def __init__(
        self,
        config: TransformerConfig,
        text_vocab_size: int,
        text_length: int,
        image_vocab_size: int,
        scales: Sequence[int],
    ):
        super().__init__(text_vocab_size, text_length, image_vocab_size, scales)
        self.config = config
        has_random_orders = config.random_order_steps is not None
        self.kinds = layer_kinds(config.num_layers, is_causal=has_random_orders or len(self.scales) > 1)
        width = config.width
        self.text_embedding = nn.Embedding(text_vocab_size, width)
        self.text_position_embedding = nn.Embedding(text_length, width)
        self.pad_embedding = nn.Embedding(text_length, width)
        self.start_embedding = nn.Embedding(2, width)  # of the text, of the image
        self.image_embedding = nn.Embedding(image_vocab_size, width)
        self.row_embedding = nn.Embedding(self.side, width)
        self.column_embedding = nn.Embedding(self.side, width)
        if len(self.scales) > 1:
            self.scale_embedding = nn.Embedding(len(self.scales), width)
        # of the position that is predicted next
        self.next_embedding = nn.Embedding(self.image_length, width) if has_random_orders else None
        self.register_buffer("cells", cells_of(self.scales), persistent=False)
        angles = None
        if config.rotary_extent is not None:
            angles = rotary_angles(self.scales, width // config.num_heads, config.rotary_extent)
            angles = F.pad(angles, (0, 0, self.prefix_length, 0))  # the prefix is not turned
        self.register_buffer("angles", angles, persistent=False)
        self.layers = nn.ModuleList(
            Layer(width, config.num_heads, config.activation, config.dropout)
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        self.text_output = nn.Linear(width, text_vocab_size)
        self.image_output = nn.Linear(width, image_vocab_size)
        self.attention = AttentionBackends(config.attention, self.prefix_length, self.scales, config.kernel)
        self.compiled_layer = Compiled(run_layer, "transformer: a layer")
        self._initialize(config)

    def _initialize(self, config: TransformerConfig) -> None:
        """N(0, init_std), biases 0; output maps of residual branches are smaller, the more there are (GPT-2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            for output in (layer.attention.output, layer.mlp.output):
                nn.init.normal_(output.weight, std=config.init_std / (2 * config.num_layers) ** 0.5)

    @property
    def side(self) -> int:
        """Rows, and columns, of the (finest) image grid."""
        return max(self.scales)

    @property
    def min_steps(self) -> int:
        """Updates after which training is in raster order, as sampling is."""
        return (self.config.random_order_steps or (0, 0))[1]

    @property
    def prefix_length(self) -> int:
        """Positions before the first image token: start-of-text, the text, start-of-image."""
        return self.text_length + 2

    # --- the whole sequence at once: loss and likelihood

    def loss(
        self,
        text: Tensor,
        image_tokens: Tensor,
        step: int,
        rng: torch.Generator,
        num_text_tokens: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """text (B, T), image_tokens (B, L) -> weighted loss, and both parts in nats per token.

        In training some images have a random order; else it is the loss in raster order.
        """
        order = None
        if self.training and (share := random_order_share(self.config.random_order_steps, step)):
            order = random_orders(len(image_tokens), self.image_length, share, rng).to(image_tokens.device)
            image_tokens = image_tokens.gather(1, order)
        if self.training and self.config.caption_dropout:
            text = drop_captions(text, self.config.caption_dropout, rng)
        with seeded_dropout(rng) if self.training and self.config.dropout else contextlib.nullcontext():
            text_states, image_states = self.hidden_states(text, image_tokens, order)
        text_loss = self._mean_loss(text_states, self.text_output, text, num_text_tokens)
        image_loss = self._mean_loss(image_states, self.image_output, image_tokens)
        weighted = self.config.text_loss_weight * text_loss + self.config.image_loss_weight * image_loss
        return weighted, {"text_loss": text_loss.detach(), "image_loss": image_loss.detach()}

    @torch.no_grad()
    def log_probabilities(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ln p of each token given those before it, in nats: (B, T), (B, L) -> (B, T), 0 at pads, (B, L)."""
        text_logits, image_logits = self.logits(text, image_tokens)
        return log_prob(text_logits, text), log_prob(image_logits, image_tokens)

    def logits(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of every token: text (B, T), image_tokens (B, L) -> (B, T, Vt), (B, L, Vi), float32."""
        text_states, image_states = self.hidden_states(text, image_tokens)
        return self.lm_head(text_states, self.text_output), self.lm_head(image_states, self.image_output)

    def hidden_states(
        self, text: Tensor, image_tokens: Tensor, order: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last layer's output before each token, not normalized: (B, T), (B, L) -> (B, T, D), (B, L, D).

        `order` (B, L) has the raster position of each image token, None: raster order.
        """
        self.check_text(text)
        self.check_image_tokens(image_tokens)
        embedded = self.embed_text(text, order), self.embed_image(image_tokens[:, :-1], order)
        hidden_states = torch.cat(embedded, dim=1)
        length = hidden_states.shape[1]
        angles = self.angles_of(length, order)
        attends = {kind: rotary(self.attention.choose(kind, length), angles) for kind in set(self.kinds)}
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            hidden_states = self._run_layer(layer, hidden_states, attends[kind])
        return hidden_states[:, : self.text_length], hidden_states[:, self.prefix_length - 1 :]

    def angles_of(self, length: int, order: Tensor | None = None) -> Tensor | None:
        """The rotary positions of the first `length` positions: (length, x / 2), in an order (B, 1, length, x / 2)."""
        if self.angles is None:
            return None
        if order is None:
            return self.angles[:length]
        of_image = self.angles[self.prefix_length + order]
        return F.pad(of_image, (0, 0, self.prefix_length, 0))[:, None, :length]

    def embed_text(self, text: Tensor, order: Tensor | None = None) -> Tensor:
        """Start-of-text, text tokens or pads, start-of-image: (B, T) -> (B, T + 2, D)."""
        embedded = self.text_embedding(text.clamp(min=0)) + self.text_position_embedding.weight
        embedded = torch.where(text[..., None] == PAD, self.pad_embedding.weight, embedded)
        start_of_text, start_of_image = self.start_embedding.weight.expand(len(text), -1, -1).split(1, dim=1)
        if self.next_embedding is not None:
            start_of_image = start_of_image + self.next_embedding(self._positions(order)[..., :1])
        return torch.cat([start_of_text, embedded, start_of_image], dim=1)

    def embed_image(self, tokens: Tensor, order: Tensor | None = None) -> Tensor:
        """Embeddings of the first n image tokens (B, n) of a sequence: (B, n, D)."""
        return self.image_embedding(tokens) + self.position_embeddings(order)[..., : tokens.shape[1], :]

    def position_embeddings(self, order: Tensor | None = None) -> Tensor:
        """The row and column embeddings of all image positions, of several grids also the grid's own, and with random
        orders that of the position predicted next, which the last has not: (L, D), in an order (B, L) (B, L, D)."""
        positions = self._positions(order)
        row, column, scale = self.cells[positions].unbind(dim=-1)
        embeddings = self.row_embedding(row) + self.column_embedding(column)
        if len(self.scales) > 1:
            embeddings = embeddings + self.scale_embedding(scale)
        if self.next_embedding is not None:
            embeddings = embeddings + F.pad(self.next_embedding(positions[..., 1:]), (0, 0, 0, 1))
        return embeddings

    def _positions(self, order: Tensor | None) -> Tensor:
        return torch.arange(self.image_length, device=self.cells.device) if order is None else order

    def lm_head(self, hidden_states: Tensor, output: nn.Linear) -> Tensor:
        """hidden_states (..., D) -> logits (..., V), in float32 also under autocast."""
        with without_autocast(hidden_states):
            return output_logits(self.output_norm(hidden_states), output)

    def _mean_loss(
        self, hidden_states: Tensor, output: nn.Linear, tokens: Tensor, count: float | None = None
    ) -> Tensor:
        """Nats per token: hidden_states (B, n, D), tokens (B, n) -> scalar."""
        with without_autocast(hidden_states):
            normalized = self.output_norm(hidden_states)
        return output_loss(normalized, output, tokens, count)

    def _run_layer(self, layer: Layer, hidden_states: Tensor, attend: Attend) -> Tensor:
        """Compiled only in training, where sizes stay; not under FSDP (swaps weights) or in float16 (scales)."""
        is_plain = layer.attention_scale.value is None and not layer._forward_pre_hooks
        is_training = torch.is_grad_enabled()
        is_compiled = is_training and is_plain and should_compile(self.config.compile, hidden_states.device)
        run = self.compiled_layer if is_compiled else run_layer
        if self.config.activation_checkpointing and is_training:
            return checkpoint(run, layer, hidden_states, attend, use_reentrant=False)
        return run(layer, hidden_states, attend)

    # --- token after token: sampling

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        rngs: Sequence[torch.Generator],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        fixed_tokens: Tensor | None = None,
    ) -> Tensor:
        """Sample image tokens (B, L) for text (B, T); see `Generator.sample`.

        The first tokens that are fixed in every row are part of the prefill; a later one replaces the sampled
        token when its position is reached.
        """
        if fixed_tokens is None:
            fixed_tokens = torch.full((len(text), self.image_length), UNKNOWN, device=text.device)
        self.check_text(text)
        self.check_fixed_tokens(fixed_tokens, len(text))
        check_rngs(rngs, len(text))
        uniform = uniforms(rngs, self.image_length).to(text.device)
        first = count_leading_fixed(fixed_tokens)
        if len(text) == 0 or first == self.image_length:
            return fixed_tokens.clone()
        captions = [text] if guidance == 1 else [text, torch.full_like(text, PAD)]
        beginning = fixed_tokens[:, :first]
        logits, caches = zip(*[prefill(self, caption, beginning) for caption in captions], strict=True)
        if text.device.type == "cpu":
            keep_freed_memory()
        options = {"truncation": (temperature, top_k, top_p), "guidance": guidance}
        state = DecodeState(self, list(logits), list(caches), fixed_tokens, first, uniform, **options)
        with limit_threads(len(text), self.layers[0].mlp.hidden):
            return sample_with_cuda_graph(state) if text.is_cuda else sample_one_by_one(state)

    # --- what training needs to know of the weights

    def blocks(self) -> list[nn.Module]:
        """The layers: FSDP gathers the weights of one at a time."""
        return list(self.layers)

    def residual_paths(self) -> list[ResidualPath]:
        """Two a layer: 128 in the paper's 64 layers."""
        return [path for layer in self.layers for path in layer.residual_paths()]

    def muon_parameters(self) -> list[nn.Parameter]:
        """All matrices of the layers, 12 width^2 each; not embeddings nor output maps."""
        return [weight for weight in self.layers.parameters() if weight.ndim == 2]


def run_layer(layer: Layer, hidden_states: Tensor, attend: Attend) -> Tensor:
    """One layer, as a function of everything it needs: one compiled version serves all layers of a kind."""
    return layer(hidden_states, attend)


def random_order_share(steps: tuple[int, int] | None, step: int) -> float:
    """The share of images with a random order at an update: of the steps (10, 20) 1 until 10, 0 from 20 on."""
    first, end = steps or (0, 0)
    return 1.0 if step < first else max(0.0, (end - step) / max(end - first, 1))


def random_orders(rows: int, length: int, share: float, rng: torch.Generator) -> Tensor:
    """An order of `length` positions for each row, random in about `share` of the rows, else raster: (rows, length)."""
    is_random = torch.rand(rows, 1, generator=rng, device=rng.device) < share
    shuffled = torch.rand(rows, length, generator=rng, device=rng.device).argsort(dim=1)
    return shuffled.where(is_random, torch.arange(length, device=rng.device))


@contextlib.contextmanager
def seeded_dropout(rng: torch.Generator) -> Iterator[None]:
    """Inside the block dropout, which uses torch's global generator, is seeded by the step's own."""
    seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
    with torch.random.fork_rng([rng.device] if rng.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
