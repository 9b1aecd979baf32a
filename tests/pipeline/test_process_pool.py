"""Worker processes: order, limits, deaths that cost one input, and none left behind."""
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

from tests import hostile
from thousandwords.workers import AHEAD, BATCH, BATCH_BYTES, Fault, Limits, batches, ordered_map

ROOT = Path(__file__).parent.parent
PLENTY = Limits()


def outcomes(function: Callable, inputs: Sequence, count: int = 2, limits: Limits = PLENTY) -> list:
    pairs = list(ordered_map(function, batches(inputs, lambda _: 1), count, limits))
    assert [one for one, _ in pairs] == list(inputs)
    return [outcome for _, outcome in pairs]


def children(parent: int | None = None) -> set[int]:
    """The worker processes of a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{parent or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread ended while it was listed
            found.update(map(int, (task / "children").read_text().split()))
    return found


def are_gone(processes: set[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(_lives(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _lives(process: int) -> bool:
    try:    # a zombie is dead, whoever should have asked after it
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- order and memory


@pytest.mark.parametrize("count", [1, 2, 5])
def test_outcomes_come_in_the_order_of_the_inputs(count):
    assert outcomes(hostile.square, range(100), count) == [number * number for number in range(100)]


def test_nothing_in_gives_nothing_out_and_starts_nothing():
    assert outcomes(hostile.square, []) == []


def test_few_inputs_start_one_worker_and_many_start_all():
    assert len(set(outcomes(hostile.process, range(BATCH), 3))) == 1
    assert len(set(outcomes(hostile.process, range(20 * BATCH), 3))) == 3


def test_a_batch_is_full_by_number_or_by_weight():
    assert [len(batch) for batch in batches(range(40), lambda _: 1)] == [16, 16, 8]
    heavy = BATCH_BYTES // 2
    assert list(batches([1, heavy, heavy, 1, 9 * heavy, 1], int)) == [[1, heavy, heavy], [1, 9 * heavy], [1]]


def test_only_so_many_inputs_are_read_ahead():
    taken = itertools.count()
    pairs = ordered_map(hostile.square, batches(taken, lambda _: 1), 2)
    assert next(pairs) == (0, 0)
    pairs.close()
    assert next(taken) <= 2 * AHEAD * BATCH + 1


# ---- deaths


@pytest.mark.parametrize(("word", "ending"), [("SIGSEGV", "by SIGSEGV"), ("SIGKILL", "by SIGKILL"), ("SIGABRT", "by SIGABRT"),
                                              ("exit 3", "with code 3"), ("exit 0", "with code 0")])
def test_an_input_that_kills_its_worker_is_a_fault_and_its_neighbours_are_not(word, ending):
    words = ["a", "b", word, "c", *["d"] * 30, word]
    died = Fault("worker_died", f"the process that decoded it ended {ending}, twice")
    assert outcomes(hostile.obey, words) == ["A", "B", died, "C", *["D"] * 30, died]


def test_an_input_is_tried_twice_the_second_time_in_a_worker_of_its_own(tmp_path):
    [fault] = outcomes(hostile.note_and_die, [tmp_path / "notes"])
    assert fault.reason == "worker_died"
    assert len(set((tmp_path / "notes").read_text().split())) == 2


def test_a_death_that_does_not_come_again_costs_nothing(tmp_path):
    assert outcomes(hostile.die_once, [tmp_path / name for name in "abc"]) == ["lives"] * 3


@pytest.mark.parametrize("word", ["hang", "burn"])
def test_an_input_that_takes_too_long_is_a_fault_and_its_neighbours_are_not(word):
    words = ["a", word, "b"]
    late = Fault("decode_timeout", "not done after 0.5 seconds, twice")
    assert outcomes(hostile.obey, words, limits=Limits(seconds=0.5)) == ["A", late, "B"]


def test_the_time_of_an_input_does_not_count_its_neighbours():
    assert outcomes(hostile.square, range(4, 500, 5), 1, Limits(seconds=0.3))[-1] == 499 * 499    # 8 ms each, 0.8 s in all


def test_an_input_that_takes_too_much_memory_is_a_fault():
    words = ["take 400000000", "take 600000000", "a"]
    too_large = Fault("out_of_memory", "it takes more memory than a picture may")
    assert outcomes(hostile.obey, words) == ["400000000", too_large, "A"]


def test_what_its_neighbours_have_kept_is_no_fault_of_an_input():
    words = ["keep 200000000"] * 7    # two of them fit into one worker
    assert outcomes(hostile.obey, words) == ["200000000"] * 7


def test_a_mistake_of_ours_stops_the_map_and_shows_where():
    with pytest.raises(RuntimeError, match="(?s)a worker process failed:.*in obey.*KeyError: 'a mistake of ours'"):
        outcomes(hostile.obey, ["a", "fail", "b"])
    assert not children()


def test_a_worker_that_cannot_start_says_so_and_is_no_fault_of_an_input(monkeypatch):
    module = types.ModuleType("only_here")
    exec("def function(one): return one", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RuntimeError, match="a worker process did not start: it ended with code 1"):
        outcomes(module.function, [1])
    assert not children()


# ---- none is left


def test_no_worker_outlives_the_map():
    assert len(set(outcomes(hostile.process, range(100)))) == 2 and not children()


def test_leaving_early_ends_the_workers_at_once_even_busy_ones():
    pairs = ordered_map(hostile.obey, batches(["a"] * 16 + ["hang"] * 99, lambda _: 1), 2)
    assert next(pairs) == ("a", "A")
    started = time.monotonic()
    pairs.close()
    assert not children() and time.monotonic() - started < 5


HANGING = """
import itertools, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, a shell has it ignored
from tests import hostile
from thousandwords.workers import batches, ordered_map
words = itertools.chain(["a"] * 16, ["hang"] * 99)
for _, outcome in ordered_map(hostile.obey, batches(words, lambda _: 1), 3):
    print(outcome, flush=True)
"""


@pytest.fixture
def hanging():
    """A process of which three workers are busy for a minute, and those workers."""
    command = [sys.executable, "-c", HANGING]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
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


@pytest.mark.parametrize("everybody", [True, False])
def test_an_interrupt_ends_it_at_once_and_leaves_no_worker(hanging, everybody):
    running, workers = hanging
    (os.killpg if everybody else os.kill)(running.pid, signal.SIGINT)    # Ctrl-C in a terminal reaches the whole group
    assert running.wait(10) == -signal.SIGINT and are_gone(workers)
    assert running.stderr.read().count(b"Traceback") == 1


def test_a_worker_leaves_interrupts_to_its_parent():
    assert outcomes(hostile.obey, ["SIGINT", "a"]) == ["SIGINT", "A"]


def test_a_worker_needs_no_torch():
    command = [sys.executable, "-c", "import thousandwords.pairs, sys; print('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
