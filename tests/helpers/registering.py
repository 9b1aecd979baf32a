"""A tiny project as after a finished run, with git, dvc.lock and metrics, for tests of the registry."""

import subprocess
from pathlib import Path

import yaml

from flows.dvc.damage import dvc_digest
from tests.helpers.records import write_record
from tests.helpers.tiny_models import HEADER, tiny, write_parts, write_shards
from thousandwords import components
from thousandwords.core.files import write_json
from thousandwords.core.manifest import read_manifest, write_manifest
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import write_package

PROMPT = "a small green star on sand"
PARTS = {
    "text_tokenizer": "train_text_tokenizer",
    "image_tokenizer": "train_image_tokenizer",
    "decoder": "train_decoder",
    "generator": "train_generator",
    "scorer": "train_scorer",
}
MATCH = {"n1": 0.92, "best": 1.0, "curve": {"n": [1, 4], "rate": [0.92, 1.0]}}
METRICS = {
    "reconstruction": {"psnr_hard": 30.0, "psnr_kmeans": 26.0},
    "caption_match": {"seen": {"all": MATCH}},
    "generator": {"val_loss_image": 1.5, "val_loss_text": 0.5},
    "clip_score": {"n1": 0.8, "best": 0.9},
    "n": 4,
}


def new_project(folder: Path, seed: int = 0, **metrics: dict) -> Path:
    """A project with a package of tiny models; another seed, other models. `metrics` replace blocks of
    metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    run_git(folder, "init", "-q")
    (folder / ".gitignore").write_text("/data\n/models\n/results\n/.mlflow\n")
    (folder / "params.yaml").write_text("seed: 0\nsampling: {candidates: 4}\n")
    train(folder, seed, **metrics)
    return folder


def train(folder: Path, seed: int, **metrics: dict) -> None:
    """Write what another run would leave: models of that seed, samples, metrics, dvc.lock, all committed."""
    parts = write_parts(folder / "models", seed)
    tokenizers = ("text_tokenizer", "image_tokenizer")
    fingerprints = {name: read_manifest(parts[name])["sha256"] for name in tokenizers}
    components.save(tiny("generators", "transformer", seed), parts["generator"], **fingerprints)
    write_package(folder / "models/package", parts, SamplingConfig(candidates=4, batch_size=3), {"seed": 0})
    header = HEADER.__class__(**{**vars(HEADER), "tokenizer_fingerprint": fingerprints["image_tokenizer"]})
    write_shards(folder / "data/tokens", {"train": 4}, header)
    counts = {"n_in": 8, "splits": {"train": 4, "validation": 4}}
    settings = {"path": "data/own", "licence": "CC-BY-4.0", "origin": "https://example.org/cats"}
    pairs = {"source": "folder", "image_size": 16, "counts": counts, "settings": settings}
    for name in ("data/pairs", "results/samples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "data/pairs", {}, pairs)
    write_manifest(folder / "results/samples", {}, {"prompts": 100, "candidates": 4, "seed": seed})
    write_json(folder / "results/metrics.json", {**METRICS, **metrics})
    lock(folder)
    for stage in (*PARTS.values(), "evaluate"):
        write_record(folder, stage, run_id=f"run-of-{stage}")
    commit(folder)


def lock(folder: Path) -> None:
    """Write dvc.yaml, and dvc.lock as `dvc repro` would."""
    outs = {name: [f"models/{part}"] for part, name in PARTS.items()}
    outs |= {
        "tokenize_pairs": ["data/tokens"],
        "package_model": ["models/package"],
        "sample_images": ["results/samples"],
        "evaluate": ["results/metrics.json"],
    }
    deps = {
        "package_model": [f"models/{part}" for part in PARTS],
        "sample_images": [f"models/{part}" for part in PARTS if part != "scorer"],
        "evaluate": ["models/image_tokenizer", "models/scorer", "results/samples"],
    }

    def entries(paths: list[str]) -> list[dict]:
        return [{"path": path, "hash": "md5", "md5": dvc_digest(folder / path)} for path in paths]

    stages = {
        name: {"deps": entries(deps.get(name, [])), "outs": entries(paths)} for name, paths in outs.items()
    }
    stages["sample_images"]["params"] = {"params.yaml": {"sampling": {"candidates": 4}, "seed": 0}}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    commands = {name: {"cmd": "true", "outs": paths} for name, paths in outs.items()}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": commands}))


def commit(folder: Path) -> None:
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "--allow-empty", "-m", "a run")


def run_git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    pipes = {"capture_output": True, "text": True}
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, **pipes).stdout.strip()
