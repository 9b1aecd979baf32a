"""Where captioned images come from: one file per kind, each one small class that gives raw pairs, lazily, in a fixed order.

A kind is found in the table below, and not by its file's name as a model is: a mixture reads several kinds in one run, which
the one dependency `${data.source}.py` of a DVC stage could not name. A new source is one class and one line here.
"""
from __future__ import annotations

from thousandwords.sources._contract import RawPair, Source, clean_captions
from thousandwords.sources.coco import CocoSource
from thousandwords.sources.folder import FolderSource
from thousandwords.sources.jsonl import JsonLinesSource
from thousandwords.sources.mixture import Mixture, Part, Provenance, named, read_provenance, source_of
from thousandwords.sources.parquet import ParquetSource
from thousandwords.sources.table import TableSource
from thousandwords.sources.webdataset import WebDatasetSource
from thousandwords.tars import SourceError

KINDS: dict[str, type[Source]] = {
    "folder": FolderSource,
    "csv": TableSource,
    "webdataset": WebDatasetSource,
    "jsonl": JsonLinesSource,
    "parquet": ParquetSource,
    "coco": CocoSource,
}

__all__ = [  # what others import from here
    "KINDS", "CocoSource", "FolderSource", "JsonLinesSource", "Mixture", "ParquetSource", "Part", "Provenance", "RawPair",
    "Source", "SourceError", "TableSource", "WebDatasetSource", "clean_captions", "named", "open_kind",
    "read_provenance", "source_of",
]  # fmt: skip


def open_kind(kind: str, path: str, settings: dict) -> Source:
    """The source of a kind at a path or URL; of the `settings` it takes those that it knows."""
    reader = KINDS[kind]
    return reader(path, **{name: settings[name] for name in reader.settings if name in settings})
