"""The choice of plots in the report, and the names of splits."""

from thousandwords.evaluation.config import split_name
from thousandwords.reporting import report_data


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


def test_seen_and_unseen_are_said_of_scenes_only():
    names = [split_name(split, is_scene) for split in ("validation", "own") for is_scene in (True, False)]
    assert names == ["seen", "held out", "own", "own"]
