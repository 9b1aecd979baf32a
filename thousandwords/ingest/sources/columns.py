"""Which columns of a list hold images and captions, and where its images lie (`data.source: auto`, or unset columns).

Only names and a few rows are read; the class of the kind then checks the rest.
"""

import contextlib
import csv
import functools
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

import pyarrow.parquet as pq

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources import open_kind
from thousandwords.ingest.sources.archive import ARCHIVES
from thousandwords.ingest.sources.base import IMAGE_SUFFIXES, OTHER_IMAGES, SourceError, as_texts, suffix_of
from thousandwords.ingest.sources.filesystem import open_folder, open_parent_folder
from thousandwords.ingest.sources.folder import FolderSource
from thousandwords.ingest.sources.local_folder import Folder
from thousandwords.ingest.sources.parquet import ParquetSource, holds_images, holds_texts, url_columns
from thousandwords.ingest.sources.table import DOWNLOAD, JsonLinesSource, lines_of, spellings
from thousandwords.ingest.sources.webdataset import WebDatasetSource

IMAGES = (
    "image file_name filename image_path img_path image_file image_filename image_name img img_name filepath"
)
IMAGES = f"{IMAGES} file_path path file name photo jpg png webp images id image_id".split()
CAPTIONS = "caption captions text texts description descriptions sentence sentences prompt title alt alt_text"
CAPTIONS = f"{CAPTIONS} comment raw label labels en conversations".split()
IMAGE_FOLDER = re.compile(r"im(age|g)|photo|pic|^(train|val|test)[0-9]*$")  # names of folders beside a list
MAX_FOLDERS, SAMPLE = 300, 50  # that are looked at; rows of a list


def base_of(name: str) -> str:
    """The file name in lower case: "own/Metadata.CSV" -> "metadata.csv"."""
    return posixpath.basename(name).lower()


def with_columns(part: dict, place: str) -> dict:
    """The settings with the columns, the delimiter and the folder of the images, where they are not set."""
    try:
        found = columns_of(part, place)
    except InvalidInput:
        found = {}
    return {**part, **{name: value for name, value in found.items() if not part.get(name) and value}}


def columns_of(part: dict, place: str) -> dict:
    """The settings that the content of a list suggests; {} if it cannot be read, which its class then explains."""
    kind = part["source"]
    if kind in ("folder", "webdataset"):
        return _json_keys(FolderSource(place) if kind == "folder" else WebDatasetSource(place))
    if kind == "parquet":
        return _parquet_columns(part, place)
    folder, name = open_parent_folder(place)
    if folder.kind(name) != "file":
        return {}
    found = {}
    stems = functools.cache(lambda: _image_stems(folder))
    if kind == "csv":
        found = _csv_columns(folder, name, part, stems)
    elif kind == "jsonl":
        rows = [row for row in _sample(JsonLinesSource(place).records()) if isinstance(row, dict)]
        found = _pick(list(dict.fromkeys(key for row in rows for key in row)), rows, place, stems)
    part = {**found, **{name: value for name, value in part.items() if value}}
    if "image_folder" not in part and (image_folder := _image_folder(folder, name, part, place)):
        found["image_folder"] = image_folder
    return found


def _sample(records: Iterable[tuple[str, object]]) -> list:
    return [values for _, values in itertools.islice(records, SAMPLE)]


