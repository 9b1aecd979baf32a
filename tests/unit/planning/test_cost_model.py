"""The cost model is simple arithmetic on the numbers in params.yaml and on rates that name their source."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from scripts import plan
from tests.helpers.paths import ROOT
from thousandwords.planning import cost_model, estimate
from thousandwords.planning.cost_model import ModelSizes, Rate, RunSizes, Step, Training

MODELS = ModelSizes(
    image_size=256,
    stored_side=300,
    image_vocab_size=8192,
    num_image_tokens=1024,
    encode=2e11,
    tokenizer_loss=5e11,
    generator_loss=3e12,
    scorer_loss=1e10,
    tokenizer_parameters=100_000_000,
    generator_parameters=1_000_000_000,
    scorer_parameters=150_000_000,
)
RUN = RunSizes(
    pairs=1_000_000,
    validation_share=0.1,
    pairs_per_shard=4096,
    tokens_per_shard=8192,
    views=2,
    candidates=10,
    prompts=5,
    trainings={"train_image_tokenizer": Training(4_000_000), "train_generator": Training(2_000_000, 4)},
)
RATES = {
    "megapixels": Rate(9.0, "measured"),
    "captions": Rate(25_000, "assumed"),
    "flops": Rate(1e14, "given"),
}


def step(stage: str, **changes: object) -> Step:
    steps = cost_model.steps(replace(RUN, **changes), MODELS, 2.0)
    return {(step.stage or step.folder): step for step in steps}[stage]


def test_images_are_counted_in_pixels_and_shards():
    prepare = step("prepare_pairs")
    assert (prepare.rows, prepare.shards, prepare.work, prepare.unit) == (
        1_000_000,
        245,
        90_000,
        "megapixels",
    )
    assert prepare.bytes == 1_000_000 * 300 * 300 * 2  # two bytes a pixel


def test_training_images_are_tokenized_in_each_view_and_held_out_ones_once():
    tokenize = step("tokenize_pairs")
    assert tokenize.rows == 900_000 * 2 + 100_000 and tokenize.work == 1_900_000 * 2e11
    assert tokenize.shards == 123  # of 8,192 rows


def test_a_token_of_8192_takes_13_bits_in_the_shards_and_16_unpacked():
    assert cost_model.token_row_bytes(1024, 8192) == pytest.approx(1024 * 13 / 8 * 1.02 + 50)
    assert step("tokenize_pairs").bytes == pytest.approx(1_000_000 * cost_model.token_row_bytes(2048, 8192))
    assert step(".store/tokens").bytes == step("tokenize_pairs").bytes
    assert step(".store/rows").bytes == 900_000 * (2 * 2048 + 100)


def test_images_that_training_reads_in_random_order_are_on_disk_once_more():
    assert step(".store/pairs").bytes == 900_000 * 300 * 300 * 2


@pytest.mark.parametrize(("folder", "pairs"), [(".store/rows", 10_000), (".store/pairs", 3_000)])
def test_rows_that_fit_into_memory_are_not_unpacked(folder, pairs):
    with pytest.raises(KeyError):
        step(folder, pairs=pairs)


def test_an_update_is_three_passes_or_four():
    assert step("train_image_tokenizer").work == 4_000_000 * 3 * 5e11
    assert step("train_generator").work == 2_000_000 * 4 * 3e12
    assert (
        step("train_generator").bytes == 1_000_000_000 * 32
    )  # two checkpoints of weights, average and two moments


def test_a_model_that_is_not_trained_is_not_in_the_plan():
    with pytest.raises(KeyError):
        step("train_scorer")


def test_hours_and_money_follow_from_work_rate_and_machines():
    costs = [cost_model.cost(step, RATES, 8, 2.5) for step in cost_model.steps(RUN, MODELS, 2.0)]
    costs = {cost.step.stage: cost for cost in costs}

    generator, prepared = costs["train_generator"], costs["prepare_pairs"]
    assert generator.device_hours == pytest.approx(2.4e19 / 1e14 / 3600) == pytest.approx(66.6667, abs=1e-3)
    assert generator.hours == pytest.approx(8.3333, abs=1e-3) and generator.money == pytest.approx(
        166.667, abs=1e-2
    )
    assert (prepared.hours, prepared.device_hours, prepared.money) == (pytest.approx(10_000 / 3600), 0, 0)


def test_the_total_is_the_sum():
    costs = [
        cost_model.cost(Step("a", 1, 3.6e17, "flops", "x", 2, 10.0), RATES, 2, 3.0),
        cost_model.cost(Step("b", 1, 32_400, "megapixels", "y", 1, 5.0), RATES, 2, 3.0),
    ]
    total = cost_model.total(costs)
    assert (total.device_hours, total.hours, total.money) == (1.0, 1.5, 3.0)
    assert (total.step.bytes, total.step.shards) == (15.0, 3)


def test_the_table_has_a_line_for_each_stage_and_the_total():
    costs = [cost_model.cost(Step("a", 1200, 3.6e17, "flops", "x", 2, 1.5e9), RATES, 2, 3.0)]
    assert cost_model.table(costs).splitlines() == [
        "stage   rows  keeps  files    disk  device hours  hours  cost ($)",
        "a      1,200  x          2  1.5 GB          1.00   0.50         3",
        "total                    2  1.5 GB          1.00   0.50         3",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1500, "1.5 kB"), (3.28e13, "32.8 TB"), (9.999e11, "1,000 GB")]
)
def test_bytes_are_formatted_briefly(count, text):
    assert cost_model.format_bytes(count) == text


def test_the_longest_training_gives_the_rate():
    rate = cost_model.measured_rate(
        RUN, MODELS, {"train_image_tokenizer": 100.0, "train_generator": 1200.0, "evaluate": 9999.0}
    )
    assert rate.value == 2.4e19 / 1200 and rate.source == "measured: train_generator took 1,200 s here"
    assert cost_model.measured_rate(RUN, MODELS, {"evaluate": 3.0}) is None


BENCHMARKS = [
    {"id": "cpu_matmul", "figure": 0.2, "ratio": None, "date": "2026-11-01T00:00:00+00:00", "machine": "old"},
    {
        "id": "cpu_matmul",
        "figure": 0.4,
        "ratio": None,
        "date": "2026-11-20T00:00:00+00:00",
        "machine": "a CPU",
    },
    {"id": "cpu_train", "figure": 9.0, "ratio": 0.5, "date": "2026-11-21T00:00:00+00:00", "machine": "a CPU"},
    {
        "id": "cpu_draw",
        "figure": 0.05,
        "ratio": None,
        "date": "2026-11-21T00:00:00+00:00",
        "machine": "a CPU",
    },
]


def test_a_benchmark_gives_the_rate_of_training_and_of_sampling_and_the_newest_counts():
    assert cost_model.benchmarked_rate(BENCHMARKS, "cpu") == Rate(0.2e12, "benchmark of 2026-11-21 on a CPU")
    assert cost_model.benchmarked_sampling_share(BENCHMARKS, "cpu") == Rate(
        0.25, "benchmark of 2026-11-21 on a CPU"
    )
    assert (
        cost_model.benchmarked_rate(BENCHMARKS, "gpu") is None
        and cost_model.benchmarked_sampling_share(BENCHMARKS, "gpu") is None
    )
    assert cost_model.benchmarked_rate(BENCHMARKS[:2], "cpu") is None


# --- the command -----------------------------------------------------------------------------------------------------


# the paper's preset, whose models take longest to count, is planned by the test of the docs below
PRESETS = sorted({path.stem for path in (ROOT / "presets").glob("*.yaml")} - {"paper"})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_planned(preset, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan.main(
        [
            "--preset",
            preset,
            "--pairs",
            "250000000",
            "--on",
            "gpu",
            "--gpus",
            "64",
            "--price-per-hour",
            "2",
            "--benchmarks",
            "none",
        ]
    )

    text = capsys.readouterr().out
    assert text.startswith(
        f"250,000,000 pairs, presets/{preset}.yaml, on 64 GPUs; the generator sees each training pair "
    )
    assert (
        "\ntotal " in text
        and "train_generator" in text
        and "flops: 400 TFLOP/s on each device (assumed: " in text
    )


def test_the_models_of_the_paper_are_counted_as_the_paper_does():
    sizes = estimate.model_sizes(yaml.safe_load((ROOT / "presets" / "paper.yaml").read_text()))

    assert (sizes.num_image_tokens, sizes.image_vocab_size) == (1024, 8192)
    assert (
        sizes.tokenizer_parameters == 53_786_240 + 43_829_766 and 12.0e9 < sizes.generator_parameters < 12.5e9
    )
    dense = (
        2 * 12.09e9 * 1280
    )  # each weight multiplies each of 1,280 tokens; attention and output layers are extra
    assert dense < sizes.generator_loss < 1.15 * dense


def test_rates_come_from_the_last_run_where_there_is_one(tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    sizes = estimate.model_sizes(params)
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    for name, seconds in (("train_generator", 600.0), ("prepare_pairs", 11.0)):
        record = {"stage": name, "seconds": seconds, "device": "cpu"}
        (tmp_path / "results" / "runs" / f"{name}.json").write_text(json.dumps(record))
    manifest = {
        "facts": {"counts": {"n_ok": 22_000}},
        "files": {"train-00000.parquet": {"bytes": 90_112_000}},
    }
    (tmp_path / "data" / "pairs" / "manifest.json").write_text(json.dumps(manifest))

    rates = estimate.choose_rates(params, sizes, "cpu", None, tmp_path / "results")
    assert rates["flops"].value == 2400 * 32 * 3 * sizes.generator_loss / 600
    assert (
        rates["megapixels"].value == pytest.approx(22_000 * 64 * 64 / 1e6 / 11)
        and rates["bytes_per_pixel"].value == 1.0
    )
    assert all(
        rates[unit].source.startswith("measured: ") for unit in ("flops", "megapixels", "bytes_per_pixel")
    )

    assert (
        estimate.choose_rates(params, sizes, "cpu", None, tmp_path / "results", BENCHMARKS)["flops"]
        == rates["flops"]
    )
    benchmarked = estimate.choose_rates(params, sizes, "cpu", None, tmp_path / "none", BENCHMARKS)
    assert (benchmarked["flops"].value, benchmarked["sampling_share"].value) == (0.2e12, 0.25)
    assert (
        estimate.choose_rates(params, sizes, "gpu", None, tmp_path / "results")["flops"]
        == cost_model.ASSUMED["gpu"]
    )
    assert (
        estimate.choose_rates(params, sizes, "cpu", 3.0, tmp_path / "results")["flops"].source
        == "given: 3 TFLOP/s"
    )
    assert (
        estimate.choose_rates(params, sizes, "cpu", None, tmp_path / "none")["megapixels"]
        == cost_model.ASSUMED["megapixels"]
    )


def test_a_plan_for_a_missing_preset_or_a_bad_number_says_so(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for arguments, message in (
        (["--preset", "nothing"], "plan: presets/nothing.yaml is missing"),
        (["--pairs", "0"], "plan: --pairs is 0; it needs to be above 0\n"),
        (["--tflops", "-1"], "plan: --tflops is -1; it needs to be above 0\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            plan.main(arguments)
        assert caught.value.code == 2 and capsys.readouterr().err.startswith(message)


def test_without_images_their_number_has_to_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    params = yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text())
    params["data"] |= {"source": "folder", "path": str(tmp_path)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    with pytest.raises(SystemExit):
        plan.main(["--params", str(tmp_path / "params.yaml")])
    assert capsys.readouterr().err.endswith(
        "To plan without images, give their number, for example --pairs 1000000\n"
    )

    plan.main(["--params", str(tmp_path / "params.yaml"), "--pairs", "1000"])
    assert capsys.readouterr().out.startswith("1,000 pairs, ")


def test_the_default_preset_is_planned_without_further_options(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan.main(["--on", "cpu", "--results", "nowhere"])
    text = capsys.readouterr().out
    assert text.startswith(
        "22,000 pairs, params.yaml, on 1 CPU; the generator sees each training pair 3.84 times\n"
    )


def test_the_plan_of_the_papers_run_in_the_docs_is_the_output_of_the_command(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plan.main(
        [
            "--preset",
            "paper",
            "--pairs",
            "250000000",
            "--on",
            "gpu",
            "--gpus",
            "256",
            "--price-per-hour",
            "2.5",
            "--results",
            "nowhere",
        ]
    )
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8").splitlines()
    first = page.index(f"  {table[0]}")
    assert [line.removeprefix("  ") for line in page[first : first + len(table)]] == table and len(
        table
    ) == 12
