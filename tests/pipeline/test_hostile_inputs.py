"""Hostile inputs in whole runs, and failing decoders; bench/reliability.md lists all cases."""

import csv
import io
import itertools
import re
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers import hostile_inputs
from tests.helpers.fuzzing import valid_images
from tests.helpers.images import png_of_chunks
from tests.helpers.paths import ROOT, SHARED
from tests.helpers.sources import files_of, folder_config, pixels, write_folder
from thousandwords.core.manifest import read_manifest
from thousandwords.data.images import encode_png
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.counts import OUTCOMES
from thousandwords.ingest.ingest import write_pairs
from thousandwords.ingest.records import QUARANTINE

BAD_IMAGES = SHARED / "data/bad-images"
needs_bad_images = pytest.mark.skipif(not BAD_IMAGES.is_dir(), reason="../shared/data/bad-images is absent")

# ---- whole runs


def mixed_folder(folder: Path) -> Path:
    """Valid images, the available hostile files, images with commands for the decoder, and bad captions."""
    write_folder(folder, 60)
    for number, (suffix, data) in enumerate(valid_images()):
        add(folder, f"valid-{number:02d}.{suffix}", data)
    if BAD_IMAGES.is_dir():
        with open(BAD_IMAGES / "CURATED.tsv", newline="") as table:
            for number, row in enumerate(csv.DictReader(table, delimiter="\t")):
                data = (BAD_IMAGES / row["file"]).read_bytes()
                add(folder, f"bad-{number:02d}{Path(row['file']).suffix}.png", data)
    for number, order in enumerate(("SIGSEGV", "take 600000000")):
        add(folder, f"0{number}5-order.png", b"OBEY " + order.encode())
    for name, caption in {"blank": b" ", "latin": b"caf\xe9"}.items():
        add(folder, f"{name}.png", encode_png(pixels(3)), caption)
    for name in ("copy", "copy of the copy"):
        add(folder, f"{name}.png", encode_png(pixels(0)), b"image 0\nnumber 0")
    return folder


def add(folder: Path, name: str, data: bytes, caption: bytes | None = None) -> None:
    (folder / name).write_bytes(data)
    (folder / name).with_suffix(".txt").write_bytes(name.encode() if caption is None else caption)


def config(folder: Path, **settings) -> DataConfig:
    return folder_config(folder, max_refused_share=0.9, rows_per_shard=20, **settings)


@pytest.fixture
def obedient(monkeypatch):
    """Decoders execute the command in an image."""
    monkeypatch.setattr(ingest, "prepare_pair", hostile_inputs.prepare_obediently)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, obedient):
    own = mixed_folder(tmp_path / "own")
    total, *others = (
        write_pairs(config(own, workers=workers), 0, tmp_path / str(workers)) for workers in (1, 2, 8)
    )
    assert others == [total, total]
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "8")
    assert total["n_in"] == sum(1 for path in own.iterdir() if path.suffix != ".txt")
    assert total["n_in"] == sum(total[outcome] for outcome in OUTCOMES) and total["n_duplicate"] == 2
    for reason in ("worker_died", "out_of_memory", "caption_empty", "caption_encoding"):
        assert total["reasons"][reason] == 1
    check_rows(tmp_path / "1", total)


def check_rows(folder: Path, counts: dict) -> None:
    """The counts agree with every shard and with the manifest."""
    rows = {}
    for name, entry in read_manifest(folder)["files"].items():
        table = pq.read_table(folder / name)
        assert table.num_rows == entry["rows"]
        rows[name] = table.to_pylist()
    rejected = rows.pop(QUARANTINE)
    assert len(rejected) == counts["n_quarantined"] + counts["n_filtered"] == sum(counts["reasons"].values())
    for split, count in counts["splits"].items():
        shards = [len(shard) for name, shard in sorted(rows.items()) if name.startswith(split)]
        assert sum(shards) == count and set(shards[:-1]) <= {20} and 0 < shards[-1] <= 20
    keys = [row["key"] for shard in rows.values() for row in shard] + [row["id"] for row in rejected]
    assert len(set(keys)) == len(keys) == counts["n_in"] - counts["n_duplicate"]


def rejections(folder: Path) -> list[tuple[str, str, str]]:
    rows = pq.read_table(folder / QUARANTINE).to_pylist()
    return [(row["id"], row["reason"], row["detail"]) for row in rows]


