"""Several sources as one, with the licence and origin of each source stored in every row.

Sources are read one after another, each input once; weights apply in training only (`data.mixture`). Keys
begin with the number of the source, "1/cat.png": equal names do not collide, and the key gives the source of
a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from thousandwords.ingest.sources.base import RawPair, Source, SourceError


@dataclass(frozen=True)
class Provenance:
    """The origin of a row; `at` is its path within the source."""

    at: str
    source: int | None = None  # its number in a mixture
    licence: str | None = None
    origin: str | None = None

    def text(self) -> str:
        """The path if nothing else is set, else JSON: {"at": "own/cat.png", "licence": "CC0-1.0"}."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return self.at if list(fields) == ["at"] else json.dumps(fields, ensure_ascii=False, sort_keys=True)


def read_provenance(text: str) -> Provenance:
    """Parse a value of the column `provenance`, a path or JSON."""
    try:
        return Provenance(**json.loads(text))
    except (ValueError, TypeError):  # not JSON, or other keys
        return Provenance(text)


@dataclass(frozen=True)
class MixturePart:
    """One source of a mixture; `number` is None for a single source."""

    source: Source
    number: int | None = None
    licence: str | None = None
    origin: str | None = None

    def __iter__(self) -> Iterator[RawPair]:
        if self.number is self.licence is self.origin is None:
            yield from self.source
            return
        for raw_pair in self.source:
            provenance = Provenance(raw_pair.provenance, self.number, self.licence, self.origin).text()
            key, shard = self._numbered(raw_pair.key), self._numbered(raw_pair.shard)
            yield replace(raw_pair, key=key, provenance=provenance, shard=shard)

    def _numbered(self, name: str | None) -> str | None:
        return name if None in (name, self.number) else f"{self.number}/{name}"


def source_number(key: str) -> int:
    """The number of a row's source, from its key: "1/cat.png" -> 1."""
    return int(key.partition("/")[0])


class MixtureSource(Source):
    """The pairs of all parts, in order."""

    def __init__(self, parts: Sequence[MixturePart]):
        self.parts = tuple(parts)

    def check(self) -> int:
        total = 0
        for part in self.parts:
            with naming_source(part.number):
                total += part.source.check()
        return total

    def __iter__(self) -> Iterator[RawPair]:
        for part in self.parts:
            with naming_source(part.number):
                yield from part


@contextmanager
def naming_source(number: int | None) -> Iterator[None]:
    """Add the number of the source to a SourceError."""
    try:
        yield
    except SourceError as error:
        if number is None:
            raise
        raise SourceError(f"data.sources[{number}]: {error}") from error
