"""The estimate is simple arithmetic on the numbers in params.yaml and on rates that name their source."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from scripts import plan
from tests.helpers.paths import ROOT
from thousandwords.planning import estimate
from thousandwords.planning.estimate import ASSUMED, Model, Rate, Sizes, Step

SIZES = Sizes(
    pairs=1_000_000,
    train_pairs=900_000,
    pairs_per_shard=4096,
    stored_side=300,
    image_vocab_size=8192,
    num_image_tokens=1024,
    encode=2e11,
    views=2,
    tokens_per_shard=8192,
    samples=50,
    models={
        "image_tokenizer": Model(5e11, 100_000_000, rows=4_000_000),
        "generator": Model(3e12, 1_000_000_000, rows=2_000_000, passes=4),
        "scorer": Model(1e10, 150_000_000),
    },
)


def steps(**changes: object) -> dict[str, Step]:
    found = estimate.steps(replace(SIZES, **changes), bytes_per_pixel=2.0, sampling_share=0.1)
    return {step.stage or step.folder: step for step in found}


def test_the_work_and_the_files_of_each_stage():
    row_bytes = 2048 * 13 / 8 * 1.02 + 50  # a token of 8,192 takes 13 bits in the shards, 16 unpacked
    image_bytes = 300 * 300 * 2  # two bytes a pixel
    assert {name: (step.rows, step.work, step.files, step.bytes) for name, step in steps().items()} == {
        "prepare_pairs": (1_000_000, 90_000, 245, 1_000_000 * image_bytes),
        ".store/pairs": (900_000, 0, 1, 900_000 * image_bytes),  # training reads images in random order
        "train_text_tokenizer": (900_000, 900_000, 0, 0),
        # three passes an update; two checkpoints of weights, average and two moments
        "train_image_tokenizer": (4_000_000, 4_000_000 * 3 * 5e11, 2, 100_000_000 * 32),
        # training images in each of two views, held-out ones once
        "tokenize_pairs": (1_900_000, 1_900_000 * 2e11, 123, pytest.approx(1_000_000 * row_bytes)),
        ".store/tokens": (1_000_000, 0, 245, pytest.approx(1_000_000 * row_bytes)),
        ".store/rows": (900_000, 0, 1, 900_000 * (2 * 2048 + 100)),
        # four passes with activation checkpointing
        "train_generator": (2_000_000, 2_000_000 * 4 * 3e12, 2, 1_000_000_000 * 32),
        "sample_images": (50, pytest.approx(50 * 3e12 / 0.1), 0, 0),
    }  # the scorer is not trained


@pytest.mark.parametrize(("folder", "train_pairs"), [(".store/rows", 9_000), (".store/pairs", 2_700)])
def test_rows_that_fit_into_memory_are_not_unpacked(folder, train_pairs):
    assert folder in steps() and folder not in steps(train_pairs=train_pairs)


def test_the_table_has_a_line_for_each_stage_and_the_sums_and_hours_are_shared_by_devices():
    rates = {"megapixels": Rate(9.0, "measured"), "flops": Rate(1e14, "given")}
    found = [
        Step("a", 1200, 3.6e17, "flops", "x", 2, 1.5e9),
        Step("", 9, folder="y"),
        Step("b", 1, 32_400, "megapixels"),
    ]
    assert estimate.table(found, rates, devices=2).splitlines() == [
        "stage   rows  keeps  files    disk      FLOP  device hours  hours",
        "a      1,200  x          2  1.5 GB  3.60e+17          1.00   0.50",
        "           9  y",
        "b          1                                                 1.00",
        "total                    2  1.5 GB  3.60e+17          1.00   1.50",
    ]


def benchmark(id: str, figure: float, ratio: float | None = None, date: str = "2026-11-21") -> dict:
    return {"id": id, "figure": figure, "ratio": ratio, "date": f"{date}T00:00:00+00:00", "machine": "a CPU"}


BENCHMARKS = [
    benchmark("cpu_matmul", 0.2, date="2026-11-01"),
    benchmark("cpu_matmul", 0.4),
    benchmark("cpu_train", 9.0, 0.5),
    benchmark("cpu_draw", 0.05),
]


def test_a_benchmark_gives_the_rate_of_training_and_of_sampling_and_the_newest_counts():
    source = "benchmark of 2026-11-21 on a CPU"
    assert estimate.benchmarked_rate(BENCHMARKS, "cpu") == Rate(0.2e12, source)
    assert estimate.benchmarked_sampling_share(BENCHMARKS, "cpu") == Rate(0.25, source)
    assert estimate.benchmarked_rate(BENCHMARKS[:2], "cpu") is None
    assert estimate.benchmarked_sampling_share(BENCHMARKS, "gpu") is None


@pytest.fixture
def results(tmp_path):
    """The records of a run, whose longest training is the generator's, beside its pairs."""
    (tmp_path / "results/runs").mkdir(parents=True)
    (tmp_path / "data/pairs").mkdir(parents=True)
    seconds = {
        "train_generator": 600.0,
        "train_image_tokenizer": 100.0,
        "prepare_pairs": 11.0,
        "evaluate": 9999.0,
    }
    for name, value in seconds.items():
        record = {"stage": name, "seconds": value, "device": "cpu"}
        (tmp_path / f"results/runs/{name}.json").write_text(json.dumps(record))
    files = {"train-00000.parquet": {"bytes": 22_000 * 300 * 300}}
    manifest = {"facts": {"counts": {"n_ok": 22_000}}, "files": files}
    (tmp_path / "data/pairs/manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "results"


def test_rates_come_from_the_last_run_then_from_benchmarks_and_else_are_assumed(results):
    measured = estimate.choose_rates(SIZES, "cpu", None, results, BENCHMARKS)
    assert measured["flops"] == Rate(2.4e19 / 600, "measured: train_generator took 600 s here")
    assert measured["megapixels"].value == pytest.approx(22_000 * 300 * 300 / 1e6 / 11)
    assert measured["bytes_per_pixel"].value == 1.0

    nowhere = results.parent / "none"
    benchmarked = estimate.choose_rates(SIZES, "cpu", None, nowhere, BENCHMARKS)
    assert (benchmarked["flops"].value, benchmarked["sampling_share"].value) == (0.2e12, 0.25)
    assumed = estimate.choose_rates(SIZES, "cpu", None, nowhere)
    expected = {name: rate for name, rate in ASSUMED.items() if name not in ("cpu", "gpu")}
    assert assumed == expected | {"flops": ASSUMED["cpu"]}
    assert estimate.choose_rates(SIZES, "gpu", None, results)["flops"] == ASSUMED["gpu"]
    assert estimate.choose_rates(SIZES, "cpu", 3.0, results)["flops"].source == "given: 3 TFLOP/s"


def planned(capsys, arguments: str) -> str:
    plan.main(arguments.split())
    return capsys.readouterr().out


# the paper's preset, whose models take longest to count, is planned by the test of the docs below
PRESETS = sorted({path.stem for path in (ROOT / "presets").glob("*.yaml")} - {"paper"})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_planned(preset, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = planned(capsys, f"--preset {preset} --pairs 250000000 --on gpu --gpus 64 --benchmarks none")

    assert text.startswith(f"250,000,000 pairs, presets/{preset}.yaml, on 64 GPUs; the generator sees each ")
    assert "of memory in training" in text and "\ntotal " in text and "train_generator" in text
    assert "flops: 400 TFLOP/s on each device (assumed: " in text


def test_a_plan_for_a_missing_preset_or_a_bad_number_says_so(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for arguments, message in (
        ("--preset nothing", "plan: presets/nothing.yaml is missing"),
        ("--pairs 0", "plan: --pairs is 0; it needs to be above 0\n"),
        ("--tflops -1", "plan: --tflops is -1; it needs to be above 0\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            planned(capsys, arguments)
        assert caught.value.code == 2 and capsys.readouterr().err.startswith(message)


def test_without_images_their_number_has_to_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    params = yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())
    params["data"] |= {"source": "folder", "path": str(tmp_path)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    with pytest.raises(SystemExit):
        planned(capsys, f"--params {tmp_path}/params.yaml")
    fix = "To plan without images, give their number, for example --pairs 1000000\n"
    assert capsys.readouterr().err.endswith(fix)
    assert planned(capsys, f"--params {tmp_path}/params.yaml --pairs 1000").startswith("1,000 pairs, ")


def test_the_default_preset_is_planned_without_further_options(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    start = "22,000 pairs, params.yaml, on 1 CPU; the generator sees each training pair 3.84 times\n"
    assert planned(capsys, "--on cpu --results nowhere").startswith(start)


def test_the_plan_of_the_papers_run_in_the_docs_is_the_output_of_the_command(monkeypatch, capsys):
    """Its models are counted as the paper does: each weight multiplies each of 1,280 tokens; attention and
    output layers are extra."""
    monkeypatch.chdir(ROOT)
    table, counted = estimate.table, []
    monkeypatch.setattr(estimate, "table", lambda *arguments: counted.append(arguments) or table(*arguments))

    text = planned(capsys, "--preset paper --pairs 250000000 --on gpu --gpus 256 --results nowhere")

    lines = text.split("\n\n")[1].splitlines()
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8").splitlines()
    first = page.index(f"  {lines[0]}")
    assert [line.removeprefix("  ") for line in page[first : first + len(lines)]] == lines
    assert len(lines) == 12
    assert f"image tokenizer {53_786_240 + 43_829_766:,} (" in text
    (work,) = [step.work for step in counted[0][0] if step.stage == "train_generator"]
    dense = 2 * 12.09e9 * 1280
    assert dense < work / (430_000 * 1024 * 4) < 1.15 * dense
