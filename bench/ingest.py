"""How fast images become pair shards, compared with a plain loop.

    python -m bench.ingest [--count 2000] [--size 256] [--rounds 3] [--workers 2]

Both read the same folder of 256 x 256 JPEGs and make PNGs of the same size with the same compression, in as
many processes. The loop decodes, resizes, encodes and counts bytes. thousandwords also reads captions, checks
headers, rotates images upright, limits time and memory, finds duplicates, splits, and writes shards and a
manifest durably. Rounds alternate; the ratio is that of the medians. Also printed: the loop at Pillow's
default compression.
"""

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

from thousandwords.core.command_line import one_sentence, parser
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import write_pairs

PHOTOS = Path(__file__).parents[2] / "shared/data/photos/fsa-color/images"
SIDE = 256  # pixels of the JPEGs
QUALITY = 90
PILLOW_DEFAULT = 6  # zlib's
CHUNK = 16  # images passed to a process of the loop at once; the best of 1, 4, 16 and 64


def write_jpegs(folder: Path, count: int) -> str:
    """Write `count` JPEGs with captions, of photographs if available, else of noise; returns which."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(count):
        image = _photo(photos, number) if photos else _noise(number)
        image.save(folder / f"{number:06d}.jpg", quality=QUALITY)
        (folder / f"{number:06d}.txt").write_text(f"image {number}")
    return f"{len(photos)} photographs, enlarged and rotated" if photos else "gradients and noise"


def _photo(photos: list[Path], number: int) -> Image.Image:
    with Image.open(photos[number % len(photos)]) as photo:
        return (
            photo.convert("RGB")
            .rotate(7 * (number // len(photos)))
            .resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        )


def _noise(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        np.clip(np.asarray(coarse) + rng.normal(0, 8, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    )


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
        pool.join()  # so that the CPU time of its processes is counted


def thousandwords_ingest(folder: Path, size: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as out:
        write_pairs(
            DataConfig(source="folder", path=str(folder), image_size=size, workers=workers), 0, Path(out)
        )


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.monotonic(), cpu_seconds()
    run()
    return time.monotonic() - wall, cpu_seconds() - cpu


def main() -> None:
    arguments = parser(__doc__)
    for name, default in (("count", 2000), ("size", 256), ("rounds", 3), ("workers", 2)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_jpegs(folder, options.count)
        contenders = {
            "thousandwords": lambda: thousandwords_ingest(folder, options.size, options.workers),
            "plain loop": lambda: plain_loop(folder, options.size, options.workers, level=1),
            "plain loop, Pillow's level 6": lambda: plain_loop(
                folder, options.size, options.workers, PILLOW_DEFAULT
            ),
        }
        rounds = [{name: measure(run) for name, run in contenders.items()} for _ in range(options.rounds)]
    print(
        f"{options.count} JPEGs of {SIDE} x {SIDE} ({source}) -> {options.size} x {options.size}, "
        f"{options.workers} processes, {options.rounds} rounds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    report(rounds, options.count)


def report(rounds: list[dict[str, tuple[float, float]]], count: int) -> None:
    medians = {
        name: [statistics.median(times[name][kind] for times in rounds) for kind in (0, 1)]
        for name in rounds[0]
    }
    for name, (wall, cpu) in medians.items():
        ratio = [wall / medians["thousandwords"][0], cpu / medians["thousandwords"][1]]
        print(
            f"{name:30} {count / wall:7.0f} images/s  {1000 * cpu / count:6.2f} ms CPU an image"
            f"   thousandwords: {ratio[0]:.2f} x by the clock, {ratio[1]:.2f} x by CPU"
        )


if __name__ == "__main__":
    with one_sentence("ingest"):
        main()
