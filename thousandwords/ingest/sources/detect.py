"""What kind of data lies at a path (`data.source: auto`); `columns` finds the columns of a list.

Only names and a few rows are read; the class of the kind then checks the rest. A set setting is never changed.
"""

import contextlib
import itertools
import json
import posixpath
import re
from collections.abc import Sequence

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources import open_kind
from thousandwords.ingest.sources.archive import ARCHIVES, ArchiveFolder
from thousandwords.ingest.sources.base import IMAGE_SUFFIXES, OTHER_IMAGES, SourceError, suffix_of
from thousandwords.ingest.sources.coco import CocoSource
from thousandwords.ingest.sources.columns import MAX_FOLDERS, base_of, columns_of, with_columns
from thousandwords.ingest.sources.filesystem import check_not_pointer, open_folder, open_parent_folder
from thousandwords.ingest.sources.folder import IMAGE_FOLDERS, TEXT_FOLDERS, TEXT_SUFFIXES, parallel_folders
from thousandwords.ingest.sources.local_folder import Folder
from thousandwords.ingest.sources.tar_index import split_name, tar_members

TABLES = {
    "csv": "csv",
    "tsv": "csv",
    "tab": "csv",
    "txt": "csv",
    "token": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
}
TABLES |= {"json": "jsonl", "parquet": "parquet"}
MEANINGS = {"folder": "a folder of images with texts beside them", "webdataset": "WebDataset tars"}
MEANINGS |= {"csv": "a table", "jsonl": "a list in JSON", "parquet": "Parquet", "coco": "COCO captions"}
DETECTED = ("image_column", "caption_column", "image_folder", "delimiter", "columns")
SPLITS = r"(^|(?<=[/._-]))(training|train|validation|valid|val|dev|test)[0-9]*(?=[/._-]|$)"
PACKED = (".zst", ".7z", ".rar", ".gz", ".xz", ".bz2")
UNPACK = "is packed in a way that is not read. Unpack it, and set data.path to the folder"
SPREADSHEETS = ("xlsx", "xls", "ods")
MAX_TABLES = 40  # that are looked at
FORMS = "images (PNG, JPEG, WebP, GIF, BMP, TIFF) with a .txt beside each, a table (.csv, .tsv, .jsonl, .json, .parquet), WebDataset tars or COCO captions"


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
    parts = [with_columns({**settings, "source": kind, where: place}, place) for kind, place in places]
    changed = [part for part in parts if part != settings]
    return parts, "; ".join(describe(part, part[where], settings) for part in changed)


def describe(part: dict, place: str, settings: dict) -> str:
    """ "data: a/t.csv is a table (csv), images in column 'file_name', in folder images, captions in column 'text'"."""
    found = [name for name in DETECTED if part.get(name) and part[name] != settings.get(name)]
    more = "".join(f", {name} {part[name]!r}" for name in found)
    return f"{place} is {MEANINGS[part['source']]} (source {part['source']}){more}"


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
    fix = "Set it to your folder, table or archive"
    if folder.kind(f"{posixpath.basename(address)}.dvc"):
        fix = f"Run: dvc pull {address}.dvc"
    return f"{folder.setting}: there is nothing at {address}. {fix}"


def _is_archive(folder: Folder, name: str) -> bool:
    """Whether a file is to be read like a folder: a zip, a compressed tar, or a tar that is no WebDataset."""
    if not name.lower().endswith(ARCHIVES):
        return False
    check_not_pointer(folder, name)
    if isinstance(folder, ArchiveFolder):
        raise SourceError(
            f"{folder.address_of(name)} is an archive inside an archive. Unpack the outer one, and set data.path to "
            "the folder"
        )
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
    if name.lower().endswith(PACKED):
        raise SourceError(f"{address} {UNPACK}")
    raise SourceError(f"{address} is no source of captioned images. They can be: {FORMS}")


def _arrow(address: str) -> str:
    return (
        f"{address} is an Arrow file, as the library datasets stores it for itself. Write Parquet instead: "
        'datasets.load_from_disk(FOLDER).to_parquet("own.parquet"), then set data.path to that file'
    )


def _is_coco(folder: Folder, name: str) -> bool:
    """Whether a .json has COCO's lists; of a large one the first bytes decide."""
    if folder.size(name) > 20_000_000:
        head = folder.head(name)
        is_karpathys = b'"sentids"' in head or b'"sentences"' in head
        return (b'"images"' in head or b'"info"' in head) and not is_karpathys
    with folder.local_copy(name) as path, open(path, "rb") as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError):
            return False
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    return all(isinstance(values, list) for values in lists)


