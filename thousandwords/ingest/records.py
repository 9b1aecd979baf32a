"""The outcome of one input, a `Pair` or a `Rejection`, and the columns of the quarantine table."""

from dataclasses import dataclass

import pyarrow as pa

from thousandwords.ingest.perceptual_hash import ImageHash

QUARANTINE = "quarantine.parquet"

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),  # of the encoded image, if it was read
        pa.field("byte_size", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Pair:
    """One row of a pair shard without its split; fields after `provenance` are not stored."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    provenance: str
    dropped: tuple[str, ...] = ()  # the reason for each caption that was filtered out
    is_recaptioned: bool = False
    image_hash: ImageHash | None = None  # of the center square, if near duplicates are dropped
    format: str | None = None  # of the original image
    flags: tuple[str, ...] = ()  # of the original image
    shard: str | None = None  # the source file, if a file holds many pairs


@dataclass(frozen=True)
class Rejection:
    """One row of the quarantine table; `shard` as in `Pair`, not a column."""

    id: str
    source: str
    sha256: str | None
    byte_size: int | None
    reason: str
    detail: str
    shard: str | None = None
