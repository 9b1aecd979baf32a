"""bench/gpu.py on tiny sizes: every part runs, and a failed part does not stop the others."""

import json
import math
import subprocess
import sys
import time

import pytest
import torch

from bench import gpu
from tests.helpers.paths import ROOT
from thousandwords.nn.compile import Compiled

MACHINE = gpu.Machine(torch.device("cpu"), matmul=1e12, copy=1e10)


def test_every_part_runs_and_records_its_rows(tmp_path, capsys):
    gpu.main(["--cpu", "--out", str(tmp_path / "rows.jsonl")])

    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    names = (
        "matmul copy best_of_512 memory train train_plain encode_float32 encode encode_equal equal_gradients "
    )
    names += "equal_words"
    assert set(rows) == {f"gpu_{name}_tiny" for name in names.split()}
    assert rows["gpu_equal_words_tiny"]["figure"] == 1 and rows["gpu_equal_gradients_tiny"]["figure"] < 1e-5
    assert rows["gpu_encode_equal_tiny"]["figure"] >= 0.99
    assert "| `gpu_best_of_512_tiny` | the best of 6 candidates (sampled " in capsys.readouterr().out


def test_a_failed_part_says_so_in_its_row_and_the_others_run(monkeypatch):
    def full(sizes, machine):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setitem(gpu.PARTS, "train", (full, 1.0))

    (failed,), rates = gpu.measure(["train", "rates"], gpu.TINY, MACHINE, minutes=1)

    assert failed.id == "gpu_train_missing_tiny" and math.isnan(failed.figure)
    assert failed.what == "failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert [row.id for row in rates] == ["gpu_matmul_tiny", "gpu_copy_tiny"]


def test_a_part_without_time_left_is_skipped_and_says_so(monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "train", (lambda sizes, machine: pytest.fail("it was started"), 150.0))

    ((row,),) = gpu.measure(["train"], gpu.Sizes(), MACHINE, minutes=1)

    assert row.id == "gpu_train_missing" and row.what == "skipped: 60 s are left, and it may take 150"


def test_a_part_that_takes_too_long_is_ended_even_inside_a_compiler(monkeypatch):
    def slow(function, **settings):
        return lambda: time.sleep(5)

    monkeypatch.setattr(torch, "compile", slow)
    monkeypatch.setitem(gpu.PARTS, "train", (lambda sizes, machine: Compiled(lambda: [], "a part")(), 0.0))

    ((row,),) = gpu.measure(["train"], gpu.Sizes(), MACHINE, minutes=0.005)

    assert row.what == "failed: OutOfTime: after 0 s"


def test_only_necessary_operations_of_a_training_sequence_are_counted():
    sizes = gpu.Sizes(layers=1, width=10, text_vocab_size=7, text_length=2, image_vocab_size=5, side=2)

    # prefix of 4 and 4 image tokens: 10 + 4 * 4 pairs, and up to 10 among the tokens
    layer, attention, outputs = 2 * 12 * 100 * 7, 4 * 10 * (10 + 16 + 10), 2 * 10 * (2 * 7 + 4 * 5)
    assert gpu.operations(sizes) == 3 * (layer + attention + outputs)


def test_the_full_sizes_are_those_of_the_preset():
    sizes = gpu.Sizes()
    assert gpu.weights(sizes) == 1_258_291_200 and gpu.positions(sizes) == 1281
    assert sizes.batch * sizes.accumulation == 64 and sizes.dvae.width == 256 and sizes.image_size == 256


def test_it_needs_only_torch_numpy_pyarrow_and_pillow():
    program = """if True:
        import sys, torch, torch.utils.flop_counter, numpy, pyarrow, PIL.Image
        before = set(sys.modules)
        import bench.gpu
        new = {name.partition('.')[0] for name in set(sys.modules) - before}
        allowed = {'torch', 'numpy', 'pyarrow', 'PIL', 'bench', 'thousandwords'}
        print(sorted(new - set(sys.stdlib_module_names) - allowed))
    """
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "[]\n"
