"""CLIP: an image and a caption as two unit vectors, and their cosine as the score (arXiv 2103.00020).

DALL-E keeps the candidates with the highest CLIP score (arXiv 2102.12092, §2.6). The model and its contrastive
loss are open_clip's. Left out: CLIP's random crops, which would cut off what a caption describes.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thousandwords.scorers.base import Gather, Scorer, no_gather
from thousandwords.scorers.clip import open_clip_backend
from thousandwords.scorers.clip.hard_negatives import hard_captions

PATCH_EMBEDDING = "visual.conv1.weight"  # reads pixels, in a transformer and a ResNet
MAX_LOGIT_SCALE = math.log(100)  # arXiv 2103.00020 §2.5: above it training becomes unstable


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a CLIP to train (defaults: ViT-B/32), or a pretrained one to use instead."""

    # what a model that goes on from another (`scorer.init`) may set anew
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"vision_position_std", "hard_captions"})

    embed_dim: int = 512  # width of the space that images and captions share
    # one number: layers of a vision transformer; four: blocks of a ResNet's stages, which needs far fewer pairs
    vision_layers: int | tuple[int, int, int, int] = 12
    vision_width: int = 768  # of a ResNet: channels of its first stage
    vision_heads: int = 12  # of a ResNet: of the attention pooling
    vision_patch_size: int = 32  # pixels; image_size must be a multiple of it; a ResNet's is always 32
    # of the first position embeddings; null: open_clip's, which is small for a ResNet
    vision_position_std: float | None = None
    text_layers: int = 12
    text_width: int = 512
    text_heads: int = 8
    context_length: int = 77  # text tokens, start and end included; longer captions are cut
    vocab_size: int = 49_408  # the first tokens of CLIP's vocabulary; with fewer, rare words are split
    hard_captions: int = 0  # hard negative captions per image; 0 as in the CLIP paper
    # an open_clip model to use instead, whatever the sizes above; see open_clip_backend.FORMS
    pretrained: str | None = None
    architecture: dict | None = None  # of a pretrained model that was loaded; set by CLIP, not by hand

    def __post_init__(self) -> None:
        for tower, width in (("vision", self.pooled_width), ("text", self.text_width)):
            heads = getattr(self, f"{tower}_heads")
            if heads < 1 or width % heads:
                raise ValueError(
                    f"clip.{tower}_heads is {heads}; it must divide the width it splits, {width}"
                )
        if self.is_resnet and self.vision_patch_size != 32:
            raise ValueError(
                f"clip.vision_patch_size is {self.vision_patch_size}; the cells of a ResNet have 32 pixels"
            )
        if self.vision_position_std is not None and not self.vision_position_std > 0:
            raise ValueError(
                f"clip.vision_position_std is {self.vision_position_std}; it needs to be above 0, or null"
            )
        if self.hard_captions < 0:
            raise ValueError(f"clip.hard_captions is {self.hard_captions}; it is a count, 0 or more")
        if not open_clip_backend.MIN_VOCAB_SIZE <= self.vocab_size <= open_clip_backend.FULL_VOCAB_SIZE:
            raise ValueError(
                f"clip.vocab_size is {self.vocab_size}; CLIP's vocabulary can be cut to {open_clip_backend.MIN_VOCAB_SIZE} tokens or "
                f"more, and has {open_clip_backend.FULL_VOCAB_SIZE}"
            )
        if self.context_length < 3:
            raise ValueError(f"clip.context_length is {self.context_length}; it needs 3 or more tokens")
        if self.pretrained is not None:
            open_clip_backend.check_name(self.pretrained)

    def check_weights(self) -> None:
        """Raise ValueError unless the weights that `pretrained` names are there and fit; nothing is downloaded."""
        open_clip_backend.check_pretrained(self.pretrained)

    @property
    def is_resnet(self) -> bool:
        return not isinstance(self.vision_layers, int)

    @property
    def pooled_width(self) -> int:
        """The channels of the last grid: in a ResNet 32 times those of the first stage."""
        return self.vision_width * 32 if self.is_resnet else self.vision_width


