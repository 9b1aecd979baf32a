"""Image fidelity of the best of n, as in the paper's figure 9c (arXiv 2102.12092, §3.3), from one set of
samples.

For each n, each caption is represented by the best-scored of its first n candidates, so every n compares
equally many images. Each image is embedded once, also if several n pick it or an earlier figure used it.

Axes: P prompts, N held-out images, C candidates, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from thousandwords.evaluation import fid
from thousandwords.evaluation.feature_sets import FeatureSets, Progress, SampleId, embed_samples
from thousandwords.evaluation.features import Extractor
from thousandwords.evaluation.metrics import candidate_counts
from thousandwords.inference.sample_shards import Samples


def best_of_n(
    extractor: Extractor,
    feature_sets: FeatureSets,
    samples: Samples,
    scores: np.ndarray,
    progress: Progress,
    seed: int,
) -> dict:
    """The block `best_of` of metrics.json, from scores (P, C); empty where there are samples for fewer than 2
    captions.

    {"n": [1, 2, 4, ..., C], "captions", "real", the Fréchet distance and the Inception Score under their
    names: one value for each n, and "<distance>_interval": [low, high] for each n}.
    """
    ns = candidate_counts(samples.candidates)
    prompts = list(dict.fromkeys(feature_sets.prompts))
    if len(prompts) < 2:
        return {}
    best = {n: [(prompt, int(scores[prompt, :n].argmax())) for prompt in prompts] for n in ns}
    rows, features, logits = _embed_best(extractor, feature_sets, samples, best, progress)
    picked_rows = [[rows[sample_id] for sample_id in best[n]] for n in ns]
    frechet, real, rng = (
        feature_sets.names.frechet,
        feature_sets.real_features[0],
        np.random.default_rng(seed),
    )
    curve = {
        "n": ns,
        "captions": len(prompts),
        "real": feature_sets.real_features.shape[1],
        frechet: [fid.frechet_distance(features[picked], real) for picked in picked_rows],
        f"{frechet}_interval": [
            fid.frechet_interval(features[picked], real, prompts, rng) for picked in picked_rows
        ],
    }
    if logits.shape[1] and len(prompts) >= fid.SPLITS:
        score = feature_sets.names.inception_score
        curve[score] = [fid.inception_score(logits[picked])["mean"] for picked in picked_rows]
    return curve


def _embed_best(
    extractor: Extractor,
    feature_sets: FeatureSets,
    samples: Samples,
    best: Mapping[int, list[SampleId]],
    progress: Progress,
) -> tuple[dict[SampleId, int], Tensor, Tensor]:
    """{sample: row}, features (rows, D) and logits (rows, K) of the samples in `feature_sets` and of the best
    ones."""
    embedded = set(feature_sets.sample_ids)
    new = sorted({sample_id for sample_ids in best.values() for sample_id in sample_ids} - embedded)
    rows = {sample_id: row for row, sample_id in enumerate([*feature_sets.sample_ids, *new])}
    features, logits = feature_sets.sample_features[0], feature_sets.logits[0]
    if new:
        new_features, new_logits = embed_samples(extractor, samples, new, [0], progress)
        features, logits = torch.cat([features, new_features[0]]), torch.cat([logits, new_logits[0]])
    return rows, features, logits
