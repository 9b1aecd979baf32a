"""The tables that `dvc plots` draws: one set of columns whatever the models and captions, and few rows."""

from types import SimpleNamespace

import torch
import yaml

from tests.helpers.paths import ROOT
from thousandwords.evaluation.reconstruction import Reconstructions
from thousandwords.reporting.plot_data import plot_data

SCORES = {"clip_score": {"curve": {"n": [1, 2], "score": [0.25, 0.5]}}}
SEEN = {"caption_match": {"seen": {"curve": {"n": [1, 2], "all": [0.5, 1.0]}}}}


def evaluation(figures: dict):
    tokens, kmeans_tokens = torch.tensor([3, 3, 3, 1]), torch.tensor([0, 1, 2, 3])
    reconstructions = Reconstructions(*[torch.empty(0)] * 3, tokens, kmeans_tokens, vocab_size=4)
    return SimpleNamespace(figures=figures, reconstructions=reconstructions)


def test_a_table_has_a_row_per_point_and_nulls_for_what_a_run_does_not_have():
    curve = [{"step": 1, "image_loss": 2.0}, {"step": 2, "image_loss": 1.0, "validation/image_loss": 1.5}]
    tables = plot_data(evaluation(SCORES | SEEN), {"train_generator": curve})
    assert tables["generator"] == [{"step": 2, "loss": 1.5}]
    assert tables["generator_training"] == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert tables["decoder"] == [{"step": 0, "psnr": None}]
    assert tables["best_of_n"][1] == {"n": 2, "clip_score": 0.5, "match_seen": 1.0, "match_unseen": None}
    shares = [(row["share"], row["share_kmeans"]) for row in tables["codebook"]]
    assert shares == [(0.75, 0.25), (1, 0.5), (1, 0.75), (1, 1)]


def test_dvc_yaml_shows_columns_of_these_tables():
    tables = plot_data(evaluation(SCORES), {})
    for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]:
        ((_, axes),) = plot.items()
        for path, columns in axes["y"].items():
            table = tables[path.removeprefix("results/plot_data/").removesuffix(".json")]
            assert {axes["x"], *([columns] if isinstance(columns, str) else columns)} <= table[0].keys()
