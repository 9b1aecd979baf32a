"""A small image trunk and a text decoder with cross-attention to it, trained together by next-token prediction.

The decoder half of CoCa (arXiv 2205.01917), whose captioning loss it has; its contrastive loss and its pretrained sizes
are left out. A share of the training images is hidden, so that the network also knows p(caption): `Captioner.caption`
needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.captioners.base import Captioner, Logs
from thousandwords.core.config import check_minimums, check_positive
from thousandwords.core.special_tokens import PAD
from thousandwords.nn.conv_blocks import build_encoder, initialize
from thousandwords.nn.logits import sample_token, truncate, uniforms
from thousandwords.nn.transformer_layers import MLP, Attend, Attention, attention, dense_attention

TRUNK_GAIN, RESIDUAL_GAIN = 2**0.5, 0.25  # those of the default dVAE, whose encoder the trunk is


@dataclass(frozen=True)
class CrossAttentionConfig:
    patch: int = 4  # pixels per side that become channels first
    trunk_width: int = 64  # channels of the first group of blocks; twice as many in each next one
    groups: int = 2  # each next one at half the side
    blocks_per_group: int = 2
    num_layers: int = 2  # of the text decoder
    num_heads: int = 4
    width: int = 128
    init_std: float = 0.02  # of the decoder's weights and embeddings
    image_dropout: float = 0.1  # share of images hidden in training

    def __post_init__(self) -> None:
        counts = ("patch", "groups", "blocks_per_group", "num_layers", "num_heads", "width")
        check_minimums(self, "cross_attention", trunk_width=4, **dict.fromkeys(counts, 1))
        check_positive(self, "cross_attention", "init_std")
        if self.trunk_width % 4:
            raise ValueError(
                f"cross_attention.trunk_width is {self.trunk_width}; a bottleneck is a quarter of it, so make it a "
                "multiple of 4"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"cross_attention.width is {self.width}, which {self.num_heads} heads cannot share evenly; make it a "
                "multiple of cross_attention.num_heads"
            )
        if not 0 < self.image_dropout < 1:
            raise ValueError(
                f"cross_attention.image_dropout is {self.image_dropout}; it needs to be above 0 and below 1: captions are "
                "chosen by how much more probable the image makes them"
            )


class CrossAttentionCaptioner(Captioner):
    """Images (B, 3, H, W) in [0, 1] -> captions (B, T)."""

    config_class = CrossAttentionConfig

    def __init__(self, config: CrossAttentionConfig, image_size: int, text_vocab_size: int, text_length: int):
        super().__init__(image_size, text_vocab_size, text_length)
        self.config = config
        cell = config.patch * 2 ** (config.groups - 1)
        if image_size % cell:
            raise ValueError(
                f"image_size is {image_size}, no multiple of the {cell} pixels of a feature's cell; set "
                "captioner.cross_attention.patch or groups so that it is"
            )
        width = config.width
        self.trunk = build_encoder(
            config.trunk_width, config.groups, config.blocks_per_group, RESIDUAL_GAIN, width, config.patch, 3
        )
        self.cell_embedding = nn.Embedding((image_size // cell) ** 2, width)
        self.trunk_norm = nn.LayerNorm(width)
        self.no_image = nn.Parameter(torch.zeros(1, 1, width))  # in place of the features of a hidden image
        self.boundary = text_vocab_size  # the token before the first one and after the last one
        self.token_embedding = nn.Embedding(text_vocab_size + 1, width)
        self.position_embedding = nn.Embedding(text_length, width)
        self.layers = nn.ModuleList(
            CaptionLayer(width, config.num_heads, 4 * width) for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, text_vocab_size + 1)
        self._initialize()

    def _initialize(self) -> None:
        """The trunk as the dVAE's encoder; else N(0, init_std), biases 0, and smaller output maps of residual branches
        (GPT-2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for name, module in self.layers.named_modules():
            if name.endswith(".output"):
                nn.init.normal_(module.weight, std=self.config.init_std / (3 * len(self.layers)) ** 0.5)
        nn.init.normal_(self.no_image, std=self.config.init_std)
        initialize(self.trunk, TRUNK_GAIN)

    # --- images

    def read_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> the features of each cell (B, n, D)."""
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"this captioner takes (B, 3, {self.image_size}, {self.image_size}) in [0, 1], not {tuple(images.shape)}; "
                "crop and resize the images"
            )
        features = self.trunk(2 * images - 1).flatten(2).mT  # (B, n, D)
        return self.trunk_norm(features + self.cell_embedding.weight)

    # --- the whole caption at once: loss and likelihood

    def loss(self, images: Tensor, text: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Images (B, 3, H, W) in [0, 1], text (B, T) -> nats per text token, the end of a caption included."""
        image_states = self.read_images(images)
        if self.training:
            is_hidden = torch.rand(len(images), generator=rng, device=rng.device) < self.config.image_dropout
            is_hidden = is_hidden.to(image_states.device)[:, None, None]
            image_states = self.no_image.to(image_states.dtype).where(is_hidden, image_states)
        logits, targets = self._logits(image_states, text), self._targets(text)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
        return loss, {"text_loss": loss.detach()}

    @torch.no_grad()
    def log_probabilities(self, image_states: Tensor | None, text: Tensor) -> Tensor:
        """ln p of each caption: image states (B, n, D) or None, text (B, T) -> (B,) float32; of one that fills all T
        places, without its end."""
        logits = self._logits(self.no_image if image_states is None else image_states, text)
        nats = F.cross_entropy(logits.mT, self._targets(text), ignore_index=PAD, reduction="none")
        return -nats.sum(dim=1)

    def _targets(self, text: Tensor) -> Tensor:
        """What each place predicts: the caption, one boundary, then pads. [5, 9, -1, -1] -> [5, 9, V, -1]"""
        is_end = (text == PAD) & F.pad(text != PAD, (1, 0), value=True)[:, :-1]
        return text.masked_fill(is_end, self.boundary)

    def _logits(self, image_states: Tensor, text: Tensor) -> Tensor:
        """The logits (B, T, V + 1) float32 of every place, from the tokens before it."""
        if text.ndim != 2 or text.shape[1] != self.text_length:
            raise ValueError(
                f"text has shape {tuple(text.shape)}, expected (B, {self.text_length}); pad or cut captions to it"
            )
        tokens = F.pad(text, (1, 0), value=self.boundary)[:, :-1].clamp(min=0)
        hidden_states = self.token_embedding(tokens) + self.position_embedding.weight
        count = self.text_length
        attend = dense_attention(torch.ones(count, count, dtype=torch.bool, device=text.device).tril())
        for layer in self.layers:
            hidden_states = layer(hidden_states, attend, layer.keys_and_values(image_states))
        return self.output(self.output_norm(hidden_states)).float()

    # --- token after token: sampling

    @torch.no_grad()
    def sample(
        self, image_states: Tensor, rngs: Sequence[torch.Generator], top_p: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Image states (B, n, D), N random generators -> text (N, T) int64, of at least one token each, and ln p (N,)."""
        per_image, rest = divmod(len(rngs), max(1, len(image_states)))
        if rest or not per_image:
            raise ValueError(
                f"{len(image_states)} images came with {len(rngs)} random generators; give each the same number"
            )
        device, count = image_states.device, len(rngs)
        uniform = uniforms(rngs, self.text_length).to(device)
        of_images = [layer.keys_and_values(image_states) for layer in self.layers]
        caches: list[list[Tensor]] = [[] for _ in self.layers]  # keys and values of the places before
        text = torch.full((count, self.text_length), PAD, device=device)
        token = torch.full((count,), self.boundary, device=device)
        is_ended = torch.zeros(count, dtype=torch.bool, device=device)
        log_probs = torch.zeros(count, device=device)
        for place in range(self.text_length):
            hidden_states = (self.token_embedding(token) + self.position_embedding.weight[place])[:, None]
            for layer, cache, keys_and_values in zip(self.layers, caches, of_images, strict=True):
                hidden_states = layer(hidden_states, _attend_cached(cache), keys_and_values)
            logits = self.output(self.output_norm(hidden_states))[:, 0].float()
            allowed = logits if place else F.pad(logits[:, :-1], (0, 1), value=-torch.inf)  # not empty
            token = sample_token(truncate(allowed, top_p=top_p), uniform[:, place])
            of_token = logits.log_softmax(dim=-1).gather(1, token[:, None])[:, 0]
            log_probs += of_token.masked_fill(is_ended, 0)
            is_ended |= token == self.boundary
            if is_ended.all():
                break
            text[:, place] = token.masked_fill(is_ended, PAD)
        return text, log_probs

    # --- what training needs to know of the weights

    def blocks(self) -> list[nn.Module]:
        """The layers: FSDP gathers the weights of one at a time."""
        return list(self.layers)

    def muon_parameters(self) -> list[nn.Parameter]:
        """All matrices of the decoder's layers, and the trunk's kernels but the first and the last one; no embeddings nor
        the output map."""
        ends = {self.trunk.input.weight, self.trunk.output.weight}
        kernels = [weight for weight in self.trunk.parameters() if weight.ndim == 4 and weight not in ends]
        return kernels + [weight for weight in self.layers.parameters() if weight.ndim == 2]


class CaptionLayer(nn.Module):
    """Self-attention, attention to the image's features, MLP, each with a norm before it and a residual connection."""

    def __init__(self, width: int, num_heads: int, hidden_width: int):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.cross_norm, self.cross_attention = nn.LayerNorm(width), CrossAttention(width, num_heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), MLP(width, hidden_width, "gelu")

    def keys_and_values(self, image_states: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` takes of the image states (B, n, D): keys and values (B, heads, n, x)."""
        return self.cross_attention.keys_and_values(image_states)

    def forward(
        self, hidden_states: Tensor, attend: Attend, keys_and_values: tuple[Tensor, Tensor]
    ) -> Tensor:
        """hidden_states (N, T, D) -> (N, T, D)."""
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), attend)
        normalized = self.cross_norm(hidden_states)
        hidden_states = hidden_states + self.cross_attention(normalized, *keys_and_values)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class CrossAttention(nn.Module):
    """Attention of text places to the cells of an image."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def keys_and_values(self, image_states: Tensor) -> tuple[Tensor, Tensor]:
        """Image states (B, n, D) -> keys and values (B, heads, n, x)."""
        split = self.key_value(image_states).unflatten(-1, (2, self.num_heads, -1))
        return split.transpose(1, 3).unbind(dim=2)

    def forward(self, hidden_states: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """hidden_states (N, T, D), keys and values (B, heads, n, x) -> (N, T, D); N / B rows after one another are of one
        image."""
        queries = self.query(hidden_states).reshape(len(keys), -1, self.num_heads, keys.shape[-1])
        queries = queries.transpose(1, 2)  # (B, heads, N / B * T, x)
        attended = attention(queries * queries.shape[-1] ** -0.5, keys, values)
        return self.output(attended.transpose(1, 2).reshape(hidden_states.shape))


def _attend_cached(cache: list[Tensor]) -> Attend:
    """Attention of the next place to itself and those before, whose keys and values are kept in `cache`."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if cache:
            keys, values = torch.cat([cache[0], keys], dim=2), torch.cat([cache[1], values], dim=2)
        cache[:] = [keys, values]
        return attention(queries * queries.shape[-1] ** -0.5, keys, values)

    return attend
