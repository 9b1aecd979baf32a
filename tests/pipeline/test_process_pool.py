"""Worker processes: order, limits, deaths that affect only one input, and no process left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

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


def outcomes(function: Callable, inputs: Sequence, count: int = 2, limits: Limits = DEFAULT_LIMITS) -> list:
    pairs = list(ordered_map(function, make_batches(inputs, lambda _: 1), count, limits))
    assert [item for item, _ in pairs] == list(inputs)
    return [outcome for _, outcome in pairs]


def children(parent: int | None = None) -> set[int]:
    """The worker processes of a process."""
    processes: set[int] = set()
    for task in Path(f"/proc/{parent or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            processes.update(map(int, (task / "children").read_text().split()))
    return processes


def are_gone(processes: set[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(_is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_alive(process: int) -> bool:
    try:  # a zombie counts as dead
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- order and memory


@pytest.mark.parametrize("count", [1, 2, 5])
def test_outcomes_come_in_the_order_of_the_inputs(count):
    assert outcomes(hostile_inputs.square, range(100), count) == [number * number for number in range(100)]


def test_no_inputs_give_no_outcomes():
    assert outcomes(hostile_inputs.square, []) == []


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


# ---- deaths


@pytest.mark.parametrize(
    ("word", "ending"),
    [
        ("SIGSEGV", "by SIGSEGV"),
        ("SIGKILL", "by SIGKILL"),
        ("SIGABRT", "by SIGABRT"),
        ("exit 3", "with code 3"),
        ("exit 0", "with code 0"),
    ],
)
def test_an_input_that_kills_its_worker_is_a_fault_and_its_neighbors_are_not(word, ending):
    commands = ["a", "b", word, "c", *["d"] * 30, word]
    died = Fault("worker_died", f"the process that decoded it ended {ending}, twice")
    assert outcomes(hostile_inputs.obey, commands) == ["A", "B", died, "C", *["D"] * 30, died]


def test_an_input_is_tried_a_second_time_in_a_new_worker(tmp_path):
    [fault] = outcomes(hostile_inputs.note_and_die, [tmp_path / "notes"])
    assert fault.reason == "worker_died"
    assert len(set((tmp_path / "notes").read_text().split())) == 2


def test_a_death_that_is_not_repeated_is_no_fault(tmp_path):
    assert outcomes(hostile_inputs.die_once, [tmp_path / name for name in "abc"]) == ["lives"] * 3


@pytest.mark.parametrize("word", ["hang", "burn"])
def test_an_input_that_takes_too_long_is_a_fault_and_its_neighbors_are_not(word):
    commands = ["a", word, "b"]
    late = Fault("decode_timeout", "not done after 0.5 seconds, twice")
    assert outcomes(hostile_inputs.obey, commands, limits=Limits(seconds=0.5)) == ["A", late, "B"]


def test_the_time_of_an_input_does_not_count_its_neighbors():
    squares = outcomes(
        hostile_inputs.square, range(4, 500, 5), 1, Limits(seconds=0.3)
    )  # 8 ms each, 0.8 s in total
    assert squares[-1] == 499 * 499


def test_an_input_that_takes_too_much_memory_is_a_fault():
    commands = ["take 400000000", "take 600000000", "a"]
    too_large = Fault("out_of_memory", "it takes more memory than an image may")
    assert outcomes(hostile_inputs.obey, commands) == ["400000000", too_large, "A"]


def test_memory_used_by_other_inputs_is_no_fault_of_an_input():
    commands = ["keep 200000000"] * 7  # two of them fit into one worker
    assert outcomes(hostile_inputs.obey, commands) == ["200000000"] * 7


def test_an_unexpected_exception_stops_the_map_with_its_traceback():
    with pytest.raises(
        RuntimeError, match="(?s)a worker process failed:.*in obey.*KeyError: 'a programming error'"
    ):
        outcomes(hostile_inputs.obey, ["a", "fail", "b"])
    assert not children()


def test_a_worker_that_cannot_start_is_an_error_and_no_fault_of_an_input(monkeypatch):
    module = types.ModuleType("only_here")
    exec("def function(item): return item", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RuntimeError, match="a worker process did not start: it ended with code 1"):
        outcomes(module.function, [1])
    assert not children()


# ---- no process is left


def test_no_worker_outlives_the_map():
    assert len(set(outcomes(hostile_inputs.process, range(100)))) == 2 and not children()


def test_closing_early_ends_the_workers_at_once_even_busy_ones():
    pairs = ordered_map(hostile_inputs.obey, make_batches(["a"] * 16 + ["hang"] * 99, lambda _: 1), 2)
    assert next(pairs) == ("a", "A")
    started = time.monotonic()
    pairs.close()
    assert not children() and time.monotonic() - started < 5


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
    command = [sys.executable, "-c", HANGING]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    for _ in range(16):
        assert running.stdout.readline() == b"A\n"
    while len(children(running.pid)) < 3:
        time.sleep(0.05)
    time.sleep(0.5)
    workers = children(running.pid)
    yield running, workers
    running.kill()
    running.communicate()


def test_a_killed_parent_leaves_no_worker(hanging):
    running, workers = hanging
    running.kill()
    running.wait()
    assert len(workers) == 3 and are_gone(workers)


@pytest.mark.parametrize("is_whole_group", [True, False])
def test_an_interrupt_ends_the_process_at_once_and_leaves_no_worker(hanging, is_whole_group):
    running, workers = hanging
    # Ctrl-C in a terminal reaches the whole group
    (os.killpg if is_whole_group else os.kill)(running.pid, signal.SIGINT)
    assert running.wait(10) == -signal.SIGINT and are_gone(workers)
    assert running.stderr.read().count(b"Traceback") == 1


def test_a_worker_ignores_interrupts():
    assert outcomes(hostile_inputs.obey, ["SIGINT", "a"]) == ["SIGINT", "A"]


def test_a_worker_needs_no_torch():
    command = [sys.executable, "-c", "import thousandwords.ingest.ingest, sys; print('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
