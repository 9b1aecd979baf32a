"""A finished run as the comparison and the human evaluation sheet need it: samples, scores and figures,
verified. Prompts that inpaint an image are left out: two runs may start from different images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.inference.sample_shards import INPAINTED, Samples, read_samples

FIX = "dvc repro rank_images"


@dataclass(frozen=True)
class FinishedRun:
    """The outputs of a run: P prompts with N candidates each, their scores (P, N), and metrics.json."""

    name: str
    samples: Samples
    scores: np.ndarray
    metrics: dict
    fingerprint: str  # of all of it

    def best(self, prompt: int, count: int = 1) -> list[tuple[np.ndarray, float]]:
        """The best candidates of a prompt, best first: (image uint8 (H, W, 3), score)."""
        order = np.argsort(-self.scores[prompt], kind="stable")[:count]
        images = self.samples.images(prompt)
        return [(images[candidate], float(self.scores[prompt, candidate])) for candidate in order]

    def prompt_numbers(self) -> dict[str, int]:
        """{caption: the number of its prompt}, of the prompts generated from text alone."""
        rows = enumerate(zip(self.samples.prompts, self.samples.splits, strict=True))
        return {caption: prompt for prompt, (caption, split) in rows if split != INPAINTED}


@dataclass(frozen=True)
class CommonPrompt:
    """A caption that is in both runs, and the number of its prompt in each."""

    caption: str
    split: str
    a: int
    b: int


def read_run(folder: Path, name: str) -> FinishedRun:
    """The run whose outputs are in `folder`/results, verified; raises UserError that names the run."""
    results = Path(folder) / "results"
    try:
        samples, ranked = read_samples(results / "samples"), read_manifest(results / "ranked", fix=FIX)
    except DamagedArtefact as error:
        raise UserError(f"the outputs of {name} cannot be used: {error}") from error
    table = pq.read_table(results / "ranked/scores.parquet", page_checksum_verification=True)
    scores, prompts = table["score"].to_numpy(), len(samples.prompts)
    if scores.size != prompts * samples.candidates:
        raise UserError(
            f"{name}: results/ranked holds {scores.size} scores, but results/samples {prompts} prompts with "
            f"{samples.candidates} candidates each, so they are of different runs. Run: {FIX}"
        )
    path = results / "metrics.json"
    metrics = json.loads(path.read_bytes()) if path.is_file() else {}
    samples_sha256 = read_manifest(results / "samples", verify=False)["sha256"]
    all_of_it = fingerprint([samples_sha256, ranked["sha256"], metrics])
    return FinishedRun(name, samples, scores.reshape(prompts, samples.candidates), metrics, all_of_it)


def common_prompts(a: FinishedRun, b: FinishedRun) -> list[CommonPrompt]:
    """The captions of both runs, in the order of `a`; raises UserError if none, or if the runs are equal."""
    if a.fingerprint == b.fingerprint:
        raise UserError(
            f"{a.name} and {b.name} have the very same images, scores and figures: there is nothing to compare. Name a "
            "revision with another dvc.lock: git log --oneline -- dvc.lock"
        )
    prompts_a, prompts_b = a.prompt_numbers(), b.prompt_numbers()
    common = [
        CommonPrompt(caption, a.samples.splits[prompt], prompt, prompts_b[caption])
        for caption, prompt in prompts_a.items()
        if caption in prompts_b
    ]
    if not common:
        raise UserError(
            f"{a.name} has {len(prompts_a)} prompts and {b.name} {len(prompts_b)}, none of them the same. Give both the same "
            "seed and data, or prompts of your own in sampling.prompts (params.yaml)"
        )
    return common
