"""How similar generated images are to held-out ones, and which of both have a near duplicate in training:
models in, figures out.

Similarity is measured by the features that `evaluation.features` names. The scorer's own features need no
other model, but they are not Inception's: `clip_frechet` compares runs that share a scorer, and cannot be
compared with a published FID. A distance also depends on the number of images, which is given beside it.
Nearest neighbors and retrieval always use the scorer.

A sample that is as near to a training image as a near duplicate may be memorized. For comparison there is the
same share of the held-out images, which cannot be memorized. The image tokenizer smooths its images, which
moves a memorized image a little away from its original.

Left out: best of n (`best_of_n`), and human raters (`metrics.majority`).

Axes: R radii of blur, N held-out images, M samples, D the width of the features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.evaluation import fid
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.feature_sets import (
    BATCH_SIZE,
    SPLIT,
    FeatureSets,
    Progress,
    ReadImages,
    SampleId,
    embed,
    embed_feature_sets,
    embed_samples,
)
from thousandwords.evaluation.features import Extractor, scorer_extractor
from thousandwords.evaluation.fid import Overlap
from thousandwords.evaluation.nearest_neighbors import nearest_other
from thousandwords.evaluation.retrieval import retrieval
from thousandwords.inference.sample_shards import Samples
from thousandwords.ingest.perceptual_hash import chance_distance

MAX_PAIRED = 1024  # held-out and training images whose pairwise cosines give the distribution of chance
MAX_COSINE = 1 - 1e-7  # Fisher's z of equal images is infinite


@dataclass(frozen=True)
class HeldOut:
    """N held-out images with their captions and reconstruction quality."""

    images: Tensor  # (N, 3, H, W)
    captions: list[str]  # as the generator reads them
    psnr: Tensor  # (N,) dB, of the reconstruction


@dataclass(frozen=True)
class NearestNeighbors:
    """The nearest training image of each held-out image, sample and training image."""

    held_out: Overlap
    within_training: Overlap | None  # the nearest other training image; None if there is only one
    samples: Overlap | None
    sample_ids: list[SampleId]  # of the samples


def measure(
    scorer: nn.Module,
    held_out: HeldOut,
    read_training: ReadImages,
    num_train_images: int,
    samples: Samples,
    config: EvaluationConfig,
    progress: Progress,
    seed: int = 0,
    extractor: Extractor | None = None,
) -> tuple[dict, NearestNeighbors | None, FeatureSets | None]:
    """The block `fidelity` of metrics.json, the nearest neighbors behind it, and the two sets of features
    that it compares.

    `read_training` reads training images by row, the first `num_train_images` of which are used; `seed` picks
    random subsets; `extractor` gives the features of the distances, None for those of the scorer. A figure
    with too few images, or turned off, is absent.
    """

    def embed_unblurred(extractor: Extractor, read_images: ReadImages, count: int) -> Tensor:
        return embed(extractor, read_images, count, [0], progress)[0][0]  # (count, D)

    real = held_out.images[: config.fid_images]
    held_out_features = embed_unblurred(
        scorer_extractor(scorer), held_out.images.__getitem__, len(held_out.images)
    )
    train_features = None
    if num_train_images:
        train_features = embed_unblurred(scorer_extractor(scorer), read_training, num_train_images)
    unblurred_features = held_out_features[None, : len(real)] if extractor is None else None
    feature_sets = embed_feature_sets(
        extractor or scorer_extractor(scorer), real, samples, progress, unblurred_features
    )
    figures: dict = {}
    if feature_sets:
        figures |= feature_sets.kernel_and_precision(seed) | feature_sets.inception_score()
    figures["retrieval"] = retrieval(held_out_features, embed_captions(scorer, held_out.captions), seed)
    if feature_sets:
        figures |= feature_sets.frechet(seed)
        if num_train_images >= len(real):
            baseline = embed_unblurred(extractor, read_training, len(real)) if extractor else train_features
            figures[feature_sets.names.frechet] |= feature_sets.baseline(baseline)
    if train_features is None:
        return figures, None, feature_sets
    sample_ids = feature_sets.sample_ids if feature_sets else []
    sample_features = feature_sets.sample_features[0] if feature_sets else None
    if feature_sets and extractor:
        sample_features = embed_samples(scorer_extractor(scorer), samples, sample_ids, [0], progress)[0][0]
    neighbors = find_neighbors(
        held_out_features, train_features, sample_features, sample_ids, config.overlap_threshold
    )
    if feature_sets:
        is_overlapping = neighbors.held_out.is_overlapping[: len(real)]
        captions = overlapping_captions(neighbors, held_out.captions)
        without_overlap = feature_sets.frechet_without(is_overlapping, captions)
        figures[feature_sets.names.frechet]["without_overlap"] = without_overlap
        figures["memorisation"] = memorization_figures(neighbors, num_train_images, feature_sets)
    figures["overlap"] = overlap_figures(neighbors, held_out, num_train_images, figures, feature_sets)
    figures["overlap"]["by_chance"] = chance_threshold(held_out_features, train_features)
    return figures, neighbors, feature_sets


def find_neighbors(
    held_out_features: Tensor,
    train_features: Tensor,
    sample_features: Tensor | None,
    sample_ids: list[SampleId],
    threshold: float | None,
) -> NearestNeighbors:
    """The nearest training images of held-out (N, D) and training images and of samples (M, D), with one
    threshold.

    Where `threshold` is None it is that of `chance_threshold`.
    """
    if threshold is None:
        threshold = chance_threshold(held_out_features, train_features)
    return NearestNeighbors(
        fid.find_overlap(held_out_features, train_features, threshold),
        Overlap(*nearest_other(train_features), threshold) if len(train_features) > 1 else None,
        None if sample_features is None else fid.find_overlap(sample_features, train_features, threshold),
        sample_ids,
    )


def chance_threshold(held_out_features: Tensor, train_features: Tensor) -> float:
    """The cosine above which 1 held-out image in 100 has a training image by chance alone
    (`perceptual_hash.chance_distance`).

    Computed on the scale of Fisher's z, so that the extrapolated tail ends below 1.
    """
    held_out, training = (
        functional.normalize(features[:: max(1, len(features) // MAX_PAIRED)].float(), dim=1)
        for features in (held_out_features, train_features)
    )
    cosines = held_out @ training.T
    distances = -torch.atanh(cosines.double().clamp(-MAX_COSINE, MAX_COSINE)).flatten().numpy()
    return round(float(np.tanh(-chance_distance(distances, len(train_features)))), 7)


def overlap_figures(
    neighbors: NearestNeighbors,
    held_out: HeldOut,
    num_train_images: int,
    figures: dict,
    feature_sets: FeatureSets | None,
) -> dict:
    """The block `overlap` of metrics.json: the headline figures with and without overlapping images.

    Without a held-out image means also without the samples for its caption. `figures` has the Fréchet
    distance where there are feature sets.
    """
    is_overlapping = neighbors.held_out.is_overlapping
    within_training = neighbors.within_training
    overlap = {
        "threshold": neighbors.held_out.threshold,
        "held_out": len(is_overlapping),
        "training": num_train_images,
        "share": neighbors.held_out.share,
        "share_within_training": within_training.share if within_training else None,
        "psnr_hard": {"with": float(held_out.psnr.mean()), "without": _mean(held_out.psnr[~is_overlapping])},
    }
    if feature_sets:
        frechet = feature_sets.names.frechet
        overlap[frechet] = {
            "with": figures[frechet]["distance"][0],
            "without": figures[frechet]["without_overlap"][0],
        }
    return overlap


def image_counts(
    held_out: HeldOut, num_train_images: int, feature_sets: FeatureSets | None
) -> dict[str, int]:
    """How many images were compared: a part of the protocol."""
    counts = {"held_out": len(held_out.images), "training": num_train_images}
    if feature_sets:
        counts |= {
            "real": feature_sets.real_features.shape[1],
            "drawn": len(feature_sets.sample_ids),
            "captions": len(set(feature_sets.prompts)),
        }
    return counts


def overlapping_captions(neighbors: NearestNeighbors, captions: Sequence[str]) -> set[str]:
    """The captions of those held-out images that have a near duplicate in training."""
    is_overlapping = neighbors.held_out.is_overlapping.tolist()
    return {caption for caption, overlaps in zip(captions, is_overlapping, strict=True) if overlaps}


def memorization_figures(
    neighbors: NearestNeighbors, num_train_images: int, feature_sets: FeatureSets
) -> dict:
    """The block `memorisation` of metrics.json: how near samples come to training images, and how near
    held-out images do."""
    overlaps = {"drawn": neighbors.samples, "held_out": neighbors.held_out}
    return {
        "threshold": neighbors.samples.threshold,
        "drawn": len(neighbors.samples.similarity),
        "captions": len(set(feature_sets.captions)),
        "training": num_train_images,
        "share": {name: overlap.share for name, overlap in overlaps.items()},
        "median_similarity": {
            name: float(overlap.similarity.quantile(0.5)) for name, overlap in overlaps.items()
        },
    }


def caption_match_figures(
    neighbors: NearestNeighbors,
    captions: Sequence[str],
    samples: Samples,
    matches: Mapping[int, list[dict[str, bool]]],
) -> dict:
    """{"with", "without"}: the caption match of one candidate for held-out captions, with and without
    overlapping images.

    `captions` are those of the held-out images, `matches` those of `caption_match`; empty where there are
    none.
    """
    rates = {
        prompt: float(np.mean([all(match.values()) for match in candidates]))
        for prompt, candidates in matches.items()
        if samples.splits[prompt] == SPLIT
    }
    if not rates:
        return {}
    overlapping = overlapping_captions(neighbors, captions)
    without = [rate for prompt, rate in rates.items() if samples.prompts[prompt] not in overlapping]
    return {
        "with": float(np.mean([*rates.values()])),
        "without": float(np.mean(without)) if without else None,
    }


@torch.no_grad()
def embed_captions(scorer: nn.Module, captions: Sequence[str]) -> Tensor:
    """The scorer's unit vectors of captions: (N, D), on the CPU."""
    parts = [
        scorer.embed_captions(captions[start : start + BATCH_SIZE]).cpu()
        for start in range(0, len(captions), BATCH_SIZE)
    ]
    return torch.cat(parts)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
