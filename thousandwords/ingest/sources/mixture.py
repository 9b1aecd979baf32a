"""Several sources as one, each with its licence and origin kept beside every row.

Sources come one after the other, and each input once. Keys begin with the source's number, "1/cat.png", so that equal names stay
apart and a row's source is known from its key. Weights are for training to heed (`mixing`): here every input comes in once.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from thousandwords.sources._contract import RawPair, Source
from thousandwords.tars import SourceError


@dataclass(frozen=True)
class Provenance:
    """Where a row comes from; `at` is the place within its source."""

    at: str
    source: int | None = None    # its number in a mixture
    licence: str | None = None
    origin: str | None = None

    def text(self) -> str:
        """The bare place where nothing else is known, else JSON: {"at": "own/cat.png", "licence": "CC0-1.0"}."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return self.at if list(known) == ["at"] else json.dumps(known, ensure_ascii=False, sort_keys=True)


def read_provenance(text: str) -> Provenance:
    """What a column `provenance` says, in either form."""
    try:
        return Provenance(**json.loads(text))
    except (ValueError, TypeError):    # no JSON, or other keys
        return Provenance(text)


@dataclass(frozen=True)
class Part:
    """One source of a mixture; `number` is None where it is the only one."""

    source: Source
    number: int | None = None
    licence: str | None = None
    origin: str | None = None

    def __iter__(self) -> Iterator[RawPair]:
        if self.number is self.licence is self.origin is None:
            yield from self.source
            return
        for raw in self.source:
            provenance = Provenance(raw.provenance, self.number, self.licence, self.origin).text()
            yield replace(raw, key=self._named(raw.key), provenance=provenance, shard=self._named(raw.shard))

    def _named(self, name: str | None) -> str | None:
        return name if None in (name, self.number) else f"{self.number}/{name}"


def source_of(key: str) -> int:
    """The number of the source that a row of a mixture comes from: "1/cat.png" -> 1."""
    return int(key.partition("/")[0])


class Mixture(Source):
    """The pairs of each part, in order."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(parts)

    def check(self) -> int:
        total = 0
        for part in self.parts:
            with named(part.number):
                total += part.source.check()
        return total

    def __iter__(self) -> Iterator[RawPair]:
        for part in self.parts:
            with named(part.number):
                yield from part


@contextmanager
def named(number: int | None) -> Iterator[None]:
    """What is wrong with a source of a mixture says which source it is."""
    try:
        yield
    except SourceError as error:
        if number is None:
            raise
        raise SourceError(f"data.sources[{number}]: {error}") from error
