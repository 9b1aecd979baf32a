"""Features of generated and real images at every blur, and the figures that compare the two sets.

Axes: R radii of blur, N real images, M samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thousandwords.data.batching import sequential_batches
from thousandwords.data.images import decode_png, to_float
from thousandwords.evaluation import fid
from thousandwords.evaluation.features import INCEPTION_FIGURES, Extractor, FigureNames
from thousandwords.evaluation.metrics import with_interval
from thousandwords.inference.sample_shards import Samples

SampleId = tuple[int, int]  # (prompt, candidate)
ReadImages = Callable[[list[int]], Tensor]  # rows -> (B, 3, H, W) in [0, 1]
Progress = Callable[[Iterable, int], Iterable]  # (batches, their number) -> the same batches
SPLIT = "validation"  # the split whose images are compared with the samples for its captions
BATCH_SIZE = 64
TORCH_FIDELITY_SEED = 2020


@dataclass(frozen=True)
class FeatureSets:
    """The features of real images and of samples at every radius of blur."""

    names: FigureNames
    real_features: Tensor  # (R, N, D)
    sample_features: Tensor  # (R, M, D)
    logits: Tensor  # (R, M, K) of the samples; K is 0 where there are no classes
    sample_ids: list[SampleId]  # of the M samples
    captions: list[str]  # of the M samples

    @property
    def prompts(self) -> list[int]:
        """The prompts of the M samples: samples of one prompt count as one in an interval, as they show the
        same."""
        return [prompt for prompt, _ in self.sample_ids]

    def distance(
        self, radius: int, real: Tensor | slice = slice(None), samples: Tensor | slice = slice(None)
    ) -> float | None:
        """The Fréchet distance of a selection of images at one radius; None where fewer than 2 are left of a
        set."""
        sets = self.real_features[radius, real], self.sample_features[radius, samples]
        return fid.frechet_distance(*sets) if min(map(len, sets)) > 1 else None

    def frechet(self, seed: int) -> dict:
        """The block of the Fréchet distance in metrics.json; its interval is that of radius 0."""
        return {
            self.names.frechet: {
                "real": self.real_features.shape[1],
                "drawn": self.sample_features.shape[1],
                "captions": len(set(self.captions)),
                "radius": list(fid.RADII),
                "distance": [self.distance(radius) for radius in fid.RADII],
                "interval": fid.frechet_interval(
                    self.sample_features[0], self.real_features[0], self.prompts, np.random.default_rng(seed)
                ),
            }
        }

    def frechet_without(self, is_overlapping: Tensor, captions: set[str]) -> list[float | None]:
        """The distance at every radius without the overlapping real images (N,) and without the samples for
        `captions`."""
        samples = torch.tensor([caption not in captions for caption in self.captions])
        return [self.distance(radius, ~is_overlapping, samples) for radius in fid.RADII]

    def baseline(self, train_features: Tensor) -> dict:
        """{"training": the distance, without blur, of as many training images (N, D)}: that of real images is
        not 0 either."""
        return {
            "training": fid.frechet_distance(
                self.real_features[0], train_features[: self.real_features.shape[1]]
            )
        }

    def kernel_and_precision(self, seed: int) -> dict:
        """The blocks of the kernel distance and of precision and recall, without blur; absent where images
        are too few."""
        if min(len(self.real_features[0]), len(self.sample_features[0])) <= fid.NEIGHBORS:
            return {}
        precise, recalled = map(
            Tensor.numpy, fid.precision_recall(self.sample_features[0], self.real_features[0])
        )
        prompts = np.asarray(self.prompts)
        precision_by_prompt = [np.mean(precise[prompts == prompt]) for prompt in dict.fromkeys(self.prompts)]
        return {
            self.names.kernel: self.kernel_distance(seed),
            self.names.precision_recall: {
                **with_interval("precision", precision_by_prompt, seed),
                **with_interval("recall", recalled, seed),
                "neighbours": fid.NEIGHBORS,
            },
        }

    def kernel_distance(self, seed: int) -> dict:
        """KID exactly as torch-fidelity computes it; for a CLIP in float64, as its vectors lie closer
        together."""
        if self.names is INCEPTION_FIGURES:
            return fid.kernel_distance(self.sample_features[0], self.real_features[0], TORCH_FIDELITY_SEED)
        return fid.kernel_distance(self.sample_features[0].double(), self.real_features[0].double(), seed)

    def inception_score(self) -> dict:
        """The block of the Inception Score of the samples at every radius; absent where there are no
        classes."""
        if not self.logits.shape[2] or self.logits.shape[1] < fid.SPLITS:
            return {}
        by_radius = list(map(fid.inception_score, self.logits))
        return {
            self.names.inception_score: {
                **by_radius[0],
                "drawn": self.logits.shape[1],
                "radius": list(fid.RADII),
                "score": [figures["mean"] for figures in by_radius],
            }
        }


def first_samples(samples: Samples, count: int) -> list[SampleId]:
    """Choose samples for held-out captions: as few candidates of each caption as give `count` in all.

    In the order of sampling, not of the scorer: its favorites would improve a distance in its own feature
    space.
    """
    prompts = np.flatnonzero(np.array(samples.splits) == SPLIT).tolist()
    candidates = min(samples.candidates, -(-count // len(prompts))) if prompts else 0
    return [(prompt, candidate) for candidate in range(candidates) for prompt in prompts]


def embed_feature_sets(
    extractor: Extractor,
    real: Tensor,
    samples: Samples,
    progress: Progress,
    unblurred_features: Tensor | None = None,
) -> FeatureSets | None:
    """Embed real images (N, 3, H, W) and about as many samples; None where a set has fewer than 2, too few
    for a distance.

    `unblurred_features` (1, N, D) are the real images' features without blur, if they are already computed.
    """
    sample_ids = first_samples(samples, len(real))
    if min(len(real), len(sample_ids)) < 2:
        return None
    radii = fid.RADII if unblurred_features is None else fid.RADII[1:]
    real_features, _ = embed(extractor, real.__getitem__, len(real), radii, progress)
    sample_features, logits = embed_samples(extractor, samples, sample_ids, fid.RADII, progress)
    return FeatureSets(
        extractor.names,
        real_features if unblurred_features is None else torch.cat([unblurred_features, real_features]),
        sample_features,
        logits,
        sample_ids,
        [samples.prompts[prompt] for prompt, _ in sample_ids],
    )


def embed(
    extractor: Extractor, read_images: ReadImages, count: int, radii: Sequence[int], progress: Progress
) -> tuple[Tensor, Tensor]:
    """Features (R, N, D) and logits (R, N, K) of the first N images, blurred by each radius; on the CPU."""
    features, logits = [], []
    for rows in progress(sequential_batches(count, BATCH_SIZE), -(-count // BATCH_SIZE)):
        images = extractor.to_device(read_images(rows))
        outputs = [extractor(fid.blur(images, radius)) for radius in radii]
        features.append(torch.stack([output[0] for output in outputs]))
        logits.append(torch.stack([output[1] for output in outputs]))
    return torch.cat(features, dim=1), torch.cat(logits, dim=1)


def embed_samples(
    extractor: Extractor,
    samples: Samples,
    sample_ids: list[SampleId],
    radii: Sequence[int],
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Features (R, M, D) and logits (R, M, K) of samples, blurred by each radius; on the CPU."""

    def read_images(rows: list[int]) -> Tensor:
        return to_float(np.stack([_sample_image(samples, *sample_ids[row]) for row in rows]))

    return embed(extractor, read_images, len(sample_ids), radii, progress)


def _sample_image(samples: Samples, prompt: int, candidate: int) -> np.ndarray:
    """One sample: uint8 (H, W, 3)."""
    return decode_png(samples.table["image"][prompt * samples.candidates + candidate].as_py())
