"""python -m bench.loader [--rows 10000,100000,1000000,10000000] [--length 1024] [--threads 0,1,2]: how fast batches come.

Synthetic rows of `length` words of 8,192 and one caption of 12 words are written where `--folder` says, as training's own store
of rows; sequences of 256 + length tokens are drawn from them in training's order, BPE in the loader. Beside the rate stands what
memory grew by since before the rows were opened: what the process holds for itself (RssAnon), and its whole peak (VmHWM).
"""
from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thousandwords import text
from thousandwords.loader import Ahead, TokenLoader, places, positions
from thousandwords.rows import Part, Rows, write_rows
from thousandwords.shards import StoredTokenRows, TokenHeader

VOCAB, BATCH, CAPTION_WORDS, PART = 8192, 64, 12, 8192


def captions(count: int, rng: np.random.Generator) -> list[str]:
    """Captions of 12 words out of 3,000."""
    made = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = np.array(["".join(made.choice(letters, int(size))) for size in made.integers(2, 10, 3000)])
    return [" ".join(row) for row in words[rng.integers(0, len(words), (count, CAPTION_WORDS))]]


def parts(rows: int, length: int) -> Iterator[Part]:
    rng = np.random.default_rng(1)
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        words = rng.integers(0, VOCAB, (count, length), np.uint16)
        told = [json.dumps([caption]).encode() for caption in captions(count, rng)]
        yield {"captions": told, "tokens": [row.tobytes() for row in words]}


def memory() -> dict[str, float]:
    """What this process holds now, in MB: RssAnon, RssFile, VmHWM."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def measure(folder: Path, length: int, threads: int, seconds: float, verify: bool = True) -> dict:
    """Sequences a second from the rows in `folder`, after one batch; and what memory grew by."""
    words = text.train(captions(10_000, np.random.default_rng(2)), text.Config(16384, 256))
    places(range(BATCH), 10, 0)
    ctypes.CDLL(None).malloc_trim(0)
    before = memory()
    header = TokenHeader("dvae", "0" * 64, VOCAB, (round(length**0.5),), 256)
    opened = time.perf_counter()
    rows = StoredTokenRows(header, Rows(folder, verify))
    opened = time.perf_counter() - opened
    loader = TokenLoader(rows, words, seed=0)
    first = time.perf_counter()
    loader.batch(positions(0, BATCH))
    first = time.perf_counter() - first
    with Ahead(lambda step: loader.batch(positions(step, BATCH)), 10**9, threads) as batches:
        steps, started, worked = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            steps += 1
            batches(steps)
        rate = steps * BATCH / (time.perf_counter() - started)
        rate_of_core = steps * BATCH / (time.process_time() - worked)  # what it would be with a core to itself
    after = memory()
    grown = {f"{name}_grown_mb": round(after[name] - before[name]) for name in ("RssAnon", "VmHWM")}
    rates = {"sequences_per_second": round(rate), "sequences_per_cpu_second": round(rate_of_core)}
    seconds_of = {"open_seconds": round(opened, 1), "first_batch_seconds": round(first, 2)}
    return {"rows": len(rows), "length": 256 + length, "threads": threads, **rates, **seconds_of, **grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--threads", default="0,1,2")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the rows are written and removed again")
    parser.add_argument("--unverified", action="store_true", help="opens the rows without hashing them first")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # one row of the table, in a process of its own
    options = parser.parse_args()
    if options.measure:
        threads = int(options.threads)
        print(json.dumps(measure(options.measure, options.length, threads, options.seconds, not options.unverified)))
        return
    for rows in (int(count) for count in options.rows.split(",")):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            write_rows(folder, parts(rows, options.length))
            for threads in options.threads.split(","):
                arguments = ["--measure", str(folder), "--length", str(options.length), "--threads", threads,
                             "--seconds", str(options.seconds), *(["--unverified"] if options.unverified else [])]  # fmt: skip
                subprocess.run([sys.executable, "-m", "bench.loader", *arguments], check=True, env=os.environ)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
