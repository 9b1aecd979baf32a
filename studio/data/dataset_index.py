"""The data set of the studio: pages of pairs, search by a text, and the training images nearest to an image.

A search needs an embedding of every image by the scorer (CLIP). The worker process computes them a few at a
time while it has no request, and caches them in the store by pairs and scorer; until all are there, a search
covers the images that have one.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from studio.worker.handlers import base64_of, device_of
from studio.worker.process import Event
from thousandwords.core.cache import Store
from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint, write_bytes
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, read_manifest, write_manifest
from thousandwords.data.images import encode_png, fit_square, to_float
from thousandwords.data.pair_shards import PairReader, caption_counts, splits

MAX_INDEXED = 50_000  # images that a search covers, the held-out ones first
NUM_EXAMPLES = 3  # example captions,
MAX_EXAMPLE_ROWS = 12  # the longest of this many
MAX_SCORERS = 2  # whose embeddings are in memory, as many as packages
INDEX_BATCH_SIZE = 32  # images embedded between two checks for a request

log = logging.getLogger("studio")

Row = tuple[str, int]  # a split, and the index of a pair in it


@dataclass
class Embeddings:
    """Unit vectors of the first `done` rows by one scorer."""

    scorer: nn.Module
    rows: Sequence[Row]
    key: str
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # (rows, D)
    done: int = 0

    def write(self, folder: Path) -> None:
        buffer = io.BytesIO()
        np.save(buffer, self.vectors.numpy(), allow_pickle=False)
        write_bytes(folder / "vectors.npy", buffer.getvalue())
        write_manifest(folder, {"vectors.npy": None}, {"rows": len(self.vectors)})


class DatasetIndex:
    """The pairs in a folder, and their embeddings by the scorers that searched."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = Path(folder), Store(Path(store), keep_runs=4)
        self._pairs_sha256, self._max_words = "", None
        self._readers: dict[str, PairReader] = {}
        self._embeddings: dict[str, Embeddings] = {}  # by scorer, the last used at the end

    def exists(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def splits(self) -> list[str]:
        return splits(self.folder)

    def examples(self) -> list[str]:
        """A few captions that the models were not trained on; [] without a data set."""
        with contextlib.suppress(DamagedArtefact):
            self._check_for_changes()
            split = "validation" if "validation" in self.splits() else self.splits()[-1]
            reader = self._reader(split)
            captions = {reader.captions(row)[0]: row for row in range(min(len(reader), MAX_EXAMPLE_ROWS))}
            return sorted(captions, key=len)[-NUM_EXAMPLES:]  # short captions say little
        return []

    def max_words(self) -> int | None:
        """The words of the longest caption in the first training shard; None without a data set."""
        with contextlib.suppress(DamagedArtefact):
            self._check_for_changes()
            if self._max_words is None and (counts := caption_counts(self.folder)):
                self._max_words = counts["words"]["most"]
        return self._max_words

    def page(self, split: str | None, offset: int, limit: int) -> Event:
        """Images in the order of the data set. Raises DamagedArtefact."""
        self._check_for_changes()
        every_row, end = self._rows(split), offset + limit
        images = [self._item(row, None) for row in every_row[offset:end]]
        return {"images": images, "next": end if end < len(every_row) else None}

    def search(self, scorer: nn.Module, query: str, split: str | None, limit: int) -> Event:
        """The images that match a text best, of those that have an embedding."""
        with torch.no_grad():
            return self._best_matches(scorer, scorer.embed_captions([query]), split, limit)

    def nearest(self, scorer: nn.Module, image: Tensor, limit: int) -> Event:
        """The training images nearest to an image (1, 3, H, W), by the cosine of their embeddings."""
        with torch.no_grad():
            target = scorer.embed_images(image.to(device_of(scorer)))
            return self._best_matches(scorer, target, "train", limit)

    def _best_matches(self, scorer: nn.Module, target: Tensor, split: str | None, limit: int) -> Event:
        """The rows of a split with the highest cosine to `target` (1, D)."""
        embeddings = self._embeddings_of(scorer)
        rows = embeddings.rows[: embeddings.done]
        places = [place for place, (row_split, _) in enumerate(rows) if split in (None, row_split)]
        if not places:
            return {"images": [], "next": None}
        scores = embeddings.vectors[places] @ target.cpu().float()[0]
        best = scores.argsort(descending=True, stable=True)[:limit].tolist()
        images = [self._item(rows[places[index]], round(float(scores[index]), 4)) for index in best]
        return {"images": images, "next": None}

    def state(self, scorer: nn.Module | None) -> Event:
        """How many images a search covers so far; "ready" if there is no search."""
        embeddings = self._embeddings.get(scorer.fingerprint) if scorer is not None else None
        done, total = (embeddings.done, len(embeddings.rows)) if embeddings else (0, 0)
        state = "ready" if done == total else "indexing"
        return {"state": state, "done": done, "total": total, "splits": self.splits()}

    def index_some(self) -> bool:
        """Embed a few more images for the scorers that searched; False if there is nothing to do."""
        for embeddings in self._embeddings.values():
            if embeddings.done < len(embeddings.rows):
                self._embed_batch(embeddings)
                return True
        return False

    def clear(self) -> None:
        self._embeddings = {}

    def _rows(self, split: str | None) -> list[Row]:
        names = [name for name in self.splits() if split in (None, name)]
        return [(name, row) for name in names for row in range(len(self._reader(name)))]

    def _check_for_changes(self) -> None:
        """Called once per request: if the folder was written again, read all of it again."""
        sha256 = read_manifest(self.folder, verify=False, fix="dvc repro prepare_pairs")["sha256"]
        if sha256 != self._pairs_sha256:
            self._pairs_sha256, self._readers, self._embeddings, self._max_words = sha256, {}, {}, None

    def _reader(self, split: str) -> PairReader:
        """The pairs of a split, as of the last check for changes."""
        if split not in self._readers:
            self._readers[split] = PairReader(self.folder, split, Store(self.store.folder / "rows"))
        return self._readers[split]

    def _item(self, row: Row, score: float | None) -> Event:
        split, index = row
        reader, png = self._reader(split), base64_of(encode_png(self._square(row)))
        texts = {"key": reader.key(index), "caption": reader.captions(index)[0], "split": split}
        return texts | {"score": score, "png": png}

    def _square(self, row: Row) -> np.ndarray:
        """The center square, uint8 (H, W, 3). Not cached: the models need the memory."""
        split, index = row
        reader = self._reader(split)
        return fit_square(reader.whole_images([index])[0], reader.image_size)

    def _embeddings_of(self, scorer: nn.Module) -> Embeddings:
        """The embeddings by a scorer, complete from the store or still to be computed."""
        self._check_for_changes()
        embeddings = self._embeddings.pop(scorer.fingerprint, None) or self._stored_embeddings(scorer)
        self._embeddings[scorer.fingerprint] = embeddings
        for old_scorer in list(self._embeddings)[:-MAX_SCORERS]:
            del self._embeddings[old_scorer]
        return embeddings

    def _stored_embeddings(self, scorer: nn.Module) -> Embeddings:
        rows = sorted(self._rows(None), key=lambda row: row[0] == "train")[:MAX_INDEXED]
        key = fingerprint({"pairs": self._pairs_sha256, "scorer": scorer.fingerprint, "rows": len(rows)})
        embeddings = Embeddings(scorer, rows, key)
        with contextlib.suppress(DamagedArtefact):  # or not there
            folder = self.store.folder / key
            read_manifest(folder)
            embeddings.vectors = torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False))
            embeddings.done = len(embeddings.vectors)
        return embeddings

    def _embed_batch(self, embeddings: Embeddings) -> None:
        """Embed a few more rows; write the embeddings when they are complete."""
        rows = embeddings.rows[embeddings.done : embeddings.done + INDEX_BATCH_SIZE]
        pixels = to_float(np.stack([self._square(row) for row in rows]))
        with torch.no_grad():
            batch = embeddings.scorer.embed_images(pixels.to(device_of(embeddings.scorer))).cpu().float()
        if not embeddings.done:
            embeddings.vectors = torch.empty(len(embeddings.rows), batch.shape[1])
        embeddings.vectors[embeddings.done : embeddings.done + len(batch)] = batch
        embeddings.done += len(batch)
        if embeddings.done == len(embeddings.rows):
            try:
                self.store.begin([embeddings.key])
                self.store.get(embeddings.key, embeddings.write)
            except (UserError, OSError) as error:
                message = "the embeddings of the images could not be stored, and will be computed again: %s"
                log.warning(message, error)
