"""The gallery of past generations, folders of sample shards with their ranking, and its search by what they show.

An entry appears complete or not at all, and is verified when it is read. The same request gives the same images, so it
has one entry. The provenance is added to an image when it is read, so that a PNG from the gallery is byte for byte the
one that was sent when it was generated.
"""

import contextlib
import dataclasses
import datetime
import os
import re
import shutil
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from studio.worker.handlers import device_of, grid_of
from studio.worker.process import Event
from thousandwords.core.errors import UserError
from thousandwords.core.filenames import distinct_slugs
from thousandwords.core.files import fingerprint, sync_folder, translate_write_errors
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.data.images import to_float
from thousandwords.inference.candidates import candidate_seed
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance
from thousandwords.inference.sample_shards import INPAINTED, read_samples, sample_table, write_samples

NAME = re.compile(r"\d{8}T\d{6,12}-[0-9a-f]{8}")  # time, so that names sort by it, and the request's hash
STAR = "star"  # an empty file in the folder of an entry that has one
NOT_FOUND = "there is no such entry in the gallery. It may have been deleted; reload the gallery"
METADATA = ("candidates", "provenance", "version", "scores", "order", "when")  # stored beside the images
NUM_BEST = 4  # images of an entry in a list of entries
MAX_SEARCHED = 2000  # entries, the newest


class NoSuchEntry(UserError):
    """There is no such entry, or no such image of it."""


@dataclass(frozen=True)
class GalleryEntry:
    """One finished generation: its provenance, and its candidates by number."""

    provenance: Provenance  # of candidate 0
    version: str
    tokens: list[list[int]]  # (N, L)
    images: np.ndarray  # uint8 (N, H, W, 3)
    scores: list[float]
    order: list[int]  # candidates, best first


