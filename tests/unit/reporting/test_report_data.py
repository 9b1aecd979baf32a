"""Links to MLflow and the choice of plots in the report."""

import pytest

from thousandwords.reporting import report_data

RECORDS = {
    "prepare_pairs": {"run_id": "aa", "tracking_uri": "local"},
    "train_scorer": {"run_id": "bb", "tracking_uri": "server"},
    "evaluate": {"run_id": "from before", "tracking_uri": "server"},
}


@pytest.mark.parametrize("address", ["http://host:5000", "http://host:5000/", "http://name:secret@host:5000"])
def test_a_run_on_a_server_has_a_link_without_the_servers_password(address):
    assert report_data.mlflow_runs(RECORDS, "cc", address) == {
        "prepare_pairs": {"run_id": "aa"},
        "train_scorer": {"run_id": "bb", "link": "http://host:5000/#/runs/bb"},
        "evaluate": {"run_id": "cc", "link": "http://host:5000/#/runs/cc"},
    }


def test_without_a_server_runs_have_no_links():
    runs = report_data.mlflow_runs(RECORDS, "cc", "sqlite:////somewhere/mlflow.db")
    assert [[*run] for run in runs.values()] == [["run_id"]] * 3
    assert report_data.mlflow_runs({}, None, "") == {}


def test_there_is_a_plot_for_each_figure_that_was_measured():
    blur = {"radius": [0], "distance": [1.0], "score": [2.0]}
    best_of = {
        "n": [1, 2],
        "fid": [1.0, 2.0],
        "fid_interval": [[0, 2], [1, 3]],
        "inception_score": [2.0, 3.0],
    }
    inception = {"fid": blur, "inception_score": blur, "best_of": best_of}
    assert sorted(report_data.fidelity_plots(inception)) == ["best_of", "best_of_score", "blur", "blur_score"]
    assert [*report_data.fidelity_plots({"clip_frechet": blur})] == ["blur"]
