"""The estimate is simple arithmetic on the numbers in params.yaml and on rates that name their source."""

import json
from pathlib import Path

import pytest
import yaml

from scripts import plan
from tests.helpers.images import write
from tests.helpers.paths import ROOT
from tests.helpers.records import write_record
from thousandwords.planning import estimate
from thousandwords.planning.estimate import ASSUMED, Model, Rate, Sizes
from thousandwords.planning.presets import preset_text, read_preset

SIZES = Sizes(
    pairs=1_000_000,
    train_pairs=900_000,
    pairs_per_shard=4096,
    stored_side=300,
    image_vocab_size=8192,
    scales=(32,),
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
    rates = {"flops": Rate(0.2e12, source), "sampling_share": Rate(0.25, source)}
    assert estimate.benchmarked_rates(BENCHMARKS, "cpu") == rates
    assert estimate.benchmarked_rates(BENCHMARKS[:2], "cpu") == {}
    assert estimate.benchmarked_rates(BENCHMARKS, "gpu") == {}


@pytest.fixture
def project(tmp_path):
    """The records of a run, whose longest training is the generator's, beside its pairs."""
    seconds = {"train_generator": 600, "train_image_tokenizer": 100, "prepare_pairs": 11, "evaluate": 9999}
    write(tmp_path, {name: name for name in seconds})
    write(tmp_path, {"dvc.yaml": yaml.safe_dump({"stages": {name: {"outs": [name]} for name in seconds}})})
    for name, value in seconds.items():
        write_record(tmp_path, name, seconds=float(value), device="cpu")
    files = {"train-00000.parquet": {"bytes": 22_000 * 300 * 300}}
    manifest = {"facts": {"counts": {"n_ok": 22_000}}, "files": files}
    write(tmp_path, {"data/pairs/manifest.json": json.dumps(manifest)})
    return tmp_path


def test_rates_come_from_the_last_run_then_from_benchmarks_and_else_are_assumed(project):
    measured = estimate.choose_rates(SIZES, "cpu", None, project, BENCHMARKS)
    assert measured["flops"] == Rate(2.4e19 / 600, "measured: train_generator took 600 s here")
    assert measured["megapixels"].value == pytest.approx(22_000 * 300 * 300 / 1e6 / 11)
    assert measured["bytes_per_pixel"].value == 1.0

    nowhere = project / "none"
    benchmarked = estimate.choose_rates(SIZES, "cpu", None, nowhere, BENCHMARKS)
    assert (benchmarked["flops"].value, benchmarked["sampling_share"].value) == (0.2e12, 0.25)
    assumed = estimate.choose_rates(SIZES, "cpu", None, nowhere)
    expected = {name: rate for name, rate in ASSUMED.items() if name not in ("cpu", "gpu")}
    assert assumed == expected | {"flops": ASSUMED["cpu"]}
    assert estimate.choose_rates(SIZES, "gpu", None, project)["flops"] == ASSUMED["gpu"]
    assert estimate.choose_rates(SIZES, "cpu", 3.0, project)["flops"].source == "given: 3 TFLOP/s"
    write(project, {"train_generator": "of another run, which DVC restored"})
    restored = estimate.choose_rates(SIZES, "cpu", None, project)["flops"]
    assert restored.source == "measured: train_image_tokenizer took 100 s here"


def planned(capsys, arguments: str) -> str:
    plan.main(arguments.split())
    return capsys.readouterr().out


# those whose own tests below plan them are left out: to count models takes long
PRESETS = sorted({path.stem for path in (ROOT / "presets").glob("*.yaml")} - {"paper", "default", "smoke"})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_planned(preset, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = planned(capsys, f"--preset {preset} --pairs 250000000 --on gpu --gpus 64 --benchmarks none")
    assert text.startswith(f"250,000,000 pairs, presets/{preset}.yaml, on 64 GPUs; the generator sees each ")
    assert "of memory in training" in text and "\ntotal " in text and "train_generator" in text
    assert "flops: 400 TFLOP/s on each device (assumed: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--preset nothing",
            "plan: there is no preset 'nothing'. There is: consistency, default, emoji, example, ",
        ),
        ("--tflops -1", "plan: --tflops is -1; it needs to be above 0\n"),
    ],
)
def test_a_plan_for_a_missing_preset_or_a_bad_number_says_so(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        planned(capsys, arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith(message)


def test_without_images_their_number_has_to_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    params = read_preset("smoke", ROOT / "presets")
    params["data"] |= {"source": "folder", "path": str(tmp_path)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    with pytest.raises(SystemExit):
        planned(capsys, f"--params {tmp_path}/params.yaml")
    fix = "To plan without images, give their number, for example --pairs 1000000\n"
    assert capsys.readouterr().err.endswith(fix)
    assert planned(capsys, f"--params {tmp_path}/params.yaml --pairs 1000").startswith("1,000 pairs, ")


def test_the_default_preset_is_planned_without_further_options(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # params.yaml of the project may hold other settings
    Path("params.yaml").write_text(preset_text("default", ROOT / "presets"))
    Path("data/inpaint").mkdir(parents=True)
    text = planned(capsys, "--on cpu --project nowhere")
    assert text.startswith(
        "22,000 pairs, params.yaml, on 1 CPU; the generator sees each training pair 3.84 times"
    )
    assert ".store/pairs" not in text and ".store/rows" not in text  # they fit into memory


def test_the_plan_of_the_papers_run_in_the_docs_is_the_output_of_the_command(monkeypatch, capsys):
    """Its models are counted as the paper does: each weight multiplies each of 1,280 tokens; attention and
    output layers are extra."""
    monkeypatch.chdir(ROOT)
    table, counted = estimate.table, []
    monkeypatch.setattr(estimate, "table", lambda *arguments: counted.append(arguments) or table(*arguments))

    text = planned(capsys, "--preset paper --pairs 250000000 --on gpu --gpus 256 --project nowhere")

    lines = text.split("\n\n")[1].splitlines()
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8").splitlines()
    first = page.index(f"  {lines[0]}")
    assert [line.removeprefix("  ") for line in page[first : first + len(lines)]] == lines
    assert len(lines) == 12
    assert f"image tokenizer {53_786_240 + 43_829_766:,} (" in text
    (work,) = [step.work for step in counted[0][0] if step.stage == "train_generator"]
    dense = 2 * 12.09e9 * 1280
    assert dense < work / (430_000 * 1024 * 4) < 1.15 * dense
