"""What is known of the package in a working tree: its figures, what it was made from and by, and all that speaks against it.

Problems are gathered, not raised: a version with a problem may be kept and looked at, and never becomes the champion. Left out:
whether the code is still the code that the stages ran; `dvc status` tells that, and a version carries the commit that named it.
"""
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from stages._run import flatten, git_revision
from stages._verify import dvc_digest
from thousandwords.files import DamagedArtefact, read_manifest, sha256_of
from thousandwords.gate import PARTS, Evidence

PACKAGE = Path("models/package")
PAIRS = Path("data/pairs")
METRICS = "results/metrics.json"
LOCK = "dvc.lock"
JUDGED = ("models/", "results/")  # outputs that are hashed anew; data may be of any size, and is known by its manifest
AGAIN = "Run: dvc repro, then register it again"


def gather(root: Path) -> dict:
    """All that is known of `root`'s package, as JSON. Raises DamagedArtefact where there is no whole package."""
    package = read_manifest(root / PACKAGE, mend="dvc repro package_model")
    parts = {name: read_manifest(root / PACKAGE / name, mend="dvc repro package_model")["sha256"] for name in PARTS}
    lock, git = _lock(root), git_revision(root)
    problems = [
        *part_problems(root, package["facts"]["parts"], parts),
        *word_problems(root, parts),
        *lock_problems(lock, root),
        *params_problems(lock, _params(root)),
        *git_problems(git),
    ]
    return {
        "package": package["sha256"],
        "parts": parts,
        "metrics": figures(root / METRICS),
        **_drawn(root),
        "problems": problems,
        "git": git,
        "lock": sha256_of(root / LOCK) if lock else None,
        "runs": _runs(root),
        "data": data_facts(sound_manifest(root / PAIRS)),
    }


def evidence_of(known: dict) -> Evidence:
    """What the gate reads of it."""
    return Evidence(known["metrics"], known["prompts"], known["parts"], tuple(known["problems"]))


