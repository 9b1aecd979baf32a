"""The figures of each prompt, results/prompts.csv: two runs are compared by the prompts that both have."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from thousandwords.evaluation.config import SPLIT_NAMES
from thousandwords.evaluation.metrics import best_of
from thousandwords.inference.sample_shards import Samples

# for one candidate (n1) and the best of all; no caption match where captions are free text
COLUMNS = ("prompt", "split", "clip_score.n1", "clip_score.best", "caption_match.n1", "caption_match.best")
Rows = dict[str, dict[str, str]]  # prompt -> its row of the file


def prompt_csv(samples: Samples, scores: np.ndarray, matches: Mapping[int, Sequence[Mapping]]) -> bytes:
    """The file, of scores (P, N) and {prompt: {attribute: whether it is right} of each candidate}."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for prompt in samples.text_only_prompts():
        qualities = {"clip_score": scores[prompt]}
        if prompt in matches:
            qualities["caption_match"] = [all(match.values()) for match in matches[prompt]]
        row = {"prompt": samples.prompts[prompt], "split": samples.splits[prompt]}
        for name, quality in qualities.items():
            for end, n in (("n1", 1), ("best", len(scores[prompt]))):
                row[f"{name}.{end}"] = f"{best_of(n, [scores[prompt]], [quality])[0]:.6g}"
        writer.writerow(row)
    return text.getvalue().encode()


def read_prompts(path: Path) -> Rows:
    """{prompt: its row}; empty if there is no such file."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["prompt"]: row for row in csv.DictReader(file)}


def paired(a: Rows, b: Rows, name: str) -> np.ndarray:
    """A figure of metrics.json for the prompts of both runs: (2, P), "caption_match.seen.all.n1" for those seen."""
    block, *parts, end = name.split(".")
    column = f"{block}.{end}"
    splits = [split for split, label in SPLIT_NAMES.items() if label in parts]
    common = [
        prompt
        for prompt, row in a.items()
        if prompt in b and row.get(column) and b[prompt].get(column)
        if not splits or row["split"] in splits
    ]
    return np.array([[float(rows[prompt][column]) for prompt in common] for rows in (a, b)])
