"""The studio as one starts it, in a process of its own on a free port; and a painter that is slow, dies or breaks when asked."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch

from studio.painter import Painter
from thousandwords import pairs
from thousandwords.pairs import Config

ROOT = Path(__file__).parent.parent


SceneCounts = type(Config().scenes)


def furnish(folder: Path, package: Path) -> Path:
    """A project's folder as the studio wants it: a package, and a few pairs."""
    shutil.copytree(package, folder / "models/package")
    counts = SceneCounts(count=20, validation_count=3, unseen_count=3)
    pairs.write_pairs(Config(image_size=24, scenes=counts), 0, folder / "data/pairs")
    return folder


class StudioProcess:
    """`python -m studio` in a folder. `ask` is a client of it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "studio.log"
        command = [sys.executable, "-m", "studio", "--port", "0", *options]
        with open(self.log, "w") as log:
            own = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=own)
        self.address = self._address()
        self.ask = httpx.Client(base_url=self.address, timeout=60)
        self.wait_until_ready()

    def _address(self) -> str:
        for _ in range(1200):
            lines = [line for line in self.log.read_text().splitlines() if line.startswith("studio: http")]
            if lines:
                return lines[0].split()[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"the studio did not start: {self.log.read_text()}")

    def wait_until_ready(self) -> None:
        for _ in range(1200):
            if self.ask.get("/health").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"the studio did not become ready: {self.log.read_text()}")

    def draw(self, **asked: object) -> list[dict]:
        """The events of a draw."""
        answer = self.ask.post("/api/draw", json=asked)
        assert answer.status_code == 200, answer.text[:300]
        return [json.loads(line) for line in answer.text.splitlines()]

    def pids(self) -> list[int]:
        """The server, and the painter that it started."""
        import psutil

        server = psutil.Process(self.process.pid)
        return [server.pid, *(one.pid for one in server.children(recursive=True) if "spawn_main" in " ".join(one.cmdline()))]

    def stop(self) -> int:
        self.ask.close()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        return self.process.wait()


class TryingPainter(Painter):
    """Does as the caption says: sleeps, dies, breaks; else it names the caption."""

    def warm(self, folder: str) -> Iterator[dict]:
        if folder == "die":
            os._exit(9)
        yield {"folder": folder}

    def draw(self, folder: str, prompt: str) -> Iterator[dict]:
        yield {"event": "started", "prompt": prompt}
        if prompt == "sleep":
            for _ in range(600):
                time.sleep(0.05)
        if prompt == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            time.sleep(60)
        if prompt == "die":
            os._exit(9)
        if prompt == "break":
            raise ZeroDivisionError("broken on purpose")
        if prompt == "CUDA":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if prompt == "full":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        yield {"event": "ranked", "prompt": prompt}
