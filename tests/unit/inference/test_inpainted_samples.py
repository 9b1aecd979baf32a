"""Images to inpaint are sampled, ranked and reported by the stages; the metrics of other prompts do not change."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages.rank_images import rank_images
from stages.sample_images import sample_images
from tests.helpers.tiny_models import random_images, tiny, tiny_text
from tests.unit.reporting.test_html_report import DATA
from thousandwords import components
from thousandwords.data.images import decode_png, encode_png, fit_square, to_float, to_uint8
from thousandwords.evaluation.evaluate_run import caption_match, collect
from thousandwords.inference.sample_shards import read_samples
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig, SceneCounts
from thousandwords.reporting import report_data
from thousandwords.reporting.html_report import render_report
from thousandwords.reporting.page import thumbnail
from thousandwords.text.bpe import save
from thousandwords.training.distributed import SINGLE_PROCESS

SETTINGS = {"candidates": 3, "prompts_per_split": 2, "prompts": ["a red star"], "batch_size": 4}
CAPTIONS = ("A green star above a small blue circle", "something else")
PARTS = ("pairs", "text_tokenizer", "image_tokenizer", "decoder", "generator")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs, models that belong together, and two images to inpaint, one of them wide."""
    folder = tmp_path_factory.mktemp("inpainted")
    scenes = SceneCounts(count=4, validation_count=3, unseen_count=3)
    ingest.write_pairs(DataConfig(image_size=24, scenes=scenes), 0, folder / "pairs")
    text = save(tiny_text(), folder / "text_tokenizer")
    image = components.save(tiny("image_tokenizers", "dvae"), folder / "image_tokenizer")
    fingerprints = {"text_tokenizer": text, "image_tokenizer": image}
    components.save(tiny("decoders", "unet"), folder / "decoder", image_tokenizer=image)
    components.save(tiny("generators", "transformer"), folder / "generator", **fingerprints)
    components.save(tiny("scorers", "clip"), folder / "scorer")
    (folder / "own").mkdir()
    for number, caption in enumerate(CAPTIONS):
        (folder / f"own/{number}.png").write_bytes(encode_png(original(number)))
        (folder / f"own/{number}.txt").write_text(caption)
    return folder


def original(number: int) -> np.ndarray:
    return np.repeat(to_uint8(random_images(2))[number], 1 + number, axis=1)


@pytest.fixture(scope="module")
def both(folder):
    """{inpainted or plain: (samples, scores, metrics)}"""
    results = {}
    inpaint = {"inpaint": str(folder / "own"), "inpaint_keep_share": 0.5}
    for name, more in (("plain", {}), ("inpainted", inpaint)):
        context = stage_context({**SETTINGS, **more})
        sample_images(*(folder / part for part in PARTS), folder / name / "samples", context)
        models = (folder / part for part in ("image_tokenizer", "decoder", "scorer"))
        rank_images(folder / name / "samples", *models, folder / name / "ranked", context)
        samples = read_samples(folder / name / "samples")
        scores = pq.read_table(folder / name / "ranked/scores.parquet")["score"].to_numpy().reshape(-1, 3)
        results[name] = (samples, scores, context.figures)
    return results


def stage_context(sampling: dict) -> SimpleNamespace:
    """The parts of a stage's context that these two use."""
    figures = {}
    return SimpleNamespace(
        params={"sampling": sampling, "device": "cpu"},
        world=SINGLE_PROCESS,
        seed=0,
        figures=figures,
        record_metrics=figures.update,
        record_files=lambda *paths: None,
    )


def test_each_image_becomes_a_prompt_of_its_own_split_after_the_others(both):
    samples = both["inpainted"][0]
    assert samples.splits == ["validation"] * 2 + ["unseen"] * 2 + ["own"] + ["completed"] * 2
    assert samples.prompts[-2:] == ["a green star above a small blue circle", "something else"]


