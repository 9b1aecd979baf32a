"""Sources of captioned images: one class per kind, which yields raw pairs lazily and in a fixed order."""

from thousandwords.ingest.sources.base import Source, SourceError
from thousandwords.ingest.sources.coco import CocoSource
from thousandwords.ingest.sources.folder import FolderSource
from thousandwords.ingest.sources.parquet import ParquetSource
from thousandwords.ingest.sources.table import CsvSource, JsonLinesSource
from thousandwords.ingest.sources.webdataset import WebDatasetSource

KINDS: dict[str, type[Source]] = {
    "folder": FolderSource,
    "csv": CsvSource,
    "webdataset": WebDatasetSource,
    "jsonl": JsonLinesSource,
    "parquet": ParquetSource,
    "coco": CocoSource,
}

__all__ = ["KINDS", "Source", "SourceError", "open_kind", *(kind.__name__ for kind in KINDS.values())]


def open_kind(settings: dict) -> Source:
    """Open the source of the `settings`, their URL or path, with those settings that its kind supports."""
    kind = KINDS[settings["source"]]
    supported = {name: settings[name] for name in kind.settings if name in settings}
    return kind(settings["url"] or settings["path"], **supported)
