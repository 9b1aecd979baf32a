"""Two runs side by side: what both drew, which figures can be held against each other, and a page that stands alone."""
from __future__ import annotations

import html
import re

import numpy as np
import pytest

from tests.two_runs import BETTER, METRICS, write_run, write_scores
from thousandwords.__main__ import main
from thousandwords.comparison import LARGEST, compare, figures, other_figures, overlap, spread
from thousandwords.errors import UserError
from thousandwords.runs import Common, common_prompts, read_run

PARTS = ["text_tokenizer", "image_tokenizer", "scorer"]


@pytest.fixture
def runs(tmp_path):
    """Two runs; "a dog" is drawn by the first alone, "a cow" by the second, and both completed a picture."""
    first = write_run(tmp_path / "first", ["a cat", "a dog", "a hill"], 10, METRICS, completed=1)
    second = write_run(tmp_path / "second", ["a cow", "a cat", "a hill"], 100, BETTER, completed=1)
    return read_run(first, "first"), read_run(second, "second")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.split("<body>")[1])))


def test_only_prompts_that_both_drew_from_text_are_compared(runs):
    assert common_prompts(*runs) == [Common("a cat", "validation", 0, 1)]


def test_the_best_pictures_come_best_first_with_their_scores(runs):
    best = runs[0].best(0, 2)

    assert [int(picture[0, 0, 0]) for picture, _ in best] == [11, 12]
    assert [score for _, score in best] == pytest.approx([0.3, 0.2])


@pytest.mark.parametrize(
    "name, shown",
    [
        ("caption_match.seen.all.n1", ("50.0%", "70.0%", "+20.0 points", "better, intervals apart", "good")),
        ("caption_match.seen.all.best", ("90.0%", "90.0%", "0", "the same", "same")),
        ("clip_score.n1", ("0.250", "0.350", "+0.100", "better", "good")),
        ("fidelity.clip_frechet.distance", ("0.0400", "0.0500", "+0.0100", "worse", "bad")),
        ("reconstruction.psnr_hard", ("27.50 dB", "26.25 dB", "−1.25 dB", "worse", "bad")),
    ],
)
def test_a_figure_has_both_values_the_difference_and_which_way_is_better(runs, name, shown):
    (row,) = [row for row in figures(*runs, PARTS) if row["name"] == name]
    assert (row["old"], row["new"], row["change"], row["verdict"], row["tone"]) == shown


def test_a_figure_of_another_scorer_is_called_neither_better_nor_worse(runs):
    rows = {row["name"]: row for row in figures(*runs, ["image_tokenizer"])}

    for name in ("clip_score.n1", "fidelity.clip_frechet.distance"):
        assert (rows[name]["verdict"], rows[name]["tone"]) == ("not comparable without the same scorer", "")
    assert rows["reconstruction.psnr_hard"]["verdict"] == "worse"


def test_a_difference_too_small_to_be_read_is_none(runs):
    runs[1].metrics["fidelity"]["clip_frechet"]["distance"][0] = 0.04000004

    (row,) = [row for row in figures(*runs, PARTS) if row["name"] == "fidelity.clip_frechet.distance"]

    assert (row["new"], row["change"], row["verdict"], row["tone"]) == ("0.0400", "0", "the same", "same")


def test_a_curve_has_the_interval_of_its_first_point(runs):
    for run, middle in zip(runs, (0.04, 0.05), strict=True):
        run.metrics["fidelity"]["clip_frechet"]["interval"] = [middle - 0.02, middle + 0.02]

    (row,) = [row for row in figures(*runs, PARTS) if row["name"] == "fidelity.clip_frechet.distance"]

    assert (row["old_interval"], row["verdict"]) == ("0.0200 to 0.0600", "worse, intervals overlap")


def test_what_may_be_chance_has_no_colour(runs):
    runs[1].metrics["caption_match"]["seen"]["all"]["n1_interval"] = [0.55, 0.85]

    row = figures(*runs, PARTS)[0]

    assert (row["verdict"], row["tone"]) == ("better, intervals overlap", "")


def test_a_figure_that_one_run_lacks_is_a_dash(runs):
    del runs[0].metrics["reconstruction"]
    row = [row for row in figures(*runs, PARTS) if row["name"] == "reconstruction.psnr_hard"][0]
    assert (row["old"], row["new"], row["change"], row["verdict"]) == ("–", "26.25 dB", "–", "measured in one only")


@pytest.mark.parametrize("first, second, is_so", [([1, 2], [2, 3], True), ([1, 2], [2.1, 3], False), ([2, 3], [0, 9], True)])
def test_intervals_overlap_where_they_share_a_point(first, second, is_so):
    assert overlap(first, second) is overlap(second, first) is is_so


def test_all_other_numbers_that_differ_are_listed_and_words_are_not(runs):
    assert other_figures(*runs) == [{"name": "seconds.evaluate", "old": "3", "new": "2", "change": "−1"}]


