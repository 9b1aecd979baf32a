"""What to expect of a run: the figures of the nearest recorded one, and in what it differs."""

import pytest

from tests.helpers.paths import ROOT
from thousandwords.core.config import ConfigError
from thousandwords.planning.recorded_runs import RecordedRun, expectation, read_runs

DRAWINGS = RecordedRun("drawings", 60, 8, 512, {"image_tokenizer": 900, "generator": 120}, 20.0, 2.5)
SCENES = RecordedRun("scenes", 20_000, 8, 512, {"image_tokenizer": 4_000, "generator": 2_400}, 29.2)
EMOJI = RecordedRun("emoji", 3_787, 16, 1_024, {"image_tokenizer": 9_000, "generator": 3_000}, 23.5, 3.0)


def test_the_nearest_run_by_grid_then_pairs_is_named_with_its_figures():
    updates = {"image_tokenizer": 800, "generator": 100}
    assert expectation([SCENES, DRAWINGS, EMOJI], 8, 90, updates) == (
        "expect: like drawings (60 pairs, 8 × 8 of 512, 900 and 120 updates): reconstruction 20.0 dB, "
        "2.50 nats per image token, held out"
    )
    assert "like emoji" in expectation([SCENES, DRAWINGS, EMOJI], 16, 60, updates)


def test_where_the_nearest_run_is_far_the_line_says_in_what():
    text = expectation([SCENES], 16, 100, {"image_tokenizer": 400})
    assert text.startswith(
        "expect: like scenes (20,000 pairs, 8 × 8 of 512, 4,000 and 2,400 updates): reconstruction 29.2"
    )
    assert text.endswith(
        "held out; no run with a grid of 16 × 16 is recorded; it had 200 times as many pairs; "
        "it had 10 times as many image tokenizer updates"
    )
    assert expectation([], 8, 100, {}) == "expect: no run is recorded in bench/runs.yaml"


def test_the_recorded_runs_are_read_and_a_misspelt_key_is_named(tmp_path):
    assert read_runs(ROOT / "bench/runs.yaml")
    (tmp_path / "runs.yaml").write_text("- {name: a, pairs: 1, grids: 8}")
    with pytest.raises(ConfigError, match="runs.yaml: run 0 has no key 'grids'. Did you mean 'grid'"):
        read_runs(tmp_path / "runs.yaml")
