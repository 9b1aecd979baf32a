"""How a run went: times, machines and MLflow runs of its stages, and images made while they trained."""

import json
import re

import numpy as np
import pytest

from tests.helpers.records import RECORD
from thousandwords.data.images import encode_png
from thousandwords.reporting.runs_page import mlflow_links, render_runs

STAGES = ("prepare_pairs", "train_scorer", "evaluate")
RECORDS = {
    "prepare_pairs": RECORD | {"run_id": "aa", "seconds": 12.4},
    "train_scorer": RECORD | {"run_id": "bb", "tracking_uri": "server", "seconds": 1530.0},
}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1]))


@pytest.mark.parametrize("address", ["http://host:5000", "http://host:5000/", "http://name:secret@host:5000"])
def test_a_run_on_a_server_has_a_link_without_the_servers_password(address):
    assert mlflow_links(RECORDS, address) == {"train_scorer": "http://host:5000/#/runs/bb"}
    assert mlflow_links(RECORDS, "sqlite:////somewhere/mlflow.db") == {}


def test_each_stage_has_its_time_machine_commit_versions_and_run(tmp_path):
    page = text_of(render_runs(STAGES, RECORDS, tmp_path, ""))
    assert "25 min 42 s in total" in page
    assert "train_scorer 25 min 30 s 2.0 GB CPU, 2 threads ababababab bb" in page
    assert "prepare_pairs Python 3.11.2, torch 2.13.0" in page
    assert "make ui" in page


def test_a_stage_whose_outputs_were_made_elsewhere_is_named(tmp_path):
    page = text_of(render_runs(STAGES, RECORDS, tmp_path, ""))
    assert "Not known of evaluate: the outputs were made elsewhere" in page
    nothing = text_of(render_runs(STAGES, {}, tmp_path, ""))
    assert "Not known of prepare_pairs, train_scorer, evaluate: " in nothing and "in total" not in nothing


def test_the_page_loads_nothing_and_runs_nothing_and_links_to_runs_on_a_server(tmp_path):
    html = render_runs(STAGES, RECORDS, tmp_path, "http://host:5000")
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(|\son\w+=", html)
    assert set(re.findall(r'href="([^"]*)"', html)) == {"report.html", "http://host:5000/#/runs/bb"}
    assert "make ui" not in html and "default-src 'none'" in html


def test_images_made_while_a_stage_trained_are_shown_only_for_the_run_of_its_record(tmp_path):
    sheet = encode_png(np.zeros((4, 4, 3), np.uint8))
    for stage, run_id in (("train_scorer", "bb"), ("train_generator", "of another run")):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "progress.json").write_text(json.dumps({"run_id": run_id}))
        (tmp_path / stage / "step-000500.png").write_bytes(sheet)
    records = RECORDS | {"train_generator": RECORD | {"run_id": "cc"}}
    page = text_of(render_runs(STAGES, records, tmp_path, ""))
    assert "Scorer step 500" in page and "Generator" not in page
