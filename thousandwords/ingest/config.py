"""The section `data` of params.yaml: source, filters and stored form; each setting is checked once."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from thousandwords.core.config import check_minimums
from thousandwords.data.image_decoding import WHITE
from thousandwords.ingest import caption_filter
from thousandwords.ingest.perceptual_hash import MAX_BITS
from thousandwords.ingest.sources import KINDS

SOURCE_SETTINGS = ("url", "version", "recaption_column", "recaption_share", "sha256_column")
SOURCE_SETTINGS += ("image_folder", "licence", "origin", "sources", "link_roots", "columns")
NEAR_DUPLICATE_SETTINGS = ("near_duplicates", "near_duplicate_distance", "near_duplicate_color")
CAPTION_SETTINGS = ("min_caption_words", "boilerplate", "language", "language_margin")


@dataclass(frozen=True)
class SceneCounts:
    """How many scenes to render."""

    count: int = 20_000  # for training
    validation_count: int = 1_000
    unseen_count: int = 1_000  # with combinations of color and shape that are not in training
    thin_share: float = (
        0.0  # of the training captions name one attribute only, as many captions of the web do
    )

    def __post_init__(self) -> None:
        for name, minimum in (("count", 1), ("validation_count", 1), ("unseen_count", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"data.scenes.{name} is {getattr(self, name)}; it needs {minimum} or more")
        if not 0 <= self.thin_share <= 1:
            raise ValueError(f"data.scenes.thin_share is {self.thin_share}; it lies between 0 and 1")

    def by_split(self) -> dict[str, int]:
        return {"train": self.count, "validation": self.validation_count, "unseen": self.unseen_count}


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture: an entry of `data.sources`. Absent keys have their value in `data`."""

    source: Literal["folder", "csv", "webdataset", "jsonl", "parquet", "coco", "auto"]
    path: str  # or a URL
    weight: float | None = None  # relative to the other sources: how often training reads it
    licence: str | None = None  # stored with each row, as is the origin
    origin: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    recaption_column: str | None = None
    sha256_column: str | None = None
    image_folder: str | None = None
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data.sources: path is empty; it needs a path or a URL")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"data.sources: weight is {self.weight}; it needs to be a number above 0")
        _check_supported(self, "data.sources: ", self.source)


