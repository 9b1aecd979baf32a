"""Compute every figure of results/metrics.json for a finished run."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thousandwords.core.progress import progress
from thousandwords.data.images import to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.sampler import first_rows
from thousandwords.evaluation.config import SPLIT_NAMES, EvaluationConfig
from thousandwords.evaluation.features import Extractor, scorer_extractor
from thousandwords.evaluation.image_fidelity import (
    SPLIT,
    HeldOut,
    NearestNeighbors,
    TrueOrNearest,
    closeness_figures,
    measure,
    overlapping_captions,
    true_or_nearest,
)
from thousandwords.evaluation.metrics import clip_score, match_rates
from thousandwords.evaluation.reconstruction import Reconstructions, decoder_figures, reconstruct
from thousandwords.evaluation.verdict import kept_row
from thousandwords.inference.sample_shards import Samples
from thousandwords.nn.metrics import figures_by_scale
from thousandwords.scenes.parse import match_caption
from thousandwords.scenes.render import is_scene_caption
from thousandwords.text.normalize import normalize

VERSIONS_OF = (
    "torch", "open-clip-torch", "torch-fidelity", "numpy", "tokenizers", "pyarrow", "pillow", "dvc", "mlflow",
)  # fmt: skip


Matches = dict[int, list[dict[str, bool]]]  # prompt -> {attribute: whether it is right} of each candidate


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
    decoder: nn.Module | None = None  # None: samples were decoded by the tokenizer


class ChosenPairs:
    """Up to `count` pairs of a split that stand for all, by their place among them (sampler.first_rows)."""

    def __init__(self, reader: PairReader, count: int) -> None:
        self._reader, self._rows = reader, first_rows(count, len(reader), reader.mixture)

    def __len__(self) -> int:
        return len(self._rows)

    def images(self, places: Sequence[int]) -> np.ndarray:
        """Their images (N, H, W, 3) uint8."""
        return self._reader.images([self._rows[place] for place in places])

    def caption(self, place: int) -> str:
        """The first caption of a pair."""
        return self._reader.captions(self._rows[place])[0]


@dataclass(frozen=True)
class Evaluation:
    """The figures, and what the report shows beside them."""

    figures: dict  # metrics.json, but for the seconds
    held_out: HeldOut  # of `validation`
    validation: ChosenPairs  # rows of HeldOut, NearestNeighbors and TrueOrNearest are places in these two
    training: ChosenPairs
    reconstructions: Reconstructions
    neighbors: NearestNeighbors | None
    matches: Matches  # scenes only
    true_or_nearest: dict[int, TrueOrNearest]  # prompt -> its best sample


def evaluate_run(
    inputs: EvaluationInputs, config: EvaluationConfig, seed: int, extractor: Extractor | None = None
) -> Evaluation:
    """The figures of a run; `extractor` is the network of `evaluation.features`, None for the own scorer."""
    samples, scores = inputs.samples, inputs.scores
    validation = ChosenPairs(inputs.validation, config.num_images)
    training = ChosenPairs(inputs.training, config.overlap_images)
    for_kmeans = ChosenPairs(inputs.training, config.kmeans_images)
    places, num_train = range(len(validation)), len(training)
    images = to_float(validation.images(places))
    kmeans_images = to_float(for_kmeans.images(range(len(for_kmeans))))

    def read_training(places: list[int]) -> Tensor:
        return to_float(training.images(places))

    # caption match reads scenes in Python while torch, which releases the lock, compares images
    with ThreadPoolExecutor(1) as pool:
        matching = pool.submit(caption_match, samples, scores, seed)
        reconstructions = reconstruct(
            inputs.tokenizer, images, kmeans_images, config.kmeans_iterations, seed, inputs.decoder
        )
        captions = [normalize(validation.caption(place)) for place in places]
        held_out = HeldOut(images, captions, reconstructions.psnr_hard)
        closeness = true_or_nearest(samples, scores, held_out, read_training, num_train)
        fidelity, neighbors, counts = measure(
            inputs.scorer, held_out, read_training, num_train, samples, scores, config, seed, extractor
        )
        caption_rates, matches = matching.result()
    if neighbors and (rates := match_without_overlap(neighbors, captions, samples, matches)):
        fidelity["overlap"]["caption_match"] = rates
    figures = collect(reconstructions, caption_rates, samples, scores, inputs.generator_curve, seed)
    if scales := figures_by_scale(inputs.tokenizer, images, reconstructions.tokens):
        figures["scales"] = {str(side): values for side, values in scales.items()}
    if inputs.decoder:
        figures["decoder"] = decoder_figures(reconstructions, images, inputs.scorer, seed)
    figures["fidelity"] = fidelity | closeness_figures(closeness, seed)
    features = (extractor or scorer_extractor(inputs.scorer)).protocol()
    figures["protocol"] = features | {"counts": counts} | _protocol(inputs, seed)
    return Evaluation(figures, held_out, validation, training, reconstructions, neighbors, matches, closeness)


def collect(
    reconstructions: Reconstructions,
    caption_rates: dict,
    samples: Samples,
    scores: np.ndarray,
    generator_curve: list[dict[str, float]],
    seed: int,
) -> dict:
    """The nested layout of metrics.json; prompts that inpaint an image count in no figure of samples."""
    losses = kept_row(generator_curve, "validation/image_loss")
    names = {f"val_loss_{part}": f"validation/{part}_loss" for part in ("text", "image")}
    figures = {
        "reconstruction": reconstructions.psnr(seed),
        "codebook": reconstructions.codebook(),
        # not every kind models text
        "generator": {name: losses[key] for name, key in names.items() if key in losses},
        "clip_score": clip_score(scores[samples.text_only_prompts()], seed),
        "n": int(scores.shape[1]),
    }
    return figures | ({"caption_match": caption_rates} if caption_rates else {})


def _protocol(inputs: EvaluationInputs, seed: int) -> dict:
    """What must be equal for equal digits, besides the features and counts."""
    size = inputs.training.image_size
    versions = {name: importlib.metadata.version(name) for name in VERSIONS_OF}
    kept = "; ranked by the tokenizer's images, the best of a prompt then made by the decoder"
    painted = kept if inputs.samples.painted else ""
    return {
        "preprocessing": f"held-out and training images: the middle square at {size} pixels; samples: as decoded{painted}; uint8",
        "blur": "a Gaussian of that standard deviation in pixels on both sets, reflected at the edges",
        "intervals": "95 %, by bootstrap over images, for samples over captions; that of a Fréchet distance is centered at it",
        "clip_score": "raw cosine; scaled: 100 max(cosine, 0)",
        "seed": seed,
        "threads": torch.get_num_threads(),  # changes the order of sums, so the ninth digit
        "versions": {"python": platform.python_version(), **versions},
        "checkpoints": inputs.checkpoints,
    }


def caption_match(samples: Samples, scores: np.ndarray, seed: int) -> tuple[dict, Matches]:
    """({"seen": rates, "unseen": rates}, matches), with scores (P, N); empty where captions are free text."""
    prompts = [
        prompt
        for prompt, caption in enumerate(samples.prompts)
        if samples.splits[prompt] in SPLIT_NAMES and is_scene_caption(caption)
    ]
    matches = {
        prompt: [match_caption(image, samples.prompts[prompt]) for image in samples.images(prompt)]
        for prompt in progress(prompts, "evaluate: reading images", len(prompts), "prompt")
    }
    rates = {}
    for split, name in SPLIT_NAMES.items():
        rows = [prompt for prompt in prompts if samples.splits[prompt] == split]
        if rows and len(rows) == samples.splits.count(split):
            attributes = matches[rows[0]][0]
            tables = {key: [[match[key] for match in matches[row]] for row in rows] for key in attributes}
            rates[name] = match_rates(scores[rows], tables, seed)
    return rates, matches


def match_without_overlap(
    neighbors: NearestNeighbors, captions: Sequence[str], samples: Samples, matches: Mapping
) -> dict:
    """{"with", "without"}: the caption match of one candidate for held-out captions, with and without those
    whose image, of the same position in `captions`, has a near duplicate in training; empty without matches."""
    rates = {
        prompt: float(np.mean([all(match.values()) for match in candidates]))
        for prompt, candidates in matches.items()
        if samples.splits[prompt] == SPLIT
    }
    if not rates:
        return {}
    overlapping = overlapping_captions(neighbors, captions)
    without = [rate for prompt, rate in rates.items() if samples.prompts[prompt] not in overlapping]
    mean = float(np.mean([*rates.values()]))
    return {"with": mean, "without": float(np.mean(without)) if without else None}
