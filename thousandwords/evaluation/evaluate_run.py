"""Compute every figure of results/metrics.json for a finished run."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thousandwords.data.images import to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.evaluation.caption_match import Matches, caption_match, match_without_overlap
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.features import Extractor, scorer_extractor
from thousandwords.evaluation.image_fidelity import HeldOut, NearestNeighbors, measure
from thousandwords.evaluation.metrics import clip_score
from thousandwords.evaluation.reconstruction import Reconstructions, reconstruct
from thousandwords.inference.sample_shards import Samples
from thousandwords.text.normalize import normalize

VERSIONS_OF = (
    "torch", "open-clip-torch", "torch-fidelity", "numpy", "tokenizers", "pyarrow", "pillow", "dvc", "mlflow",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationInputs:
    """P prompts with N candidates each, the models behind them, and the pairs that they learned from."""

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
    matches: Matches  # scenes only


def evaluate_run(
    inputs: EvaluationInputs, config: EvaluationConfig, seed: int, extractor: Extractor | None = None
) -> Evaluation:
    """The figures of a run; `extractor` is the network of `evaluation.features`, None for the own scorer."""
    images = _first_images(inputs.validation, config.num_images)
    kmeans_images = _first_images(inputs.training, config.kmeans_images)
    # caption match reads scenes in Python while torch, which releases the lock, compares images
    with ThreadPoolExecutor(1) as pool:
        matching = pool.submit(caption_match, inputs.samples, inputs.scores, seed)
        reconstructions = reconstruct(inputs.tokenizer, images, kmeans_images, config.kmeans_iterations, seed)
        captions = [normalize(inputs.validation.captions(row)[0]) for row in range(len(images))]
        held_out = HeldOut(images, captions, reconstructions.psnr_hard)
        fidelity, neighbors, counts = measure(
            inputs.scorer,
            held_out,
            lambda rows: to_float(inputs.training.images(rows)),
            min(config.overlap_images, len(inputs.training)),
            inputs.samples,
            inputs.scores,
            config,
            seed,
            extractor,
        )
        match_rates, matches = matching.result()
    if neighbors and (rates := match_without_overlap(neighbors, captions, inputs.samples, matches)):
        fidelity["overlap"]["caption_match"] = rates
    figures = collect(
        reconstructions, match_rates, inputs.samples, inputs.scores, inputs.generator_curve, seed
    )
    figures["fidelity"] = fidelity
    features = (extractor or scorer_extractor(inputs.scorer)).protocol()
    figures["protocol"] = features | {"counts": counts} | _protocol(inputs, seed)
    return Evaluation(figures, held_out, reconstructions, neighbors, matches)


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


def _protocol(inputs: EvaluationInputs, seed: int) -> dict:
    """What must be equal for equal digits, besides the features and counts."""
    size = inputs.training.image_size
    versions = {name: importlib.metadata.version(name) for name in VERSIONS_OF}
    return {
        "preprocessing": f"held-out and training images: the middle square at {size} pixels; samples: as decoded; uint8",
        "blur": "a Gaussian of that standard deviation in pixels on both sets, reflected at the edges",
        "intervals": "95 %, by bootstrap over images, for samples over captions; that of a Fréchet distance is centered at it",
        "clip_score": "raw cosine; scaled: 100 max(cosine, 0)",
        "seed": seed,
        "threads": torch.get_num_threads(),  # changes the order of sums, so the ninth digit
        "versions": {"python": platform.python_version(), **versions},
        "checkpoints": inputs.checkpoints,
    }


def _first_images(reader: PairReader, count: int) -> Tensor:
    return to_float(reader.images(list(range(min(count, len(reader))))))