def _find_in_folder(folder: Folder, address: str) -> list[tuple[str, str]]:
    """What is in a folder, in this order: metadata.*, texts beside images, tars, tables, Parquet, one archive."""
    try:
        links = [entry.name for entry in folder.entries() if entry.is_link]
    except InvalidInput as problem:
        raise SourceError(f"{address} {problem.detail}") from problem
    files = list(folder.walk(MAX_FOLDERS))
    suffixes: dict[str, list[str]] = {}
    for name in files:
        suffixes.setdefault(suffix_of(name), []).append(name)
    images = [name for suffix in IMAGE_SUFFIXES for name in suffixes.get(suffix, ())]
    others = [name for suffix in OTHER_IMAGES for name in suffixes.get(suffix, ())]
    stems = {name.rpartition(".")[0] for name in (*images, *others)}
    stems |= {*images, *others}  # cat.txt or cat.png.txt
    texts = [name for suffix in (*TEXT_SUFFIXES, "json") for name in suffixes.get(suffix, ())]
    text_stems = {name.rpartition(".")[0] for name in texts}
    for stem in [*text_stems]:  # captions/cat.txt is of images/cat.png
        place, name = posixpath.split(stem)
        places = parallel_folders(place, TEXT_FOLDERS, IMAGE_FOLDERS)
        text_stems |= {posixpath.join(place, name) for place in places}
    num_pairs = len(text_stems & stems)
    lists = [name for name in files if suffix_of(name) in TABLES and name.rpartition(".")[0] not in stems]
    problems: list[str] = []

    if metadata := _metadata(lists):
        return _tables(folder, address, metadata, problems) or _refuse(address, problems)
    if num_pairs and 4 * num_pairs >= len(stems):
        return [("folder", address)]
    if tars := suffixes.get("tar"):
        check_not_pointer(folder, tars[0])
        if _is_webdataset(folder, tars[0]):
            places = dict.fromkeys(posixpath.dirname(name) for name in tars)
            return [("webdataset", posixpath.join(address, place).rstrip("/")) for place in places]
    parquet = [name for name in lists if suffix_of(name) == "parquet"]
    tables = [name for name in lists if suffix_of(name) != "parquet"]
    for names in (parquet, sorted(tables, key=lambda name: ("caption" not in name.lower(), name))):
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
    tables = [name for name in lists if suffix_of(name) not in ("txt", "token", "json")]
    if len(tables) == 1 and not (images or problems):  # its class says what it lacks
        return [(TABLES[suffix_of(tables[0])], posixpath.join(address, tables[0]))]
    if links and not files:
        raise SourceError(
            f"{address} has only links to folders, like {links[0]}, which are not followed. Set data.path to the folder "
            "itself"
        )
    return _refuse(address, problems, images, files)


def _why_no_table(name: str) -> str:
    if suffix_of(name) == "gz":
        return "is packed: unpack it first (gunzip)"
    if suffix_of(name) in SPREADSHEETS:
        return "is a spreadsheet: save it as CSV, with these columns"
    return "is no such table"


def _refuse(address: str, problems: list[str], images: Sequence = (), files: Sequence = ()) -> list:
    if problems:
        raise SourceError(problems[0])
    if images:
        lists = [name for name in files if suffix_of(name) in (*TABLES, *SPREADSHEETS, "gz")]
        lists = [name for name in lists if "caption" in name.lower() or suffix_of(name) != "txt"]
        raise SourceError(
            f"{address} has {len(images)} images, like {images[0]}, but no captions. Put a text of the same name "
            "beside each, like cat.txt beside cat.png, or a table metadata.csv with the columns file_name,text"
            + "".join(f". {name} {_why_no_table(name)}" for name in lists[:1])
        )
    if packed := [name for name in files if name.lower().endswith(PACKED)]:
        raise SourceError(f"{posixpath.join(address, packed[0])} {UNPACK}")
    found = f"only files like {files[0]}" if files else "no files"
    raise SourceError(f"{address} has no captioned images, {found}. They can be: {FORMS}")


def _metadata(lists: list[str]) -> list[str]:
    """The metadata.csv, .jsonl, .json or .parquet of an imagefolder, one for each folder."""
    order = [f"metadata.{suffix}" for suffix in ("jsonl", "csv", "json", "tsv", "parquet")]
    best: dict[str, str] = {}
    for name in sorted(lists, key=lambda name: order.index(base) if (base := base_of(name)) in order else 0):
        if base_of(name) in order:
            best.setdefault(posixpath.dirname(name), name)
    return sorted(best.values())


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
            columns = columns_of({"source": kind, "path": place}, place)
        except (SourceError, InvalidInput) as error:
            problems.append(str(error))
            continue
        if columns.get("image_column") and columns.get("caption_column"):
            usable.append((kind, place, name))
        elif columns.get("image_column") or base_of(name).startswith("metadata."):
            with contextlib.suppress(InvalidInput):
                problems.append(_why_unusable(kind, place, columns))
    if not usable:
        return []
    if usable[0][0] == "parquet":
        usable = sorted(
            {("parquet", posixpath.dirname(place), posixpath.dirname(name)) for _, place, name in usable}
        )
    alike = {re.sub(SPLITS, "", re.sub(r"-\d+-of-\d+", "", name.lower())) for _, _, name in usable}
    in_folders = len({posixpath.dirname(name) for _, _, name in usable}) == len(usable) > 1
    is_metadata = in_folders and all(base_of(name).startswith("metadata.") for _, _, name in usable)
    if len(usable) > 1 and len(alike) > 1 and not is_metadata:
        captions = [item for item in usable if item[0] == "coco"]
        if len(captions) == 1:
            return [captions[0][:2]]
        names = ", ".join(place for _, place, _ in usable[:8])
        raise SourceError(
            f"{address} has several lists of images with captions: {names}. Set data.path to one of them"
        )
    return [(kind, place) for kind, place, _ in usable]


def _why_unusable(kind: str, place: str, columns: dict) -> str:
    """What the class of the kind says of a list without a column of images or of captions."""
    try:
        open_kind({"source": kind, "url": None, "path": place, **columns}).check()
    except SourceError as error:
        return str(error)
    return f"{place} has no column of captions with a name. Name it in the header"


def _coco(place: str) -> str:
    """The kind of a COCO file with captions; SourceError for one of boxes."""
    for row in CocoSource(place).rows():
        if row.captions:
            return "coco"
    raise SourceError(f"{place} has no captions. Use the file of captions, not of boxes or persons")


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
