"""The process that holds the models, from within: how many it holds, and which request a stop ends."""
from __future__ import annotations

import ctypes
import shutil

import pytest

from studio.painter import AtWork, Painter, Places, Stopped


def test_two_packages_are_held_the_last_used_ones(package_folder, tmp_path):
    first, second, third = [str(shutil.copytree(package_folder, tmp_path / name)) for name in ("first", "second", "third")]
    painter = Painter(Places(tmp_path / "pairs", tmp_path / "store"))
    held = {name: painter.package(name) for name in (first, second)}
    assert painter.package(first) is held[first] and painter.package(second) is held[second]
    painter.package(first)
    painter.package(third)
    assert painter.package(first) is held[first] and painter.package(second) is not held[second]


def test_a_stop_ends_the_request_it_names_and_no_other():
    wanted = ctypes.c_ulonglong(0)
    at_work = AtWork(wanted)

    def events(number: int):
        wanted.value = number
        at_work.look()  # as when the signal comes
        yield {"event": "drawn"}

    assert at_work.next(2, events(1)) == {"event": "drawn"}  # one that has ended
    at_work.look()  # between two requests
    with pytest.raises(Stopped):
        at_work.next(2, events(2))
    with pytest.raises(Stopped):  # stopped before it began
        at_work.next(2, events(3))
    assert at_work.next(3, iter([])) is None
