"""Two runs side by side: their common prompts, figures that can be compared, and a self-contained page."""

import html
import re

import numpy as np
import pytest

from tests.helpers.two_runs import BETTER, METRICS, write_run, write_scores
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.reporting.comparison import compare, evenly_spaced, figures, other_figures
from thousandwords.reporting.finished_run import CommonPrompt, common_prompts, read_run

PARTS = ["text_tokenizer", "scorer"]
WEIGHTS = ["text_tokenizer", "image_tokenizer", "decoder", "generator", "scorer"]


@pytest.fixture
def runs(tmp_path):
    """Two runs: "a dog" is only in the first, "a cow" only in the second, and both inpaint an image."""
    first = write_run(tmp_path / "first", ["a cat", "a dog", "a hill"], 10, METRICS, num_inpainted=1)
    second = write_run(tmp_path / "second", ["a cow", "a cat", "a hill"], 100, BETTER, num_inpainted=1)
    return read_run(first, "first"), read_run(second, "second")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.split("<body>")[1])))


def test_only_text_prompts_that_are_in_both_runs_are_compared(runs):
    assert common_prompts(*runs) == [CommonPrompt("a cat", "validation", 0, 1)]


def test_the_best_images_come_best_first_with_their_scores(runs):
    best = runs[0].best(0, 2)
    assert [(int(image[0, 0, 0]), round(score, 6)) for image, score in best] == [(11, 0.3), (12, 0.2)]


def row_of(runs, name: str, parts: list[str] = PARTS) -> dict:
    (row,) = [row for row in figures(*runs, parts) if row["name"] == name]
    return row


FRECHET, MATCH = "fidelity.clip_frechet.distance", "caption_match.seen.all.n1"
PSNR = "reconstruction.psnr_hard"


@pytest.mark.parametrize(
    "name, expected",
    [
        (MATCH, ("50.0%", "70.0%", "+20.0 points", "better, intervals do not overlap", "good")),
        ("caption_match.seen.all.best", ("90.0%", "90.0%", "0", "the same", "same")),
        ("clip_score.n1", ("0.250", "0.350", "+0.100", "better", "good")),
        (FRECHET, ("0.0400", "0.0500", "+0.0100", "worse", "bad")),
        (PSNR, ("27.50 dB", "26.25 dB", "−1.25 dB", "worse", "bad")),
    ],
)
def test_a_figure_has_both_values_the_difference_and_a_verdict(runs, name, expected):
    row = row_of(runs, name)
    assert (row["old"], row["new"], row["change"], row["verdict"], row["tone"]) == expected


@pytest.mark.parametrize("name", ["clip_score.n1", FRECHET])
def test_a_figure_of_another_scorer_is_called_neither_better_nor_worse(runs, name):
    row = row_of(runs, name, [])
    assert (row["verdict"], row["tone"]) == ("not comparable without the same scorer", "")
    assert row_of(runs, PSNR, [])["verdict"] == "worse"


@pytest.mark.parametrize("name", [MATCH, "clip_score.n1", FRECHET, PSNR])
def test_a_figure_that_the_same_weights_made_is_never_called_better_or_worse(runs, name):
    row = row_of(runs, name, WEIGHTS)
    assert (
        row["verdict"].startswith("made by the same weights: chance, or other settings") and row["tone"] == ""
    )
    assert row_of(runs, "caption_match.seen.all.best", WEIGHTS)["verdict"] == "the same"


def paired_runs(tmp_path, *rows: list[str]):
    """Two runs without images: what git has of each, with these rows of prompts.csv."""
    header = "prompt,split,clip_score.n1,clip_score.best,caption_match.n1,caption_match.best"
    for number, (score, lines) in enumerate(zip((0.25, 0.35), rows, strict=True)):
        results = tmp_path / str(number) / "results"
        results.mkdir(parents=True)
        (results / "prompts.csv").write_text("\n".join([header, *lines]) + "\n")
        write_json(results / "headline.json", {"clip_score.n1": score, "caption_match.seen.all.n1": score})
    return tuple(read_run(tmp_path / str(number), str(number)) for number in (0, 1))