def figures(path: Path) -> dict[str, float] | None:
    """Every single number of metrics.json under its dotted name; None where there is no such file."""
    if not path.is_file():
        return None
    flat = flatten(json.loads(path.read_bytes()))
    return {name: value for name, value in flat.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def part_problems(root: Path, promised: dict[str, str], parts: dict[str, str]) -> Iterator[str]:
    """A part of the package that is not the one it was made with, or not the one that stands beside it."""
    for name in PARTS:
        beside = (sound_manifest(root / "models" / name) or {}).get("sha256")
        if promised.get(name) != parts[name]:
            yield f"{PACKAGE / name} is not the part that the package was made with. Run: dvc repro package_model"
        elif beside != parts[name]:
            yield f"models/{name} is not the part that {PACKAGE} was made with. Run: dvc repro package_model"


def word_problems(root: Path, parts: dict[str, str]) -> Iterator[str]:
    """Words of one tokenizer, read by another: the codebook, the token shards and the generator must agree."""
    header = json.loads((root / PACKAGE / "generator/config.json").read_bytes())
    for name in ("image_tokenizer", "text_tokenizer"):
        if header.get(name) != parts[name]:
            yield (
                f"the generator was trained on words of another {name} ({_short(header.get(name))}) than the package holds "
                f"({_short(parts[name])}). Run: dvc repro train_generator"
            )
    tokens = sound_manifest(root / "data/tokens")
    if tokens is None:
        yield "data/tokens has no sound manifest, so nobody knows whose words the generator learned. Run: dvc checkout"
    elif tokens["facts"]["tokens"]["tokenizer_fingerprint"] != parts["image_tokenizer"]:
        yield (
            f"data/tokens was written by another image tokenizer ({_short(tokens['facts']['tokens']['tokenizer_fingerprint'])}) "
            f"than the package holds ({_short(parts['image_tokenizer'])}). Run: dvc repro tokenize_pairs"
        )


def lock_problems(lock: dict, root: Path) -> Iterator[str]:
    """dvc.lock has to name what is there, and every stage in it to have read what another one wrote."""
    if not lock:
        yield f"there is no {LOCK}, so nobody knows what made the package. {AGAIN}"
        return
    outs = {out["path"]: (name, out["md5"]) for name, stage in lock.items() for out in stage.get("outs", [])}
    for path in (str(PACKAGE), METRICS):
        if path not in outs:
            yield f"{LOCK} names no stage that made {path}. {AGAIN}"
    for name, stage in lock.items():
        for dep in stage.get("deps", []):
            maker, wanted = outs.get(dep["path"], (None, None))
            if maker and dep["md5"] != wanted:
                yield f"{name} ran on another {dep['path']} than {maker} wrote, by {LOCK}. {AGAIN}"
    for path, (_, wanted) in outs.items():
        if path.startswith(JUDGED):
            yield from _changed(root, path, wanted)


def _changed(root: Path, path: str, wanted: str) -> Iterator[str]:
    if not (root / path).exists():
        yield f"{path} is missing, but {LOCK} names it. Run: dvc checkout"
    elif dvc_digest(root / path) != wanted:
        yield f"{path} is not what {LOCK} names. Run: dvc checkout, or dvc repro; then register it again"


def params_problems(lock: dict, params: dict) -> Iterator[str]:
    """A section of params.yaml that is not the one its stage ran with."""
    for name, stage in lock.items():
        for section, used in stage.get("params", {}).get("params.yaml", {}).items():
            if _as_read(params.get(section)) != _as_read(used):
                yield f"params.yaml: {section} is not what {name} ran with. {AGAIN}"


def _as_read(value: object) -> object:
    """DVC writes 0.00001 as 1e-05, which YAML 1.1 reads as text: numbers, wherever they stand, as numbers."""
    if isinstance(value, dict):
        return {name: _as_read(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_as_read(one) for one in value]
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def git_problems(git: dict) -> Iterator[str]:
    if not git:
        yield "this is no git repository, so nobody can tell which code and settings made the package. Run: git init, and commit"
    elif git["is_dirty"]:
        yield "the git tree has changes that no commit holds. Commit them (dvc.lock too), then register it again"


def data_facts(manifest: dict | None) -> dict | None:
    """Which pictures, how many, under which licence; None where the pairs are not here."""
    if manifest is None:
        return None
    facts = manifest["facts"]
    settings = facts.get("settings", {})
    sources = settings.get("sources") or [{"source": facts["source"], **settings}]
    return {
        "source": facts["source"],
        "image_size": facts["image_size"],
        "splits": facts["counts"]["splits"],
        "origins": [_origin(source) for source in sources],
        "fingerprint": manifest["sha256"],
    }


def _origin(source: dict) -> dict[str, str]:
    """One source of pictures; the built-in scenes are drawn by this project, and nobody else's."""
    if source["source"] == "scenes":
        return {"source": "scenes", "licence": "Apache-2.0", "origin": "drawn by this project"}
    licence, origin = source.get("licence") or "not stated", source.get("origin") or source.get("url") or _inside(source)
    return {"source": source["source"], "licence": licence, "origin": origin or "not stated"}


def _inside(source: dict) -> str | None:
    """The place of a source in the project; one elsewhere on the machine is nobody else's business."""
    path = source.get("path")
    return path if path and not Path(path).is_absolute() else None


def licences(known: dict) -> str:
    """All licences of the training data, in a line."""
    origins = (known["data"] or {}).get("origins", [])
    return ", ".join(sorted({origin["licence"] for origin in origins})) or "not stated"


def _drawn(root: Path) -> dict[str, int]:
    """How many prompts, and candidates of each, the figures come from."""
    facts = (sound_manifest(root / "results/samples") or {"facts": {}})["facts"]
    return {"prompts": facts.get("prompts", 0), "candidates": facts.get("candidates", 0)}


def _runs(root: Path) -> dict[str, str]:
    """{stage: the MLflow run that made its output}"""
    records = [json.loads(path.read_bytes()) for path in sorted((root / "results/runs").glob("*.json"))]
    return {record["stage"]: record["run_id"] for record in records if record.get("run_id")}


def _lock(root: Path) -> dict:
    """The stages of dvc.lock; empty where there is none."""
    path = root / LOCK
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {}) if path.is_file() else {}


def _params(root: Path) -> dict:
    path = root / "params.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def sound_manifest(folder: Path) -> dict | None:
    """The manifest of `folder`, itself sound; None where there is none."""
    with contextlib.suppress(DamagedArtefact):
        return read_manifest(folder, verify=False)


def _short(fingerprint: str | None) -> str:
    return fingerprint[:8] if fingerprint else "unknown"
