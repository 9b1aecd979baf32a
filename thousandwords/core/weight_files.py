"""Whether a file that a setting names can hold weights, by its first and last bytes; nothing in it is read or run."""

import json
import zipfile
from pathlib import Path

from thousandwords.core.files import LFS_FIX, LFS_POINTER

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how the two containers of torch.save begin
FETCH = "Fetch it again, and compare its size with that at its publisher"


def weights_problem(path: Path) -> str:
    """What a file is instead of weights, with the fix: "is a web page, …"; "" if it can be weights."""
    if path.is_dir():
        return "is a folder, not a file of weights. Name the file in it"
    if not path.is_file():
        return "does not exist. Set the setting to your file of weights"
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(LFS_POINTER):
        return f"is {LFS_FIX}"
    if b"<html" in head.lower() or head.lstrip().lower().startswith(b"<!doctype"):
        return "is a web page, not a file of weights. Download the file itself, by its direct address"
    if path.suffix == ".safetensors":
        return _safetensors_problem(path, head)
    if head.startswith(ZIP):
        return "" if zipfile.is_zipfile(path) else f"is truncated. {FETCH}"
    if head.startswith(PICKLE):
        return ""
    kind = "empty" if not head else "a text" if _is_text(head) else "of another kind"
    return f"is {kind}, not a file of weights. {FETCH}"


def _safetensors_problem(path: Path, head: bytes) -> str:
    """A safetensors file: the length of a JSON in 8 bytes, the JSON, and as many bytes as it names."""
    length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    if head[8:9] != b"{":
        return f"is no safetensors file, whatever its name says. {FETCH}"
    if length + 8 > size:
        return f"is truncated. {FETCH}"
    try:
        with open(path, "rb") as file:
            entries = json.loads(file.read(min(length, 100_000_000) + 8)[8:])
        end = max(
            (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"is damaged. {FETCH}"
    return f"is truncated or damaged. {FETCH}" if size != length + 8 + end else ""


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters; a character may be cut at their end."""
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(
        letter.isprintable() or letter.isspace() for letter in text
    )