@pytest.mark.paper("evaluation: completion")
def test_its_top_rows_are_in_every_candidate_and_the_rest_is_sampled(both, folder):
    samples, tokenizer = both["inpainted"][0], components.load("image_tokenizers", folder / "image_tokenizer")
    tokens = torch.tensor(samples.table["image_tokens"].to_pylist()).unflatten(0, (7, 3))
    for number in range(2):
        square = fit_square(original(number), 16)
        expected = tokenizer.encode(to_float(square))[0]
        assert tokens[5 + number, :, :8].equal(expected[:8].expand(3, -1))
        assert len(tokens[5 + number].unique(dim=0)) == 3
        assert np.array_equal(samples.kept_parts[5 + number][:8], square[:8])
        rest = samples.kept_parts[5 + number][8:]  # light gray, and still recognizable
        assert (rest == rest[:, :, :1]).all() and rest.min() > 170 and rest.std() > 1


def test_samples_from_text_alone_do_not_change(both):
    (plain, plain_scores, plain_figures), (inpainted, scores, figures) = both["plain"], both["inpainted"]
    assert inpainted.table.slice(0, 15).equals(plain.table)
    assert np.array_equal(scores[:5], plain_scores) and len(scores) == 7
    for name in ("clip_score_n1", "clip_score_best"):
        assert figures[name] == plain_figures[name]
    assert plain.text_only_prompts() == inpainted.text_only_prompts() == [0, 1, 2, 3, 4]
    assert plain.kept_parts == {}


def test_the_grid_of_a_inpainted_image_begins_with_its_kept_part(both, folder):
    name = "inpainted/ranked/005-a-green-star-above-a-small-blue-circle.png"
    grid = decode_png((folder / name).read_bytes())
    first = grid[4 : 4 + 96 : 6, 4 : 4 + 96 : 6]
    assert np.array_equal(first, both["inpainted"][0].kept_parts[5])
    assert grid.shape[1] == 4 + 4 * (96 + 4)
    plain, same = (folder / name / "ranked/004-a-red-star.png" for name in ("plain", "inpainted"))
    assert plain.read_bytes() == same.read_bytes()


def test_the_metrics_of_the_run_are_about_text_alone(both):
    reconstructions = SimpleNamespace(psnr=lambda seed: {}, codebook=dict)
    curve = [{"validation/text_loss": 1.0, "validation/image_loss": 2.0}]

    plain, inpainted = (
        collect(reconstructions, {}, *both[name][:2], curve, seed=0) for name in ("plain", "inpainted")
    )

    assert inpainted == plain and plain["n"] == 3
    assert plain["generator"] == {"val_loss_text": 1.0, "val_loss_image": 2.0}
    without_text = collect(reconstructions, {}, *both["plain"][:2], [{"validation/image_loss": 2.0}], seed=0)
    assert without_text["generator"] == {"val_loss_image": 2.0}
    rates, matches = caption_match(*both["inpainted"][:2], 0)
    assert set(rates) == {"seen", "unseen"} and set(matches) == {0, 1, 2, 3}
    assert rates["seen"]["prompts"] == 2


def test_the_report_shows_a_row_of_each_and_none_of_them_among_the_best(both):
    samples, scores, _ = both["inpainted"]

    rows = report_data.prompt_rows(16, samples, scores, {})
    best = report_data.best_samples(samples, scores)

    assert [row["split"] for row in rows][-2:] == ["completed", "completed"]
    kept = [thumbnail(samples.kept_parts[prompt], report_data.SMALL) for prompt in (5, 6)]
    assert [row.get("kept_part") for row in rows] == [None] * 5 + kept
    assert [sample["caption"] for sample in best] == samples.prompts[:5]
    page = render_report({**DATA, "prompts": rows, "best_samples": best})
    assert page.count('alt="Kept part of the image for: ') == 2
    kept_part = page.index("Kept part of the image for: something else")
    assert kept_part < page.index("Candidate 1 for: something else")


def test_metrics_are_about_inpainted_images_where_there_are_no_others(both):
    samples = dataclasses.replace(both["inpainted"][0], prompts=["a"] * 2, splits=["completed"] * 2)
    assert samples.text_only_prompts() == [0, 1]
