"""The index of a WebDataset tar: which samples it holds, and where in the file the bytes of each part lie.

A tar has no checksum over its data, and tarfile takes a damaged header for the end: a cut or damaged archive
reads as a shorter one. So a tar is indexed whole, up to its end mark, before a single sample is used. Members
are read in place, never unpacked. Left out: compressed tars.
"""
from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from thousandwords.errors import UserError
from thousandwords.images import Refused

END_MARK = bytes(1024)              # two blocks of zeros
MAX_HEADER = 1_000_000    # bytes; longer names and PAX headers would be read into memory whole
LONG_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class Again:
    """A member of a name that came before; it may be read where both are the same bytes."""

    name: str
    part: tuple[int, int]
    first: tuple[int, int]


Part = tuple[int, int] | Again | Refused    # offset and size in the file, or why it must not be read


class SourceError(UserError):
    """A source of pairs can't be read as a whole; the message says what to do."""


class _Member(tarfile.TarInfo):
    """A member whose header is of a decent size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in LONG_HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes at byte {self.offset:,}")
        return super()._proc_member(archive)


def samples_of(path: Path, suffixes: Collection[str], shown: str | None = None) -> dict[str, dict[str, Part]]:
    """The samples of a tar, in order: cat.png, cat.txt -> {"cat": {"png": (512, 2005), "txt": (3072, 9)}}.

    A name that comes again begins a sample of its own, "cat.png at byte 4096", which borrows from the first what it lacks.
    Errors name the tar `shown`, where the one at hand is a copy.
    """
    samples: dict[str, dict[str, Part]] = {}
    again: dict[str, str] = {}    # the latest sample of a name that came before
    origin: dict[str, str] = {}    # which name that is, for each of them
    for member in _members(path, shown or str(path)):
        stem, suffix = _split_name(member.name)
        if suffix not in suffixes:
            continue
        first, part = samples.setdefault(stem, {}), _part(member)
        if suffix not in first:
            first[suffix] = part
            continue
        if suffix in samples.get(again.get(stem, ""), (suffix,)):
            again[stem] = f"{stem}.{suffix} at byte {member.offset}"
        samples.setdefault(again[stem], {})[suffix] = _again(member.name, part, first[suffix])
        origin[again[stem]] = stem
    for name, stem in origin.items():
        samples[name] = {**samples[stem], **samples[name]}
    return samples


def read_part(file: BinaryIO, part: Part | None, limit: int) -> bytes:
    """The bytes of one part; Refused where there are none to be had."""
    if part is None:
        raise Refused("missing_pair", "the sample lacks its picture or its caption")
    if isinstance(part, Refused):
        raise part
    if isinstance(part, Again):
        data = read_part(file, part.part, limit)
        if part.part[1] != part.first[1] or data != read_part(file, part.first, limit):
            raise Refused("duplicate_id", f"the tar holds {part.name!r} a second time, with other bytes")
        return data
    offset, size = part
    if size > limit:
        raise Refused("too_many_bytes", f"{size:,} bytes; the limit is {limit:,}")
    file.seek(offset)
    return file.read(size)


def _again(name: str, part: Part, first: Part) -> Part:
    if isinstance(part, Refused) or isinstance(first, Refused):
        return Refused("duplicate_id", f"the tar holds {name!r} a second time")
    return Again(name, part, first)


def _split_name(name: str) -> tuple[str, str]:
    """At the first dot of the last part, as WebDataset does: "a.b/cat.seg.PNG" -> ("a.b/cat", "seg.png")."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else (name, "")    # a hidden file is no sample


def _part(member: tarfile.TarInfo) -> Part:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return Refused("unsafe_path", f"{member.name!r} leads out of the tar")
    if not member.isreg() or member.issparse():
        return Refused("not_regular", f"{member.name!r} is a link, folder, pipe, device or sparse file")
    return member.offset_data, member.size


def _members(path: Path, shown: str) -> Iterator[tarfile.TarInfo]:
    """Every member, then a look at the end: SourceError unless the headers lead right to the end mark."""
    try:
        with tarfile.open(path, "r:", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members = []    # else it keeps every one
                yield member
            tar.fileobj.seek(tar.offset)
            is_whole = tar.fileobj.read(len(END_MARK)) == END_MARK
    except (tarfile.TarError, OSError, ValueError) as error:
        raise SourceError(f"{shown} is no plain tar, or was cut short ({error}). Fetch it again") from error
    if not is_whole:
        raise SourceError(f"{shown} was cut short or damaged at byte {tar.offset:,}. Fetch it again")
