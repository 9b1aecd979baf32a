"""The tables in results/plot_data/ that `dvc plots` draws; dvc.yaml names their columns.

DVC draws a column only if every row has it, so the points of one curve are a table, and a curve that a run does not have
is a row without values.
"""

import numpy as np

from thousandwords.evaluation.evaluate_run import Evaluation
from thousandwords.evaluation.verdict import points_of

CURVES = {  # table -> stage, value in its curves, column
    "image_tokenizer": ("train_image_tokenizer", "validation/psnr_hard", "psnr"),
    "decoder": ("train_decoder", "validation/psnr_hard", "psnr"),
    "generator": ("train_generator", "validation/image_loss", "loss"),
    "generator_training": ("train_generator", "image_loss", "loss"),
    "scorer": ("train_scorer", "validation/loss", "loss"),
    "scorer_training": ("train_scorer", "loss", "loss"),
}
MAX_ROWS = 64  # of a codebook of any size: every run commits these tables


def plot_data(evaluation: Evaluation, curves: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """{table: its rows}"""
    tables = {}
    for name, (stage, value, column) in CURVES.items():
        rows = [{"step": step, column: number} for step, number in points_of(curves.get(stage, ()), value)]
        tables[name] = rows or [{"step": 0, column: None}]
    counts = dict(zip(("share", "share_kmeans"), evaluation.reconstructions.counts(), strict=True))
    return tables | {"best_of_n": best_of_n(evaluation.figures), "codebook": codebook_use(counts)}


def best_of_n(figures: dict) -> list[dict]:
    """A row per number of candidates: {"n", "clip_score", "match_seen", "match_unseen"}"""
    score, matches = figures["clip_score"]["curve"], figures.get("caption_match", {})
    columns = {"n": score["n"], "clip_score": score["score"]}
    for split in ("seen", "unseen"):
        none = [None] * len(score["n"])
        columns[f"match_{split}"] = matches[split]["curve"]["all"] if split in matches else none
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def codebook_use(counts: dict[str, np.ndarray]) -> list[dict]:
    """Rows {"token": how many of the most used, **their share of all tokens}, on a log scale: counts (V,) per name."""
    shares = {name: np.cumsum(np.sort(count)[::-1]) / max(1, count.sum()) for name, count in counts.items()}
    size = min(map(len, counts.values()))
    places = np.unique(np.geomspace(1, size, MAX_ROWS).round().astype(int)).tolist()
    return [
        {"token": place, **{name: float(share[place - 1]) for name, share in shares.items()}}
        for place in places
    ]