def run_with_command(folder: Path, command: bytes) -> tuple[list, bool]:
    """(rejections, whether the other images are the same as without the image that commands the decoder)."""
    own = write_folder(folder / "own")
    write_pairs(config(own), 0, folder / "without")
    add(own, "005-order.png", b"OBEY " + command)
    write_pairs(config(own), 0, folder / "with")
    without, beside = files_of(folder / "without"), files_of(folder / "with")
    same = all(beside[name] == data for name, data in without.items() if re.match("train|validation", name))
    return rejections(folder / "with"), same


@pytest.mark.parametrize(
    ("command", "reason", "detail"),
    [
        (b"SIGSEGV", "worker_died", "the process that decoded it ended by SIGSEGV, twice"),
        (b"SIGKILL", "worker_died", "the process that decoded it ended by SIGKILL, twice"),  # the kernel without memory
        (b"hang", "decode_timeout", "not done after 0.5 seconds, twice"),
        (b"take 600000000", "out_of_memory", "it takes more memory than an image may"),
    ],
)  # fmt: skip
def test_a_decoder_that_dies_loses_only_its_own_image(
    tmp_path, obedient, monkeypatch, command, reason, detail
):
    if command == b"hang":
        monkeypatch.setattr(ingest, "LIMITS", ingest.Limits(seconds=0.5))
    assert run_with_command(tmp_path, command) == ([("005-order.png", reason, detail)], True)


def test_an_image_of_the_maximum_size_fits_into_the_limits(tmp_path):
    own = write_folder(tmp_path / "own")
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 6200)).save(buffer, "JPEG")
    add(own, "large.png", buffer.getvalue())
    assert write_pairs(config(own), 0, tmp_path / "pairs")["n_ok"] == 13


def test_an_image_that_vanishes_is_counted(tmp_path):
    own = write_folder(tmp_path / "own")

    def progress(outcomes, total):  # called between counting and reading
        (own / "011.png").unlink()
        return outcomes

    counts = write_pairs(config(own), 0, tmp_path / "pairs", progress)
    assert (counts["n_in"], counts["n_ok"]) == (12, 11)
    assert rejections(tmp_path / "pairs") == [("011.txt", "missing_pair", "there is no image beside 011.txt")]


DECODING = """
import resource, sys, time
from thousandwords.data.image_decoding import InvalidImage, decode_image
from thousandwords.data.images import encode_png
import numpy as np
decode_image(encode_png(np.zeros((40, 40, 3), np.uint8)))    # Pillow has loaded its plugins
data = open(sys.argv[1], "rb").read()
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    decode_image(data)
except InvalidImage as error:
    seconds = time.process_time() - started
    print(error.reason, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
INDEXING = """
import resource, sys
from thousandwords.ingest.sources import WebDatasetSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(WebDatasetSource(sys.argv[1]).check(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def measured(script: str, path: Path) -> list[str]:
    """What a script prints about a file, in a process of its own."""
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_a_decompression_bomb_is_rejected_from_its_header(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(zeros_png(12_000))
    assert bomb.stat().st_size < 500_000
    reason, seconds, kilobytes = measured(DECODING, bomb)
    assert reason == "too_many_pixels" and float(seconds) < 0.05 and int(kilobytes) < 20_000


def zeros_png(side: int) -> bytes:
    """A whole black PNG, made row by row."""
    squeeze = zlib.compressobj(6)
    data = b"".join(squeeze.compress(bytes(1 + 3 * side)) for _ in range(side)) + squeeze.flush()
    return png_of_chunks(side, side, b"IDAT" + data, b"IEND")


@pytest.mark.parametrize("count", [10_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_a_tar_of_very_many_members_is_indexed_in_little_memory(tmp_path, count):
    """So many samples, of two members each."""
    with open(tmp_path / "t.tar", "wb") as file:
        for number, suffix in itertools.product(range(count), ("png", "txt")):
            file.write(tarfile.TarInfo(f"{number}.{suffix}").tobuf())
        file.write(bytes(1024))
    samples, kilobytes = measured(INDEXING, tmp_path / "t.tar")
    assert int(samples) == count and int(kilobytes) < count  # 1 kB each: a million would take less than 1 GB
