"""How fast pictures become pair shards, against the plain loop that anyone would write.

    python -m bench.ingest [--count 2000] [--size 256] [--rounds 3] [--workers 2]

Both read the same folder of 256 x 256 JPEGs and make PNGs of the same size with the same compression, in as many processes.
The loop decodes, resizes, encodes and counts bytes. Ours also reads captions, checks headers, turns pictures upright, keeps
limits on time and memory, finds duplicates, splits, and writes shards and a manifest durably. Rounds alternate; the ratio is
that of the medians. Also printed: the loop at Pillow's own default compression.
"""
from __future__ import annotations

import argparse
import functools
import io
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from thousandwords.pairs import Config, write_pairs

PHOTOS = Path(__file__).parents[2] / "shared/data/photos/fsa-color/images"
SIDE = 256    # pixels of the JPEGs
QUALITY = 90
PILLOW_DEFAULT = 6    # zlib's
CHUNK = 16    # pictures handed to a process of the loop at once; the best of 1, 4, 16 and 64


def write_jpegs(folder: Path, count: int) -> str:
    """`count` JPEGs with captions; says what of: photographs where they are at hand, else gradients and noise."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(count):
        picture = _photo(photos, number) if photos else _noise(number)
        picture.save(folder / f"{number:06d}.jpg", quality=QUALITY)
        (folder / f"{number:06d}.txt").write_text(f"picture {number}")
    return f"{len(photos)} photographs, enlarged and turned" if photos else "gradients and noise"


def _photo(photos: list[Path], number: int) -> Image.Image:
    with Image.open(photos[number % len(photos)]) as photo:
        return photo.convert("RGB").rotate(7 * (number // len(photos))).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _noise(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 8, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8))


def plain(path: Path, size: int, level: int) -> int:
    """The loop's body: one JPEG -> the number of bytes of its PNG."""
    with Image.open(path) as image:
        pixels = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", compress_level=level)
    return len(buffer.getvalue())


def plain_loop(folder: Path, size: int, workers: int, level: int) -> None:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        sum(pool.imap(functools.partial(plain, size=size, level=level), sorted(folder.glob("*.jpg")), CHUNK))
        pool.close()
        pool.join()    # else what its processes have used is not known


def ours(folder: Path, size: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as out:
        write_pairs(Config(source="folder", path=str(folder), image_size=size, workers=workers), 0, Path(out))


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.monotonic(), cpu_seconds()
    run()
    return time.monotonic() - wall, cpu_seconds() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("count", 2000), ("size", 256), ("rounds", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_of = write_jpegs(folder, options.count)
        contenders = {
            "thousandwords": lambda: ours(folder, options.size, options.workers),
            "plain loop": lambda: plain_loop(folder, options.size, options.workers, level=1),
            "plain loop, Pillow's level 6": lambda: plain_loop(folder, options.size, options.workers, PILLOW_DEFAULT),
        }
        rounds = [{name: measured(run) for name, run in contenders.items()} for _ in range(options.rounds)]
    print(f"{options.count} JPEGs of {SIDE} x {SIDE} ({made_of}) -> {options.size} x {options.size}, "
          f"{options.workers} processes, {options.rounds} rounds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report(rounds, options.count)


def report(rounds: list[dict[str, tuple[float, float]]], count: int) -> None:
    middle = {name: [statistics.median(one[name][kind] for one in rounds) for kind in (0, 1)] for name in rounds[0]}
    for name, (wall, cpu) in middle.items():
        rate = [wall / middle["thousandwords"][0], cpu / middle["thousandwords"][1]]
        print(f"{name:30} {count / wall:7.0f} pictures/s  {1000 * cpu / count:6.2f} ms CPU a picture"
              f"   ours is {rate[0]:.2f} x by the clock, {rate[1]:.2f} x by CPU")


if __name__ == "__main__":
    main()
