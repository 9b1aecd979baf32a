"""Text and image tokens as one stream: the transformer of arXiv 2102.12092, section 2.2, at any size.

The stream is start-of-text, T text positions, start-of-image, L image positions. Text and image words have
embeddings and output maps of their own, so a text position can never predict an image word nor the reverse. A
position without a word carries a pad embedding learned for that position alone. The text loss is taken over
real words only: the paper's vocabulary has no word for a pad, and all pads but the first are certain, so that
counting them would flatter the loss. Left out: BPE-dropout, which is the loader's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from thousandwords.compiling import Compiled, wants_compiling
from thousandwords.generators import PAD, TO_DRAW, Generator
from thousandwords.generators._blocked import Lines, blocked
from thousandwords.generators._cache import Candidates, LayerCache, Window, different_rows
from thousandwords.generators._decode import cores_for, read_last, read_one
from thousandwords.generators._drawing import Rest, draw_rest, known_first
from thousandwords.generators._flex import Order, can_run, flexible
from thousandwords.generators._graph import Drawing, Kept, draw_to_the_end
from thousandwords.generators._layers import Attend, Layer, dense
from thousandwords.generators._loss import mean_loss, mean_loss_in_chunks, pays, wide
from thousandwords.generators._masks import KINDS, attention_mask, layer_kinds
from thousandwords.memory import keep_freed_memory
from thousandwords.sampling import uniforms
from thousandwords.scaling import ResidualPath

LARGE_SIDE = 16  # cells; below it a whole mask costs less than cutting the stream into lines
LEAST_GAIN = 2.5  # times fewer keys, below which the cutting costs more than it saves (measured on a CPU)


@dataclass(frozen=True)
class Config:
    num_layers: int = 64  # paper
    num_heads: int = 62  # paper; a head is width / num_heads wide, 64 in the paper
    width: int = 3968  # paper
    mlp_ratio: int = 4  # MLP width / width; with 4 a layer has 12 width^2 weights
    kernel: int = 11  # side of the convolutional layer's neighbourhood, odd; paper
    text_loss_weight: float = 0.125  # paper, 1/8
    image_loss_weight: float = 0.875  # paper, 7/8
    init_std: float = 0.02  # of weights and embeddings; not in the paper, GPT-2's
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"  # of the MLP; the paper does not say
    dropout: float = 0.0  # of what a layer adds to the stream, in training; the paper does not say
    # how the training pass attends: under the whole mask, line by line, by FlexAttention (on a GPU alone); auto: what is fastest
    attention: Literal["auto", "dense", "blocked", "flex"] = "auto"
    compile: bool | Literal["auto"] = "auto"  # a layer's training pass, by torch.compile; auto: on a GPU
    recompute: bool = False  # activation checkpointing: less memory, and each layer's forward pass once more
    caption_dropout: float = 0.0  # share of captions hidden in training, so that sampling may be guided; 0 in the paper

    def __post_init__(self):
        for name in ("num_layers", "num_heads", "width", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"transformer.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.width % self.num_heads:
            raise ValueError(
                f"transformer.width is {self.width}, which {self.num_heads} heads cannot share evenly; "
                "make it a multiple of transformer.num_heads"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"transformer.kernel is {self.kernel}; a neighbourhood has an odd side (paper: 11)")
        for name in ("text_loss_weight", "image_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"transformer.{name} is {getattr(self, name)}; a loss weight is 0 or more")
        for name in ("caption_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"transformer.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not self.init_std > 0:
            raise ValueError(f"transformer.init_std is {self.init_std}; it must be above 0")


class Transformer(Generator):
    """The words of a picture after those of its caption, by row, column and convolutional attention."""

    def __init__(
        self,
        config: Config,
        text_vocab_size: int,
        text_length: int,
        image_vocab_size: int,
        scales: Sequence[int],
    ):
        super().__init__(text_vocab_size, text_length, image_vocab_size, scales)
        if len(self.scales) != 1:
            raise ValueError(
                f"the transformer draws one grid, but the image tokenizer has scales {self.scales}; "
                "choose an image tokenizer with one scale"
            )
        self.config = config
        self.kinds = layer_kinds(config.num_layers)
        self._add_embeddings(config.width)
        self.layers = nn.ModuleList(
            Layer(config.width, config.num_heads, config.mlp_ratio, config.activation, config.dropout)
            for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(config.width)
        self.text_output = nn.Linear(config.width, text_vocab_size)
        self.image_output = nn.Linear(config.width, image_vocab_size)
        for kind in KINDS:
            mask = attention_mask(kind, self.prefix_length, self.side, config.kernel)
            self.register_buffer(f"{kind}_mask", mask, persistent=False)
        self._lines: dict[tuple[str, torch.device], Lines] = {}  # read off the masks when first asked for
        self._flexible: dict[tuple[str, int, torch.device], Attend] = {}
        self._compiled = Compiled(read, "transformer: a layer")
        self._windows: dict[tuple[str, torch.device], Window] = {}
        self._initialise(config)

    @property
    def side(self) -> int:
        """Rows, and columns, of the image grid."""
        return self.scales[0]

    @property
    def prefix_length(self) -> int:
        """Positions before the first image token: start-of-text, the text, start-of-image."""
        return self.text_length + 2

    def loss(
        self, text: Tensor, image_tokens: Tensor, step: int, rng: torch.Generator, text_words: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """text (B, T), image_tokens (B, L) -> weighted loss, and both parts in nats per word of their kind."""
        if self.training and self.config.caption_dropout:
            text = hide_captions(text, self.config.caption_dropout, rng)
        with self._seeded_dropout(rng):
            text_states, image_states = self.states(text, image_tokens)
        text_loss = self._mean_loss(text_states, self.text_output, text, text_words)
        image_loss = self._mean_loss(image_states, self.image_output, image_tokens)
        weighted = self.config.text_loss_weight * text_loss + self.config.image_loss_weight * image_loss
        return weighted, {"text_loss": text_loss.detach(), "image_loss": image_loss.detach()}

    def logits(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What each word was expected to be: text (B, T), image_tokens (B, L) -> (B, T, Vt), (B, L, Vi), float32."""
        text_states, image_states = self.states(text, image_tokens)
        return self._read_out(text_states, self.text_output), self._read_out(image_states, self.image_output)

    def states(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is known before each word: text (B, T), image_tokens (B, L) -> (B, T, D), (B, L, D), not normalised."""
        self.check_text(text)
        self.check_image_tokens(image_tokens)
        stream = torch.cat([self.embed_text(text), self.embed_image(image_tokens[:, :-1])], dim=1)
        attends = {kind: self._attend(kind, stream.shape[1]) for kind in set(self.kinds)}
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            stream = self._read(layer, stream, attends[kind])
        return stream[:, : self.text_length], stream[:, self.prefix_length - 1 :]

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
        given: Tensor | None = None,
    ) -> Tensor:
        """text (B, T), a generator per row, given words (B, L) with -1 elsewhere or None -> image tokens (B, L).

        The cells at the beginning that are given in every row are read at once; later ones are read one by one in
        the place of drawn ones, by which time what lies before them has been drawn.
        """
        if given is None:
            given = torch.full((len(text), self.image_length), TO_DRAW, device=text.device)
        self._check_request(text, rngs, given)
        uniform, first = uniforms(rngs, self.image_length).to(text.device), known_first(given)
        if len(text) == 0 or first == self.image_length:
            return given.clone()

        streams = [self.prefill(text, given[:, :first])]
        if guidance != 1:
            streams.append(self.prefill(torch.full_like(text, PAD), given[:, :first]))
        if text.device.type == "cpu":
            keep_freed_memory()
        rest = Rest(given, first, uniform, (temperature, top_k, top_p), guidance)
        with cores_for(len(text), self.layers[0].mlp.hidden):
            return self._draw_rest_on_device(streams, rest) if text.is_cuda else self._draw_rest(streams, rest)

    @torch.no_grad()
    def _draw_rest(self, streams: list[tuple[Tensor, list[LayerCache]]], rest: Rest) -> Tensor:
        """All words; `streams` are the logits and caches of what was read, without a caption last."""
        places = self._places(0, self.image_length)

        def read(words: Tensor, position: int) -> list[Tensor]:
            stream = self.image_embedding(words) + places[position]
            return [self.decode_one(stream, position, caches) for _, caches in streams]

        return draw_rest(rest, [logits for logits, _ in streams], read)

    def _draw_rest_on_device(self, streams: list[tuple[Tensor, list[LayerCache]]], rest: Rest) -> Tensor:
        """`_draw_rest` without a word from the host in between, as a CUDA graph wants it."""
        drawing = Drawing(
            read=self._read_one_on_device,
            embed=self.image_embedding,
            places=self._places(0, self.image_length),
            logits=[logits.clone() for logits, _ in streams],
            caches=[[Kept(cache) for cache in caches] for _, caches in streams],
            tokens=rest.given.clone(),
            uniform=rest.uniform,
            position=torch.tensor([rest.first], device=rest.given.device),
            truncation=rest.truncation,
            guidance=rest.guidance,
        )
        return draw_to_the_end(drawing)

    def _read_one_on_device(self, stream: Tensor, position: Tensor, caches: Sequence[Kept]) -> Tensor:
        """`decode_one` where the position is a tensor (1,)."""
        for layer, cache in zip(self.layers, caches, strict=True):
            stream = read_one(layer, stream, position, cache)
        return self._read_out(stream, self.image_output)

    @torch.no_grad()
    def log_probabilities(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ln p of each word given those before it, in nats: (B, T), (B, L) -> (B, T) with 0 at pads, (B, L)."""
        text_logits, image_logits = self.logits(text, image_tokens)
        return log_probability(text_logits, text), log_probability(image_logits, image_tokens)

    def prefill(self, text: Tensor, beginning: Tensor) -> tuple[Tensor, list[LayerCache]]:
        """Read text (B, T) and the first image tokens (B, P): the logits (B, Vi) of the next, and a cache per layer.

        Candidates of one caption repeat it: each different row is read once.
        """
        different, rows = different_rows(torch.cat([text, beginning], dim=1))
        text, beginning = different[:, : self.text_length], different[:, self.text_length :]
        stream = torch.cat([self.embed_text(text), self.embed_image(beginning)], dim=1)
        candidates, caches, length = Candidates(rows), [], stream.shape[1]
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            mask = self.get_buffer(f"{kind}_mask")[:length, :length]
            caches.append(LayerCache(candidates, self.prefix_length, self._window(kind)))
            if len(caches) < len(self.layers):
                stream = layer(stream, caches[-1].prefill(mask))
            else:
                stream = read_last(layer, stream, caches[-1], mask[-1])
        return self._read_out(stream, self.image_output)[rows], caches

    def decode_one(self, stream: Tensor, position: int, caches: list[LayerCache]) -> Tensor:
        """Read the embedded image tokens (B, D) at one raster position: the logits (B, Vi) of the next."""
        for layer, cache in zip(self.layers, caches, strict=True):
            stream = read_one(layer, stream, position, cache)
        return self._read_out(stream, self.image_output)

    def _window(self, kind: str) -> Window:
        """Where layers of one kind keep what was drawn, read off their mask when first asked for."""
        mask = self.get_buffer(f"{kind}_mask")
        found = self._windows.get((kind, mask.device))
        if found is None:
            seen = mask[self.prefix_length :, self.prefix_length :]
            found = self._windows[kind, mask.device] = Window(seen, self.side, kind == "column")
        return found

    def _attend(self, kind: str, length: int) -> Attend:
        """The attention of a whole stream of that many positions in layers of one kind."""
        mask = self.get_buffer(f"{kind}_mask")
        if not self._takes_flex(mask.device):
            return self._attend_by_mask(kind, mask, length)
        where = (kind, length, mask.device)
        if where not in self._flexible:
            order = Order(kind, self.prefix_length, self.side, self.config.kernel)
            self._flexible[where] = flexible(order, length, mask.device, self._attend_by_mask(kind, mask, length))
        return self._flexible[where]

    def _takes_flex(self, device: torch.device) -> bool:
        """Whether this pass attends by FlexAttention."""
        setting, is_large = self.config.attention, self.side >= LARGE_SIDE
        if device.type == "meta" or not torch.is_grad_enabled():
            return False
        return (setting == "flex" or (setting == "auto" and is_large)) and can_run(device, is_asked_for=setting == "flex")

    def _attend_by_mask(self, kind: str, mask: Tensor, length: int) -> Attend:
        """The same under the whole mask, or line by line."""
        is_chosen = self.config.attention == "blocked"
        is_small = not is_chosen and (self.side < LARGE_SIDE or mask.device.type == "cuda")
        if self.config.attention == "dense" or is_small or mask.is_meta:  # a mask without values has no lines to read off
            return dense(mask[:length, :length])
        lines = self._lines.get((kind, mask.device))
        if lines is None:
            lines = self._lines[kind, mask.device] = Lines(mask, self.prefix_length, self.side, kind == "column")
        if not is_chosen and lines.keys * LEAST_GAIN > len(mask):
            return dense(mask[:length, :length])
        return blocked(lines)

    @contextlib.contextmanager
    def _seeded_dropout(self, rng: torch.Generator) -> Iterator[None]:
        """Dropout draws from torch's own generator, which knows of no step: here it is set from the step's, and put back."""
        if not (self.training and self.config.dropout):
            yield
            return
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        with torch.random.fork_rng([rng.device] if rng.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _read(self, layer: Layer, stream: Tensor, attend: Attend) -> Tensor:
        run = self._compiled if self._is_compiled(layer, stream.device) else read
        if self.config.recompute and torch.is_grad_enabled():
            return checkpoint(run, layer, stream, attend, use_reentrant=False)
        return run(layer, stream, attend)

    def _is_compiled(self, layer: Layer, device: torch.device) -> bool:
        """In training passes only, whose sizes stay; not where weights come and go (FSDP) or scales change (float16)."""
        is_plain = layer.attention_scale.value is None and not layer._forward_pre_hooks
        return torch.is_grad_enabled() and is_plain and wants_compiling(self.config.compile, device)

    def blocks(self) -> list[nn.Module]:
        """The layers: what is held whole at a time where the weights are shared out among processes."""
        return list(self.layers)

    def residual_paths(self) -> list[ResidualPath]:
        """Two a layer: 128 in the paper's 64 layers."""
        return [path for layer in self.layers for path in layer.residual_paths()]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights that neither read a vocabulary nor write one: 12 width^2 a layer. Muon may train them."""
        return [weight for weight in self.layers.parameters() if weight.ndim == 2]

    def embed_text(self, text: Tensor) -> Tensor:
        """Start-of-text, words or pads, start-of-image: (B, T) -> (B, T + 2, D)."""
        words = self.text_embedding(text.clamp(min=0)) + self.text_position_embedding.weight
        words = torch.where(text[..., None] == PAD, self.pad_embedding.weight, words)
        start_of_text, start_of_image = self.start_embedding.weight.expand(len(text), -1, -1).split(1, dim=1)
        return torch.cat([start_of_text, words, start_of_image], dim=1)

    def embed_image(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Words plus their row and column: tokens (B, n) at raster positions first, first + 1, ... -> (B, n, D)."""
        return self.image_embedding(tokens) + self._places(first, tokens.shape[1])

    def _places(self, first: int, count: int) -> Tensor:
        """What the embedding of a word says of its row and column, from a raster position on: (count, D)."""
        position = torch.arange(first, first + count, device=self.row_embedding.weight.device)
        return self.row_embedding(position // self.side) + self.column_embedding(position % self.side)

    def _read_out(self, states: Tensor, output: nn.Linear) -> Tensor:
        """states (..., D) -> logits (..., V), in float32 also under autocast."""
        if states.is_meta:  # sizes without values, which know no autocast
            return output(self.output_norm(states))
        with torch.autocast(states.device.type, enabled=False):
            normal = self.output_norm(states)
            if normal.dtype != torch.bfloat16:
                return output(normal)
            return wide(normal.flatten(0, -2), output.weight.T, torch.float32).add_(output.bias).view(*states.shape[:-1], -1)

    def _mean_loss(self, states: Tensor, output: nn.Linear, words: Tensor, count: float | None = None) -> Tensor:
        """Nats per word: states (B, n, D), words (B, n) -> scalar."""
        if states.is_meta or not pays(words.numel(), len(output.weight)):
            return mean_loss(self._read_out(states, output), words, count)
        with torch.autocast(states.device.type, enabled=False):
            normal = self.output_norm(states)
        return mean_loss_in_chunks(normal, output, words, count)

    def _add_embeddings(self, width: int) -> None:
        self.text_embedding = nn.Embedding(self.text_vocab_size, width)
        self.text_position_embedding = nn.Embedding(self.text_length, width)
        self.pad_embedding = nn.Embedding(self.text_length, width)
        self.start_embedding = nn.Embedding(2, width)  # of the text, of the image
        self.image_embedding = nn.Embedding(self.image_vocab_size, width)
        self.row_embedding = nn.Embedding(self.side, width)
        self.column_embedding = nn.Embedding(self.side, width)

    def _initialise(self, config: Config) -> None:
        """N(0, init_std), biases 0; what is added to the stream is smaller, the more is added (GPT-2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            for added in (layer.attention.output, layer.mlp.output):
                nn.init.normal_(added.weight, std=config.init_std / (2 * config.num_layers) ** 0.5)

    def _check_request(self, text: Tensor, rngs: Sequence[torch.Generator], given: Tensor) -> None:
        self.check_text(text)
        self.check_given(given, len(text))
        if len(rngs) != len(text):
            raise ValueError(f"{len(text)} rows of text came with {len(rngs)} random generators; give one per row")


def read(layer: Layer, stream: Tensor, attend: Attend) -> Tensor:
    """One layer: a function of all that it needs, so that one compiled version serves all layers of a kind."""
    return layer(stream, attend)


def hide_captions(text: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """text (B, T) with about `share` of its rows all pads: what a picture looks like when nothing is said of it."""
    hidden = torch.rand(len(text), generator=rng, device=rng.device).to(text.device) < share
    return text.masked_fill(hidden[:, None], PAD)


def log_probability(logits: Tensor, words: Tensor) -> Tensor:
    """ln p of the words: logits (B, n, V), words (B, n) -> (B, n) float32, 0 at pads; summed in float64."""
    known = logits.double().log_softmax(dim=-1).gather(-1, words.clamp(min=0)[..., None])[..., 0]
    return known.masked_fill(words == PAD, 0).float()
