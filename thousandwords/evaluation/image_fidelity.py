"""How similar generated images are to held-out ones, and which of both have a near duplicate in training.

Similarity is measured by the features that `evaluation.features` names. Those of the own scorer compare runs
that share a scorer: only Inception's give an FID. A distance also depends on the number of images, which is
given beside it. Nearest neighbors and retrieval always use the scorer.

A sample that is as near to a training image as a near duplicate may be memorized. For comparison there is the
same share of the held-out images, which cannot be memorized.

Axes: R radii of blur, P prompts, N held-out images, M samples, D the width of the features, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from thousandwords.core.progress import progress
from thousandwords.data.images import to_float
from thousandwords.data.sampler import sequential_batches
from thousandwords.evaluation import fid
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.features import INCEPTION_FIGURES, Extractor, FigureNames, scorer_extractor
from thousandwords.evaluation.metrics import candidate_counts, found_among, retrieval, with_interval
from thousandwords.evaluation.overlap import Overlap, chance_threshold, nearest
from thousandwords.inference.sample_shards import Samples
from thousandwords.nn.metrics import psnr

SampleId = tuple[int, int]  # (prompt, candidate)
ReadImages = Callable[[list[int]], Tensor]  # rows -> (B, 3, H, W) in [0, 1]
SPLIT = "validation"  # the split whose images are compared with the samples for its captions
BATCH_SIZE = 64
TORCH_FIDELITY_SEED = 2020
AMONG = 32  # captions of which the own one is found


@dataclass(frozen=True)
class HeldOut:
    """N held-out images with their captions and reconstruction quality."""

    images: Tensor  # (N, 3, H, W)
    captions: list[str]  # as the generator reads them
    psnr: Tensor  # (N,) dB, of the reconstruction


@dataclass(frozen=True)
class NearestNeighbors:
    """The nearest training image of each held-out image, training image and sample."""

    held_out: Overlap
    within_training: Overlap | None  # the nearest other training image; None if there is only one
    samples: Overlap | None
    sample_ids: list[SampleId]  # of the samples


@dataclass(frozen=True)
class TrueOrNearest:
    """A sample for a held-out caption: its true image, the nearest training image, and the PSNR to both; and to the
    neighbor, the training image that is nearest to the true one."""

    true_row: int  # of the held-out images
    training_row: int
    psnr_true: float  # dB
    psnr_nearest: float
    psnr_neighbor: float

    @property
    def is_closer_to_true(self) -> bool:
        return self.psnr_true > self.psnr_nearest


@dataclass(frozen=True)
class FeatureSets:
    """The features of real images and of samples at every radius of blur."""

    names: FigureNames
    real: Tensor  # (R, N, D)
    samples: Tensor  # (R, M, D)
    logits: Tensor  # (R, M, K) of the samples; K is 0 where there are no classes
    sample_ids: list[SampleId]  # of the M samples

    @property
    def prompts(self) -> list[int]:
        """The prompts of the M samples: those of one prompt count as one in an interval."""
        return [prompt for prompt, _ in self.sample_ids]

    def distances(
        self, real: Tensor | slice = slice(None), samples: Tensor | slice = slice(None)
    ) -> list[float | None]:
        """The Fréchet distance of a selection of images at every radius; None where fewer than 2 are left."""
        pairs = zip(self.real[:, real], self.samples[:, samples], strict=True)
        return [fid.frechet_distance(*pair) if min(map(len, pair)) > 1 else None for pair in pairs]


def measure(
    scorer: nn.Module,
    held_out: HeldOut,
    read_training: ReadImages,
    num_train_images: int,
    samples: Samples,
    scores: np.ndarray,
    config: EvaluationConfig,
    seed: int = 0,
    extractor: Extractor | None = None,
) -> tuple[dict, NearestNeighbors | None, dict[str, int]]:
    """The block `fidelity` of metrics.json, the nearest neighbors behind it, and how many images were compared.

    `read_training` reads training images by row, the first `num_train_images` of which are used; scores
    (P, candidates) choose the best of n; `seed` picks random subsets; `extractor` gives the features of the
    distances, None for those of the scorer. A figure with too few images, or turned off, is absent.
    """
    own, real = scorer_extractor(scorer), held_out.images[: config.fid_images]
    held_out_features = embed(own, held_out.images.__getitem__, len(held_out.images))[0][0]
    train_features = embed(own, read_training, num_train_images)[0][0] if num_train_images else None
    sets = embed_feature_sets(extractor or own, real, samples)
    counts = {"held_out": len(held_out.images), "training": num_train_images}
    caption_features = embed_captions(scorer, held_out.captions)
    figures: dict = {"retrieval": retrieval(held_out_features, caption_features, seed)}
    if found := caption_found(scorer, samples, scores, seed):
        figures["caption_found"] = found
    if sets:
        counts |= {"real": len(real), "drawn": len(sets.sample_ids), "captions": len(set(sets.prompts))}
        figures |= distance_figures(sets, seed)
        if num_train_images >= len(real):  # the distance of real images is not 0 either
            training = embed(extractor, read_training, len(real))[0][0] if extractor else train_features
            baseline = fid.frechet_distance(sets.real[0], training[: len(real)])
            figures[sets.names.frechet]["training"] = baseline
        if curve := best_of_n(extractor or own, sets, samples, scores, seed):
            figures["best_of"] = curve
    if train_features is None:
        return figures, None, counts

    by_chance = chance_threshold(held_out_features, train_features)
    threshold = by_chance if config.overlap_threshold is None else config.overlap_threshold
    sample_overlap = None
    if sets:
        features = embed_samples(own, samples, sets.sample_ids)[0][0] if extractor else sets.samples[0]
        sample_overlap = Overlap(*nearest(features, train_features), threshold)
    neighbors = NearestNeighbors(
        Overlap(*nearest(held_out_features, train_features), threshold),
        Overlap(*nearest(train_features), threshold) if num_train_images > 1 else None,
        sample_overlap,
        sets.sample_ids if sets else [],
    )
    counted = {"training": num_train_images, "by_chance": by_chance}
    figures["overlap"] = _overlap_figures(neighbors, held_out) | counted
    if sets:
        overlapping = overlapping_captions(neighbors, held_out.captions)
        kept = torch.tensor([samples.prompts[prompt] not in overlapping for prompt in sets.prompts])
        frechet, unseen = figures[sets.names.frechet], ~neighbors.held_out.is_overlapping[: len(real)]
        frechet["without_overlap"] = sets.distances(unseen, kept)
        ends = {"with": frechet["distance"][0], "without": frechet["without_overlap"][0]}
        figures["overlap"][sets.names.frechet] = ends
        figures["memorisation"] = _memorization(neighbors, counts)
    return figures, neighbors, counts


def distance_figures(sets: FeatureSets, seed: int) -> dict:
    """The blocks of the distances and scores in metrics.json; absent where images are too few."""
    real, samples, prompts = sets.real[0], sets.samples[0], sets.prompts
    figures: dict = {
        sets.names.frechet: {
            "real": len(real),
            "drawn": len(samples),
            "captions": len(set(prompts)),
            "radius": list(fid.RADII),
            "distance": sets.distances(),
            "interval": fid.frechet_interval(samples, real, prompts, np.random.default_rng(seed)),
        }
    }
    if min(len(real), len(samples)) > fid.NEIGHBORS:
        if sets.names is INCEPTION_FIGURES:  # exactly as torch-fidelity computes it
            figures[sets.names.kernel] = fid.kernel_distance(samples, real, TORCH_FIDELITY_SEED)
        else:  # the vectors of a CLIP lie closer together
            figures[sets.names.kernel] = fid.kernel_distance(samples.double(), real.double(), seed)
        precise, recalled = map(Tensor.numpy, fid.precision_recall(samples, real))
        by_prompt = [np.mean(precise[np.asarray(prompts) == prompt]) for prompt in dict.fromkeys(prompts)]
        figures[sets.names.precision_recall] = {
            **with_interval("precision", by_prompt, seed),
            **with_interval("recall", recalled, seed),
            "neighbours": fid.NEIGHBORS,
        }
    if sets.logits.shape[2] and len(samples) >= fid.SPLITS:
        by_radius = list(map(fid.inception_score, sets.logits))
        scores = {"radius": list(fid.RADII), "score": [score["mean"] for score in by_radius]}
        figures[sets.names.inception_score] = {**by_radius[0], "drawn": len(samples), **scores}
    return figures


def _memorization(neighbors: NearestNeighbors, counts: dict[str, int]) -> dict:
    """The block `memorisation` of metrics.json."""
    overlaps = {"drawn": neighbors.samples, "held_out": neighbors.held_out}
    return {
        "threshold": neighbors.samples.threshold,
        **{name: counts[name] for name in ("drawn", "captions", "training")},
        "share": {name: overlap.share for name, overlap in overlaps.items()},
        "median_similarity": {
            name: float(overlap.similarity.quantile(0.5)) for name, overlap in overlaps.items()
        },
    }


def _overlap_figures(neighbors: NearestNeighbors, held_out: HeldOut) -> dict:
    """The part of the block `overlap` of metrics.json that is about held-out and training images alone."""
    without, within = held_out.psnr[~neighbors.held_out.is_overlapping], neighbors.within_training
    ends = {"with": float(held_out.psnr.mean()), "without": float(without.mean()) if len(without) else None}
    return {
        "threshold": neighbors.held_out.threshold,
        "held_out": len(held_out.images),
        "share": neighbors.held_out.share,
        "share_within_training": within.share if within else None,
        "psnr_hard": ends,
    }


def overlapping_captions(neighbors: NearestNeighbors, captions: Sequence[str]) -> set[str]:
    """The captions of those held-out images that have a near duplicate in training."""
    is_overlapping = neighbors.held_out.is_overlapping.tolist()
    return {caption for caption, overlaps in zip(captions, is_overlapping, strict=True) if overlaps}


def true_or_nearest(
    samples: Samples, scores: np.ndarray, held_out: HeldOut, read_training: ReadImages, num_train_images: int
) -> dict[int, TrueOrNearest]:
    """{prompt: its best-scored sample between the true image and the nearest training image}, of the prompts that
    are held-out captions; the nearest by squared error, over the first `num_train_images`."""
    rows_of: dict[str, list[int]] = {}
    for row, caption in enumerate(held_out.captions):
        rows_of.setdefault(caption, []).append(row)
    is_held_out = [
        split == SPLIT and caption in rows_of
        for split, caption in zip(samples.splits, samples.prompts, strict=True)
    ]
    prompts = np.flatnonzero(is_held_out).tolist()
    if not prompts or not num_train_images:
        return {}
    images = to_float(np.stack([samples.image(prompt, int(scores[prompt].argmax())) for prompt in prompts]))
    true_rows = []
    for prompt, image in zip(prompts, images, strict=True):
        rows = torch.tensor(rows_of[samples.prompts[prompt]])  # a caption may have several images
        true_rows.append(int(rows[psnr(image.expand(len(rows), -1, -1, -1), held_out.images[rows]).argmax()]))
    trues = held_out.images[true_rows]
    nearest_rows = _nearest_rows(torch.cat([images, trues]), read_training, num_train_images)
    to_nearest, to_neighbor = (psnr(images, read_training(rows.tolist())) for rows in nearest_rows.chunk(2))
    columns = (psnr(images, trues), to_nearest, to_neighbor)
    values = zip(*(column.tolist() for column in columns), strict=True)
    # the first half of the nearest rows are those of the samples
    rows = zip(prompts, true_rows, nearest_rows[: len(prompts)].tolist(), values, strict=True)
    return {prompt: TrueOrNearest(true, nearest, *psnrs) for prompt, true, nearest, psnrs in rows}


def _nearest_rows(images: Tensor, read_training: ReadImages, num_train_images: int) -> Tensor:
    """Of each image (N, 3, H, W) the row of the training image with the least squared error: (N,) int64."""
    least, index = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.int64)
    for rows in sequential_batches(num_train_images, BATCH_SIZE):
        training = read_training(rows).flatten(1)
        # without the square of the image itself, which is the same for all
        errors = training.square().sum(dim=1) - 2 * images.flatten(1) @ training.T
        best, column = errors.min(dim=1)
        index = index.where(best >= least, torch.tensor(rows)[column])
        least = least.minimum(best)
    return index


def closeness_figures(found: Mapping[int, TrueOrNearest], seed: int) -> dict:
    """The block `true_or_nearest` of metrics.json; empty without held-out captions among the prompts."""
    if not found:
        return {}
    rows, names = [*found.values()], ("psnr_true", "psnr_nearest", "psnr_neighbor")
    than_neighbor = [row.psnr_true > row.psnr_neighbor for row in rows]
    figures = {
        "prompts": len(rows),
        **with_interval("closer_to_true", [row.is_closer_to_true for row in rows], seed),
        **with_interval("closer_than_neighbor", than_neighbor, seed),
        **{name: float(np.mean([getattr(row, name) for row in rows])) for name in names},
    }
    return {"true_or_nearest": figures}


def best_of_n(
    extractor: Extractor, sets: FeatureSets, samples: Samples, scores: np.ndarray, seed: int
) -> dict:
    """The block `best_of` of metrics.json, as in the paper's figure 9c (§3.3): for each n, each caption is
    represented by the best-scored of its first n candidates. Empty for fewer than 2 captions."""
    ns, prompts = candidate_counts(samples.candidates), list(dict.fromkeys(sets.prompts))
    if len(prompts) < 2:
        return {}
    best = [[(prompt, int(scores[prompt, :n].argmax())) for prompt in prompts] for n in ns]
    features, logits = sets.samples[0], sets.logits[0]
    new = sorted(set(chain.from_iterable(best)) - set(sets.sample_ids))
    if new:
        more = embed_samples(extractor, samples, new)
        features, logits = torch.cat([features, more[0][0]]), torch.cat([logits, more[1][0]])
    row_of = {sample_id: row for row, sample_id in enumerate([*sets.sample_ids, *new])}
    chosen = [[row_of[sample_id] for sample_id in sample_ids] for sample_ids in best]  # rows for each n
    name, real, rng = sets.names.frechet, sets.real[0], np.random.default_rng(seed)
    curve = {
        "n": ns,
        "captions": len(prompts),
        "real": len(real),
        name: [fid.frechet_distance(features[rows], real) for rows in chosen],
        f"{name}_interval": [fid.frechet_interval(features[rows], real, prompts, rng) for rows in chosen],
    }
    if logits.shape[1] and len(prompts) >= fid.SPLITS:
        curve[sets.names.inception_score] = [fid.inception_score(logits[rows])["mean"] for rows in chosen]
    return curve


def caption_found(scorer: nn.Module, samples: Samples, scores: np.ndarray, seed: int) -> dict:
    """The block `caption_found` of metrics.json: whether the scorer finds a held-out caption among others (AMONG) by
    its best-scored sample. Empty for fewer than 2 captions."""
    prompts = {
        samples.prompts[prompt]: prompt for prompt, split in enumerate(samples.splits) if split == SPLIT
    }
    if len(prompts) < 2:
        return {}
    best = [(prompt, int(scores[prompt].argmax())) for prompt in prompts.values()]
    images = embed_samples(scorer_extractor(scorer), samples, best)[0][0]
    similarity = (images @ embed_captions(scorer, list(prompts)).T).numpy()
    return {"captions": len(prompts), **found_among(similarity, AMONG, seed)}


def first_samples(samples: Samples, count: int) -> list[SampleId]:
    """Choose samples for held-out captions: as few candidates of each caption as give `count` in all, in the order
    of sampling, as the scorer's favorites would improve a distance in its own feature space."""
    prompts = np.flatnonzero(np.array(samples.splits) == SPLIT).tolist()
    candidates = min(samples.candidates, -(-count // len(prompts))) if prompts else 0
    return [(prompt, candidate) for candidate in range(candidates) for prompt in prompts]


def embed_feature_sets(extractor: Extractor, real: Tensor, samples: Samples) -> FeatureSets | None:
    """Embed real images (N, 3, H, W) and about as many samples; None where a set has fewer than 2."""
    sample_ids = first_samples(samples, len(real))
    if min(len(real), len(sample_ids)) < 2:
        return None
    real_features, _ = embed(extractor, real.__getitem__, len(real), fid.RADII)
    features, logits = embed_samples(extractor, samples, sample_ids, fid.RADII)
    return FeatureSets(extractor.names, real_features, features, logits, sample_ids)


def embed(
    extractor: Extractor, read_images: ReadImages, count: int, radii: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor]:
    """Features (R, N, D) and logits (R, N, K) of the first N images, blurred by each radius; on the CPU."""
    features, logits = [], []
    batches, num_batches = sequential_batches(count, BATCH_SIZE), -(-count // BATCH_SIZE)
    for rows in progress(batches, "evaluate: comparing images", num_batches, "batch"):
        images = extractor.to_device(read_images(rows))
        outputs = [extractor(fid.blur(images, radius)) for radius in radii]
        features.append(torch.stack([output[0] for output in outputs]))
        logits.append(torch.stack([output[1] for output in outputs]))
    return torch.cat(features, dim=1), torch.cat(logits, dim=1)


def embed_samples(
    extractor: Extractor, samples: Samples, sample_ids: Sequence[SampleId], radii: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor]:
    """Features (R, M, D) and logits (R, M, K) of samples, blurred by each radius; on the CPU."""

    def read_images(rows: list[int]) -> Tensor:
        return to_float(np.stack([samples.image(*sample_ids[row]) for row in rows]))

    return embed(extractor, read_images, len(sample_ids), radii)


@torch.no_grad()
def embed_captions(scorer: nn.Module, captions: Sequence[str]) -> Tensor:
    """The scorer's unit vectors of captions: (N, D), on the CPU."""
    batches = sequential_batches(len(captions), BATCH_SIZE)
    return torch.cat([scorer.embed_captions([captions[row] for row in rows]).cpu() for rows in batches])