@dataclass(frozen=True)
class DataConfig:
    """The section `data` of params.yaml."""

    source: Literal[
        "scenes", "folder", "csv", "webdataset", "jsonl", "parquet", "coco", "mixture", "auto"
    ] = "scenes"  # auto: by what is found at the path
    path: str = "data/own"  # the folder, the file, or the tars; a DVC dependency
    url: str | None = None  # instead of path: a URL for fsspec (s3://bucket/prefix); not tracked by DVC
    version: str | None = None  # any text; a new value has untracked data, like a URL, read again
    image_size: int = 64  # pixels per side of the square that models see
    keep: Literal["square", "whole"] = "square"  # what shards store: that square, or the image for crops
    keep_side: int | None = None  # whole: maximum of the short side; the paper's crops need 12/8 image_size
    validation_share: float = 0.05  # of the groups, selected by a hash of the group
    group_by: str | None = None  # regular expression; captions with the same group 1 get the same split
    background: tuple[int, int, int] = WHITE  # behind transparent pixels
    min_side: int = 32  # pixels; smaller images are left out
    max_aspect: float = 3.0  # long side / short side; the square crop of a longer image would lose too much
    min_caption_words: int = 0  # shorter captions are dropped (paper, appendix C, without a number)
    boilerplate: tuple[str, ...] = ()  # regular expressions; a caption that matches one (any case) is dropped
    language: str | None = None  # like en; captions in another language, by py3langid, are dropped
    language_margin: float = 0.2  # only if the other language is more probable by this
    near_duplicates: Literal["none", "hash"] = "none"  # hash: of similar images, only the first stays
    near_duplicate_distance: int | None = 4  # maximum, bits of 64; null: chosen from the data
    near_duplicate_color: int = 24  # maximum, of 255, per cell of 8 × 8; re-encoding stays below
    max_refused_share: float = 0.2  # of the inputs that caption filters leave; above it, an error
    rows_per_shard: int = 4096
    workers: int = 0  # processes that decode; 0: one per core. The written bytes do not depend on it
    image_column: str | None = None  # csv, jsonl, parquet; null: found by names and content
    caption_column: str | None = None  # the same; also the key in the JSON of a WebDataset
    recaption_column: str | None = None  # the same, for a second caption, for example of a captioning model
    recaption_share: float = 0.0  # of the pairs, by a hash of the key: trained on the second caption only
    sha256_column: str | None = None  # csv, jsonl, parquet, webdataset: of the image file, checked if set
    delimiter: str | None = None  # csv; by default a tab for .tsv, else a comma
    columns: tuple[str, ...] = ()  # csv: names of the columns of a table without a header
    caption_lines: Literal["separate", "joined"] = (
        "separate"  # folder, webdataset: joined: a text is one caption
    )
    image_folder: str | None = None  # csv, jsonl, parquet, coco: images, relative to the list
    link_roots: tuple[str, ...] = ()  # folders outside the source that links and paths in lists may lead to
    licence: str | None = None  # stored with each row, as is the origin
    origin: str | None = None
    sources: tuple[SourceConfig, ...] = ()  # of a mixture; without weights, an epoch has each pair once
    scenes: SceneCounts = field(default_factory=SceneCounts)

    def __post_init__(self) -> None:
        check_minimums(self, "data", image_size=8, min_side=1, rows_per_shard=1, max_aspect=1, workers=0)
        problem = next(self._problems(), None)
        if problem:
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        """What is wrong with the settings, each with the fix."""
        for name in ("path", "image_column", "caption_column"):
            if getattr(self, name) == "":
                yield f"data.{name} is empty; it needs a name"
        for name, maximum, is_valid in (
            ("validation_share", 1, 0 < self.validation_share < 1),
            ("max_refused_share", 1, 0 <= self.max_refused_share <= 1),
            ("recaption_share", 1, 0 <= self.recaption_share <= 1),
            ("language_margin", 1, 0 <= self.language_margin < 1),
            ("near_duplicate_distance", MAX_BITS, 0 <= (self.near_duplicate_distance or 0) <= MAX_BITS),
            ("near_duplicate_color", 255, 0 <= self.near_duplicate_color <= 255),
        ):
            if not is_valid:
                yield f"data.{name} is {getattr(self, name)}; it lies between 0 and {maximum}"
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            yield f"data.background is {self.background}; it is red, green, blue from 0 to 255"
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            yield f"data.delimiter is {self.delimiter!r}; it is one character, like ';' or a tab"
        yield from self._source_problems()
        has_column = self.recaption_column or any(source.recaption_column for source in self.sources)
        if self.recaption_share and not has_column:
            yield (
                f"data.recaption_share is {self.recaption_share}, but data.recaption_column is not set. "
                "Set it, or set the share to 0"
            )
        if self.keep_side is not None and self.keep == "square":
            yield f"data.keep_side is {self.keep_side}, but data.keep is square, of image_size. Set data.keep: whole"
        if self.keep_side is not None and self.keep_side < self.image_size:
            yield f"data.keep_side is {self.keep_side}; it needs to be data.image_size ({self.image_size}) or more"
        try:
            if self.group_by is not None and re.compile(self.group_by).groups < 1:
                yield f"data.group_by is {self.group_by!r}; it needs a group in (), like ^([^:]*)"
        except re.error as error:
            yield f"data.group_by is {self.group_by!r}, not a regular expression: {error}"
        if self.min_caption_words < 0:
            yield f"data.min_caption_words is {self.min_caption_words}; it needs to be 0 (off) or more"
        caption_filter.check_boilerplate(self.boilerplate)
        if self.language is not None and not re.fullmatch("[a-z]{2,3}", self.language):
            yield f"data.language is {self.language!r}; it is a code of two or three letters, like en"

    def _source_problems(self) -> Iterator[str]:
        if self.sources and self.source != "mixture":
            yield f"data.sources is set, but data.source is {self.source}. Set data.source: mixture, or remove data.sources"
        if self.source != "mixture":
            _check_supported(self, "data.", self.source)
        elif not self.sources:
            yield "data.source is mixture, but data.sources is empty. List the sources there"
        elif self.url or self.licence or self.origin:
            yield (
                "data.url, data.licence and data.origin are for a single source, but data.source is mixture. "
                "Set them for each source in data.sources"
            )
        if len({source.weight is None for source in self.sources}) > 1:
            yield "some of data.sources have a weight and some do not. Set it for all, or for none"
        if self.url is not None and "://" not in self.url:
            yield f"data.url is {self.url!r}, not a URL like s3://bucket/folder. For a local folder, set data.path"

    @property
    def drops_near_duplicates(self) -> bool:
        return self.near_duplicates == "hash" and self.source != "scenes"

    @property
    def caption_rules(self) -> caption_filter.CaptionRules:
        """The caption filters; none for scenes."""
        if self.source == "scenes":
            return caption_filter.CaptionRules()
        return caption_filter.CaptionRules(
            self.min_caption_words, self.boilerplate, self.language, self.language_margin
        )

    @property
    def weights(self) -> list[float]:
        """The weights of the sources of a mixture; empty if they have none."""
        return [source.weight for source in self.sources if source.weight is not None]

    @property
    def source_name(self) -> str:
        """The source as messages name it."""
        if self.source == "mixture":
            return f"data.sources ({', '.join(source.path for source in self.sources)})"
        return self.source if self.source == "scenes" else self.url or self.path


def _check_supported(settings: DataConfig | SourceConfig, name: str, kind: str) -> None:
    """Raise ValueError if a setting is present that this kind of source does not read."""
    if kind == "auto":
        return
    supported = KINDS[kind].settings if kind in KINDS else ()
    for setting in ("recaption_column", "sha256_column", "image_folder"):
        if getattr(settings, setting) is not None and setting not in supported:
            kinds = ", ".join(other for other, source in KINDS.items() if setting in source.settings)
            raise ValueError(
                f"{name}{setting} is set, but source {kind} does not support it. Remove it; it is for {kinds}"
            )


def active_settings(config: DataConfig) -> dict:
    """The settings that change what is written; those of unused features are left out, so manifests stay as they are."""
    settings = asdict(config)
    if not config.scenes.thin_share:
        del settings["scenes"]["thin_share"]
    unused = ["workers", *(name for name in SOURCE_SETTINGS if not settings[name])]
    if config.keep != "whole":
        unused += ["keep", "keep_side"]
    if not config.caption_rules:
        unused += CAPTION_SETTINGS
    if not config.drops_near_duplicates:
        unused += NEAR_DUPLICATE_SETTINGS
    if config.caption_lines == "separate":
        unused += ["caption_lines"]
    settings["image_column"], settings["caption_column"] = (
        config.image_column or "image",
        config.caption_column or "caption",
    )
    return {name: value for name, value in settings.items() if name not in unused}
