"""python -m bench.loader [--rows 10000,100000] [--length 1024] [--threads 0,1,2]: how fast batches are loaded.

Synthetic rows of `length` tokens of 8,192 and one caption of 12 words are written to `--folder`, in
training's row store; batches of sequences of 256 + length tokens are loaded in training's order, with BPE in
the loader. Also measured: how much memory grew since before the rows were opened, the process's own (RssAnon)
and the whole peak (VmHWM).
"""

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thousandwords.core.command_line import one_sentence, parser
from thousandwords.core.row_store import RowBatch, RowStore, write_rows
from thousandwords.data.loader import TokenLoader
from thousandwords.data.prefetch import Prefetcher
from thousandwords.data.sampler import epochs_and_rows, positions
from thousandwords.data.token_shards import StoredTokenRows, TokenHeader
from thousandwords.text.bpe import TextTokenizerConfig, train

VOCAB, BATCH, CAPTION_WORDS, PART = 8192, 64, 12, 8192


def captions(count: int, rng: np.random.Generator) -> list[str]:
    """Captions of 12 words out of 3,000."""
    rng_of_words = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = np.array(
        ["".join(rng_of_words.choice(letters, int(size))) for size in rng_of_words.integers(2, 10, 3000)]
    )
    return [" ".join(row) for row in words[rng.integers(0, len(words), (count, CAPTION_WORDS))]]


def parts(rows: int, length: int) -> Iterator[RowBatch]:
    rng = np.random.default_rng(1)
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        tokens = rng.integers(0, VOCAB, (count, length), np.uint16)
        caption_bytes = [json.dumps([caption]).encode() for caption in captions(count, rng)]
        yield {"captions": caption_bytes, "tokens": [row.tobytes() for row in tokens]}


def memory() -> dict[str, float]:
    """The memory of this process, in MB: RssAnon, RssFile, VmHWM."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def measure(folder: Path, length: int, threads: int, seconds: float, verify: bool = True) -> dict:
    """Sequences per second from the rows in `folder`, after one batch; and how much memory grew."""
    text_tokenizer = train(captions(10_000, np.random.default_rng(2)), TextTokenizerConfig(16384, 256))
    epochs_and_rows(range(BATCH), 10, 0)
    ctypes.CDLL(None).malloc_trim(0)
    before = memory()
    header = TokenHeader("dvae", "0" * 64, VOCAB, (round(length**0.5),), 256)
    opened = time.perf_counter()
    rows = StoredTokenRows(header, RowStore(folder, verify))
    opened = time.perf_counter() - opened
    loader = TokenLoader(rows, text_tokenizer, seed=0)
    first = time.perf_counter()
    loader.batch(positions(0, BATCH))
    first = time.perf_counter() - first
    with Prefetcher(lambda step: loader.batch(positions(step, BATCH)), 10**9, threads) as batches:
        steps, started, cpu_started = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            steps += 1
            batches(steps)
        rate = steps * BATCH / (time.perf_counter() - started)
        rate_per_cpu_second = (
            steps * BATCH / (time.process_time() - cpu_started)
        )  # the rate with a whole core
    after = memory()
    grown = {f"{name}_grown_mb": round(after[name] - before[name]) for name in ("RssAnon", "VmHWM")}
    rates = {"sequences_per_second": round(rate), "sequences_per_cpu_second": round(rate_per_cpu_second)}
    seconds_of = {"open_seconds": round(opened, 1), "first_batch_seconds": round(first, 2)}
    return {"rows": len(rows), "length": 256 + length, "threads": threads, **rates, **seconds_of, **grown}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", default="10000,100000,1000000")
    arguments.add_argument("--length", type=int, default=1024)
    arguments.add_argument("--threads", default="0,1,2")
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument(
        "--folder", type=Path, default=None, help="where the rows are written; removed afterwards"
    )
    arguments.add_argument(
        "--unverified", action="store_true", help="open the rows without hashing them first"
    )
    # one row of the table, in its own process
    arguments.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.measure:
        threads = int(options.threads)
        print(
            json.dumps(
                measure(options.measure, options.length, threads, options.seconds, not options.unverified)
            )
        )
        return
    for rows in (int(count) for count in options.rows.split(",")):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            write_rows(folder, parts(rows, options.length))
            for threads in options.threads.split(","):
                length, seconds = str(options.length), str(options.seconds)
                command = [sys.executable, "-m", "bench.loader", "--measure", str(folder), "--length", length]
                command += ["--threads", threads, "--seconds", seconds]
                command += ["--unverified"] if options.unverified else []
                subprocess.run(command, check=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    with one_sentence("loader"):
        main()
