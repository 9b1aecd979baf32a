"""What kind of data lies at a path, and which columns hold images and captions (`data.source: auto`).

Only names and a few rows are read; the class of the kind then checks the rest. A set setting is never changed.
"""

import contextlib
import csv
import itertools
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence

import pyarrow.parquet as pq

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.archive import ARCHIVES
from thousandwords.ingest.sources.base import IMAGE_SUFFIXES, OTHER_IMAGES, SourceError, suffix_of
from thousandwords.ingest.sources.coco import CocoSource
from thousandwords.ingest.sources.filesystem import check_not_pointer, open_folder, open_parent_folder
from thousandwords.ingest.sources.folder import TEXT_SUFFIXES
from thousandwords.ingest.sources.local_folder import Folder
from thousandwords.ingest.sources.parquet import ParquetSource, holds_images, holds_texts, url_columns
from thousandwords.ingest.sources.table import DOWNLOAD, CsvSource, JsonLinesSource, lines_of
from thousandwords.ingest.sources.tar_index import split_name, tar_members
from thousandwords.ingest.sources.webdataset import WebDatasetSource

IMAGES = (
    "image file_name filename image_path img_path image_file image_filename image_name img img_name filepath"
)
IMAGES = f"{IMAGES} file_path path file name photo jpg png webp images id image_id".split()
CAPTIONS = "caption captions text texts description descriptions sentence sentences prompt title alt alt_text"
CAPTIONS = f"{CAPTIONS} comment raw label labels en".split()
TABLES = {"csv": "csv", "tsv": "csv", "tab": "csv", "txt": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
TABLES |= {"json": "jsonl", "parquet": "parquet"}
MEANINGS = {"folder": "a folder of images with texts beside them", "webdataset": "WebDataset tars"}
MEANINGS |= {"csv": "a table", "jsonl": "a list in JSON", "parquet": "Parquet", "coco": "COCO captions"}
SPLITS = r"(^|(?<=[/._-]))(training|train|validation|valid|val|dev|test)[0-9]*(?=[/._-]|$)"
IMAGE_FOLDER = re.compile(r"im(age|g)|photo|pic|^(train|val|test)[0-9]*$")  # names of folders beside a list
MAX_FOLDERS, MAX_TABLES, SAMPLE = 300, 40, 50  # that are looked at; rows of each
FORMS = "images with a .txt beside each, a table (.csv, .tsv, .jsonl, .json, .parquet), WebDataset tars or COCO captions"


def resolve(settings: dict) -> tuple[list[dict], str]:
    """(the settings of each source at the path, with kind and columns; what was decided, "" if nothing was)."""
    where = "url" if settings["url"] else "path"
    address = str(settings[where])
    if settings["source"] == "auto":
        places = find(address.rstrip("/") or "/")
    elif settings["source"] in ("parquet", "webdataset"):
        places = [(settings["source"], _folder_with(address, settings["source"]))]
    else:
        places = [(settings["source"], address)]
    parts = [_with_columns({**settings, "source": kind, where: place}, place) for kind, place in places]
    changed = [part for part in parts if part != settings]
    return parts, "; ".join(describe(part, part[where], settings) for part in changed)


def describe(part: dict, place: str, settings: dict) -> str:
    """ "data: a/t.csv is a table (csv), images in column 'file_name', in folder images, captions in column 'text'"."""
    names = {
        "image_column": "image_column",
        "caption_column": "caption_column",
        "image_folder": "image_folder",
    }
    names |= {"delimiter": "delimiter", "columns": "columns"}
    found = [
        f"{name} {part[name]!r}" for name in names if part.get(name) and part[name] != settings.get(name)
    ]
    return f"{place} is {MEANINGS[part['source']]} (source {part['source']})" + "".join(
        f", {text}" for text in found
    )


# ---- the kind


def find(address: str) -> list[tuple[str, str]]:
    """(kind, path) of each source at a file, an archive or a folder; several for lists of several splits."""
    folder, name = open_parent_folder(address)
    kind = folder.kind(name) if name else "folder"
    if kind == "file" and not _is_archive(folder, name):
        return [(_kind_of_file(folder, name), address)]
    if kind is None and any(mark in name for mark in "*?["):
        return [("parquet" if name.endswith(".parquet") else "webdataset", address)]
    if kind is None:
        raise SourceError(_missing(folder, address))
    return _find_in_folder(open_folder(address), address)


def _missing(folder: Folder, address: str) -> str:
    hint = " (~ is not replaced: write the whole path)" if address.startswith("~") else ""
    return f"{folder.setting}: there is nothing at {address}{hint}. Set it to your folder, table or archive"


def _is_archive(folder: Folder, name: str) -> bool:
    """Whether a file is to be read like a folder: a zip, a compressed tar, or a tar that is no WebDataset."""
    if not name.lower().endswith(ARCHIVES):
        return False
    check_not_pointer(folder, name)
    if folder.parallel_reads and not name.endswith(".tar"):
        raise SourceError(
            f"{folder.address_of(name)} is an archive at a URL. Download it, and set data.path to it"
        )
    return not name.lower().endswith(".tar") or not (folder.parallel_reads or _is_webdataset(folder, name))


def _is_webdataset(folder: Folder, name: str) -> bool:
    with folder.local_copy(name) as path:
        names = [
            member for member, _, _ in itertools.islice(tar_members(path, folder.address_of(name)), 4000)
        ]
    stems = [split_name(member) for member in names]
    texts = {stem for stem, suffix in stems if suffix in ("txt", "json")}
    return any(stem in texts for stem, suffix in stems if suffix in (*IMAGE_SUFFIXES, *OTHER_IMAGES))


def _kind_of_file(folder: Folder, name: str) -> str:
    check_not_pointer(folder, name)
    address, suffix = folder.address_of(name), suffix_of(name)
    if suffix == "tar":
        return "webdataset"
    if suffix == "json" and _is_coco(folder, name):
        return "coco"
    if suffix in TABLES:
        return TABLES[suffix]
    if suffix == "arrow":
        raise SourceError(_arrow(address))
    if suffix in (*IMAGE_SUFFIXES, *OTHER_IMAGES):
        raise SourceError(f"{address} is a single image. Set {folder.setting} to the folder that it is in")
    if name.lower().endswith((".zst", ".7z", ".rar", ".gz", ".xz", ".bz2")):
        raise SourceError(
            f"{address} is packed in a way that is not read. Unpack it, and set data.path to the folder"
        )
    raise SourceError(f"{address} is no source of captioned images. They can be: {FORMS}")


def _arrow(address: str) -> str:
    return (
        f"{address} is an Arrow file, as the library datasets stores it for itself. Write Parquet instead: "
        'datasets.load_from_disk(FOLDER).to_parquet("own.parquet"), then set data.path to that file'
    )


def _is_coco(folder: Folder, name: str) -> bool:
    """Whether a .json has COCO's lists; of a large one the first bytes decide."""
    if folder.size(name) > 20_000_000:
        return b'"images"' in folder.head(name) or b'"info"' in folder.head(name)
    with folder.local_copy(name) as path, open(path, "rb") as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError):
            return False
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    return all(isinstance(values, list) for values in lists)


