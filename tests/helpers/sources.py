"""Small data sets: a folder, the same images in every kind of source, and settings for them and for scenes."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.images import noise, png, write, write_tar
from thousandwords.data.images import encode_png
from thousandwords.ingest import sources
from thousandwords.ingest.config import DataConfig, SceneCounts


def pixels(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return noise(height, width, seed)


def write_folder(folder: Path, count: int = 12) -> Path:
    """Images 000.png, …, each with two captions."""
    for index in range(count):
        caption = f"image {index}\nnumber {index}"
        write(folder, {f"{index:03d}.png": encode_png(pixels(index)), f"{index:03d}.txt": caption})
    return folder


def folder_config(folder: Path, **settings) -> DataConfig:
    settings = {"image_size": 16, "validation_share": 0.3, **settings}
    return DataConfig(source="folder", path=str(folder), **settings)


def scenes_config(count: int = 10, **settings) -> DataConfig:
    return DataConfig(scenes=SceneCounts(count, 4, 3), **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


READERS = {
    "folder": lambda root: sources.FolderSource(f"{root}/folder"),
    "csv": lambda root: sources.CsvSource(f"{root}/folder/t.csv"),
    "jsonl": lambda root: sources.JsonLinesSource(f"{root}/lists/l.jsonl", image_folder="../folder"),
    "coco": lambda root: sources.CocoSource(f"{root}/lists/c.json", image_folder="../folder"),
    "parquet": lambda root: sources.ParquetSource(f"{root}/parquet"),
    "parquet of paths": lambda root: sources.ParquetSource(
        f"{root}/lists/p.parquet", image_folder="../folder"
    ),
    "webdataset": lambda root: sources.WebDatasetSource(f"{root}/tars"),
    "one tar": lambda root: sources.WebDatasetSource(f"{root}/tars/b.tar"),
    "tars by a pattern": lambda root: sources.WebDatasetSource(f"{root}/tars/*.tar"),
}


def write_sources(root: Path) -> Path:
    """The same few images in each form, with some bad inputs."""
    write(
        root / "folder",
        {
            "a.png": png(1),
            "a.txt": "a cat\ntwo",
            "sub/b c é.png": png(2),
            "sub/b c é.txt": "a bee",
            "d.png": png(3),
            "lone.txt": "x",
            "z.png": b"",
            "z.txt": "z",
            ".hidden.png": b"",
            "t.csv": "image,caption\na.png,a cat\nsub/b c é.png,a bee\n../parquet/x.png,x\nsub,folder\ngone.png,x\n",
        },
    )
    lines = [{"image": "a.png", "caption": "a cat"}, {"image": "sub/b c é.png", "caption": ["a bee"]}]
    lines.append({"image": "../x.png"})
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}]
    captions = [(1, "a cat"), (2, "x"), (1, "a tom")]
    annotations = [{"image_id": identity, "caption": caption} for identity, caption in captions]
    coco = json.dumps({"images": images, "annotations": annotations})
    write(root / "lists", {"l.jsonl": "\n".join(map(json.dumps, lines)) + "\n{", "c.json": coco})
    for number, folder in enumerate(("parquet", "parquet", "lists")):
        image = pa.array(["a.png", "../up.png"]) if folder == "lists" else pa.array([png(number), None])
        (root / folder).mkdir(exist_ok=True)
        name = "p" if folder == "lists" else number
        table = pa.table({"image": image, "caption": pa.array(["a cat", "x"])})
        pq.write_table(table, root / folder / f"{name}.parquet")
    (root / "tars").mkdir()
    for number, name in enumerate("ba"):
        members = [("1.png", png(number)), ("1.txt", name), ("2.png", png(9)), ("3.txt", "x")]
        write_tar(root / f"tars/{name}.tar", members)
    write(root, {"tars/b_stats.json": '{"successes": 2}', "tars/notes.txt": "x"})
    return root


def copy_to(url: str, root: Path) -> str:
    files, path = fsspec.core.url_to_fs(url)
    for file in sorted(root.rglob("*")):
        if file.is_file():
            files.pipe_file(f"{path}/{file.relative_to(root).as_posix()}", file.read_bytes())
    return url


def everything(source: sources.Source) -> list[tuple]:
    return [
        (pair.key, pair.image, pair.captions, pair.provenance, pair.problem and pair.problem.reason)
        for pair in source
    ]


def assert_same_pairs(remote: sources.Source, local: sources.Source) -> None:
    assert everything(remote) == everything(local)
    assert everything(remote) == everything(remote)
