"""Past draws, kept: each is a folder of sample shards, as the pipeline writes them, with its order and scores beside them.

A draw appears whole or not at all, and is verified when it is read. Pictures get their provenance when they are shown, so that a
PNG from the gallery is byte for byte the one that was shown when it was drawn.
"""
from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from studio.easel import Event, grid_of
from thousandwords.config import section
from thousandwords.drawing import candidate_seed
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, read_manifest, sync_folder, telling
from thousandwords.provenance import Provenance, with_provenance
from thousandwords.samples import COMPLETED, read_samples, sample_table, write_samples

NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")  # when, and at random: names sort by time, and nothing else is a draw
GONE = "there is no such draw. It may have been deleted; look at the gallery"
FACTS = ("candidates", "provenance", "version", "scores", "order", "when")  # what is kept of a draw beside its pictures
SHOWN = 4  # pictures of a draw in the list of draws


class NoDraw(UserError):
    """There is no such draw, or no such picture of it."""


@dataclass(frozen=True)
class Drawn:
    """One finished draw: what it follows from, and its candidates in the order in which they were drawn."""

    provenance: Provenance  # of its candidate 0
    version: str
    words: list[list[int]]  # (N, L)
    pictures: np.ndarray  # uint8 (N, H, W, 3)
    scores: list[float]
    order: list[int]


class Gallery:
    """The draws in a folder. Used from any thread; two studios may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def add(self, drawn: Drawn) -> str:
        """Keeps a draw; returns its name. Raises UserError where the disk takes no more."""
        now = datetime.datetime.now(datetime.UTC)
        name = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        facts = {
            "candidates": len(drawn.words),
            "provenance": dataclasses.asdict(drawn.provenance),
            "version": drawn.version,
            "scores": drawn.scores,
            "order": drawn.order,
            "when": now.isoformat(timespec="seconds"),
        }
        assert tuple(facts) == FACTS
        known = drawn.provenance
        rows = [
            {"prompt_id": 0, "split": COMPLETED if known.given else "asked", "prompt": known.caption, "candidate": number,
             "seed": candidate_seed(known.seed, known.caption, number)}
            for number in range(len(drawn.words))
        ]  # fmt: skip
        partial = self.folder / f".{name}.tmp"
        try:
            write_samples(partial, [sample_table(rows, torch.tensor(drawn.words), drawn.pictures)], facts)
            os.rename(partial, self.folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(self.folder)
        return name

    def page(self, before: str | None, limit: int) -> Event:
        """The newest draws, or those before one; damaged ones are passed over."""
        names = self.names()
        names = [name for name in names if before is None or name < before]
        draws = []
        for place, name in enumerate(names):
            if len(draws) == limit:
                return {"draws": draws, "next": names[place - 1]}
            try:
                draws.append(self._told(name, self._facts(name), SHOWN))
            except (DamagedArtefact, NoDraw):  # NoDraw: somebody has just deleted it
                continue
        return {"draws": draws, "next": None}

    def one(self, name: str) -> Event:
        """A draw with all its candidates, best first. Raises NoDraw or DamagedArtefact."""
        facts = self._facts(name)
        words = read_samples(self.folder / name).table["image_tokens"].to_pylist()
        told = self._told(name, facts, len(words))
        pictures = [one | {"words": grid_of(torch.tensor(words[one["candidate"]]))} for one in told.pop("best")]
        return told | {"settings": facts["provenance"]["settings"], "pictures": pictures}

    def picture(self, name: str, candidate: int) -> bytes:
        """One picture as a PNG that says how it was drawn. Raises NoDraw or DamagedArtefact."""
        facts = self._facts(name)
        if not 0 <= candidate < facts["candidates"]:
            raise NoDraw(f"the draw {name} has no picture {candidate}; they run from 0 to {facts['candidates'] - 1}")
        first = section(facts["provenance"], "provenance", Provenance)
        drawn = read_samples(self.folder / name).pictures(0)[candidate]
        return with_provenance(drawn, dataclasses.replace(first, candidate=candidate))

    def best(self, name: str) -> np.ndarray:
        """The picture of a draw that its scorer put first, uint8 (H, W, 3). Raises NoDraw or DamagedArtefact."""
        facts = self._facts(name)
        return read_samples(self.folder / name).pictures(0)[facts["order"][0]]

    def several(self, names: list[str]) -> list[Event]:
        """Those draws in that order, as a page tells them; without those that are gone or damaged."""
        told = []
        for name in names:
            with contextlib.suppress(NoDraw, DamagedArtefact):
                told.append(self._told(name, self._facts(name), SHOWN))
        return told

    def remove(self, name: str) -> None:
        """Raises NoDraw, or CannotWrite where the folder may not be changed."""
        self._check(name)
        gone = self.folder / f".{name}.gone"
        with telling(self.folder):
            try:
                os.rename(self.folder / name, gone)  # at once, so that nobody sees half of it
            except FileNotFoundError as error:
                raise NoDraw(GONE) from error
        shutil.rmtree(gone, ignore_errors=True)

    def names(self) -> list[str]:
        """All draws, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((one.name for one in self.folder.iterdir() if NAME.fullmatch(one.name)), reverse=True)

    def _check(self, name: str) -> None:
        if not NAME.fullmatch(name) or not (self.folder / name).is_dir():
            raise NoDraw(GONE)

    def _facts(self, name: str) -> dict:
        self._check(name)
        mend = f"delete the draw {name}: its files have changed"
        facts = read_manifest(self.folder / name, verify=False, mend=mend)["facts"]
        try:
            section(facts["provenance"], "provenance", Provenance)
            return {key: facts[key] for key in FACTS}
        except (KeyError, TypeError, UserError) as error:
            reason = str(error).removeprefix("params.yaml: ")
            raise DamagedArtefact(f"the draw {name} was kept by another version of this code, or is damaged: {reason}") from error

    def _told(self, name: str, facts: dict, count: int) -> Event:
        known = facts["provenance"]
        return {
            "id": name,
            "when": facts["when"],
            "prompt": known["caption"],
            "seed": known["seed"],
            "candidates": facts["candidates"],
            "version": facts["version"],
            "is_completion": known["given"] is not None,
            "best": [{"candidate": one, "score": facts["scores"][one], "url": f"/api/gallery/{name}/{one}.png"}
                     for one in facts["order"][:count]],
        }  # fmt: skip
