"""CLIP: a picture and a caption as two unit vectors, and their cosine as the score (arXiv 2103.00020).

DALL-E draws many candidates and keeps those CLIP likes best (arXiv 2102.12092, §2.6). The model and its contrastive loss are
open_clip's own; here it is given sizes, or the name of pretrained weights, and pictures and captions instead of tensors.
Left out: CLIP's random crops, which would cut off what a caption tells of.
"""
from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thousandwords.scorers import Gather, Scorer, _open_clip, alone
from thousandwords.scorers._hard_captions import hard_captions

READS_PIXELS = "visual.conv1.weight"    # of a transformer or a ResNet
MAX_LOGIT_SCALE = math.log(100)    # arXiv 2103.00020 §2.5: clipped, or the training becomes unstable


@dataclass(frozen=True)
class Config:
    """The sizes of a CLIP to train (its defaults: ViT-B/32 of the CLIP paper), or the pretrained one to use instead."""

    embed_dim: int = 512              # width of the space that pictures and captions share
    # One number: the depth of a vision transformer. Four: the blocks of a ResNet's stages, which learns from far fewer pairs.
    vision_layers: int | tuple[int, int, int, int] = 12
    vision_width: int = 768           # of a ResNet: channels of its first stage
    vision_heads: int = 12            # of a ResNet: of the attention that pools its last grid
    vision_patch_size: int = 32       # pixels per cell, which image_size must be a multiple of; a ResNet's is always 32
    vision_position_std: float | None = None    # start of the table of places; null: open_clip's, small for a ResNet
    text_layers: int = 12
    text_width: int = 512
    text_heads: int = 8
    context_length: int = 77          # text tokens, with the marks of start and end; longer captions are cut
    vocab_size: int = 49_408          # text tokens there are, the first of CLIP's; with fewer, rare words are spelt in parts
    hard_captions: int = 0            # altered captions per picture that its own must beat; 0 as in the CLIP paper
    pretrained: str | None = None     # an open_clip model to use instead, whatever the sizes above: _open_clip.FORMS
    architecture: dict | None = None  # of a pretrained model that was loaded; written by CLIP, not by hand

    def __post_init__(self) -> None:
        for tower, width in (("vision", self.pooled_width), ("text", self.text_width)):
            heads = getattr(self, f"{tower}_heads")
            if heads < 1 or width % heads:
                raise ValueError(f"clip.{tower}_heads is {heads}; it must divide the width that it splits, {width}")
        if self.is_resnet and self.vision_patch_size != 32:
            raise ValueError(f"clip.vision_patch_size is {self.vision_patch_size}; the cells of a ResNet have 32 pixels")
        if self.vision_position_std is not None and not self.vision_position_std > 0:
            raise ValueError(f"clip.vision_position_std is {self.vision_position_std}; it needs to be above 0, or null")
        if self.hard_captions < 0:
            raise ValueError(f"clip.hard_captions is {self.hard_captions}; it is a count, 0 or more")
        if not _open_clip.FEWEST_TOKENS <= self.vocab_size <= _open_clip.ALL_TOKENS:
            raise ValueError(
                f"clip.vocab_size is {self.vocab_size}; CLIP's vocabulary can be cut to {_open_clip.FEWEST_TOKENS} tokens or "
                f"more, and has {_open_clip.ALL_TOKENS}"
            )
        if self.context_length < 3:
            raise ValueError(f"clip.context_length is {self.context_length}; it needs 3 or more tokens")
        if self.pretrained is not None:
            _open_clip.check_name(self.pretrained)

    @property
    def is_resnet(self) -> bool:
        return not isinstance(self.vision_layers, int)

    @property
    def pooled_width(self) -> int:
        """The channels of a cell of the last grid: a ResNet's stages widen its first by 32."""
        return self.vision_width * 32 if self.is_resnet else self.vision_width


