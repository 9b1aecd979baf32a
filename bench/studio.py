"""python -m bench.studio: how soon the studio shows a first picture, and how it bears a crowd; models/package, this machine.

`studio_first_picture`: from the press of Draw in a browser until the first candidate is on the page, 16 asked for; the studio has
drawn before. `studio_health_p99`: /health asked again and again while 200 requests come at once to a line of 16. `studio_after`:
a draw of one right after them. `studio_hung_up`: a draw of one after somebody who had asked for 64 hung up at the first.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import _results as results
from bench._results import Row
from tests.browser import chromium

CAPTIONS = ("a small red star above a large blue square", "a large green circle on snow", "a small yellow ring on sand")
CROWD, LINE = 200, 16
READY = 120  # seconds


class Running:
    """The studio on a free port, from here."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "studio", "--port", "0", "--queue", str(LINE), "--gallery", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        said = self.process.stdout.readline()
        if not said.startswith("studio: http"):
            raise SystemExit(f"the studio did not open: {said}Run: make run")
        self.address = said.split()[1]
        deadline = time.monotonic() + READY
        while _ask(self.address, "GET", "/health") != 200:
            assert time.monotonic() < deadline, "the models were not loaded"
            time.sleep(0.1)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


def first_picture(address: str, times: int) -> list[float]:
    """Seconds from the press until a candidate is seen, by the browser's own clock."""

    with chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.get_by_test_id("example").first.wait_for()
        return [_press(page, number) for number in range(times)]


def _press(page, number: int) -> float:
    page.get_by_test_id("caption").fill(CAPTIONS[number % len(CAPTIONS)])
    page.get_by_test_id("seed").fill(str(number))
    seconds = page.evaluate("""() => new Promise((resolve) => {
        const board = document.querySelector('main'), began = performance.now();
        const seen = new MutationObserver(() => {
            const image = document.querySelector('[data-testid=tile] img');
            if (!image || !image.complete || image.dataset.timed) return;
            seen.disconnect();
            requestAnimationFrame(() => resolve((performance.now() - began) / 1000));
        });
        document.querySelectorAll('[data-testid=tile] img').forEach((one) => { one.dataset.timed = 'old'; });
        seen.observe(board, { childList: true, subtree: true, attributes: true });
        document.querySelector('[data-testid=draw-button]').click();
    })""")
    page.locator("[data-testid=status]", has_text="best first").wait_for()
    return seconds


def crowd(address: str) -> tuple[list[int], list[float], float]:
    """Statuses of a crowd's requests, seconds that /health took meanwhile, seconds of a draw right afterwards.

    The crowd is a process of its own, so that the watch is not kept waiting by its threads.
    """
    health, context = [], multiprocessing.get_context("spawn")
    with context.Pool(1) as people:
        people.apply(len, ([],))  # it is there
        asking = people.apply_async(ask_all, (address,))
        while not asking.ready():
            began = time.perf_counter()
            assert _ask(address, "GET", "/health") == 200
            health.append(time.perf_counter() - began)
        statuses = asking.get()
    began = time.perf_counter()
    assert _draw(address, 0, candidates=1) == 200
    return statuses, health, time.perf_counter() - began


def hung_up(address: str) -> float:
    """Seconds of a draw of one after somebody asked for 64 candidates and hung up at the first."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    body = json.dumps({"prompt": CAPTIONS[0], "candidates": 64})
    connection.request("POST", "/api/draw", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    while b'"candidate"' not in answer.readline():
        pass
    began = time.perf_counter()
    answer.close()
    connection.close()
    assert _draw(address, 0, candidates=1) == 200
    return time.perf_counter() - began


def ask_all(address: str) -> list[int]:
    with concurrent.futures.ThreadPoolExecutor(CROWD) as people:
        return list(people.map(lambda number: _draw(address, number), range(CROWD)))


def _draw(address: str, number: int, candidates: int = 16) -> int:
    asked = {"prompt": CAPTIONS[number % len(CAPTIONS)], "candidates": candidates, "seed": number}
    return _ask(address, "POST", "/api/draw", json.dumps(asked))


def _ask(address: str, method: str, path: str, body: str | None = None) -> int:
    """The status of one answer, read to its end. The plain client: what it costs is not the studio's."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def measure(times: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, Running(Path(folder)) as studio:
        pictures = first_picture(studio.address, times)
        statuses, health, after = crowd(studio.address)
        left = [hung_up(studio.address) for _ in range(times)]
    counted = ", ".join(f"{statuses.count(one)} times {one}" for one in sorted(set(statuses)))
    p99 = statistics.quantiles(health, n=100)[98]
    size = f"{CROWD} at once on a line of {LINE}: {counted}"
    return [
        Row("studio_first_picture", "first picture after the press of Draw, median", f"16 candidates, {times} times",
            statistics.median(pictures), "s", "bar", 3.0, statistics.median(pictures) / 3),
        Row("studio_first_picture_worst", "the slowest of them", f"16 candidates, {times} times", max(pictures), "s", "bar", 3.0,
            max(pictures) / 3),
        Row("studio_health_p99", "/health under a crowd, 99th percentile", size, p99, "s", "bar", 0.2, p99 / 0.2),
        Row("studio_hung_up", "a draw of one after another was left, slowest", f"64 candidates left at the first, {times} times",
            max(left), "s", "bar of stopping alone", 2.0, max(left) / 2),
        Row("studio_after", "a draw of one candidate right after the crowd", size, after, "s"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9, help="draws by a browser (default: 9)")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="rows are appended here (default: bench/results.jsonl)")
    options = parser.parse_args()
    rows = measure(options.times)
    results.record(rows, options.out)
    print(results.table(rows))


if __name__ == "__main__":
    main()
