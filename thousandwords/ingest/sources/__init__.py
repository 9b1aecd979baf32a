"""Sources of captioned images: one class per kind, which yields raw pairs lazily and in a fixed order.

Unlike model kinds, sources are listed in a table, because a mixture reads several kinds in one run. A new
source is one class and one line in the table.
"""

from __future__ import annotations

from thousandwords.ingest.sources.base import RawPair, Source, SourceError, clean_captions
from thousandwords.ingest.sources.coco import CocoSource
from thousandwords.ingest.sources.csv import CsvSource
from thousandwords.ingest.sources.folder import FolderSource
from thousandwords.ingest.sources.jsonl import JsonLinesSource
from thousandwords.ingest.sources.mixture import (
    MixturePart,
    MixtureSource,
    Provenance,
    naming_source,
    read_provenance,
    source_number,
)
from thousandwords.ingest.sources.parquet import ParquetSource
from thousandwords.ingest.sources.webdataset import WebDatasetSource

KINDS: dict[str, type[Source]] = {
    "folder": FolderSource,
    "csv": CsvSource,
    "webdataset": WebDatasetSource,
    "jsonl": JsonLinesSource,
    "parquet": ParquetSource,
    "coco": CocoSource,
}

__all__ = [
    "KINDS",
    "CocoSource",
    "FolderSource",
    "JsonLinesSource",
    "MixturePart",
    "MixtureSource",
    "ParquetSource",
    "Provenance",
    "RawPair",
    "Source",
    "SourceError",
    "CsvSource",
    "WebDatasetSource",
    "clean_captions",
    "naming_source",
    "open_kind",
    "read_provenance",
    "source_number",
]


def open_kind(settings: dict) -> Source:
    """Open the source of the `settings`, their URL or path, with those settings that its kind supports."""
    kind = KINDS[settings["source"]]
    return kind(
        settings["url"] or settings["path"],
        **{name: settings[name] for name in kind.settings if name in settings},
    )
