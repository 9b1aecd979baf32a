"""A record counts only for the outputs that it is about."""

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.images import write
from tests.helpers.records import write_record
from thousandwords.core.manifest import write_manifest
from thousandwords.core.run_records import outputs_digest, read_record, read_records

OUTS = ["models/generator", "curve.json", {"table.csv": {"cache": False}}]
STAGES = {"train": {"outs": OUTS, "metrics": [{"metrics.json": {"cache": False}}], "plots": ["plots"]}}


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with all outputs of a stage, and its record."""
    write(tmp_path, {"dvc.yaml": yaml.safe_dump({"stages": STAGES | {"other": {"cmd": "true"}}})})
    write(tmp_path, dict.fromkeys(("curve.json", "table.csv", "metrics.json", "plots/a.png"), "1"))
    write(tmp_path / "models/generator", {"weights": "1"})
    write_manifest(tmp_path / "models/generator", {"weights": None}, {})
    write_record(tmp_path, "train", seconds=5.0)
    return tmp_path


def test_a_record_is_read_while_the_outputs_are_those_that_it_is_about(root):
    assert read_record("train", root)["seconds"] == 5.0
    assert [*read_records(root)] == ["train"] and read_records(root, ["other"]) == {}


@pytest.mark.parametrize("path", ["curve.json", "table.csv", "metrics.json", "plots/a.png", "plots/b.png"])
def test_a_record_is_not_read_with_any_other_output(root, path):
    write(root, {path: "2"})
    assert read_record("train", root) is None


def test_a_record_is_not_read_with_another_model(root):
    write(root / "models/generator", {"weights": "2"})
    write_manifest(root / "models/generator", {"weights": None}, {})
    assert read_record("train", root) is None


@pytest.mark.parametrize("path", ["curve.json", "dvc.yaml"])
def test_without_an_output_or_the_pipeline_there_is_no_record(root, path):
    (root / path).unlink()
    assert read_record("train", root) is None and outputs_digest("train", root) is None


def test_without_a_sound_manifest_there_is_no_record(root):
    write(root / "models/generator", {"manifest.json": "{"})
    assert read_record("train", root) is None and outputs_digest("train", root) is None


@pytest.mark.parametrize("text", ["", "{", '{"seconds": 1}'])
def test_a_record_that_is_cut_or_names_no_outputs_is_as_none(root, text):
    write(root, {"results/runs/train.json": text})
    assert read_record("train", root) is None


def test_a_record_of_a_stage_without_outputs_is_not_read(root):
    assert write_record(root, "other")["outputs"] is None
    assert json.loads((root / "results/runs/other.json").read_text()) and read_record("other", root) is None