def _find_in_folder(folder: Folder, address: str) -> list[tuple[str, str]]:
    """What is in a folder, in this order: metadata.*, texts beside images, tars, tables, Parquet, one archive."""
    files = list(folder.walk(MAX_FOLDERS))
    suffixes: dict[str, list[str]] = {}
    for name in files:
        suffixes.setdefault(suffix_of(name), []).append(name)
    images = [name for suffix in IMAGE_SUFFIXES for name in suffixes.get(suffix, ())]
    stems = {name.rpartition(".")[0] for name in images}
    stems |= {name.rpartition(".")[0] for suffix in OTHER_IMAGES for name in suffixes.get(suffix, ())}
    texts = [name for suffix in TEXT_SUFFIXES for name in suffixes.get(suffix, ())]
    num_pairs = sum(name.rpartition(".")[0] in stems for name in texts)
    lists = [name for name in files if suffix_of(name) in TABLES and name.rpartition(".")[0] not in stems]
    problems: list[str] = []

    if metadata := _metadata(lists):
        return _tables(folder, address, metadata, problems) or _refuse(address, problems)
    if num_pairs and 2 * num_pairs >= len(stems):
        return [("folder", address)]
    if tars := suffixes.get("tar"):
        where = posixpath.dirname(tars[0])
        tars = [name for name in tars if posixpath.dirname(name) == where]
        check_not_pointer(folder, tars[0])
        if _is_webdataset(folder, tars[0]):
            return [("webdataset", posixpath.join(address, where).rstrip("/"))]
    parquet = [name for name in lists if suffix_of(name) == "parquet"]
    others = [name for name in lists if suffix_of(name) != "parquet"]
    for names in (parquet, sorted(others, key=lambda name: ("caption" not in name.lower(), name))):
        if found := _tables(folder, address, names[:MAX_TABLES], problems):
            return found
    if num_pairs:
        return [("folder", address)]
    archives = [name for name in files if name.lower().endswith(ARCHIVES)]
    if len(archives) == 1:
        return find(posixpath.join(address, archives[0]))
    if archives:
        names = ", ".join(archives[:5])
        raise SourceError(f"{address} has several archives: {names}. Unpack them, or set data.path to one")
    if arrows := suffixes.get("arrow"):
        raise SourceError(_arrow(posixpath.join(address, arrows[0])))
    return _refuse(address, problems, images, files)


