"""The bulk way with pictures to complete: they are drawn, ranked and shown, and the figures of the others stay what they are."""
from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages import _report
from stages.evaluate import collect
from stages.rank_images import rank_images
from stages.sample_images import sample_images
from tests.tiny import pictures, tiny, tiny_text
from thousandwords import components, evaluation, images, pair_settings, pairs, text
from thousandwords.distributed import ALONE
from thousandwords.report import render_report
from thousandwords.samples import read_samples
from thousandwords.thumbnails import thumbnail

SETTINGS = {"candidates": 3, "prompts_per_split": 2, "prompts": ["a red star"], "batch_size": 4}
CAPTIONS = ("A green star above a small blue circle", "something else")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs, models that know each other, and two pictures to complete, one of them wide."""
    folder = tmp_path_factory.mktemp("completed")
    scenes = pair_settings.SceneCounts(count=4, validation_count=3, unseen_count=3)
    pairs.write_pairs(pairs.Config(image_size=24, scenes=scenes), 0, folder / "pairs")
    words = text.save(tiny_text(), folder / "text_tokenizer")
    of_pictures = components.save(tiny("tokenizers", "dvae"), folder / "image_tokenizer")
    knows = {"text_tokenizer": words, "image_tokenizer": of_pictures}
    components.save(tiny("generators", "transformer"), folder / "generator", **knows)
    components.save(tiny("scorers", "clip"), folder / "scorer")
    (folder / "own").mkdir()
    for number, caption in enumerate(CAPTIONS):
        (folder / f"own/{number}.png").write_bytes(images.encode_png(original(number)))
        (folder / f"own/{number}.txt").write_text(caption)
    return folder


def original(number: int) -> np.ndarray:
    return np.repeat(images.to_uint8(pictures(2))[number], 1 + number, axis=1)


@pytest.fixture(scope="module")
def both(folder):
    """{completed or not: (samples, scores, figures)}"""
    found = {}
    for name, more in (("plain", {}), ("completed", {"complete": str(folder / "own"), "complete_share": 0.5})):
        run = running({**SETTINGS, **more})
        parts = [folder / part for part in ("pairs", "text_tokenizer", "image_tokenizer", "generator")]
        sample_images(*parts, folder / name / "samples", run)
        rank_images(folder / name / "samples", folder / "scorer", folder / name / "ranked", run)
        samples = read_samples(folder / name / "samples")
        scores = np.array(columns_of(folder / name / "ranked/scores.parquet")["score"]).reshape(-1, 3)
        found[name] = (samples, scores, run.figures)
    return found


def running(sampling: dict) -> SimpleNamespace:
    """As much of a stage as these two need."""
    figures = {}
    return SimpleNamespace(
        params={"sampling": sampling, "device": "cpu"}, world=ALONE, seed=0, figures=figures,
        record_metrics=figures.update, record_files=lambda *paths: None,
    )  # fmt: skip


def columns_of(path) -> dict:
    return pq.read_table(path).to_pydict()


def test_each_picture_becomes_a_prompt_of_its_own_split_after_the_others(both):
    samples = both["completed"][0]
    assert samples.splits == ["validation"] * 2 + ["unseen"] * 2 + ["own"] + ["completed"] * 2
    assert samples.prompts[-2:] == ["a green star above a small blue circle", "something else"]


def test_its_top_rows_are_in_every_candidate_and_the_rest_is_drawn(both, folder):
    samples, tokenizer = both["completed"][0], components.load("tokenizers", folder / "image_tokenizer")
    tokens = torch.tensor(samples.table["image_tokens"].to_pylist()).unflatten(0, (7, 3))
    for number in range(2):
        fitted = images.fit_square(original(number), 16)
        words = tokenizer.encode(images.to_float(fitted))[0]
        assert tokens[5 + number, :, :8].equal(words[:8].expand(3, -1))
        assert len(tokens[5 + number].unique(dim=0)) == 3
        assert np.array_equal(samples.given[5 + number][:8], fitted[:8])
        assert samples.given[5 + number][8:].min() > 170


def test_what_is_drawn_from_text_alone_stays_what_it_was(both):
    (plain, plain_scores, plain_figures), (completed, scores, figures) = both["plain"], both["completed"]
    assert completed.table.slice(0, 15).equals(plain.table)
    assert np.array_equal(scores[:5], plain_scores) and len(scores) == 7
    for name in ("clip_score_n1", "clip_score_best"):
        assert figures[name] == plain_figures[name]
    assert plain.from_text() == completed.from_text() == [0, 1, 2, 3, 4]


def test_without_pictures_to_complete_nothing_new_is_written(both, folder):
    assert both["plain"][0].given == {}
    written = sorted(path.name for path in (folder / "plain/samples").iterdir())
    assert written == ["manifest.json", *(f"samples-{number:05d}.parquet" for number in range(4))]


def test_the_grid_of_a_completed_picture_begins_with_what_was_given(both, folder):
    grid = images.decode_png((folder / "completed/ranked/005-a-green-star-above-a-small-blue-circle.png").read_bytes())
    first = grid[4 : 4 + 96 : 6, 4 : 4 + 96 : 6]
    assert np.array_equal(first, both["completed"][0].given[5])
    assert grid.shape[1] == 4 + 4 * (96 + 4)
    plain, same = (folder / name / "ranked/004-a-red-star.png" for name in ("plain", "completed"))
    assert plain.read_bytes() == same.read_bytes()


def test_the_figures_of_the_run_are_about_text_alone(both):
    rebuilt = SimpleNamespace(psnr=lambda seed: {}, codebook=dict)
    curve = [{"validation/text_loss": 1.0, "validation/image_loss": 2.0}]

    plain, completed = (collect(rebuilt, {}, *both[name][:2], curve, running({})) for name in ("plain", "completed"))

    assert completed == plain and plain["n"] == 3


def test_captions_of_completed_pictures_are_not_matched(both):
    samples, scores, _ = both["completed"]
    rates, read = evaluation.caption_match(samples, scores, 0, lambda rows, total: rows)
    assert set(rates) == {"seen", "unseen"} and set(read) == {0, 1, 2, 3}
    assert rates["seen"]["prompts"] == 2


def test_the_report_shows_a_row_of_each_and_none_of_them_among_the_best(both):
    samples, scores, _ = both["completed"]
    shown = {}

    rows = _report._prompts(evaluation.Config(), samples, scores, {}, shown)
    hero = _report._hero(samples, scores, shown)

    assert [row["split"] for row in rows][-2:] == ["completed", "completed"]
    assert [row.get("given") for row in rows] == [None] * 5 + ["given-5", "given-6"]
    assert shown["given-5"] == thumbnail(samples.given[5], _report.SMALL)
    assert [one["caption"] for one in hero] == samples.prompts[:5]
    page = render_report({"title": "t", "metrics": {"n": 3}, "prompts": rows, "hero": hero}, shown)
    assert page.count('alt="What was given of a picture for: ') == 2
    assert page.index("What was given of a picture for: something else") < page.index("Candidate 1 for: something else")


def test_figures_are_about_completed_pictures_where_there_are_no_others(both):
    samples = dataclasses.replace(both["completed"][0], prompts=["a"] * 2, splits=["completed"] * 2)
    assert samples.from_text() == [0, 1]
