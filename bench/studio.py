"""python -m bench.studio: the studio's time to the first image and its behavior under load, models/package.

`studio_first_picture`: from the click on Generate in a browser until the first of 16 candidates is on the
page; the studio has generated before. `studio_health_p99`: /health, requested continuously while 200 requests
arrive at once at a queue of 16. `studio_after`: one candidate right after these requests. `studio_hung_up`:
one candidate after a client that had requested 64 disconnected at the first.
"""

from __future__ import annotations

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
from tests.helpers.browser import chromium
from thousandwords.core.command_line import one_sentence

CAPTIONS = (
    "a small red star above a large blue square",
    "a large green circle on snow",
    "a small yellow ring on sand",
)
NUM_REQUESTS, QUEUE_LENGTH = 200, 16
START_TIMEOUT = 120  # seconds


class RunningStudio:
    """The studio on a free port, started in the current folder."""

    def __init__(self, gallery: Path) -> None:
        options = ["--port", "0", "--queue", str(QUEUE_LENGTH), "--gallery", str(gallery)]
        command = [sys.executable, "-m", "studio", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("studio: http"):
            raise SystemExit(f"the studio did not start: {line}Run: make run")
        self.address = line.split()[1]
        deadline = time.monotonic() + START_TIMEOUT
        while _request(self.address, "GET", "/health") != 200:
            assert time.monotonic() < deadline, "the models were not loaded"
            time.sleep(0.1)

    def __enter__(self) -> RunningStudio:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


def first_image(address: str, times: int) -> list[float]:
    """Seconds from the click until a candidate is visible, by the browser's own clock."""

    with chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.get_by_test_id("example").first.wait_for()
        return [_click(page, number) for number in range(times)]


def _click(page, number: int) -> float:
    page.get_by_test_id("caption").fill(CAPTIONS[number % len(CAPTIONS)])
    page.get_by_test_id("seed").fill(str(number))
    seconds = page.evaluate("""() => new Promise((resolve) => {
        const main = document.querySelector('main'), started = performance.now();
        const observer = new MutationObserver(() => {
            const image = document.querySelector('[data-testid=candidate] img');
            if (!image || !image.complete || image.dataset.timed) return;
            observer.disconnect();
            requestAnimationFrame(() => resolve((performance.now() - started) / 1000));
        });
        const images = document.querySelectorAll('[data-testid=candidate] img');
        for (const image of images) image.dataset.timed = 'old';
        observer.observe(main, { childList: true, subtree: true, attributes: true });
        document.querySelector('[data-testid=generate-button]').click();
    })""")
    page.locator("[data-testid=status]", has_text="best first").wait_for()
    return seconds


def flood(address: str) -> tuple[list[int], list[float], float]:
    """Statuses of many requests at once, seconds of /health meanwhile, seconds of one candidate afterwards.

    The requests are sent by another process, so that its threads do not delay the measurement of /health.
    """
    health, context = [], multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(len, ([],))  # wait until the process has started
        statuses = pool.apply_async(send_all, (address,))
        while not statuses.ready():
            started = time.perf_counter()
            assert _request(address, "GET", "/health") == 200
            health.append(time.perf_counter() - started)
    started = time.perf_counter()
    assert _generate(address, 0, candidates=1) == 200
    return statuses.get(), health, time.perf_counter() - started


def after_disconnect(address: str) -> float:
    """Seconds of one candidate after a client requested 64 and disconnected at the first."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    body = json.dumps({"prompt": CAPTIONS[0], "candidates": 64})
    connection.request("POST", "/api/generate", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    while b'"candidate"' not in response.readline():
        pass
    started = time.perf_counter()
    response.close()
    connection.close()
    assert _generate(address, 0, candidates=1) == 200
    return time.perf_counter() - started


def send_all(address: str) -> list[int]:
    with concurrent.futures.ThreadPoolExecutor(NUM_REQUESTS) as pool:
        return list(pool.map(lambda number: _generate(address, number), range(NUM_REQUESTS)))


def _generate(address: str, number: int, candidates: int = 16) -> int:
    request = {"prompt": CAPTIONS[number % len(CAPTIONS)], "candidates": candidates, "seed": number}
    return _request(address, "POST", "/api/generate", json.dumps(request))


def _request(address: str, method: str, path: str, body: str | None = None) -> int:
    """The status of an answer, read to its end; by http.client, which costs little time of its own."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def measure(times: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, RunningStudio(Path(folder)) as studio:
        first_seconds = first_image(studio.address, times)
        statuses, health, after_flood = flood(studio.address)
        disconnect_seconds = [after_disconnect(studio.address) for _ in range(times)]
    counts = ", ".join(f"{statuses.count(status)} times {status}" for status in sorted(set(statuses)))
    health_p99 = statistics.quantiles(health, n=100)[98]
    size = f"{NUM_REQUESTS} at once at a queue of {QUEUE_LENGTH}: {counts}"
    generated, hung_up = (
        f"16 candidates, {times} times",
        f"64 candidates, disconnected at the first, {times} times",
    )

    def bar(id: str, what: str, size: str, seconds: float, limit: float, against: str = "bar") -> Row:
        return Row(id, what, size, seconds, "s", against, limit)

    return [
        bar(
            "studio_first_picture",
            "first image after the click on Generate, median",
            generated,
            statistics.median(first_seconds),
            3.0,
        ),
        bar("studio_first_picture_worst", "the slowest of them", generated, max(first_seconds), 3.0),
        bar("studio_health_p99", "/health under load, 99th percentile", size, health_p99, 0.2),
        bar(
            "studio_hung_up",
            "one candidate after another client disconnected, slowest",
            hung_up,
            max(disconnect_seconds),
            2.0,
            "bar of stopping alone",
        ),
        Row("studio_after", "one candidate right after the load", size, after_flood, "s"),
    ]


def main() -> None:
    arguments = results.parser_of(__doc__)
    arguments.add_argument("--times", type=int, default=9, help="generations in the browser (default: 9)")
    options = arguments.parse_args()
    rows = measure(options.times)
    results.finish(rows, options.out)


if __name__ == "__main__":
    with one_sentence("studio"):
        main()
