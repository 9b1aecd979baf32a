"""The evidence for the package in a working tree: metrics, origin, and every problem found.

Problems are collected, not raised: a version with a problem can be stored and inspected, but never becomes the
champion. Not here: whether the code is still that which the stages ran; a version records its commit.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion

from flows.dvc.damage import dvc_digest, stages_of
from flows.registry.version_files import EVIDENCE, read_file
from stages.runtime.tracking import data_metadata, find_records, git_revision
from thousandwords.core.files import sha256_of
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.core.params import flatten, read_params
from thousandwords.evaluation.gate import PARTS, Evidence

PACKAGE = Path("models/package")
PAIRS = Path("data/pairs")
METRICS = "results/metrics.json"
LOCK = "dvc.lock"
# outputs that are hashed again here; data may be of any size, and its manifest is enough
HASHED_OUTPUTS = ("models/", "results/")
RUN_AGAIN = "Run: dvc repro, then register it again"


def gather_evidence(root: Path) -> dict:
    """The evidence for `root`'s package, as JSON. Raises DamagedArtefact if there is no complete package."""
    fix = "dvc repro package_model"
    package, pairs = read_manifest(root / PACKAGE, fix=fix), sound_manifest(root / PAIRS)
    parts = {name: read_manifest(root / PACKAGE / name, fix=fix)["sha256"] for name in PARTS}
    text = (root / LOCK).read_text(encoding="utf-8") if (root / LOCK).is_file() else ""
    lock, git, metrics = stages_of(text), git_revision(root), None
    if (root / METRICS).is_file():  # every number, under its dotted name
        flat = flatten(_read_metrics(root / METRICS)).items()
        metrics = {name: value for name, value in flat if type(value) in (int, float)}
    problems = [
        *part_problems(root, package["facts"]["parts"], parts),
        *token_problems(root, parts),
        *lock_problems(lock, root),
        *params_problems(lock, params_of(root)),
    ]
    if not git:
        found = "this is not a git repository, so it is unknown which code and settings made the package"
        problems.append(f"{found}. Run: git init, and commit")
    elif git["is_dirty"]:
        fix = "Commit them (dvc.lock too), then register it again"
        problems.append(f"the git tree has uncommitted changes. {fix}")
    samples = (sound_manifest(root / "results/samples") or {"facts": {}})["facts"]
    runs = {stage: record.get("run_id") for stage, record in find_records(root).items()}
    return {
        "package": package["sha256"],
        "parts": parts,
        "metrics": metrics,
        "prompts": samples.get("prompts", 0),  # behind the metrics
        "candidates": samples.get("candidates", 0),  # per prompt
        "problems": problems,
        "git": git,
        "lock": sha256_of(root / LOCK) if lock else None,
        "runs": {stage: run_id for stage, run_id in runs.items() if run_id},  # as far as they are known
        "data": data_metadata(pairs) if pairs else None,  # which images, how many, under which license
    }


def _read_metrics(path: Path) -> dict:
    """Raises DamagedArtefact if it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedArtefact(f"{path} is damaged ({error}). Run: make repair") from error


def gate_evidence(client: mlflow.MlflowClient, version: ModelVersion) -> Evidence:
    """What the gate reads of the evidence at registration. Raises DamagedArtefact if the version pins no files."""
    # a version of an earlier commit has it as a tag
    evidence = json.loads(version.tags.get("evidence") or read_file(client, version, EVIDENCE))
    return Evidence(evidence["metrics"], evidence["prompts"], evidence["parts"], tuple(evidence["problems"]))


def part_problems(root: Path, expected: dict[str, str], parts: dict[str, str]) -> Iterator[str]:
    """Parts of the package that are not those it was made with, or not those in models/."""
    fix = "Run: dvc repro package_model"
    for name in PARTS:
        model_sha256 = (sound_manifest(root / "models" / name) or {}).get("sha256")
        if expected.get(name) != parts[name]:
            yield f"{PACKAGE / name} is not the part that the package was made with. {fix}"
        elif model_sha256 != parts[name]:
            yield f"models/{name} is not the part that {PACKAGE} was made with. {fix}"


def token_problems(root: Path, parts: dict[str, str]) -> Iterator[str]:
    """Tokens of one tokenizer read with another: tokenizers, token shards and generator must agree."""
    header = json.loads((root / PACKAGE / "generator/config.json").read_bytes())
    for name in ("image_tokenizer", "text_tokenizer"):
        found, held = header.get(name) or "unknown", parts[name]
        if found != held:
            other = f"another {name} ({found[:8]}) than the package holds ({held[:8]})"
            yield f"the generator was trained on tokens of {other}. Run: dvc repro train_generator"
    tokens, held = sound_manifest(root / "data/tokens"), parts["image_tokenizer"]
    if tokens is None:
        yield "data/tokens has no sound manifest, so the tokenizer of the training tokens is unknown. Run: dvc checkout"
    elif (found := tokens["facts"]["tokens"]["tokenizer_fingerprint"]) != held:
        other = f"another image tokenizer ({found[:8]}) than the package holds ({held[:8]})"
        yield f"data/tokens was written by {other}. Run: dvc repro tokenize_pairs"


def lock_problems(lock: dict, root: Path) -> Iterator[str]:
    """dvc.lock must name the outputs here, and each stage in it must have read what another one wrote."""
    if not lock:
        yield f"there is no {LOCK}, so it is unknown what made the package. {RUN_AGAIN}"
        return
    outs = {out["path"]: (name, out["md5"]) for name, stage in lock.items() for out in stage.get("outs", [])}
    for path in (str(PACKAGE), METRICS):
        if path not in outs:
            yield f"{LOCK} names no stage that made {path}. {RUN_AGAIN}"
    for name, stage in lock.items():
        for dep in stage.get("deps", []):
            maker, md5 = outs.get(dep["path"], (None, None))
            if maker and dep["md5"] != md5:
                yield f"{name} ran on another {dep['path']} than {maker} wrote, by {LOCK}. {RUN_AGAIN}"
    for path, (_, md5) in outs.items():
        if not path.startswith(HASHED_OUTPUTS):
            continue
        if not (root / path).exists():
            yield f"{path} is missing, but {LOCK} names it. Run: dvc checkout"
        elif dvc_digest(root / path) != md5:
            yield f"{path} is not what {LOCK} names. Run: dvc checkout, or dvc repro; then register it again"


def params_problems(lock: dict, params: dict) -> Iterator[str]:
    """Sections of params.yaml that differ from what their stage ran with."""
    for name, stage in lock.items():
        for section, used in stage.get("params", {}).get("params.yaml", {}).items():
            if _normalize(params.get(section)) != _normalize(used):
                yield f"params.yaml: {section} is not what {name} ran with. {RUN_AGAIN}"


def _normalize(value: object) -> object:
    """Turn text into numbers: DVC writes 0.00001 as 1e-05, which YAML 1.1 reads as text."""
    if isinstance(value, dict):
        return {name: _normalize(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_normalize(item) for item in value]
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def params_of(root: Path) -> dict:
    """The settings of a project, empty without params.yaml. Raises ConfigError for one that is not YAML."""
    path = root / "params.yaml"
    return read_params(path) if path.is_file() else {}


def sound_manifest(folder: Path) -> dict | None:
    """The manifest of `folder` if it is undamaged, else None; the files are not checked."""
    with contextlib.suppress(DamagedArtefact):
        return read_manifest(folder, verify=False)
