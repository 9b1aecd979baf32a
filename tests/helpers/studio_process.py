"""The studio in a process of its own on a free port."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.helpers.paths import ROOT
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig

SceneCounts = type(DataConfig().scenes)


def make_project(folder: Path, package: Path) -> Path:
    """Make a folder that the studio can run in: a package, and a few pairs."""
    shutil.copytree(package, folder / "models/package")
    counts = SceneCounts(count=20, validation_count=3, unseen_count=3)
    ingest.write_pairs(DataConfig(image_size=24, scenes=counts), 0, folder / "data/pairs")
    return folder


class StudioProcess:
    """`python -m studio` in a folder, and `client`, an HTTP client of it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "studio.log"
        command = [sys.executable, "-m", "studio", "--port", "0", *options]
        with open(self.log, "w") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        self.address = self._wait_for_address()
        self.client = httpx.Client(base_url=self.address, timeout=60)
        self.wait_until_ready()

    def _wait_for_address(self) -> str:
        for _ in range(1200):
            lines = [line for line in self.log.read_text().splitlines() if line.startswith("studio: http")]
            if lines:
                return lines[0].split()[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"the studio did not start: {self.log.read_text()}")

    def wait_until_ready(self) -> None:
        for _ in range(1200):
            if self.client.get("/health").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"the studio did not become ready: {self.log.read_text()}")

    def generate(self, **fields: object) -> list[dict]:
        """The events of POST /api/generate."""
        response = self.client.post("/api/generate", json=fields)
        assert response.status_code == 200, response.text[:300]
        return [json.loads(line) for line in response.text.splitlines()]

    def pids(self) -> list[int]:
        """The server's process id, then its worker process's."""
        server = psutil.Process(self.process.pid)
        children = server.children(recursive=True)
        return [server.pid, *(child.pid for child in children if "spawn_main" in " ".join(child.cmdline()))]

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        return self.process.wait()