def _pick(names: Sequence[str], rows: list[dict], place: str, stems: Callable[[], Set[str]]) -> dict:
    """The columns of images and of captions by their names, else by their content; SourceError if there are only URLs.

    `stems` are names of images without their suffix, as lists may give them."""
    lower = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
    values = {name: [row.get(name) for row in rows if row.get(name)] for name in names}
    urls = [name for name in names if _are(values[name], lambda value: "://" in str(value))]
    paths = [name for name in names if name not in urls and _are(values[name], _is_image_name)]
    by_name = [lower[word] for word in IMAGES if word in lower and lower[word] not in urls]
    image = next((name for name in by_name if name in paths), None) or next(iter(paths), None)
    for name in () if image else dict.fromkeys((*by_name, *names)):
        if name not in urls and _are(values[name], lambda value: str(value).strip() in stems()):
            image = name
            break
    image = image or next((name for name in by_name if base_of(name) not in ("id", "name", "image_id")), None)
    texts = [name for name in names if name not in (image, *urls, *paths) and _are(values[name], _has_words)]
    captions = [lower[word] for word in CAPTIONS if word in lower and lower[word] != image]
    captions = [name for name in captions if name in texts or "label" not in name.lower()]  # a class's number
    captions += [name for name in texts if "caption" in name.lower()]
    caption = next(iter(captions), None) or (texts[0] if len(texts) == 1 else None)
    if image is None and urls and caption:
        raise SourceError(
            f"{place}: its column {urls[0]!r} holds URLs, and nothing is fetched from a list. {DOWNLOAD}"
        )
    return {"image_column": image, "caption_column": caption}


def _are(values: list, is_such: object) -> bool:
    return bool(values) and sum(map(bool, map(is_such, values))) >= 0.8 * len(values)


def _is_image_name(value: object) -> bool:
    name = re.sub(r"#\d+$", "", value.strip()) if isinstance(value, str) else ""
    return suffix_of(name.replace("\\", "/")) in (*IMAGE_SUFFIXES, *OTHER_IMAGES)


def _has_words(value: object) -> bool:
    value = next(iter(as_texts(value) or ()), None)
    return isinstance(value, str) and re.search(r"[^\W\d_]", value) is not None and "://" not in value


def _image_stems(folder: Folder) -> set[str]:
    """The names, without suffix, of images in a folder and below it; none at a URL, where a list may take long."""
    names = () if folder.parallel_reads else folder.walk(MAX_FOLDERS)
    return {
        posixpath.basename(name).rpartition(".")[0] for name in names if suffix_of(name) in IMAGE_SUFFIXES
    }


def _csv_columns(folder: Folder, name: str, part: dict, stems: Callable[[], Set[str]]) -> dict:
    """Delimiter, header (or names for a table without one) and columns, from the first lines."""
    lines = [line for _, line in itertools.islice(lines_of(folder, name), SAMPLE) if line and line.strip()]
    texts = [line.decode("utf-8", "replace").rstrip("\r\n") for line in lines]
    default = part.get("delimiter") or ("\t" if name.lower().endswith((".tsv", ".tab")) else None)
    place, problem, partial = folder.address_of(name), None, {}
    # a first line that is none is the header
    if texts and all(re.match(r"\s*[a-z0-9]+://\S+\s*$", text) for text in texts[1:] or texts):
        raise SourceError(f"{place} is a list of URLs, and nothing is fetched from a list. {DOWNLOAD}")
    for delimiter in [default] if default else [",", "\t", ";", "|"]:
        found = {} if delimiter in (part.get("delimiter"), ",") or default else {"delimiter": delimiter}
        rows = _split(texts, delimiter)
        if not rows or len(rows[0]) < 2:
            continue
        header = list(part.get("columns") or [field.strip() for field in rows[0]])
        if not part.get("columns") and any(map(_is_image_name, rows[0])):
            header = _names(_without_prose(rows[0]) if delimiter == "," else rows[0])
            found["columns"] = tuple(header)
        start = not (part.get("columns") or "columns" in found)
        records = [dict(zip(header, row, strict=False)) for row in rows[start:]]
        try:
            columns = _pick(header, records, place, stems)
        except SourceError as error:
            problem = error
            continue
        if columns["image_column"] and columns["caption_column"]:
            return {**columns, **found}
        partial = partial or {**columns, **found} if columns["image_column"] else partial
    if problem and not part.get("image_column"):
        raise problem
    return partial