def test_figures_of_samples_are_compared_on_the_prompts_of_both_runs(tmp_path):
    """20 prompts gain 0.1 to 0.2 each; those that only one run has do not count, and neither does another split."""
    common = [
        [f"cat {n},validation,{0.2 + gain},,{0.5 + gain * (n % 2)}," for n in range(20)] for gain in (0, 0.1)
    ]
    runs = paired_runs(
        tmp_path,
        [*common[0], "a dog,validation,0.9,,1,", "a cow,unseen,0.2,,1,"],
        [*common[1], "a cow,unseen,0.3,,0,"],
    )
    row = row_of(runs, "clip_score.n1")
    assert (row["old"], row["new"], row["change"]) == ("0.200", "0.300", "+0.100")
    assert (row["change_interval"], row["verdict"]) == ("0.100 to 0.100", "better, 21 common prompts")
    row = row_of(runs, MATCH)
    assert (row["old"], row["new"], row["change"]) == ("50.0%", "55.0%", "+5.0 points")
    assert (row["verdict"], row["tone"]) == ("better, 20 common prompts", "good")


def test_few_common_prompts_or_differences_both_ways_are_no_clear_difference(tmp_path):
    signs = [[f"cat {n},validation,{0.2 + gain * (-1) ** n},,," for n in range(20)] for gain in (0, 0.1)]
    signs[1][0] = "cat 0,validation,0.9,,,"
    assert row_of(paired_runs(tmp_path / "a", *signs), "clip_score.n1")["verdict"] == (
        "no clear difference, 20 common prompts"
    )
    few = [[f"cat {n},validation,{score},,," for n in range(3)] for score in (0.2, 0.3)]
    assert row_of(paired_runs(tmp_path / "b", *few), "clip_score.n1")["verdict"] == (
        "no clear difference, 3 common prompts"
    )


def test_runs_without_images_or_a_common_prompt_are_compared_by_figures_and_the_page_says_so(tmp_path):
    page, lines = compare(*paired_runs(tmp_path, ["a cat,validation,0.2,,,"], ["a dog,validation,0.3,,,"]))
    missing = "the images of 0 are not here (results/samples is missing; dvc repro rank_images makes it)"
    assert lines[-1] == missing and "<img" not in page
    assert f"No images side by side: {missing}." in text_of(page) and "figures only" in page
    assert any(line.endswith("not comparable, no common prompts") for line in lines)


def test_differences_that_may_be_chance_or_round_to_zero_or_are_unknown(runs):
    first, second = (run.metrics for run in runs)
    second["caption_match"]["seen"]["all"]["n1_interval"] = [0.55, 0.85]
    del first["reconstruction"]
    second["fidelity"]["clip_frechet"]["distance"][0] = 0.04000004

    assert [row_of(runs, MATCH)[key] for key in ("verdict", "tone")] == [
        "no clear difference, intervals overlap",
        "",
    ]
    row = row_of(runs, PSNR)
    assert (row["old"], row["change"], row["verdict"]) == ("–", "–", "measured in one run only")
    row = row_of(runs, FRECHET)
    assert (row["new"], row["change"], row["verdict"], row["tone"]) == ("0.0400", "0", "the same", "same")


def test_a_curve_has_the_interval_of_its_first_point(runs):
    for run, distance in zip(runs, (0.04, 0.05), strict=True):
        run.metrics["fidelity"]["clip_frechet"]["interval"] = [distance - 0.02, distance + 0.02]
    row = row_of(runs, FRECHET)
    assert (row["old_interval"], row["verdict"]) == (
        "0.0200 to 0.0600",
        "no clear difference, intervals overlap",
    )


def test_all_other_numbers_that_differ_are_listed_but_no_texts(runs):
    assert other_figures(*runs) == [{"name": "seconds.evaluate", "old": "3", "new": "2", "change": "−1"}]


def test_prompts_are_evenly_spaced():
    prompts = [CommonPrompt(str(number), "", number, number) for number in range(10)]
    assert [prompt.caption for prompt in evenly_spaced(prompts, 4)] == ["0", "2", "5", "7"]
    assert evenly_spaced(prompts, 99) == prompts


