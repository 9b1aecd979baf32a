"""python -m bench.tokenizers [--kinds dvae,vqvae,...] [--seeds 0,1] [--until STAGE]: image tokenizers on the built-in scenes.

Each is a run of the default preset with another `image_tokenizer`, and nothing else changed: the same images, decoder,
generator and prompts. `next_scale` changes the generator too: the tokens of `multi_scale`, a grid at a time. The stages of dvc.yaml run in a folder of their own, without DVC, up to the samples; pairs and
text tokenizer are made once per seed. `--until train_image_tokenizer` trains and judges tokenizers only.

Of each: PSNR in dB of reconstructions from hard tokens; perplexity of the tokens, and the share of the codebook in use;
"read", the share of held-out images whose caption is right in the reconstruction; the generator's loss in nats per
image token, and the seconds of its training; "scene", the share of samples whose colors, background and relation are
right, one sample per caption on average; "match", the same of every attribute.
The unseen pairs of color and shape are recorded in two halves too: settings chosen by one are judged by the other.
"""

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from bench import _results as results
from bench._results import Row
from bench._runs import add_runs, read_runs
from thousandwords import components
from thousandwords.core.command_line import one_sentence
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.data.images import to_float, to_uint8
from thousandwords.data.pair_shards import open_pairs, splits
from thousandwords.evaluation.config import EvaluationConfig
from thousandwords.evaluation.evaluate_run import caption_match
from thousandwords.evaluation.reconstruction import reconstruct
from thousandwords.evaluation.verdict import kept_row
from thousandwords.inference.sample_shards import Samples, read_samples
from thousandwords.nn.metrics import mean_psnr
from thousandwords.planning.presets import preset_text
from thousandwords.scenes.parse import match_caption
from thousandwords.scenes.render import UNSEEN_PAIRS, is_scene_caption, parse_caption

ROOT = Path(__file__).parents[1]
SHARED = {
    "prepare_pairs": "data/pairs",
    "train_text_tokenizer": "models/text_tokenizer",
}  # stage: what it makes
STAGES = (
    *SHARED,
    "train_image_tokenizer",
    "train_decoder",
    "tokenize_pairs",
    "train_generator",
    "sample_images",
)
READ_IMAGES = 400  # of each split, whose captions are read from reconstructions

# name: (preset, what differs from it in image_tokenizer.<kind>)
KINDS: dict[str, tuple[str, dict]] = {
    "dvae": ("default", {}),
    "vqvae": ("vqvae", {}),
    "fsq": ("vqvae", {"quantizer": "fsq"}),
    "simvq": ("vqvae", {"quantizer": "simvq"}),
    "two_grids": ("vqvae", {"scales": [4, 8]}),
    "multi_scale": ("multi_scale", {}),
    "next_scale": ("next_scale", {}),
    "vqgan": ("vqgan", {}),
}

COLUMNS = {
    "tokens": "tokens",
    "seconds": "seconds",
    "psnr": "dB",
    "psnr_unseen": "dB unseen",
    "psnr_decoder": "dB, decoder",
    "perplexity": "perplexity",
    "used": "used",
    "read": "read",
    "read_unseen": "read unseen",
    "loss": "loss",
    "seconds_generator": "seconds",
    "scene_seen": "scene seen",
    "scene_unseen": "scene unseen",
    "match_seen": "match seen",
    "match_unseen": "match unseen",
}


@dataclass
class Run:
    """One kind and seed, its figures by the keys of COLUMNS and some more, and why a stage failed."""

    kind: str
    seed: int
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        """A line of the table."""
        cells = [f"{self.figures[name]:.4g}" if name in self.figures else "" for name in COLUMNS]
        return f"| {self.kind} | {self.seed} | {' | '.join(cells)} | {self.error}"


