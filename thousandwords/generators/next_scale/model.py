"""The next-scale transformer: VAR (arXiv 2404.02905), STAR (2406.10797) and Switti (2412.01819) as settings of one model.

An image is the grids of a multi-scale tokenizer, from coarse to fine, and all tokens of a grid are predicted in one
pass. What a grid's positions get is the image so far: the tokenizer's latents after the grids before, averaged to the
grid's size. Captions are read by a small text tower that is trained along; they have no probability of their own. Not
in the papers: learned rows and columns beside the rotary positions, since in the small grids the latents so far are
nearly the same everywhere. VAR itself, with a class in place of a caption, has `text_layers: 0`, `positions: absolute`,
`attention: block_causal`, `adaptive_norms: true`, `rotary_extent: null` and `activation: tanh_gelu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.core.special_tokens import PAD, UNKNOWN
from thousandwords.generators.base import Generator, check_rngs, drop_captions
from thousandwords.generators.next_scale.latents import FrozenLatents, KeptPart
from thousandwords.generators.next_scale.layers import NORM_EPSILON, Caption, Modulation, ScaleLayer, modulate
from thousandwords.nn.chunked_cross_entropy import output_logits, output_loss
from thousandwords.nn.grid_positions import cells_of, rotary_angles, rotate
from thousandwords.nn.logits import apply_guidance, log_prob, sample_token, truncate, uniforms
from thousandwords.nn.quantizers import without_autocast
from thousandwords.nn.residual_scales import area_means
from thousandwords.nn.transformer_layers import Attend, Layer, attention

# of AdaLN's first weights, times init_std (VAR); its gates start at 1, where VAR's are near 0
ADAPTIVE_STD = 0.5


@dataclass(frozen=True)
class NextScaleConfig:
    # what a model that goes on from another (`generator.init`) may set anew
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"init_std", "flip_share", "caption_dropout"})
    num_layers: int = 16  # VAR-d16, the smallest published
    num_heads: int = 16  # VAR: as many as layers; a head is width / num_heads wide
    width: int = 1024  # VAR: 64 times the layers
    # of the text tower; the papers have pretrained ones. 0: a caption is the mean of its tokens' embeddings, which the
    # first grid gets and adaptive_norms use; its words are not read in order (VAR: a class is one token)
    text_layers: int = 2
    # which grids a position sees: its own only (Switti), or those before too (VAR, STAR)
    attention: Literal["within_scale", "block_causal"] = "within_scale"
    adaptive_norms: bool = False  # AdaLN by the caption's vector (VAR, Switti)
    rotary_extent: float | None = 64.0  # every grid is stretched to it (STAR; Switti 128); null: none (VAR)
    # what is learned of places: a vector for each row and column of the finest grid, or for each token (VAR)
    positions: Literal["row_column", "absolute"] = "row_column"
    activation: Literal["gelu", "tanh_gelu", "quick_gelu", "relu"] = "gelu"  # of the MLP
    init_std: float = 0.02  # of weights and embeddings
    flip_share: float = (
        0.05  # share of tokens that are replaced in training, so that later scales repair errors
    )
    caption_dropout: float = 0.1  # share of captions dropped in training, for guidance (VAR, STAR, Switti)

    def __post_init__(self) -> None:
        check_minimums(self, "next_scale", num_layers=1, num_heads=1, width=1, text_layers=0)
        check_positive(self, "next_scale", "init_std", "rotary_extent")
        if self.width % self.num_heads:
            raise ValueError(
                f"next_scale.width is {self.width}, which {self.num_heads} heads cannot share evenly; "
                "make it a multiple of next_scale.num_heads"
            )
        if not (self.text_layers or self.adaptive_norms):
            raise ValueError(
                "next_scale.text_layers is 0, but without a text tower a caption reaches the grids after the first by "
                "adaptive norms only. Set next_scale.adaptive_norms: true, or text_layers to 1 or more"
            )
        head_width = self.width // self.num_heads
        if self.rotary_extent is not None and head_width % 4:
            raise ValueError(
                f"next_scale.width {self.width} over {self.num_heads} heads makes heads of {head_width} channels; rotary "
                "positions in two dimensions need a multiple of 4. Set next_scale.num_heads, or rotary_extent: null"
            )
        for name in ("flip_share", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"next_scale.{name} is {getattr(self, name)}; it needs to be in [0, 1)")


class NextScale(Generator):
    """The tokens of each grid, given the image so far and the caption."""

    config_class = NextScaleConfig
    image_head = ("image_output.*",)
    is_token_by_token = False
    models_text = False
    keeps_parts = True

    def __init__(
        self,
        config: NextScaleConfig,
        text_vocab_size: int,
        text_length: int,
        image_vocab_size: int,
        scales: Sequence[int],
        latent_width: int = 4,
        num_phi: int = 1,
    ):
        """`latent_width` and `num_phi` are those of the image tokenizer: see `sizes_for`."""
        super().__init__(text_vocab_size, text_length, image_vocab_size, scales)
        self.config = config
        width = config.width
        lengths = [side * side for side in self.scales]
        self.spans = [(sum(lengths[:scale]), sum(lengths[: scale + 1])) for scale in range(len(lengths))]
        self.latents = FrozenLatents(self.scales, image_vocab_size, latent_width, num_phi)
        self.text_embedding = nn.Embedding(text_vocab_size, width)
        if config.text_layers:
            self.text_position_embedding = nn.Embedding(text_length, width)
        self.start_embedding = nn.Embedding(1, width)  # of the text: what an empty caption is
        self.text_layers = nn.ModuleList(
            Layer(width, config.num_heads, config.activation) for _ in range(config.text_layers)
        )
        # the caption's vector: what the first grid gets
        if config.text_layers:
            self.text_norm = nn.LayerNorm(width)
            self.start_input = nn.Linear(width, width)
        self.latent_input = nn.Linear(latent_width, width)  # what the others get
        if config.positions == "absolute":
            self.position_embedding = nn.Embedding(self.image_length, width)
        else:
            self.row_embedding = nn.Embedding(max(self.scales), width)
            self.column_embedding = nn.Embedding(max(self.scales), width)
        self.scale_embedding = nn.Embedding(len(self.scales), width)
        self.register_buffer("cells", cells_of(self.scales), persistent=False)
        angles = torch.zeros(self.image_length, 0)
        if config.rotary_extent is not None:
            angles = rotary_angles(self.scales, width // config.num_heads, config.rotary_extent)
        self.register_buffer("angles", angles, persistent=False)
        self.layers = nn.ModuleList(
            ScaleLayer(
                width, config.num_heads, config.activation, config.adaptive_norms, config.text_layers > 0
            )
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width, NORM_EPSILON, not config.adaptive_norms)
        self.output_modulation = Modulation(width, 2) if config.adaptive_norms else None
        self.image_output = nn.Linear(width, image_vocab_size)
        self._initialize(config)

    def _initialize(self, config: NextScaleConfig) -> None:
        """N(0, init_std), biases 0; output maps of residual branches are smaller, the more there are (GPT-2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.init_std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for layers, branches in ((self.text_layers, 2), (self.layers, 3 if config.text_layers else 2)):
            for name, module in layers.named_modules():
                if name.endswith(".output"):
                    nn.init.normal_(module.weight, std=config.init_std / (branches * len(layers)) ** 0.5)
        for layer in self.layers:
            if layer.modulation is not None:
                nn.init.normal_(layer.modulation.linear.weight, std=ADAPTIVE_STD * config.init_std)
                bias = layer.modulation.linear.bias.detach().chunk(layer.modulation.count)
                for gate in (bias[0], bias[3]):
                    nn.init.ones_(gate)

    @classmethod
    def sizes_for(cls, image_tokenizer: nn.Module) -> dict[str, int]:
        """The width of the tokenizer's latents and the number of its convolutions."""
        scales = list(image_tokenizer.scales)
        if not hasattr(image_tokenizer, "latents_so_far") or len(scales) < 2:
            raise ValueError(
                "generator.kind is next_scale, which predicts grids of tokens from coarse to fine, but this image "
                f"tokenizer has the grids {scales} and no latents after each of them. Set image_tokenizer.kind: "
                "multi_scale with several scales (the preset next_scale does), or generator.kind: transformer"
            )
        return {
            "latent_width": image_tokenizer.codebook.shape[1],
            "num_phi": len(image_tokenizer.residual.phi),
        }

    def use_tokenizer(self, image_tokenizer: nn.Module) -> None:
        """Copy the tokenizer's codes and convolutions."""
        self.latents.copy_from(image_tokenizer)

    # --- the whole image at once: loss and likelihood

    def loss(
        self,
        text: Tensor,
        image_tokens: Tensor,
        step: int,
        rng: torch.Generator,
        num_text_tokens: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """text (B, T), image_tokens (B, L) -> nats per image token.

        In training some tokens are wrong, and the right ones after them are the targets; else it is exact.
        """
        if self.training and self.config.caption_dropout:
            text = drop_captions(text, self.config.caption_dropout, rng)
        self.check_image_tokens(image_tokens)
        if self.training and self.config.flip_share:
            latents, image_tokens = self.latents.after_flips(image_tokens, self._flips(image_tokens, rng))
        else:
            latents = self.latents.after_each_scale(image_tokens)
        normalized = self._normalized_states(text, latents)
        loss = output_loss(normalized, self.image_output, image_tokens)
        return loss, {"image_loss": loss.detach()}

    def _flips(self, image_tokens: Tensor, rng: torch.Generator) -> Tensor:
        """Wrong tokens (B, L) at a share of the places of all scales but the last, -1 elsewhere."""
        shape, device = image_tokens.shape, image_tokens.device
        is_flipped = torch.rand(shape, generator=rng, device=rng.device).to(device) < self.config.flip_share
        others = torch.randint(self.image_vocab_size, shape, generator=rng, device=rng.device).to(device)
        is_flipped[:, self.spans[-1][0] :] = False
        return others.where(is_flipped, UNKNOWN)

    @torch.no_grad()
    def log_probabilities(self, text: Tensor, image_tokens: Tensor) -> tuple[None, Tensor]:
        """None, and ln p of each image token given its caption and the grids before: (B, T), (B, L) -> (B, L)."""
        return None, log_prob(self.logits(text, image_tokens), image_tokens)

    def logits(self, text: Tensor, image_tokens: Tensor) -> Tensor:
        """The logits of every image token: text (B, T), image_tokens (B, L) -> (B, L, V), float32."""
        self.check_image_tokens(image_tokens)
        normalized = self._normalized_states(text, self.latents.after_each_scale(image_tokens))
        with without_autocast(normalized):
            return output_logits(normalized, self.image_output)

    def _normalized_states(self, text: Tensor, latents: Sequence[Tensor]) -> Tensor:
        """The states that the logits of all positions follow from: (B, L, D)."""
        caption = self.read_captions(text)
        parts = [self.scale_input(scale, caption, latents) for scale in range(len(self.scales))]
        hidden_states = torch.cat(parts, dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, self._attend_all, caption)
        return self._normalize_output(hidden_states, caption)

    def read_captions(self, text: Tensor) -> Caption:
        """Text tokens (B, T) -> what the layers see of them; a caption of pads alone has its start only."""
        self.check_text(text)
        if not self.text_layers:
            return self._mean_of_tokens(text)
        embedded = self.text_embedding(text.clamp(min=0)) + self.text_position_embedding.weight
        hidden_states = torch.cat([self.start_embedding.weight.expand(len(text), 1, -1), embedded], dim=1)
        is_token = F.pad(text != PAD, (1, 0), value=True)

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attention(queries * queries.shape[-1] ** -0.5, keys, values, is_token)

        for layer in self.text_layers:
            hidden_states = layer(hidden_states, attend)
        hidden_states = self.text_norm(hidden_states)
        shares = is_token / is_token.sum(dim=1, keepdim=True)
        pooled = (hidden_states * shares[..., None].to(hidden_states.dtype)).sum(dim=1)
        return Caption(hidden_states, is_token, pooled)

    def _mean_of_tokens(self, text: Tensor) -> Caption:
        embedded, is_token = self.text_embedding(text.clamp(min=0)), text != PAD
        count = is_token.sum(dim=1, keepdim=True)
        mean = (embedded * is_token[..., None]).sum(dim=1) / count.clamp(min=1)
        return Caption(embedded, is_token, mean.where(count > 0, self.start_embedding.weight))

    def scale_input(self, scale: int, caption: Caption, latents: Sequence[Tensor]) -> Tensor:
        """What the positions of one grid get, from the latents after each grid before: (B, side * side, D)."""
        first, end = self.spans[scale]
        if scale == 0:
            start = self.start_input(caption.pooled) if self.text_layers else caption.pooled
            inputs = start[:, None].expand(-1, end, -1)
        else:
            means = area_means(latents[scale - 1], self.scales[scale])
            inputs = self.latent_input(means.to(self.latent_input.weight.dtype))
        row, column, number = self.cells[first:end].unbind(dim=1)
        if self.config.positions == "absolute":
            places = self.position_embedding.weight[first:end]
        else:
            places = self.row_embedding(row) + self.column_embedding(column)
        return inputs + (places + self.scale_embedding(number))

    def _attend_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of all positions (B, heads, L, x): each grid to itself, or also to those before. No mask is
        needed, since a grid's positions see the same keys."""
        queries, keys = (self._at_positions(vectors, 0, values.dtype) for vectors in (queries, keys))
        is_causal, parts = self.config.attention == "block_causal", []
        for first, end in self.spans:
            visible = slice(0 if is_causal else first, end)
            parts.append(attention(queries[:, :, first:end], keys[:, :, visible], values[:, :, visible]))
        return torch.cat(parts, dim=2)

    def _at_positions(self, vectors: Tensor, first: int, dtype: torch.dtype) -> Tensor:
        """Queries or keys (B, heads, n, x) of the positions from `first` on, rotated."""
        if self.config.rotary_extent is not None:
            vectors = rotate(vectors, self.angles[first : first + vectors.shape[2]])
        return vectors.to(dtype)

    def _normalize_output(self, hidden_states: Tensor, caption: Caption) -> Tensor:
        with without_autocast(hidden_states):
            normalized = self.output_norm(hidden_states)
            if self.output_modulation is None:
                return normalized
            return modulate(normalized, *self.output_modulation(caption.pooled.to(normalized.dtype)))

    # --- grid after grid: sampling

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

        Guidance grows from 1 at the first grid and is off at the last, where it costs details (Switti).
        """
        self.check_text(text)
        kept = None
        if fixed_tokens is not None:
            self.check_fixed_tokens(fixed_tokens, len(text))
            kept = KeptPart(self.latents, fixed_tokens)
        check_rngs(rngs, len(text))
        uniform = uniforms(rngs, self.image_length).to(text.device)
        if len(text) == 0:
            return torch.empty(0, self.image_length, dtype=torch.int64, device=text.device)
        decoders = [ScaleDecoder(self, text)]
        if guidance != 1 and len(self.scales) > 2:
            decoders.append(ScaleDecoder(self, torch.full_like(text, PAD)))
        latents: list[Tensor] = []
        tokens: list[Tensor] = []
        for scale, (first, end) in enumerate(self.spans):
            strength = guidance_at(scale, len(self.scales), guidance)
            logits = decoders[0].logits(scale, latents)
            if len(decoders) > 1 and scale < len(self.scales) - 1:
                logits = apply_guidance(logits, decoders[1].logits(scale, latents), strength)
            truncated = truncate(logits.flatten(0, 1), temperature, top_k, top_p)
            sampled = sample_token(truncated, uniform[:, first:end].flatten()).view(len(text), -1)
            tokens.append(kept.put_into(sampled, scale, latents) if kept else sampled)
            added = self.latents.added_by(scale, tokens[-1])
            latents.append(latents[-1] + added if latents else added)
        return torch.cat(tokens, dim=1)

    # --- what training needs to know of the weights

    def blocks(self) -> list[nn.Module]:
        """The layers: FSDP gathers the weights of one at a time."""
        return [*self.text_layers, *self.layers]

    def muon_parameters(self) -> list[nn.Parameter]:
        """All matrices of the layers but AdaLN's; not embeddings nor input and output maps."""
        named = [pair for layer in self.blocks() for pair in layer.named_parameters()]
        return [weight for name, weight in named if weight.ndim == 2 and "modulation" not in name]


class ScaleDecoder:
    """One grid after the other for captions (B, T); block-causal layers cache the keys and values of the grids before."""

    def __init__(self, model: NextScale, text: Tensor):
        self.model, self.caption = model, model.read_captions(text)
        self.caches: list[tuple[Tensor, Tensor] | None] = [None] * len(model.layers)

    def logits(self, scale: int, latents: Sequence[Tensor]) -> Tensor:
        """The logits (B, side * side, V) of the next grid, from the latents after each grid before."""
        model = self.model
        hidden_states = model.scale_input(scale, self.caption, latents)
        for number, layer in enumerate(model.layers):
            hidden_states = layer(hidden_states, self._attend(number, model.spans[scale][0]), self.caption)
        return output_logits(model._normalize_output(hidden_states, self.caption), model.image_output)

    def _attend(self, number: int, first: int) -> Attend:
        """The attention of one grid, from position `first` on, in a layer by its number."""
        model = self.model

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries, keys = (model._at_positions(each, first, values.dtype) for each in (queries, keys))
            if model.config.attention == "block_causal":
                if before := self.caches[number]:
                    keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
                self.caches[number] = (keys, values)
            return attention(queries, keys, values)

        return attend


def guidance_at(scale: int, num_scales: int, guidance: float) -> float:
    """The guidance of one grid: 1 at the first, growing evenly (VAR), and 1 at the last (Switti)."""
    if scale == num_scales - 1:
        return 1.0
    return 1 + (guidance - 1) * scale / (num_scales - 1)
