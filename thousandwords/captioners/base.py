"""The Captioner contract: images in, captions out, as text tokens of the pipeline's BPE.

A kind is built as `Model(config, image_size, text_vocab_size, text_length)`. Text tokens are (B, T) with -1 after the
end of a caption.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Logs = dict[str, Tensor | float]
# of ln p(caption) in the choice of a caption: 1 would prefer what is improbable with and without an image, such as cut
# captions (arXiv 1510.03055 §4.5.1)
PRIOR_WEIGHT = 0.5


class Captioner(nn.Module, ABC):
    """p(caption | image), and p(caption) of the same network without an image."""

    is_trainable = True  # False: nothing to train, and no caption is written

    def __init__(self, image_size: int, text_vocab_size: int, text_length: int):
        super().__init__()
        self.image_size, self.text_vocab_size, self.text_length = image_size, text_vocab_size, text_length

    @abstractmethod
    def loss(self, images: Tensor, text: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Images (B, 3, H, W) in [0, 1], text (B, T) int64 -> nats per text token, ends included, and values to log."""

    @abstractmethod
    def read_images(self, images: Tensor) -> Tensor:
        """What captions are written from: images (B, 3, H, W) in [0, 1] -> (B, n, D)."""

    @abstractmethod
    def sample(
        self, image_states: Tensor, rngs: Sequence[torch.Generator], top_p: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample captions (N, T) int64 and their ln p given the image (N,) float32, each with numbers of its own generator.

        N generators for the B rows of `read_images`: N / B captions of the first image, then those of the next one.
        """

    @abstractmethod
    def log_probabilities(self, image_states: Tensor | None, text: Tensor) -> Tensor:
        """ln p of each whole caption in nats, given its image, or of any image (None): text (B, T) -> (B,) float32."""

    @torch.no_grad()
    def caption(
        self, images: Tensor, rngs: Sequence[torch.Generator], candidates: int = 1, top_p: float | None = None
    ) -> Tensor:
        """One caption for each image (B, 3, H, W) in [0, 1]: (B, T) int64, from the image and its generator alone.

        Of `candidates` samples the one that says most about the image: with the largest ln p(caption | image) -
        PRIOR_WEIGHT * ln p(caption) (maximum mutual information, arXiv 1510.03055 §4.1). A short caption says little, and
        what is not in the image is improbable, so it is a full one where the data has short and full captions.
        """
        of_candidates = [rng for rng in rngs for _ in range(candidates)]
        text, log_probs = self.sample(self.read_images(images), of_candidates, top_p)
        if candidates == 1:
            return text
        gain = log_probs - PRIOR_WEIGHT * self.log_probabilities(None, text)
        best = gain.view(len(images), candidates).argmax(dim=1)
        return text.view(len(images), candidates, -1)[torch.arange(len(images)), best.cpu()]
