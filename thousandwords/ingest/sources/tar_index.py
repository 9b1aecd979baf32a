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
TEXTS = ("txt", "json")
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

    The suffix follows the last dot, so "v1.5.png" and "v1.5.txt" are a sample. cat.seg.png without a text of its own is
    another image of the sample "cat", as in WebDataset, and left out. A repeated name starts a sample of its own, "cat.png at byte 4096", which takes missing parts from the first one.
    """
    samples: dict[str, dict[str, TarPart]] = {}
    repeated: dict[str, str] = {}  # stem -> name of its latest repeated sample
    stems: dict[str, str] = {}  # name of a repeated sample -> its stem
    for member in _members(path, address):
        stem, suffix = split_name(member.name)
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
    return {
        name: parts for name, parts in samples.items() if name in stems or not _is_extra(name, parts, samples)
    }


def _is_extra(name: str, parts: dict[str, TarPart], samples: dict[str, dict[str, TarPart]]) -> bool:
    """Whether these parts belong to the sample "cat" of "cat.seg": they are images only, or a text only."""
    folder, slash, file_name = name.rpartition("/")
    base = folder + slash + file_name.partition(".")[0]
    has_text = not parts.keys().isdisjoint(TEXTS)
    return base != name and base in samples and not (has_text and parts.keys() - set(TEXTS))


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


def split_name(name: str) -> tuple[str, str]:
    """Split at the last dot of the file name: "a.b/v1.5.PNG" -> ("a.b/v1.5", "png")."""
    stem, _, suffix = name.rpartition(".")
    file_name = stem.rpartition("/")[2]
    return (stem, suffix.lower()) if file_name.strip(".") and not file_name.startswith(".") else (name, "")


def tar_members(path: Path, address: str) -> Iterator[tuple[str, TarPart, bool]]:
    """(name, part, whether it is a folder) of all members of a tar."""
    for member in _members(path, address):
        yield member.name, _part(member), member.isdir()


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
