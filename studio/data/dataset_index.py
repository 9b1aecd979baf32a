"""The data set, to look at: page by page, by what a caption says, and the training pictures nearest to a given one.

Searching needs every picture's vector by the scorer (CLIP). They are made while nobody asks for anything, a few at a time, and
kept in the store, known by the pairs and the scorer that they follow from; until all are there a search goes over those that are.
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

from studio.easel import Event, text_of
from thousandwords import images
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, fingerprint, read_manifest, write_bytes, write_manifest
from thousandwords.pair_shards import PairReader, splits
from thousandwords.store import Store

MOST = 50_000  # pictures that are searched, the held-out ones first
EXAMPLES, EXAMPLES_AMONG = 3, 12  # captions that are offered, the longest of so many
KEPT = 2  # scorers whose vectors are in memory, as many as packages
AT_ONCE = 32  # pictures embedded before it is looked whether somebody asks for something

log = logging.getLogger("studio")

Row = tuple[str, int]  # a split, and which of its pairs


class DataSet:
    """The pairs of a folder, and their vectors by each scorer that was asked for."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = Path(folder), Store(Path(store), kept_runs=4)
        self._at, self._readers, self._vectors = "", {}, {}

    def is_there(self) -> bool:
        return (self.folder / "manifest.json").is_file()

    def examples(self) -> list[str]:
        """Some captions that models were not trained on, to try; none where there are no data."""
        if not self.is_there():
            return []
        with contextlib.suppress(DamagedArtefact):
            self._look()
            split = "validation" if "validation" in self.splits() else self.splits()[-1]
            reader = self._reader(split)
            captions = dict.fromkeys(reader.captions(row)[0] for row in range(min(len(reader), EXAMPLES_AMONG)))
            return sorted(captions, key=len)[-EXAMPLES:]  # short ones say little
        return []

    def page(self, split: str | None, offset: int, limit: int) -> Event:
        """Pictures in the order of the data. Raises DamagedArtefact."""
        self._look()
        whole = self.rows(split)
        rows, more = whole[offset : offset + limit], offset + limit < len(whole)
        return {"pictures": self._shown(rows, [None] * len(rows)), "next": offset + limit if more else None}

    def search(self, scorer: nn.Module, query: str, split: str | None, limit: int) -> Event:
        """The pictures that fit a text best, of those that have vectors by now."""
        vectors = self._vectors_of(scorer)
        with torch.no_grad():
            asked = scorer.embed_captions([query]).cpu()
        return self._nearest(vectors, asked, split, limit)

    def nearest(self, scorer: nn.Module, picture: Tensor, limit: int) -> Event:
        """The training pictures most like one (1, 3, H, W), by the cosine of their vectors."""
        vectors = self._vectors_of(scorer)
        with torch.no_grad():
            asked = scorer.embed_images(picture.to(device_of(scorer))).cpu()
        return self._nearest(vectors, asked, "train", limit)

    def _nearest(self, vectors: Vectors, asked: Tensor, split: str | None, limit: int) -> Event:
        chosen = [place for place, (of, _) in enumerate(vectors.rows[: vectors.done]) if split in (None, of)]
        scores = (vectors.made[chosen] @ asked.float()[0]) if chosen else torch.empty(0)
        best = scores.argsort(descending=True, stable=True)[:limit].tolist()
        rows = [vectors.rows[chosen[place]] for place in best]
        return {"pictures": self._shown(rows, [round(float(scores[place]), 4) for place in best]), "next": None}

    def state(self, scorer: nn.Module | None) -> Event:
        """How many pictures can be searched by now; all of them where no search was asked for."""
        vectors = self._vectors.get(scorer.fingerprint) if scorer is not None else None
        done, total = (vectors.done, len(vectors.rows)) if vectors else (0, 0)
        return {"state": "ready" if done == total else "reading", "done": done, "total": total, "splits": self.splits()}

    def idle(self) -> bool:
        """Embeds a few more pictures where a search waits for them; False: there is nothing to do."""
        for vectors in self._vectors.values():
            if vectors.done < len(vectors.rows):
                self._embed_some(vectors)
                return True
        return False

    def forget(self) -> None:
        """Leaves what was begun."""
        self._vectors = {}

    # --- pairs ---------------------------------------------------------------------------------------------------------

    def splits(self) -> list[str]:
        return splits(self.folder)

    def rows(self, split: str | None = None) -> list[Row]:
        """The rows of one split, or of all in turn."""
        return [(one, row) for one in self.splits() if split in (None, one) for row in range(len(self._reader(one)))]

    def _look(self) -> None:
        """Once a request: whether the folder was written anew since the last, and all of it is to be read anew."""
        found = read_manifest(self.folder, verify=False, mend="dvc repro prepare_pairs")["sha256"]
        if found != self._at:
            self._at, self._readers, self._vectors = found, {}, {}

    def _reader(self, split: str) -> PairReader:
        """The pairs of a split, as they were at the last look."""
        if split not in self._readers:
            self._readers[split] = PairReader(self.folder, split, Store(self.store.folder / "rows"))
        return self._readers[split]

    def _shown(self, rows: Sequence[Row], scores: Sequence[float | None]) -> list[Event]:
        return [{
            "key": self._reader(split).key(row),
            "caption": self._reader(split).captions(row)[0],
            "split": split,
            "score": score,
            "png": text_of(images.encode_png(self._squares([(split, row)])[0])),
        } for (split, row), score in zip(rows, scores, strict=True)]  # fmt: skip

    def _squares(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Their middle squares, uint8 (H, W, 3). Not kept: memory is the models'."""
        whole = [self._reader(split).pictures([row])[0] for split, row in rows]
        return [images.fit_square(one, self._reader(split).image_size) for one, (split, _) in zip(whole, rows, strict=True)]

    # --- vectors -------------------------------------------------------------------------------------------------------

    def _vectors_of(self, scorer: nn.Module) -> Vectors:
        """The vectors by a scorer, whole from the store, or about to be made."""
        self._look()
        if scorer.fingerprint not in self._vectors:
            rows = self._searched()
            vectors = Vectors(scorer, rows, fingerprint({"pairs": self._at, "scorer": scorer.fingerprint, "rows": len(rows)}))
            vectors.read(self.store.folder / vectors.key)
            self._vectors[scorer.fingerprint] = vectors
        self._vectors[scorer.fingerprint] = found = self._vectors.pop(scorer.fingerprint)  # the last used at the end
        for old in list(self._vectors)[:-KEPT]:
            del self._vectors[old]
        return found

    def _searched(self) -> list[Row]:
        held_out = [row for split in self.splits() if split != "train" for row in self.rows(split)]
        return [*held_out, *self.rows("train")][:MOST]

    def _embed_some(self, vectors: Vectors) -> None:
        rows = vectors.rows[vectors.done : vectors.done + AT_ONCE]
        pixels = images.to_float(np.stack(self._squares(rows)))
        with torch.no_grad():
            part = vectors.scorer.embed_images(pixels.to(device_of(vectors.scorer))).cpu().float()
        vectors.add(part)
        if vectors.done == len(vectors.rows):
            self._keep(vectors)

    def _keep(self, vectors: Vectors) -> None:
        """Into the store for another time; where it takes nothing they serve from memory, this time."""
        try:
            self.store.begin([vectors.key])
            self.store.get(vectors.key, vectors.write)
        except (UserError, OSError) as error:
            log.warning("the vectors of the pictures were not kept, and will be made again: %s", error)


@dataclass
class Vectors:
    """What one scorer makes of the pictures: unit vectors of the first `done` rows."""

    scorer: nn.Module
    rows: list[Row]
    key: str
    made: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # (rows, D)
    done: int = 0

    def add(self, part: Tensor) -> None:
        if not self.done:
            self.made = torch.empty(len(self.rows), part.shape[1])
        self.made[self.done : self.done + len(part)] = part
        self.done += len(part)

    def read(self, folder: Path) -> None:
        """Takes over those of an earlier time, where they are there and whole."""
        with contextlib.suppress(DamagedArtefact):
            read_manifest(folder)
            self.made = torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False))
            self.done = len(self.made)

    def write(self, folder: Path) -> None:
        write_array(folder / "vectors.npy", self.made.numpy())
        write_manifest(folder, {"vectors.npy": None}, {"rows": len(self.made)})


def write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
