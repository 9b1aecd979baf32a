"""The record of a stage, as the stage writes it at its end."""

from pathlib import Path

from thousandwords.core.files import write_json
from thousandwords.core.run_records import RECORDS, outputs_digest

RECORD = {
    "run_id": None,
    "parent_run_id": None,
    "tracking_uri": "local",
    "seconds": 1.0,
    "peak_memory_mb": 2048,
    "threads": 2,
    "device": "cpu",
    "python": "3.11.2",
    "versions": {"torch": "2.13.0"},
    "git": {"commit": "ab" * 20, "is_dirty": False},
}


def write_record(root: Path, stage: str, **values: object) -> dict:
    """Write the record of the outputs that are there, with these values; returns it."""
    record = {"stage": stage, "outputs": outputs_digest(stage, root), **RECORD, **values}
    write_json(root / RECORDS / f"{stage}.json", record)
    return record
