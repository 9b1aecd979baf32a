"""The studio in a process of its own on a free port."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import wait_for
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
        self.folder, self.log = folder, folder / "studio.log"
        command = [sys.executable, "-m", "studio", "--port", "0", *options]
        with open(self.log, "w") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        self.address = wait_for(self._address, 300, "the studio did not start")
        self.client = httpx.Client(base_url=self.address, timeout=60)
        wait_for(
            lambda: self.client.get("/health").status_code == 200, 300, "the studio did not become ready"
        )

    def _address(self) -> str:
        """What it has printed, "" before."""
        assert self.process.poll() is None, self.log.read_text()
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("studio: http")]
        return lines[0].split()[1] if lines else ""

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