def _split(texts: list[str], delimiter: str) -> list[list[str]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        return [row for row in csv.reader(texts, delimiter=delimiter, quoting=quoting) if row]
    except csv.Error:
        return []


def _without_prose(row: list[str]) -> list[str]:
    """["a.jpg", "a cat", " a tree"] -> ["a.jpg", "a cat"]: what follows a comma and a blank is of the caption."""
    while row[-1].startswith(" ") and not all(field.startswith(" ") for field in row[1:]):
        row = row[:-1]
    return row


def _names(row: list[str]) -> list[str]:
    """Names for the fields of a table without a header: ["a.jpg", "0", "a cat"] -> ["image", "column2", "caption"]."""
    image = next(number for number, field in enumerate(row) if _is_image_name(field))
    caption = max(
        (number for number in range(len(row)) if number != image), key=lambda number: len(row[number])
    )
    names = {image: "image", caption: "caption"}
    return [names.get(number, f"column{number + 1}") for number in range(len(row))]


def _json_keys(source: FolderSource | WebDatasetSource) -> dict:
    """The key of the captions in the .json beside images that have no text."""
    try:
        records = source.first_records(SAMPLE)
    except SourceError:
        return {}
    keys = {key.lower(): key for record in records for key in record}
    return {"caption_column": next((keys[word] for word in CAPTIONS if word in keys), None)}


def _parquet_columns(part: dict, place: str) -> dict:
    source = ParquetSource(place)
    if not source.file_names or source.folder.head(source.file_names[0])[:4] != b"PAR1":
        return {}
    with source.folder.open(source.file_names[0]) as raw:
        try:
            file = pq.ParquetFile(raw)
            fields, urls = list(file.schema_arrow), url_columns(file)
        except Exception:  # a decoder raises anything on damaged bytes; the class explains it
            return {}
    texts = [field.name for field in fields if holds_texts(field.type) and field.name not in urls]
    images = [field.name for field in fields if holds_images(field.type) and field.name not in urls]
    inside = [name for name in images if name not in texts]
    lower = {name.lower(): name for name in reversed([field.name for field in fields])}
    named = [lower[word] for word in IMAGES if word in lower and lower[word] in images]
    image = next((name for name in named if name in inside), None)
    image = image or (inside[0] if len(inside) == 1 else None) or next(iter(named), None)
    captions = [lower[word] for word in CAPTIONS if word in lower and lower[word] in texts]
    rest = [name for name in texts if name != image]
    caption = next((name for name in captions if name != image), rest[0] if len(rest) == 1 else None)
    if image is None and urls and not part.get("image_column"):
        raise SourceError(f"{place}: its column {urls[0]!r} holds URLs, and nothing is fetched. {DOWNLOAD}")
    return {"image_column": image, "caption_column": caption}


def _image_folder(folder: Folder, name: str, part: dict, place: str) -> str | None:
    """Where the images of a list are, relative to it, if they are not beside it: "images", "../val2017"."""
    if folder.parallel_reads:
        return None
    names = [
        name for name in _image_names(part, place) if name and not os.path.isabs(name) and "://" not in name
    ]
    if not names or any(_exists(folder, "", name) for name in names):
        return None
    below = {posixpath.dirname(file) for file in folder.walk(MAX_FOLDERS)}
    below |= {posixpath.dirname(path) for path in below}
    folders = sorted(below - {""})
    if not folder.address.lower().endswith(ARCHIVES):
        parent = open_folder(posixpath.normpath(os.path.abspath(folder.address) + "/.."))
        with contextlib.suppress(InvalidInput):
            folders += [
                f"../{entry.name}" for entry in parent.entries() if IMAGE_FOLDER.search(entry.name.lower())
            ]
        folders.append("..")
    shares = {path: sum(_exists(folder, path, name) for name in names) / len(names) for path in folders}
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] >= 0.5 else None


def _exists(folder: Folder, path: str, name: str) -> bool:
    return any(folder.kind(posixpath.join(path, other)) == "file" for other in spellings(name))


def _image_names(part: dict, place: str) -> Iterator[str]:
    """The first image names of a list."""
    source = open_kind({**part, "url": None, "path": place})
    try:
        for row in itertools.islice(source.rows(), SAMPLE):
            if row.problem is None:
                yield row.image
    except SourceError:
        return
