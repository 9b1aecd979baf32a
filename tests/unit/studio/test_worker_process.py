"""The worker process from within: the packages in memory, and which request a stop signal ends."""

import ctypes
import shutil

import pytest

from studio.worker.models import ModelWorker
from studio.worker.process import CurrentRequest, Stopped, StudioPaths


def test_the_last_two_packages_stay_in_memory(package_folder, tmp_path):
    first, second, third = [
        str(shutil.copytree(package_folder, tmp_path / name)) for name in ("first", "second", "third")
    ]
    worker = ModelWorker(StudioPaths(tmp_path / "pairs", tmp_path / "store"))
    packages = {folder: worker.package(folder) for folder in (first, second)}
    assert worker.package(first) is packages[first] and worker.package(second) is packages[second]
    worker.package(first)
    worker.package(third)
    assert worker.package(first) is packages[first] and worker.package(second) is not packages[second]


def test_a_stop_ends_the_request_it_names_and_no_other():
    stop_number = ctypes.c_ulonglong(0)
    current = CurrentRequest(stop_number)

    def events(number: int):
        stop_number.value = number
        current.check_stop()  # as the signal handler does
        yield {"event": "candidate"}

    assert current.next_event(2, events(1)) == {"event": "candidate"}  # request 1 has ended
    current.check_stop()  # between two requests
    with pytest.raises(Stopped):
        current.next_event(2, events(2))
    with pytest.raises(Stopped):  # stopped before it began
        current.next_event(2, events(3))
    assert current.next_event(3, iter([])) is None