SHOWN = (
    "1 prompts are in both runs; 1 in A only, 1 in B only",
    "first Train longer abc1234 , 2026-01-31, 3 candidates",
    "second 3 candidates",
    "50.0% 40.0 to 60.0%",
    "+20.0 points",
    "data.image_size 64 128",
    "a cat seen A 0.300",
)


def test_the_page_shows_both_runs_with_their_figures_settings_and_images(runs):
    commit = {"commit": "abc1234", "subject": "Train longer", "date": "2026-01-31"}
    params = {"data.image_size": {"old": 64, "new": 128}}
    metadata = {"a": commit, "same_parts": PARTS, "params": params}
    page, lines = compare(*runs, metadata)
    assert [text for text in SHOWN if text not in text_of(page)] == []
    assert page.count("<img ") == 6 and page.count('class="pixel-art"') == 6
    assert lines[0].split() == ["figure", "first", "second", "difference"]
    assert lines[-1] == "1 prompts in common"
    assert compare(*runs, metadata)[0] == page


def test_the_page_loads_nothing_and_runs_nothing_whatever_is_in_a_caption(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    runs = [read_run(write_run(tmp_path / str(gray), [evil], gray), evil) for gray in (10, 20)]
    page, _ = compare(*runs, {"params": {evil: {"old": evil, "new": 1}}})
    assert "<script" not in page and "<img src=x" not in page and html.escape(evil) in page
    assert "default-src 'none'" in page and "@import" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)


def test_runs_without_figures_are_compared_by_their_images(tmp_path):
    runs = [read_run(write_run(tmp_path / str(gray), ["a cat"], gray), str(gray)) for gray in (10, 20)]
    page, lines = compare(*runs)
    assert "Neither run has a results/metrics.json" in page
    assert "Settings can be compared between revisions only" in page
    assert lines == ["neither run has figures", "1 prompts in common"]


def test_a_page_that_is_too_large_is_rejected(runs, monkeypatch):
    monkeypatch.setattr("thousandwords.reporting.comparison.MAX_PAGE_BYTES", 5000)
    with pytest.raises(
        UserError, match=r"at most 0 MB are allowed. Show fewer prompts than 48 \(--prompts\)"
    ):
        compare(*runs)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a dog", "a cow"], "A has 1 prompts and B 2, none of them the same. Give both the same seed and"),
        (["a cat"], "A and B have the very same images, scores and figures: there is nothing to comp"),
    ],
)
def test_runs_without_a_common_prompt_and_equal_runs_are_rejected(tmp_path, captions, message):
    first, second = write_run(tmp_path / "a", ["a cat"], 1), write_run(tmp_path / "b", captions, 1)
    with pytest.raises(UserError, match=message):
        common_prompts(read_run(first, "A"), read_run(second, "B"))


def test_damaged_outputs_and_scores_of_other_samples_are_rejected_by_name(tmp_path):
    folder = write_run(tmp_path / "a", ["a cat"], 1)
    write_scores(folder, np.zeros((2, 3), np.float32))
    message = "results/ranked holds 6 scores, but results/samples 1 prompts with 3 candidates each"
    with pytest.raises(UserError, match=f"HEAD~1: {message}"):
        read_run(folder, "HEAD~1")
    shard = folder / "results/samples/samples-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(
        UserError, match="the outputs of HEAD~1 cannot be used: .*00000.parquet is damaged: sha"
    ):
        read_run(folder, "HEAD~1")


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_figures_are_named(tmp_path, text):
    folder = write_run(tmp_path / "run", ["a cat"], 10)
    (folder / "results/metrics.json").write_text(text)
    with pytest.raises(
        UserError, match=r"^.*/results/metrics.json cannot be used \(.*\). .* run there: make repair$"
    ):
        read_run(folder, "HEAD~1")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"^/nope has no results/, so no run has ended there. Give the folder"
    ):
        read_run(tmp_path, "/nope")