class Gallery:
    """The entries in a folder. Thread-safe; two studios can share a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._adding = Path(folder), threading.Lock()

    def add(self, entry: GalleryEntry) -> str:
        """Save an entry unless it is there; returns its name. Raises UserError if the disk is full."""
        request = fingerprint(entry.provenance.to_dict())[:8]
        with self._adding:
            for path in self.folder.glob(f"*-{request}"):
                with contextlib.suppress(NoSuchEntry, DamagedArtefact):
                    if self._metadata(path.name)["provenance"] == entry.provenance:
                        return path.name
            return self._add(entry, request)

    def _add(self, entry: GalleryEntry, request: str) -> str:
        now = datetime.datetime.now(datetime.UTC)
        name = f"{now:%Y%m%dT%H%M%S%f}-{request}"
        provenance, count = entry.provenance, len(entry.tokens)
        when = now.isoformat(timespec="seconds")
        values = (count, provenance.to_dict(), entry.version, entry.scores, entry.order, when)
        metadata = dict(zip(METADATA, values, strict=True))
        split = INPAINTED if provenance.fixed_tokens else "asked"
        row = {"prompt_id": 0, "split": split, "prompt": provenance.caption}
        seeds = [candidate_seed(provenance.seed, provenance.caption, number) for number in range(count)]
        rows = [row | {"candidate": number, "seed": seed} for number, seed in enumerate(seeds)]
        partial = self.folder / f".{name}.tmp"
        try:
            write_samples(partial, [sample_table(rows, torch.tensor(entry.tokens), entry.images)], metadata)
            os.rename(partial, self.folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(self.folder)
        return name

    def page(self, before: str | None, limit: int, only_starred: bool = False) -> Event:
        """The newest entries, or those before `before`; damaged entries are left out."""
        entries, last = [], None
        for name in self.names():
            if (before and name >= before) or (only_starred and not self._is_starred(name)):
                continue
            if len(entries) == limit:
                return {"entries": entries, "next": last}
            entries, last = entries + self.entries([name]), name
        return {"entries": entries, "next": None}

    def entries(self, names: list[str]) -> list[Event]:
        """The entries with these names, as in a page; deleted and damaged ones are left out."""
        entries = []
        for name in names:
            with contextlib.suppress(NoSuchEntry, DamagedArtefact):
                entries.append(self._summary(name, self._metadata(name), NUM_BEST))
        return entries

    def entry(self, name: str) -> Event:
        """An entry with all its candidates, best first. Raises NoSuchEntry or DamagedArtefact."""
        metadata = self._metadata(name)
        tokens = read_samples(self.folder / name).table["image_tokens"].to_pylist()
        summary = self._summary(name, metadata, len(tokens))
        best = summary.pop("best")
        images = [image | {"tokens": grid_of(torch.tensor(tokens[image["candidate"]]))} for image in best]
        return summary | {"images": images}

    def image(self, name: str, candidate: int) -> bytes:
        """One image as a PNG with its provenance. Raises NoSuchEntry or DamagedArtefact."""
        metadata = self._metadata(name)
        if not 0 <= candidate < metadata["candidates"]:
            last = metadata["candidates"] - 1
            raise NoSuchEntry(f"the entry {name} has no image {candidate}; its images are 0 to {last}")
        pixels = read_samples(self.folder / name).image(0, candidate)
        return _png(pixels, metadata, candidate)

    def zip_file(self, names: list[str]) -> IO[bytes]:
        """A ZIP file with a folder per entry: its PNGs as `image` gives them, best first. Raises as `image`."""
        entries = [self._metadata(name) for name in names]
        folders = distinct_slugs([metadata["provenance"].caption for metadata in entries])
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller reads and closes it
        with zipfile.ZipFile(file, "w") as archive:  # PNGs are compressed already
            for name, metadata, folder in zip(names, entries, folders, strict=True):
                seed, images = metadata["provenance"].seed, read_samples(self.folder / name).images(0)
                for rank, number in enumerate(metadata["order"]):
                    png = _png(images[number], metadata, number)
                    archive.writestr(f"{folder}-seed-{seed}/{rank:03d}.png", png)
        file.seek(0)
        return file

    def star(self, name: str, is_starred: bool) -> None:
        """Give an entry a star, or take it away. Raises NoSuchEntry, or CannotWrite."""
        folder = self._entry_folder(name)
        if not folder.is_dir():
            raise NoSuchEntry(NOT_FOUND)
        with translate_write_errors(self.folder):
            (folder / STAR).touch() if is_starred else (folder / STAR).unlink(missing_ok=True)

    def best_image(self, name: str) -> np.ndarray:
        """The image with the highest score, uint8 (H, W, 3). Raises NoSuchEntry or DamagedArtefact."""
        metadata = self._metadata(name)
        return read_samples(self.folder / name).images(0)[metadata["order"][0]]

    def remove(self, name: str) -> None:
        """Delete an entry. Raises NoSuchEntry, or CannotWrite if the folder cannot be changed."""
        folder, removed = self._entry_folder(name), self.folder / f".{name}.gone"
        with translate_write_errors(self.folder):
            try:
                os.rename(folder, removed)  # atomic: no reader sees half an entry
            except FileNotFoundError as error:
                raise NoSuchEntry(NOT_FOUND) from error
        shutil.rmtree(removed, ignore_errors=True)

    def names(self) -> list[str]:
        """All entries, newest first."""
        names = (path.name for path in self.folder.glob("*"))
        return sorted((name for name in names if NAME.fullmatch(name)), reverse=True)

    def _is_starred(self, name: str) -> bool:
        return (self.folder / name / STAR).is_file()

    def _entry_folder(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise NoSuchEntry(NOT_FOUND)
        return self.folder / name

    def _metadata(self, name: str) -> dict:
        """What is stored of an entry beside its images. Raises NoSuchEntry or DamagedArtefact."""
        folder = self._entry_folder(name)
        if not folder.is_dir():
            raise NoSuchEntry(NOT_FOUND)
        fix = f"delete the gallery entry {name}: its files have changed"
        metadata = read_manifest(folder, verify=False, fix=fix)["facts"]
        try:
            provenance = Provenance.from_dict(metadata["provenance"])
            return {key: metadata[key] for key in METADATA} | {"provenance": provenance}
        except (KeyError, TypeError, UserError) as error:
            found = f"the entry {name} was written by another version of this code, or is damaged"
            raise DamagedArtefact(f"{found}: {str(error).removeprefix('params.yaml: ')}") from error

    def _summary(self, name: str, metadata: dict, count: int) -> Event:
        """An entry with its `count` best images."""
        provenance, scores = metadata["provenance"], metadata["scores"]
        return {
            "id": name,
            **{key: metadata[key] for key in ("when", "candidates", "version")},
            "prompt": provenance.caption,
            "seed": provenance.seed,
            "is_inpainted": provenance.fixed_tokens is not None,
            "is_starred": self._is_starred(name),
            "settings": dataclasses.asdict(provenance.settings),
            "best": [
                {"candidate": number, "score": scores[number], "url": f"/api/gallery/{name}/{number}.png"}
                for number in metadata["order"][:count]
            ],
        }


def _png(pixels: np.ndarray, metadata: dict, candidate: int) -> bytes:
    return encode_png_with_provenance(
        pixels, dataclasses.replace(metadata["provenance"], candidate=candidate)
    )


class GallerySearch:
    """The embeddings of the entries' best images by each scorer, in memory only: they are few."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._embeddings: dict[tuple[str, str], Tensor] = {}  # (scorer's fingerprint, entry) -> (D,)

    def search(self, scorer: nn.Module, query: str, limit: int) -> list[str]:
        """Names of the entries whose best images match a text best, the best match first."""
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in self.gallery.names()[:MAX_SEARCHED]:
                key = scorer.fingerprint, name
                with contextlib.suppress(DamagedArtefact, NoSuchEntry):  # such an entry is left out
                    if key not in self._embeddings:
                        pixels = to_float(self.gallery.best_image(name)[None]).to(device_of(scorer))
                        self._embeddings[key] = scorer.embed_images(pixels)[0].cpu().float()
                    found[name] = self._embeddings[key]
            target = scorer.embed_captions([query])[0].cpu().float()
        if not found:
            return []
        ranking = (torch.stack(list(found.values())) @ target).argsort(descending=True, stable=True)
        return [list(found)[place] for place in ranking[:limit].tolist()]
