"""Unit tests run in this process alone: one that starts a process or opens a socket fails, and belongs in another folder."""

import multiprocessing.process
import os
import socket
import subprocess

import pytest

from thousandwords import components
from thousandwords.inference.package import load_package


@pytest.fixture(autouse=True)
def no_process_and_no_socket(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        pytest.fail(
            "a unit test started a process or opened a socket: move it to tests/pipeline or tests/services"
        )

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    for name in ("connect", "connect_ex", "bind", "listen"):
        monkeypatch.setattr(socket.socket, name, refuse)


@pytest.fixture(scope="session")
def package(package_folder):
    """The tiny package, loaded; not to be changed."""
    return load_package(package_folder)


@pytest.fixture(scope="session")
def scorer(parts):
    return components.load("scorers", parts["scorer"])