def _refuse(address: str, problems: list[str], images: Sequence = (), files: Sequence = ()) -> list:
    if problems:
        raise SourceError(problems[0])
    if images:
        raise SourceError(
            f"{address} has {len(images)} images, like {images[0]}, but no captions. Put a text of the same name "
            "beside each, like cat.txt beside cat.png, or a table metadata.csv with the columns file_name,text"
        )
    found = f"only files like {files[0]}" if files else "no files"
    raise SourceError(f"{address} has no captioned images, {found}. They can be: {FORMS}")


def _metadata(lists: list[str]) -> list[str]:
    """The metadata.csv, .jsonl, .json or .parquet of an imagefolder, one for each folder."""
    order = [f"metadata.{suffix}" for suffix in ("jsonl", "csv", "json", "tsv", "parquet")]
    best: dict[str, str] = {}
    for name in sorted(lists, key=lambda name: order.index(base) if (base := _base(name)) in order else 0):
        if _base(name) in order:
            best.setdefault(posixpath.dirname(name), name)
    return sorted(best.values())


def _base(name: str) -> str:
    return posixpath.basename(name).lower()


def _tables(folder: Folder, address: str, names: list[str], problems: list[str]) -> list[tuple[str, str]]:
    """The lists among `names` that have images and captions; why others cannot be used goes to `problems`."""
    usable = []
    for name in names:
        kind = TABLES[suffix_of(name)]
        place = posixpath.join(address, name)
        try:
            check_not_pointer(folder, name)
            if kind == "jsonl" and suffix_of(name) == "json" and _is_coco(folder, name):
                usable += [(_coco(place), place, name)]
                continue
            columns = _columns({"source": kind, "path": place}, place)
        except (SourceError, InvalidInput) as error:
            problems.append(str(error))
            continue
        if columns.get("image_column") and columns.get("caption_column"):
            usable.append((kind, place, name))
    if not usable:
        return []
    if usable[0][0] == "parquet":
        usable = sorted(
            {("parquet", posixpath.dirname(place), posixpath.dirname(name)) for _, place, name in usable}
        )
    alike = {re.sub(SPLITS, "", re.sub(r"-\d+-of-\d+", "", name.lower())) for _, _, name in usable}
    in_folders = len({posixpath.dirname(name) for _, _, name in usable}) == len(usable) > 1
    is_metadata = in_folders and all(_base(name).startswith("metadata.") for _, _, name in usable)
    if len(usable) > 1 and len(alike) > 1 and not is_metadata:
        captions = [item for item in usable if item[0] == "coco"]
        if len(captions) == 1:
            return [captions[0][:2]]
        names = ", ".join(place for _, place, _ in usable[:8])
        raise SourceError(
            f"{address} has several lists of images with captions: {names}. Set data.path to one of them"
        )
    return [(kind, place) for kind, place, _ in usable]


def _coco(place: str) -> str:
    """The kind of a COCO file with captions; SourceError for one of boxes."""
    for row in CocoSource(place).rows():
        if row.captions:
            return "coco"
    raise SourceError(f"{place} has no captions. Use the file of captions, not of boxes or persons")


# ---- columns


def _with_columns(part: dict, place: str) -> dict:
    """The settings with the columns, the delimiter and the folder of the images, where they are not set."""
    try:
        found = _columns(part, place)
    except InvalidInput:
        found = {}
    return {**part, **{name: value for name, value in found.items() if not part.get(name) and value}}


def _columns(part: dict, place: str) -> dict:
    """The settings that the content of a list suggests; {} if it cannot be read, which its class then explains."""
    kind = part["source"]
    if kind == "folder":
        return {}
    if kind == "webdataset":
        return _json_keys(place)
    if kind == "parquet":
        return _parquet_columns(part, place)
    folder, name = open_parent_folder(place)
    if folder.kind(name) != "file":
        return {}
    found = {}
    if kind == "csv":
        found = _csv_columns(folder, name, part)
    elif kind == "jsonl":
        rows = [row for row in _sample(JsonLinesSource(place).records()) if isinstance(row, dict)]
        found = _pick(list(dict.fromkeys(key for row in rows for key in row)), rows, place)
    part = {**found, **{name: value for name, value in part.items() if value}}
    if "image_folder" not in part and (image_folder := _image_folder(folder, name, part, place)):
        found["image_folder"] = image_folder
    return found


def _sample(records: Iterable[tuple[str, object]]) -> list:
    return [values for _, values in itertools.islice(records, SAMPLE)]