def settings(kind: str, seed: int, changes: dict) -> dict:
    """The settings of a run; `changes` are merged into those of the preset."""
    preset, different = KINDS[kind]
    params = merged(yaml.safe_load(preset_text(preset)), changes | {"seed": seed})
    block = params["image_tokenizer"]
    block[block["kind"]] |= different
    return params


def merged(settings: dict, changes: dict) -> dict:
    """merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) -> {"a": {"b": 3, "c": 2}}; a section that names its `kind`
    replaces the other."""

    def value(key: str) -> object:
        before, now = settings.get(key), changes[key]
        is_part = isinstance(before, dict) and isinstance(now, dict) and "kind" not in now
        return merged(before, now) if is_part else now

    return settings | {key: value(key) for key in changes}


def run_stages(folder: Path, params: dict, stages: Sequence[str]) -> None:
    """Run stages in the folder, with their output in stages.log; raises UserError if one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    (folder / "data/inpaint").mkdir(parents=True, exist_ok=True)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for stage in stages:
        command = [sys.executable, *shlex.split(graph[stage]["cmd"])[1:]]
        with (folder / "stages.log").open("a", encoding="utf-8") as log:
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log
            )
        if done.returncode:
            last = (folder / "stages.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise UserError(f"{stage} failed: {''.join(last)}")


def measure(
    kind: str, seed: int, folder: Path, shared: Path, changes: dict, stages: Sequence[str], out: Path
) -> Run:
    """Run the stages after the shared ones; the figures of those that did not fail are recorded at once."""
    started, run = time.monotonic(), Run(kind, seed)
    print(f"{kind}, seed {seed}: started, see {folder}/stages.log", file=sys.stderr, flush=True)
    for path in SHARED.values():
        shutil.copytree(shared / path, folder / path)
    try:
        run_stages(folder, settings(kind, seed, changes), stages)
    except UserError as error:
        run.error = str(error)
    if (folder / "models/image_tokenizer").exists():
        run.figures = read_figures(folder, seed)
        results.record([row_of(run)], out)
    state = run.error or "done"
    taken = f"{(time.monotonic() - started) / 60:.1f} minutes"
    print(f"{kind}, seed {seed}: {state} after {taken}\n{run}", file=sys.stderr, flush=True)
    return run


@torch.no_grad()
def read_figures(folder: Path, seed: int) -> dict[str, float]:
    """The figures of a run, as far as its stages came."""
    tokenizer = components.load("image_tokenizers", folder / "models/image_tokenizer")
    decoder = None
    if (folder / "models/decoder").exists():
        decoder = components.load("decoders", folder / "models/decoder")
        decoder = decoder if decoder.is_trainable else None
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    config = section(params["evaluation"], "evaluation", EvaluationConfig)
    record = json.loads((folder / "results/runs/train_image_tokenizer.json").read_bytes())
    figures = {"tokens": tokenizer.num_tokens, "seconds": record["seconds"]}
    training = open_pairs(folder / "data/pairs", "train")
    for_kmeans = to_float(training.images(range(min(config.kmeans_images, len(training)))))
    for split in splits(folder / "data/pairs")[1:]:
        name = "" if split == "validation" else f"_{split}"
        reader = open_pairs(folder / "data/pairs", split)
        images = to_float(reader.images(range(len(reader))))
        made = reconstruct(tokenizer, images, for_kmeans, config.kmeans_iterations, seed, decoder)
        codebook = made.codebook()
        figures |= {
            f"psnr{name}": made.psnr_hard.mean().item(),
            f"psnr_kmeans{name}": made.psnr_kmeans.mean().item(),
            f"perplexity{name}": codebook["perplexity"],
            f"used{name}": codebook["used"],
        }
        captions = [reader.captions(row)[0] for row in range(min(READ_IMAGES, len(reader)))]
        if is_scene_caption(captions[0]):
            figures[f"read{name}"] = share_read(made.hard, captions)
        if decoder:
            figures[f"psnr_decoder{name}"] = mean_psnr(images, made.decoded)
            if is_scene_caption(captions[0]):
                figures[f"read_decoder{name}"] = share_read(made.decoded, captions)
    curve = folder / "results/curves/train_generator.json"
    if curve.is_file():
        loss = "validation/image_loss"
        figures["loss"] = kept_row(json.loads(curve.read_bytes()), loss)[loss]
        record = json.loads((folder / "results/runs/train_generator.json").read_bytes())
        figures["seconds_generator"] = record["seconds"]
    if (folder / "results/samples/manifest.json").is_file():
        figures |= sample_figures(read_samples(folder / "results/samples"), params["sampling"]["candidates"])
    return figures


def sample_figures(samples: Samples, candidates: int) -> dict[str, float]:
    """The share of samples with the scene and with every attribute right, for each split; the latter for each half of the
    unseen pairs too."""
    rates, matches = caption_match(samples, np.zeros((len(samples.prompts), candidates)), seed=0)
    figures = {f"scene_{name}": rate["scene"]["n1"] for name, rate in rates.items()}
    figures |= {f"match_{name}": rate["all"]["n1"] for name, rate in rates.items()}
    for number, pairs in enumerate((UNSEEN_PAIRS[0::2], UNSEEN_PAIRS[1::2]), start=1):
        of_half = [
            statistics.mean(all(match.values()) for match in matches[prompt])
            for prompt, caption in enumerate(samples.prompts)
            if samples.splits[prompt] == "unseen" and has_pair(caption, pairs)
        ]
        figures |= {f"match_unseen_half_{number}": statistics.mean(of_half)} if of_half else {}
    return figures


def has_pair(caption: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether the caption of a scene names a thing of one of the (color, shape) pairs."""
    return any((thing.color, thing.shape) in pairs for thing in parse_caption(caption).things)


