"""Index of a WebDataset tar: its samples, and the position of each part in the file.

tarfile treats a damaged header as the end, so a truncated archive would look like a shorter one. Therefore the whole
tar is indexed, up to its end mark, before any sample is used. Members are read in place. Left out: compressed tars.
"""

import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import SourceError

END_MARK = bytes(1024)  # two zero blocks
MAX_HEADER = 1_000_000  # bytes; tarfile would read longer names and PAX headers into memory
LONG_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
LONG_HEADERS += (tarfile.SOLARIS_XHDTYPE,)


@dataclass(frozen=True)
class RepeatedMember:
    """A member whose name came before; readable only if both have the same bytes."""

    name: str
    part: tuple[int, int]
    first: tuple[int, int]


TarPart = tuple[int, int] | RepeatedMember | InvalidInput  # offset and size, or why it must not be read


class _Member(tarfile.TarInfo):
    """A member with a limit on the size of its header."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in LONG_HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes at byte {self.offset:,}")
        return super()._proc_member(archive)


def index_tar(path: Path, suffixes: Collection[str], address: str) -> dict[str, dict[str, TarPart]]:
    """The samples of a tar, in order: cat.png, cat.txt -> {"cat": {"png": (512, 2005), "txt": (3072, 9)}}.

    A repeated name starts a sample of its own, "cat.png at byte 4096", which takes missing parts from the first one.
    """
    samples: dict[str, dict[str, TarPart]] = {}
    repeated: dict[str, str] = {}  # stem -> name of its latest repeated sample
    stems: dict[str, str] = {}  # name of a repeated sample -> its stem
    for member in _members(path, address):
        stem, suffix = _split_name(member.name)
        if suffix not in suffixes:
            continue
        first, part = samples.setdefault(stem, {}), _part(member)
        if suffix not in first:
            first[suffix] = part
            continue
        if suffix in samples.get(repeated.get(stem, ""), (suffix,)):
            repeated[stem] = f"{stem}.{suffix} at byte {member.offset}"
        samples.setdefault(repeated[stem], {})[suffix] = _repeated_part(member.name, part, first[suffix])
        stems[repeated[stem]] = stem
    for name, stem in stems.items():
        samples[name] = {**samples[stem], **samples[name]}
    return samples


def read_part(file: BinaryIO, part: TarPart | None, limit: int) -> bytes:
    """The bytes of one part; raises InvalidInput if it cannot be read."""
    if part is None:
        raise InvalidInput("missing_pair", "the sample lacks its image or its caption")
    if isinstance(part, InvalidInput):
        raise part
    if isinstance(part, RepeatedMember):
        data = read_part(file, part.part, limit)
        if part.part[1] != part.first[1] or data != read_part(file, part.first, limit):
            raise InvalidInput("duplicate_id", f"the tar has {part.name!r} a second time, with other bytes")
        return data
    offset, size = part
    if size > limit:
        raise InvalidInput("too_many_bytes", f"{size:,} bytes; the limit is {limit:,}")
    file.seek(offset)
    return file.read(size)


def _repeated_part(name: str, part: TarPart, first: TarPart) -> TarPart:
    if isinstance(part, InvalidInput) or isinstance(first, InvalidInput):
        return InvalidInput("duplicate_id", f"the tar has {name!r} a second time")
    return RepeatedMember(name, part, first)


def _split_name(name: str) -> tuple[str, str]:
    """Split at the first dot of the file name: "a.b/cat.seg.PNG" -> ("a.b/cat", "seg.png")."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else (name, "")  # a hidden file is not a sample


def _part(member: tarfile.TarInfo) -> TarPart:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return InvalidInput("unsafe_path", f"{member.name!r} leads out of the tar")
    if not member.isreg() or member.issparse():
        return InvalidInput("not_regular", f"{member.name!r} is a link, folder, pipe, device or sparse file")
    return member.offset_data, member.size


def _members(path: Path, address: str) -> Iterator[tarfile.TarInfo]:
    """All members; raises SourceError unless the headers lead exactly to the end mark."""
    try:
        with tarfile.open(path, "r:", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else tarfile keeps all of them in memory
                yield member
            tar.fileobj.seek(tar.offset)
            is_complete = tar.fileobj.read(len(END_MARK)) == END_MARK
    except (tarfile.TarError, OSError, ValueError) as error:
        raise SourceError(
            f"{address} is not a plain tar, or is truncated ({error}). Fetch it again"
        ) from error
    if not is_complete:
        raise SourceError(f"{address} is truncated or damaged at byte {tar.offset:,}. Fetch it again")
