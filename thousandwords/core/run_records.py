"""How the outputs of a stage were made here: results/runs/<stage>.json, with the MLflow run, time, memory, versions and
commit.

A record differs between two runs that give the same bytes, so it is no output of DVC, and DVC neither removes nor
restores it. It holds a digest of the outputs that it is about, and counts only while these are the ones here.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import yaml

from thousandwords.core.files import fingerprint, sha256_of
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, read_manifest

RECORDS = Path("results/runs")


def output_paths(root: Path = Path(".")) -> dict[str, list[str]]:
    """{stage: its outputs} by the dvc.yaml of that folder; empty without one."""
    try:
        stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        return {name: _outputs(stage) for name, stage in stages.items()}
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def _outputs(stage: dict) -> list[str]:
    outputs = [out for key in ("outs", "metrics", "plots") for out in stage.get(key, [])]
    return [next(iter(out)) if isinstance(out, dict) else out for out in outputs]


def outputs_digest(stage: str, root: Path = Path(".")) -> str | None:
    """The digest of all outputs of a stage, equal for equal bytes; None if one is missing or damaged, or if it has none."""
    try:
        digests = {path: _digest(root / path) for path in output_paths(root).get(stage, ())}
    except (OSError, DamagedArtefact):
        return None
    return fingerprint(digests) if digests else None


def _digest(path: Path) -> str | dict[str, str]:
    """What identifies an output: the sha256 of its manifest, else those of its files."""
    if (path / MANIFEST).is_file():
        return read_manifest(path, verify=False)["sha256"]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): sha256_of(file) for file in files}
    return sha256_of(path)


def read_record(stage: str, root: Path = Path(".")) -> dict | None:
    """The record of a stage, if it is about the outputs that are here."""
    try:
        record = json.loads((root / RECORDS / f"{stage}.json").read_bytes())
    except (OSError, ValueError):
        return None
    outputs = record.get("outputs")
    return record if outputs and outputs == outputs_digest(stage, root) else None


def read_records(root: Path = Path("."), stages: Iterable[str] | None = None) -> dict[str, dict]:
    """{stage: its record} of those of these stages, or of all, that `read_record` finds."""
    records = {stage: read_record(stage, root) for stage in stages or output_paths(root)}
    return {stage: record for stage, record in records.items() if record}