def test_the_differences_are_those_that_dvc_tells(runs):
    told = {"a.b": {"old": 1, "new": 2, "diff": 1}, "clip_score.n1": {"old": 0, "new": 1}, "c": {"old": "x", "new": "y"}}
    assert other_figures(*runs, told) == [{"name": "a.b", "old": "1", "new": "2", "change": "1"}]


def test_prompts_are_taken_from_all_over_the_list():
    both = [Common(str(number), "", number, number) for number in range(10)]
    assert [one.caption for one in spread(both, 4)] == ["0", "2", "5", "7"]
    assert spread(both, 99) == both


def test_the_page_tells_both_runs_their_figures_settings_and_pictures(runs):
    told = {"a": {"commit": "abc1234", "subject": "Train longer", "date": "2026-01-31"}, "same_parts": PARTS,
            "params": {"data.image_size": {"old": 64, "new": 128}}}  # fmt: skip

    page, lines = compare(*runs, told)

    text = text_of(page)
    for words in (
        "1 prompts were drawn by both; 1 by A only, 1 by B only", "first Train longer abc1234 , 2026-01-31, 3 candidates",
        "second 3 candidates", "50.0% 40.0 to 60.0%", "+20.0 points", "data.image_size 64 128", "a cat seen A 0.300",
    ):  # fmt: skip
        assert words in text
    assert page.count("<img ") == 6 and page.count('class="pixel-art"') == 6
    assert lines[0].split() == ["figure", "first", "second", "difference"] and lines[-1] == "1 prompts in common"
    assert compare(*runs, told)[0] == page


def test_the_page_loads_nothing_and_runs_nothing_whatever_a_caption_says(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    both = [read_run(write_run(tmp_path / str(grey), [evil], grey), evil) for grey in (10, 20)]

    page, _ = compare(*both, {"params": {evil: {"old": evil, "new": 1}}})

    assert "<script" not in page and "<img src=x" not in page and html.escape(evil) in page
    assert "default-src 'none'" in page and not re.findall(r"(?:src|href)=\"(?!data:)", page) and "@import" not in page


def test_runs_without_figures_are_compared_by_their_pictures(tmp_path):
    page, lines = compare(*[read_run(write_run(tmp_path / str(grey), ["a cat"], grey), str(grey)) for grey in (10, 20)])
    assert "Neither run has a results/metrics.json" in page and "Settings are compared between revisions only" in page
    assert lines == ["no figures were measured in either", "1 prompts in common"]


def test_a_page_that_could_not_be_mailed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("thousandwords.comparison.LARGEST", 5000)
    both = [read_run(write_run(tmp_path / str(grey), ["a cat"], grey), str(grey)) for grey in (10, 20)]
    with pytest.raises(UserError, match=r"would be 0\.0 MB, and 0 MB is the most. Show fewer prompts than 48 \(--prompts\)"):
        compare(*both)
    assert LARGEST == 8_000_000


def test_runs_without_a_common_prompt_are_refused(tmp_path):
    first, second = write_run(tmp_path / "a", ["a cat"], 1), write_run(tmp_path / "b", ["a dog", "a cow"], 1)
    with pytest.raises(UserError, match="first drew 1 prompts and second 2, none of them the same. Give both the same seed and"):
        common_prompts(read_run(first, "first"), read_run(second, "second"))


def test_a_run_is_not_compared_with_itself(tmp_path):
    same = [read_run(write_run(tmp_path / name, ["a cat"], 1, METRICS), name) for name in ("one", "two")]
    with pytest.raises(UserError, match="one and two have the very same pictures, scores and figures: there is nothing to comp"):
        common_prompts(*same)


def test_damaged_outputs_are_refused_by_name(tmp_path):
    folder = write_run(tmp_path / "a", ["a cat"], 1)
    shard = folder / "results/samples/samples-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="the outputs of HEAD~1 cannot be used: .*00000.parquet is damaged: sha256 should"):
        read_run(folder, "HEAD~1")


def test_scores_of_other_samples_are_refused(tmp_path):
    folder = write_run(tmp_path / "a", ["a cat"], 1)
    write_scores(folder, np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="results/ranked holds 6 scores, but results/samples 1 prompts with 3 candidates each"):
        read_run(folder, "HEAD~1")


def test_the_command_writes_the_page_and_prints_the_figures(tmp_path, capsys):
    first, second = write_run(tmp_path / "a", ["a cat"], 1, METRICS), write_run(tmp_path / "b", ["a cat"], 9, BETTER)

    main(["compare", "--a", str(first), "--b", str(second), "--out", str(tmp_path / "page.html")])

    said = capsys.readouterr().out
    assert "+20.0 points  better, intervals apart" in said and "page.html" in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_command_ends_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--a", str(tmp_path), "--b", str(tmp_path)])
    assert end.value.code == 2 and "manifest.json is missing" in capsys.readouterr().err
