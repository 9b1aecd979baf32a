"""Several sources as one, with the licence and origin of each source stored in every row.

Sources are read one after another, each input once; weights apply in training only (`data.sampler`). Keys begin with
the number of the source, "1/cat.png": equal names do not collide, and the key gives the source of a row.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from thousandwords.ingest.sources.base import RawPair, Source, SourceError


@dataclass(frozen=True)
class MixturePart:
    """One source of a mixture; `number` is None for a single source."""

    source: Source
    number: int | None = None
    licence: str | None = None
    origin: str | None = None

    def described(self, raw_pair: RawPair) -> RawPair:
        """The pair with the number of its source in its names, and with what is known about the source."""
        if self.number is self.licence is self.origin is None:
            return raw_pair
        fields = {
            "at": raw_pair.provenance,
            "source": self.number,
            "licence": self.licence,
            "origin": self.origin,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        provenance = json.dumps(fields, ensure_ascii=False, sort_keys=True)
        key, shard = self._numbered(raw_pair.key), self._numbered(raw_pair.shard)
        return replace(raw_pair, key=key, provenance=provenance, shard=shard)

    def _numbered(self, name: str | None) -> str | None:
        return name if None in (name, self.number) else f"{self.number}/{name}"


class MixtureSource(Source):
    """The pairs of all parts, in order."""

    def __init__(self, parts: list[MixturePart]):
        self.parts = parts

    def check(self) -> int:
        total = 0
        for part in self.parts:
            with naming_source(part.number):
                total += part.source.check()
        return total

    def __iter__(self) -> Iterator[RawPair]:
        for part in self.parts:
            with naming_source(part.number):
                yield from map(part.described, part.source)


@contextmanager
def naming_source(number: int | None) -> Iterator[None]:
    """Add the number of the source to a SourceError."""
    try:
        yield
    except SourceError as error:
        if number is None:
            raise
        raise SourceError(f"data.sources[{number}]: {error}") from error
