"""Compute every figure of results/metrics.json for a finished run."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thousandwords.core.progress import progress
from thousandwords.data.images import to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.evaluation.best_of_n import best_of_n
from thousandwords.evaluation.caption_match import caption_match
from thousandwords.evaluation.clip_score import clip_score
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.features import Extractor, scorer_extractor
from thousandwords.evaluation.image_fidelity import (
    HeldOut,
    NearestNeighbors,
    caption_match_figures,
    image_counts,
    measure,
)
from thousandwords.evaluation.reconstruction import Reconstructions, reconstruct
from thousandwords.inference.sample_shards import Samples
from thousandwords.text.normalize import normalize

VERSIONS_OF = (
    "torch",
    "open-clip-torch",
    "torch-fidelity",
    "numpy",
    "tokenizers",
    "pyarrow",
    "pillow",
    "dvc",
    "mlflow",
)


@dataclass(frozen=True)
class EvaluationInputs:
    """What is evaluated: P prompts with N candidates each, the models behind them, and the pairs that they
    learned from."""

    training: PairReader
    validation: PairReader
    tokenizer: nn.Module
    scorer: nn.Module
    samples: Samples
    scores: np.ndarray  # (P, N)
    generator_curve: list[dict[str, float]]
    checkpoints: Mapping[str, str]  # artefact -> sha256 of its manifest


@dataclass(frozen=True)
class Evaluation:
    """The figures, and what the report shows beside them."""

    figures: dict  # metrics.json, but for the seconds
    held_out: HeldOut
    reconstructions: Reconstructions
    neighbors: NearestNeighbors | None
    matches: dict[int, list[dict[str, bool]]]  # prompt -> matches of each candidate; scenes only


def evaluate_run(
    inputs: EvaluationInputs, config: EvaluationConfig, seed: int, extractor: Extractor | None = None
) -> Evaluation:
    """Compute the figures of a run; `extractor` is the network of `evaluation.features`, None for the run's
    own scorer."""
    images = _images(inputs.validation, config.num_images)
    kmeans_images = _images(inputs.training, config.kmeans_images)
    # caption match reads scenes in Python while torch, which releases the lock, compares images
    with ThreadPoolExecutor(1) as pool:
        matching = pool.submit(caption_match, inputs.samples, inputs.scores, seed, _show_prompts)
        reconstructions = reconstruct(inputs.tokenizer, images, kmeans_images, config.kmeans_iterations, seed)
        captions = [normalize(inputs.validation.captions(row)[0]) for row in range(len(images))]
        held_out = HeldOut(images, captions, reconstructions.psnr_hard)
        fidelity, neighbors, protocol = compare_images(inputs, held_out, config, seed, extractor)
        match_rates, matches = matching.result()
    figures = collect(
        reconstructions, match_rates, inputs.samples, inputs.scores, inputs.generator_curve, seed
    )
    figures["fidelity"] = fidelity
    if neighbors and (rates := caption_match_figures(neighbors, captions, inputs.samples, matches)):
        fidelity["overlap"]["caption_match"] = rates
    figures["protocol"] = protocol | fixed_protocol(inputs.training.image_size, seed, inputs.checkpoints)
    return Evaluation(figures, held_out, reconstructions, neighbors, matches)


def compare_images(
    inputs: EvaluationInputs,
    held_out: HeldOut,
    config: EvaluationConfig,
    seed: int,
    extractor: Extractor | None,
) -> tuple[dict, NearestNeighbors | None, dict]:
    """The block `fidelity`, the nearest training images, and how they were measured: a part of the block
    `protocol`."""

    def read_training(rows: list[int]) -> Tensor:
        return to_float(inputs.training.images(rows))

    num_train_images = min(config.overlap_images, len(inputs.training))
    fidelity, neighbors, feature_sets = measure(
        inputs.scorer,
        held_out,
        read_training,
        num_train_images,
        inputs.samples,
        config,
        _show_batches,
        seed,
        extractor,
    )
    extractor = extractor or scorer_extractor(inputs.scorer)
    if feature_sets and (
        curve := best_of_n(extractor, feature_sets, inputs.samples, inputs.scores, _show_batches, seed)
    ):
        fidelity["best_of"] = curve
    counts = image_counts(held_out, num_train_images, feature_sets)
    return fidelity, neighbors, extractor.protocol() | {"counts": counts}


def collect(
    reconstructions: Reconstructions,
    match_rates: dict,
    samples: Samples,
    scores: np.ndarray,
    generator_curve: list[dict[str, float]],
    seed: int,
) -> dict:
    """The nested layout of metrics.json; prompts that inpaint an image count in no figure of samples."""
    losses = next(row for row in reversed(generator_curve) if "validation/image_loss" in row)
    figures = {
        "reconstruction": reconstructions.psnr(seed),
        "codebook": reconstructions.codebook(),
        "generator": {
            "val_loss_text": losses["validation/text_loss"],
            "val_loss_image": losses["validation/image_loss"],
        },
        "clip_score": clip_score(scores[samples.text_only_prompts()], seed),
        "n": int(scores.shape[1]),
    }
    return figures | ({"caption_match": match_rates} if match_rates else {})


def fixed_protocol(image_size: int, seed: int, checkpoints: Mapping[str, str]) -> dict:
    """What must be equal for equal digits, besides the features: a part of the block `protocol` of
    metrics.json."""
    return {
        "preprocessing": f"held-out and training images: the middle square at {image_size} pixels; samples: as decoded; uint8",
        "blur": "a Gaussian of that standard deviation in pixels on both sets, reflected at the edges",
        "intervals": "95 %, by bootstrap over images, for samples over captions; that of a Fréchet distance is centered at it",
        "clip_score": "raw cosine; scaled: 100 max(cosine, 0)",
        "seed": seed,
        "threads": torch.get_num_threads(),  # changes the order of sums, so the ninth digit
        "versions": versions(),
        "checkpoints": checkpoints,
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the figures depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in VERSIONS_OF},
    }


def _images(reader: PairReader, count: int) -> Tensor:
    return to_float(reader.images(list(range(min(count, len(reader))))))


def _show_prompts(prompts: Iterable, total: int) -> Iterable:
    return progress(prompts, "evaluate: reading images", total, "prompt")


def _show_batches(batches: Iterable, total: int) -> Iterable:
    return progress(batches, "evaluate: comparing images", total, "batch")