class CLIP(Scorer):
    """An open_clip model that scores pictures (B, 3, H, W) in [0, 1] against captions."""

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__()
        if config.pretrained is not None:
            self.clip, architecture = _open_clip.load_pretrained(config.pretrained)
            config = replace(config, pretrained=None, architecture=architecture)
        else:
            architecture = config.architecture or small_architecture(config, image_size)
            self.clip = _open_clip.build(architecture)
            if config.vision_position_std is not None:
                spread_positions(self.clip.visual, config.vision_position_std)
        self.clip.visual.to(memory_format=torch.channels_last)    # a third less time for convolutions on a CPU
        self.is_trainable = config.architecture is None
        self.config = config    # names no file: a model saved with it loads where the pretrained weights are not
        self.tokenizer = _open_clip.tokenizer(architecture)
        preprocessing = PreprocessCfg(**architecture["preprocess_cfg"])
        size = preprocessing.size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)    # (H, W)
        self.interpolation = preprocessing.interpolation
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of any size -> unit vectors (B, D)."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"the scorer takes images (B, 3, H, W), found {tuple(images.shape)}")
        if images.shape[2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode=self.interpolation, antialias=True).clamp(0, 1)
        with written_out(images.device):
            return F.normalize(self.clip.encode_image((images - self.mean) / self.std).float(), dim=-1)

    def embed_captions(self, captions: list[str]) -> Tensor:
        """B captions -> unit vectors (B, D)."""
        tokens = self.tokenizer(captions).to(self.mean.device)    # (B, T)
        with written_out(tokens.device):
            return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    @torch.no_grad()
    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """Cosines (B,) of pictures and captions; a caption that many candidates share is embedded once."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images with {len(captions)} captions: each image needs its own")
        places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        caption_vectors = self.embed_captions(list(places))    # (distinct captions, D)
        caption_vectors = caption_vectors[[places[caption] for caption in captions]]    # (B, D)
        return (self.embed_images(images) * caption_vectors).sum(dim=-1).clamp(-1, 1)

    def loss(
        self, images: Tensor, captions: list[str], step: int, rng: torch.Generator, gather: Gather = alone
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """CLIP's contrastive loss: in a batch, each picture must find its caption and each caption its picture."""
        seed = int(torch.randint(2**31, (1,), generator=rng))
        altered = hard_captions(captions, self.config.hard_captions, seed)
        image_vectors, caption_vectors = gather(self.embed_images(images)), self.embed_captions(captions + altered)
        own, rivals = caption_vectors.split([len(captions), len(altered)])
        caption_vectors = torch.cat([gather(own), gather(rivals)])
        logit_scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        with torch.autocast(images.device.type, enabled=False):    # a hundred times a cosine, which bfloat16 has no digits for
            loss = ContrastiveLoss()(image_vectors, caption_vectors, logit_scale)
        return loss, {"accuracy": accuracy(image_vectors, caption_vectors), "logit_scale": logit_scale.detach()}

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights of transformer blocks, of either tower, and a ResNet's kernels; what reads pixels or words is none."""
        named = [(name, weight) for name, weight in self.clip.named_parameters() if name != READS_PIXELS]
        return [weight for name, weight in named if weight.ndim == 4 or ("resblocks" in name and weight.ndim == 2)]


def written_out(device: torch.device) -> AbstractContextManager:
    """Attention as plain products on a CPU: over a caption's few tokens torch's fused kernel is slower, in bfloat16 ten times."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def spread_positions(visual: nn.Module, std: float) -> None:
    """Draws the learned places of an image tower anew, in place.

    Near zero, the pooling of a ResNet hardly tells its cells apart; then the pictures say nothing of left and right for the
    captions to learn from, nor the captions for the pictures, and both wait.
    """
    pool = getattr(visual, "attnpool", visual)
    nn.init.normal_(pool.positional_embedding, std=std)


class ContrastiveLoss(open_clip.ClipLoss):
    """open_clip's loss, where captions that belong to no image may follow those that do: B images, B + K captions."""

    def get_logits(self, *arguments, **settings) -> tuple[Tensor, Tensor]:
        """Logits (B, B + K) in which each image looks for its caption, and (B, B) where each caption does for its image."""
        per_image, per_caption = super().get_logits(*arguments, **settings)
        return per_image, per_caption[: len(per_image)]


@torch.no_grad()
def accuracy(image_vectors: Tensor, caption_vectors: Tensor) -> Tensor:
    """The share of images (B, D) whose nearest caption, of (B + K, D), is their own."""
    nearest = (image_vectors @ caption_vectors.T).argmax(dim=1)
    return (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()


def small_architecture(config: Config, image_size: int) -> dict:
    """What open_clip_config.json would hold for the sizes of a Config."""
    if image_size % config.vision_patch_size:
        raise ValueError(
            f"image_size is {image_size}; it must be a multiple of clip.vision_patch_size, {config.vision_patch_size}"
        )
    vision = {
        "image_size": image_size,
        "patch_size": config.vision_patch_size,
        "width": config.vision_width,
        "layers": config.vision_layers,
        "head_width": config.pooled_width // config.vision_heads,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.text_width,
        "layers": config.text_layers,
        "heads": config.text_heads,
    }
    sizes = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": sizes, "preprocess_cfg": {"size": image_size}}