class CLIP(Scorer):
    """An open_clip model that scores images (B, 3, H, W) in [0, 1] against captions."""

    config_class = CLIPConfig

    def __init__(self, config: CLIPConfig, image_size: int) -> None:
        super().__init__()
        if config.pretrained is not None:
            self.clip, architecture = open_clip_backend.load_pretrained(config.pretrained)
            config = replace(config, pretrained=None, architecture=architecture)
        else:
            architecture = config.architecture or architecture_from_config(config, image_size)
            self.clip = open_clip_backend.build(architecture)
            if config.vision_position_std is not None:
                # near zero, the attention pooling of a ResNet hardly tells left from right
                pool = getattr(self.clip.visual, "attnpool", self.clip.visual)
                nn.init.normal_(pool.positional_embedding, std=config.vision_position_std)
        self.clip.visual.to(memory_format=torch.channels_last)  # convolutions take a third less time on a CPU
        self.is_trainable = config.architecture is None
        self.config = config  # without `pretrained`: a saved model loads where that file is missing
        self.tokenizer = open_clip_backend.tokenizer(architecture)
        preprocessing = PreprocessCfg(**architecture["preprocess_cfg"])
        size = preprocessing.size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)  # (H, W)
        self.interpolation = preprocessing.interpolation
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of any size -> unit vectors (B, D)."""
        with unfused_attention(images.device):
            return F.normalize(self.clip.encode_image(self._pixels(images)).float(), dim=-1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] of any size -> the maps after a ResNet's stages, or a transformer's layers."""
        with unfused_attention(images.device):
            pixels = self._pixels(images)
            return self.clip.visual.forward_intermediates(pixels, intermediates_only=True)[
                "image_intermediates"
            ]

    def _pixels(self, images: Tensor) -> Tensor:
        """Images as the image network takes them, in its size."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"the scorer takes images (B, 3, H, W), not {tuple(images.shape)}")
        if images.shape[2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode=self.interpolation, antialias=True)
            images = images.clamp(0, 1)
        return (images - self.mean) / self.std

    def embed_captions(self, captions: list[str]) -> Tensor:
        """B captions -> unit vectors (B, D)."""
        tokens = self.tokenizer(captions).to(self.mean.device)  # (B, T)
        with unfused_attention(tokens.device):
            return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    @torch.no_grad()
    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """Cosines (B,) of images and captions; a caption of many candidates is embedded once."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images with {len(captions)} captions: each image needs its own")
        index = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        caption_vectors = self.embed_captions(list(index))  # (unique captions, D)
        caption_vectors = caption_vectors[[index[caption] for caption in captions]]  # (B, D)
        return (self.embed_images(images) * caption_vectors).sum(dim=-1).clamp(-1, 1)

    def loss(
        self, images: Tensor, captions: list[str], step: int, rng: torch.Generator, gather: Gather = no_gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """CLIP's contrastive loss: each image of a batch must match its caption, and each caption its image."""
        seed = int(torch.randint(2**31, (1,), generator=rng, device=rng.device))
        negatives = hard_captions(captions, self.config.hard_captions, seed)
        image_vectors = gather(self.embed_images(images))
        caption_vectors = self.embed_captions(captions + negatives)
        own, others = caption_vectors.split([len(captions), len(negatives)])
        caption_vectors = torch.cat([gather(own), gather(others)])
        logit_scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 is too coarse for 100 * cosine
            loss = ContrastiveLoss()(image_vectors, caption_vectors, logit_scale)
        return loss, {
            "accuracy": accuracy(image_vectors, caption_vectors),
            "logit_scale": logit_scale.detach(),
        }

    def muon_parameters(self) -> list[nn.Parameter]:
        """The matrices of the transformer blocks of both towers, and a ResNet's kernels; no embeddings."""
        return [
            weight
            for name, weight in self.clip.named_parameters()
            if name != PATCH_EMBEDDING and (weight.ndim == 4 or ("resblocks" in name and weight.ndim == 2))
        ]


def unfused_attention(device: torch.device) -> AbstractContextManager:
    """Attention as plain products on a CPU: torch's fused kernel is slower for few tokens."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class ContrastiveLoss(open_clip.ClipLoss):
    """open_clip's loss for B images and B + K captions, where the last K captions belong to no image."""

    def get_logits(self, *arguments, **settings) -> tuple[Tensor, Tensor]:
        """Logits of each image over all captions, (B, B + K), and of each caption over all images, (B, B)."""
        per_image, per_caption = super().get_logits(*arguments, **settings)
        return per_image, per_caption[: len(per_image)]


@torch.no_grad()
def accuracy(image_vectors: Tensor, caption_vectors: Tensor) -> Tensor:
    """The share of images (B, D) whose nearest caption, of (B + K, D), is their own."""
    nearest = (image_vectors @ caption_vectors.T).argmax(dim=1)
    return (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()


def architecture_from_config(config: CLIPConfig, image_size: int) -> dict:
    """What open_clip_config.json would hold for the sizes of a config."""
    if image_size % config.vision_patch_size:
        raise ValueError(
            f"image_size is {image_size}; it must be a multiple of clip.vision_patch_size, {config.vision_patch_size}"
        )
    vision = {name: getattr(config, f"vision_{name}") for name in ("patch_size", "width", "layers")}
    vision |= {"image_size": image_size, "head_width": config.pooled_width // config.vision_heads}
    text = {name: getattr(config, f"text_{name}") for name in ("width", "layers", "heads")}
    text |= {"context_length": config.context_length, "vocab_size": config.vocab_size}
    sizes = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": sizes, "preprocess_cfg": {"size": image_size}}
