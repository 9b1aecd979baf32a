"""The data set of the studio: pages of pairs, search by a text, and the training images nearest to an image.

A search needs an embedding of every image by the scorer (CLIP). The worker process computes them a few at a
time while it has no request, and caches them in the store by pairs and scorer; until all are there, a search
covers the images that have one.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from studio.events import Event
from studio.worker.handlers import base64_of
from thousandwords.core.cache import Store
from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint, write_bytes
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.data.images import encode_png, fit_square, to_float
from thousandwords.data.pair_shards import PairReader, splits

MAX_INDEXED = 50_000  # images that a search covers, the held-out ones first
NUM_EXAMPLES = 3  # example captions,
MAX_EXAMPLE_ROWS = 12  # the longest of this many
MAX_SCORERS = 2  # whose embeddings are in memory, as many as packages
INDEX_BATCH_SIZE = 32  # images embedded between two checks for a request

log = logging.getLogger("studio")

Row = tuple[str, int]  # a split, and the index of a pair in it


class DatasetIndex:
    """The pairs in a folder, and their embeddings by the scorers that searched."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = Path(folder), Store(Path(store), keep_runs=4)
        self._pairs_sha256, self._readers, self._embeddings = "", {}, {}

    def exists(self) -> bool:
        return (self.folder / "manifest.json").is_file()

    def examples(self) -> list[str]:
        """A few captions that the models were not trained on; [] without a data set."""
        if not self.exists():
            return []
        with contextlib.suppress(DamagedArtefact):
            self._check_for_changes()
            split = "validation" if "validation" in self.splits() else self.splits()[-1]
            reader = self._reader(split)
            captions = dict.fromkeys(
                reader.captions(row)[0] for row in range(min(len(reader), MAX_EXAMPLE_ROWS))
            )
            return sorted(captions, key=len)[-NUM_EXAMPLES:]  # short captions say little
        return []

    def page(self, split: str | None, offset: int, limit: int) -> Event:
        """Images in the order of the data set. Raises DamagedArtefact."""
        self._check_for_changes()
        every_row = self.rows(split)
        rows, has_more = every_row[offset : offset + limit], offset + limit < len(every_row)
        return {"images": self._items(rows, [None] * len(rows)), "next": offset + limit if has_more else None}

    def search(self, scorer: nn.Module, query: str, split: str | None, limit: int) -> Event:
        """The images that match a text best, of those that have an embedding."""
        embeddings = self._embeddings_of(scorer)
        with torch.no_grad():
            target = scorer.embed_captions([query]).cpu()
        return self._best_matches(embeddings, target, split, limit)

    def nearest(self, scorer: nn.Module, image: Tensor, limit: int) -> Event:
        """The training images nearest to an image (1, 3, H, W), by the cosine of their embeddings."""
        embeddings = self._embeddings_of(scorer)
        with torch.no_grad():
            target = scorer.embed_images(image.to(device_of(scorer))).cpu()
        return self._best_matches(embeddings, target, "train", limit)

    def _best_matches(self, embeddings: Embeddings, target: Tensor, split: str | None, limit: int) -> Event:
        """The rows of a split with the highest cosine to `target` (1, D)."""
        indexed_rows = embeddings.rows[: embeddings.done]
        indices = [index for index, (row_split, _) in enumerate(indexed_rows) if split in (None, row_split)]
        scores = (embeddings.vectors[indices] @ target.float()[0]) if indices else torch.empty(0)
        best = scores.argsort(descending=True, stable=True)[:limit].tolist()
        rows = [embeddings.rows[indices[place]] for place in best]
        return {"images": self._items(rows, [round(float(scores[place]), 4) for place in best]), "next": None}

    def state(self, scorer: nn.Module | None) -> Event:
        """How many images a search covers so far; "ready" if there is no search."""
        embeddings = self._embeddings.get(scorer.fingerprint) if scorer is not None else None
        done, total = (embeddings.done, len(embeddings.rows)) if embeddings else (0, 0)
        return {
            "state": "ready" if done == total else "indexing",
            "done": done,
            "total": total,
            "splits": self.splits(),
        }

    def index_some(self) -> bool:
        """Embed a few more images for the scorers that searched; False if there is nothing to do."""
        for embeddings in self._embeddings.values():
            if embeddings.done < len(embeddings.rows):
                self._embed_batch(embeddings)
                return True
        return False

    def clear(self) -> None:
        """Drop all embeddings in memory."""
        self._embeddings = {}

    # --- pairs ----------------------------------------------------------------------------------------------

    def splits(self) -> list[str]:
        return splits(self.folder)

    def rows(self, split: str | None = None) -> list[Row]:
        """The rows of one split, or of all splits."""
        return [
            (name, row)
            for name in self.splits()
            if split in (None, name)
            for row in range(len(self._reader(name)))
        ]

    def _check_for_changes(self) -> None:
        """Called once per request: if the folder was written again, read all of it again."""
        sha256 = read_manifest(self.folder, verify=False, fix="dvc repro prepare_pairs")["sha256"]
        if sha256 != self._pairs_sha256:
            self._pairs_sha256, self._readers, self._embeddings = sha256, {}, {}

    def _reader(self, split: str) -> PairReader:
        """The pairs of a split, as of the last check for changes."""
        if split not in self._readers:
            self._readers[split] = PairReader(self.folder, split, Store(self.store.folder / "rows"))
        return self._readers[split]

    def _items(self, rows: Sequence[Row], scores: Sequence[float | None]) -> list[Event]:
        return [
            {
                "key": self._reader(split).key(row),
                "caption": self._reader(split).captions(row)[0],
                "split": split,
                "score": score,
                "png": base64_of(encode_png(self._squares([(split, row)])[0])),
            }
            for (split, row), score in zip(rows, scores, strict=True)
        ]

    def _squares(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Center squares, uint8 (H, W, 3). Not cached: the models need the memory."""
        images = [self._reader(split).whole_images([row])[0] for split, row in rows]
        return [
            fit_square(image, self._reader(split).image_size)
            for image, (split, _) in zip(images, rows, strict=True)
        ]

    # --- embeddings -----------------------------------------------------------------------------------------

    def _embeddings_of(self, scorer: nn.Module) -> Embeddings:
        """The embeddings by a scorer, complete from the store or still to be computed."""
        self._check_for_changes()
        if scorer.fingerprint not in self._embeddings:
            rows = self._searched_rows()
            key = fingerprint({"pairs": self._pairs_sha256, "scorer": scorer.fingerprint, "rows": len(rows)})
            embeddings = Embeddings(scorer, rows, key)
            embeddings.read(self.store.folder / embeddings.key)
            self._embeddings[scorer.fingerprint] = embeddings
        embeddings = self._embeddings.pop(scorer.fingerprint)
        self._embeddings[scorer.fingerprint] = embeddings  # the last used at the end
        for old_scorer in list(self._embeddings)[:-MAX_SCORERS]:
            del self._embeddings[old_scorer]
        return embeddings

    def _searched_rows(self) -> list[Row]:
        held_out = [row for split in self.splits() if split != "train" for row in self.rows(split)]
        return [*held_out, *self.rows("train")][:MAX_INDEXED]

    def _embed_batch(self, embeddings: Embeddings) -> None:
        rows = embeddings.rows[embeddings.done : embeddings.done + INDEX_BATCH_SIZE]
        pixels = to_float(np.stack(self._squares(rows)))
        with torch.no_grad():
            batch = embeddings.scorer.embed_images(pixels.to(device_of(embeddings.scorer))).cpu().float()
        embeddings.add(batch)
        if embeddings.done == len(embeddings.rows):
            self._write(embeddings)

    def _write(self, embeddings: Embeddings) -> None:
        """Write complete embeddings to the store; if that fails they stay in memory only."""
        try:
            self.store.begin([embeddings.key])
            self.store.get(embeddings.key, embeddings.write)
        except (UserError, OSError) as error:
            log.warning(
                "the embeddings of the images could not be stored, and will be computed again: %s", error
            )


@dataclass
class Embeddings:
    """Unit vectors of the first `done` rows by one scorer."""

    scorer: nn.Module
    rows: list[Row]
    key: str
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # (rows, D)
    done: int = 0

    def add(self, batch: Tensor) -> None:
        if not self.done:
            self.vectors = torch.empty(len(self.rows), batch.shape[1])
        self.vectors[self.done : self.done + len(batch)] = batch
        self.done += len(batch)

    def read(self, folder: Path) -> None:
        """Read stored embeddings if they are there and undamaged."""
        with contextlib.suppress(DamagedArtefact):
            read_manifest(folder)
            self.vectors = torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False))
            self.done = len(self.vectors)

    def write(self, folder: Path) -> None:
        write_array(folder / "vectors.npy", self.vectors.numpy())
        write_manifest(folder, {"vectors.npy": None}, {"rows": len(self.vectors)})


def write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