def _pick(names: Sequence[str], rows: list[dict], place: str) -> dict:
    """The columns of images and of captions by their names, else by their content; SourceError if there are only URLs."""
    lower = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
    values = {name: [row.get(name) for row in rows if row.get(name)] for name in names}
    urls = [name for name in names if _are(values[name], lambda value: "://" in str(value))]
    paths = [name for name in names if name not in urls and _are(values[name], _is_image_name)]
    by_name = [lower[word] for word in IMAGES if word in lower and lower[word] not in urls]
    image = next((name for name in by_name if name in paths), None) or next(iter(paths), None)
    image = image or next((name for name in by_name if _base(name) not in ("id", "name", "image_id")), None)
    captions = [lower[word] for word in CAPTIONS if word in lower and lower[word] != image]
    texts = [name for name in names if name not in (image, *urls, *paths) and _are(values[name], _has_words)]
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
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, str) and re.search(r"[^\W\d_]", value) is not None and "://" not in value


def _csv_columns(folder: Folder, name: str, part: dict) -> dict:
    """Delimiter, header (or names for a table without one) and columns, from the first lines."""
    lines = [line for _, line in itertools.islice(lines_of(folder, name), SAMPLE) if line and line.strip()]
    texts = [line.decode("utf-8", "replace").rstrip("\r\n") for line in lines]
    default = part.get("delimiter") or ("\t" if name.lower().endswith((".tsv", ".tab")) else None)
    place, problem = folder.address_of(name), None
    for delimiter in [default] if default else [",", "\t", ";", "|"]:
        found = {} if delimiter in (part.get("delimiter"), ",") or default else {"delimiter": delimiter}
        rows = _split(texts, delimiter)
        if not rows or len(rows[0]) < 2:
            continue
        header = list(part.get("columns") or [field.strip() for field in rows[0]])
        if not part.get("columns") and any(map(_is_image_name, rows[0])):
            header = _names(rows[0])
            found["columns"] = tuple(header)
        start = not (part.get("columns") or "columns" in found)
        records = [dict(zip(header, row, strict=False)) for row in rows[start:]]
        try:
            columns = _pick(header, records, place)
        except SourceError as error:
            problem = error
            continue
        if columns["image_column"] and columns["caption_column"]:
            return {**columns, **found}
    if problem and not part.get("image_column"):
        raise problem
    return {}


def _split(texts: list[str], delimiter: str) -> list[list[str]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        return [row for row in csv.reader(texts, delimiter=delimiter, quoting=quoting) if row]
    except csv.Error:
        return []


def _names(row: list[str]) -> list[str]:
    """Names for the fields of a table without a header: ["a.jpg", "0", "a cat"] -> ["image", "column2", "caption"]."""
    image = next(number for number, field in enumerate(row) if _is_image_name(field))
    caption = max(
        (number for number in range(len(row)) if number != image), key=lambda number: len(row[number])
    )
    names = {image: "image", caption: "caption"}
    return [names.get(number, f"column{number + 1}") for number in range(len(row))]


def _json_keys(place: str) -> dict:
    """The key of the captions in a WebDataset whose samples have a .json and no .txt."""
    try:
        records = WebDatasetSource(place).first_records(SAMPLE)
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


# ---- places


def _folder_with(address: str, kind: str) -> str:
    """The folder, or the one folder below it that has the files: a clone of a hub's data set has them in data/."""
    suffix = {"parquet": "parquet", "webdataset": "tar"}[kind]
    parent, name = open_parent_folder(address.rstrip("/"))
    if parent.kind(name) != "folder":
        return address
    folders = {
        posixpath.dirname(name)
        for name in open_folder(address).walk(MAX_FOLDERS)
        if suffix_of(name) == suffix
    }
    if "" in folders or not folders:
        return address
    if len(folders) > 1:
        raise SourceError(
            f"{address} has .{suffix} files in several folders: {', '.join(sorted(folders)[:8])}. Set data.path to one"
        )
    return posixpath.join(address, folders.pop())


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
    others = (name, name.replace("\\", "/"), re.sub(r"#\d+$", "", name))
    return any(folder.kind(posixpath.join(path, other)) == "file" for other in others)


def _image_names(part: dict, place: str) -> Iterator[str]:
    """The first image names of a list."""
    settings = {name: part[name] for name in ("image_column", "caption_column") if part.get(name)}
    if part["source"] == "coco":
        source = CocoSource(place)
    elif part["source"] == "csv":
        settings |= {name: part[name] for name in ("delimiter", "columns") if part.get(name)}
        source = CsvSource(place, **settings)
    else:
        source = JsonLinesSource(place, **settings)
    try:
        for row in itertools.islice(source.rows(), SAMPLE):
            if row.problem is None:
                yield row.image
    except SourceError:
        return