def share_read(images: Tensor, captions: Sequence[str]) -> float:
    """The share of the captions' images, the first of (N, 3, H, W), in which every attribute of the caption is found."""
    pairs = zip(to_uint8(images[: len(captions)]), captions, strict=True)
    return statistics.mean(all(match_caption(image, caption).values()) for image, caption in pairs)


def row_of(run: Run) -> Row:
    """PSNR compared with that of k-means of patches, and every other figure in words."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in run.figures.items())
    name, limit = f"tokenizer_{run.kind}", run.figures["psnr_kmeans"]
    return Row(
        name, f"{figures}, seed {run.seed}", "whole images", run.figures["psnr"], "dB", "k-means", limit
    )


def main(argv: list[str] | None = None) -> None:
    arguments = results.parser_of(__doc__)
    add_runs(arguments, KINDS, "tokenizers", "the presets")
    add = arguments.add_argument
    add("--until", default=STAGES[-1], choices=STAGES[len(SHARED) :], help="the last stage that is run")
    add("--parallel", type=int, default=1, help="runs at the same time")
    options = arguments.parse_args(argv)
    asked = read_runs(arguments, options, KINDS)
    kinds, seeds, changes = asked.kinds, asked.seeds, asked.changes
    stages = STAGES[len(SHARED) : STAGES.index(options.until) + 1]

    def prepare(seed: int) -> None:
        run_stages(options.folder / f"shared-{seed}", settings(kinds[0], seed, changes), tuple(SHARED))

    def run(kind_and_seed: tuple[str, int]) -> Run:
        kind, seed = kind_and_seed
        folder, shared = options.folder / f"{kind}-{seed}", options.folder / f"shared-{seed}"
        return measure(kind, seed, folder, shared, changes, stages, options.out)

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(prepare, seeds))
        runs = list(pool.map(run, [(kind, seed) for seed in seeds for kind in kinds]))
    print(f"| tokenizer | seed | {' | '.join(COLUMNS.values())} |\n|{'---|' * (len(COLUMNS) + 2)}")
    print("\n".join(str(run) for run in runs))


if __name__ == "__main__":
    with one_sentence("tokenizers"):
        main()
