"""Worker processes: order, limits, deaths that affect only one input, and no process left behind."""

import itertools
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence

import psutil
import pytest

from tests.helpers import hostile_inputs
from tests.helpers.paths import ROOT
from thousandwords.parallel.process_pool import (
    BATCH_SIZE,
    BATCHES_AHEAD,
    MAX_BATCH_BYTES,
    Fault,
    Limits,
    make_batches,
    ordered_map,
)

DEFAULT_LIMITS = Limits()
OTHERS: set[psutil.Process] = set()


@pytest.fixture(scope="module", autouse=True)
def _others():
    """Children of this process that are there before: servers that tests share are no workers of the pool."""
    OTHERS.update(psutil.Process().children())


def new_children() -> set[psutil.Process]:
    return set(psutil.Process().children()) - OTHERS


def outcomes(function: Callable, inputs: Sequence, count: int = 2, limits: Limits = DEFAULT_LIMITS) -> list:
    pairs = list(ordered_map(function, make_batches(inputs, lambda _: 1), count, limits))
    assert [item for item, _ in pairs] == list(inputs) and not new_children()
    return [outcome for _, outcome in pairs]


@pytest.mark.parametrize("count", [1, 5])
def test_outcomes_come_in_the_order_of_the_inputs(count):
    assert outcomes(hostile_inputs.square, [], count) == []
    assert outcomes(hostile_inputs.square, range(100), count) == [number * number for number in range(100)]


def test_few_inputs_start_one_worker_and_many_start_all():
    assert len(set(outcomes(hostile_inputs.process, range(BATCH_SIZE), 3))) == 1
    assert len(set(outcomes(hostile_inputs.process, range(20 * BATCH_SIZE), 3))) == 3


def test_a_batch_is_full_by_number_or_by_bytes():
    assert [len(batch) for batch in make_batches(range(40), lambda _: 1)] == [16, 16, 8]
    half = MAX_BATCH_BYTES // 2
    assert list(make_batches([1, half, half, 1, 9 * half, 1], int)) == [[1, half, half], [1, 9 * half], [1]]


def test_the_number_of_inputs_read_ahead_is_limited():
    numbers = itertools.count()
    pairs = ordered_map(hostile_inputs.square, make_batches(numbers, lambda _: 1), 2)
    assert next(pairs) == (0, 0)
    pairs.close()
    assert next(numbers) <= 2 * BATCHES_AHEAD * BATCH_SIZE + 1


LATE = Fault("decode_timeout", "not done after 0.5 seconds, twice")


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("SIGSEGV", Fault("worker_died", "the process that decoded it ended by SIGSEGV, twice")),
        ("exit 0", Fault("worker_died", "the process that decoded it ended with code 0, twice")),
        ("hang", LATE),
        ("burn", LATE),
        ("take 600000000", Fault("out_of_memory", "it takes more memory than an image may")),
    ],
)
def test_an_input_that_kills_its_worker_is_a_fault_and_its_neighbors_are_not(word, fault):
    commands = ["a", "b", word, *["c"] * 30]
    expected = ["A", "B", fault, *["C"] * 30]
    assert outcomes(hostile_inputs.obey, commands, limits=Limits(seconds=0.5)) == expected


def test_an_input_is_tried_a_second_time_in_a_new_worker(tmp_path):
    [fault] = outcomes(hostile_inputs.note_and_die, [tmp_path / "notes"])
    assert fault.reason == "worker_died"
    assert len(set((tmp_path / "notes").read_text().split())) == 2
    assert outcomes(hostile_inputs.die_once, [tmp_path / name for name in "abc"]) == ["lives"] * 3


def test_the_time_of_an_input_does_not_count_its_neighbors():
    inputs = range(4, 500, 5)  # 8 ms each, 0.8 s in total: more than the limit of 0.2 s
    assert outcomes(hostile_inputs.square, inputs, 1, Limits(seconds=0.2))[-1] == 499 * 499


def test_memory_used_by_other_inputs_is_no_fault_of_an_input():
    commands = ["take 400000000", *["keep 200000000"] * 5]  # two of those fit into one worker
    assert outcomes(hostile_inputs.obey, commands) == ["400000000", *["200000000"] * 5]


def test_an_unexpected_exception_stops_the_map_with_its_traceback():
    with pytest.raises(RuntimeError, match="(?s)a worker failed:.*in obey.*KeyError: 'a programming error'"):
        outcomes(hostile_inputs.obey, ["a", "fail", "b"])
    assert not new_children()


def test_a_worker_that_cannot_start_is_an_error_and_no_fault_of_an_input(monkeypatch):
    module = types.ModuleType("only_here")
    exec("def function(item): return item", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RuntimeError, match="a worker process did not start: it ended with code 1"):
        outcomes(module.function, [1])
    assert not new_children()


def test_closing_early_ends_the_workers_at_once_even_busy_ones():
    pairs = ordered_map(hostile_inputs.obey, make_batches(["a"] * 16 + ["hang"] * 99, lambda _: 1), 2)
    assert next(pairs) == ("a", "A")
    started = time.monotonic()
    pairs.close()
    assert not new_children() and time.monotonic() - started < 5


HANGING = """
import itertools, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background processes
from tests.helpers import hostile_inputs
from thousandwords.parallel.process_pool import make_batches, ordered_map
commands = itertools.chain(["a"] * 16, ["hang"] * 99)
for _, outcome in ordered_map(hostile_inputs.obey, make_batches(commands, lambda _: 1), 3):
    print(outcome, flush=True)
"""


@pytest.fixture
def hanging():
    """A process with three workers that are busy for a minute, and those workers."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    running = subprocess.Popen([sys.executable, "-c", HANGING], cwd=ROOT, **pipes)
    for _ in range(16):
        assert running.stdout.readline() == b"A\n"
    while len(workers := psutil.Process(running.pid).children()) < 3:
        time.sleep(0.05)
    yield running, workers
    running.kill()
    running.communicate()


@pytest.mark.parametrize("number, is_whole_group", [("SIGKILL", False), ("SIGINT", False), ("SIGINT", True)])
def test_no_worker_outlives_its_parent_however_it_ends(hanging, number, is_whole_group):
    running, workers = hanging
    # Ctrl-C in a terminal reaches the whole group
    (os.killpg if is_whole_group else os.kill)(running.pid, signal.Signals[number])
    assert running.wait(10) == -signal.Signals[number]
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    errors = running.stderr.read().decode()
    assert errors.count("Traceback") == (number == "SIGINT"), errors


def test_a_worker_needs_no_torch():
    command = [sys.executable, "-c", "import thousandwords.ingest.ingest, sys; print('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
