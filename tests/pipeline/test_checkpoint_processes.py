"""Checkpoints of a process that is killed, or has little memory."""

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.unit.training.test_checkpoints import assert_is_step, names, save
from thousandwords.core.model_files import read_model, write_model
from thousandwords.training.checkpoints import Checkpoints


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_saving_makes_no_second_copy_of_the_tensors_in_memory(tmp_path):
    before = 64 << 20
    large = {f"{number}": torch.zeros(before // 16) for number in range(4)}  # 64 MB
    child = os.fork()
    if child == 0:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), hard))
        try:
            write_model(tmp_path, {}, large)
        except MemoryError:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(read_model(tmp_path).state[name].equal(tensor) for name, tensor in large.items())


CALLS = [(os, "fsync"), (os, "replace"), (shutil, "rmtree")]  # a kill can happen between any two of these


def was_killed_before(number: int, run: Checkpoints) -> bool:
    """Save step 30 in another process that is killed before its call `number`; whether it was killed."""
    child = os.fork()
    if child == 0:
        countdown = iter(range(number + 1))
        for module, name in CALLS:
            setattr(module, name, kill_when_done(getattr(module, name), countdown))
        save(run, 30)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kill_when_done(call, countdown):
    def counted(*arguments, **settings):
        if next(countdown, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **settings)

    return counted


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint_intact(tmp_path):
    steps = []
    for number in range(100):
        run = Checkpoints(tmp_path / str(number))
        save(run, 10)
        save(run, 20)
        was_killed = was_killed_before(number, run)
        steps.append(run.newest().step)
        assert_is_step(run.newest(), steps[-1])
        save(run, 40)  # the next save removes what the killed one left
        assert names(run)[-1] == "step-00000040" and len(names(run)) == 2
        if not was_killed:
            break
    assert steps == [20] * steps.count(20) + [30] * steps.count(30)
    assert steps.count(20) >= 8 and steps.count(30) >= 3
