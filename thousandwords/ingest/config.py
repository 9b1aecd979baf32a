"""The section `data` of params.yaml: which pictures, what is left out, what is kept. Every setting is checked once, at birth."""
from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from thousandwords import captions
from thousandwords.duplicates import MOST_BITS
from thousandwords.images import WHITE
from thousandwords.sources import KINDS

SOURCE_SETTINGS = ("url", "version", "recaption_column", "recaption_share", "sha256_column", "image_folder", "licence", "origin",
                   "sources")
TWIN_SETTINGS = ("near_duplicates", "near_duplicate_distance", "near_duplicate_colour")
CAPTION_SETTINGS = ("min_caption_words", "boilerplate", "language", "language_margin")


@dataclass(frozen=True)
class SceneCounts:
    """How many scenes to draw."""

    count: int = 20_000              # for training
    validation_count: int = 1_000
    unseen_count: int = 1_000        # with a pair of colour and shape that training never shows

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("validation_count", 1), ("unseen_count", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.scenes.{name} is {getattr(self, name)}; it needs {least} or more")

    def by_split(self) -> dict[str, int]:
        return {"train": self.count, "validation": self.validation_count, "unseen": self.unseen_count}


@dataclass(frozen=True)
class PartConfig:
    """One source of a mixture: an entry of `data.sources`. What it leaves out is as `data` says."""

    source: Literal["folder", "csv", "webdataset", "jsonl", "parquet", "coco"]
    path: str                            # or a URL
    weight: float | None = None          # its share of what training sees, against the other weights; inputs come in once
    licence: str | None = None           # both kept with every row
    origin: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    recaption_column: str | None = None
    sha256_column: str | None = None
    image_folder: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data.sources: path is empty; it needs a path or a URL")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"data.sources: weight is {self.weight}; it needs to be a number above 0")
        _check_known(self, "data.sources: ", self.source)


@dataclass(frozen=True)
class Config:
    """The section `data` of params.yaml."""

    source: Literal["scenes", "folder", "csv", "webdataset", "jsonl", "parquet", "coco", "mixture"] = "scenes"
    path: str = "data/own"             # the folder, the file, or the tars; DVC watches it
    url: str | None = None             # where they lie instead, as fsspec knows it (s3://bucket/prefix); DVC can't watch it
    version: str | None = None         # any text; a new one has a URL, or what DVC does not watch, read again
    image_size: int = 64               # pixels a side of the square that models see
    keep: Literal["square", "whole"] = "square"    # what shards hold: that square, or the picture for random crops
    keep_side: int | None = None       # whole: a longer short side is shrunk to this; the paper's crops need 12/8 image_size
    validation_share: float = 0.05     # of the groups, held out by a hash of the group
    group_by: str | None = None        # regular expression; captions that agree in its group 1 share a split
    background: tuple[int, int, int] = WHITE    # behind transparent pixels
    min_side: int = 32                 # pixels; smaller pictures are left out
    max_aspect: float = 3.0            # long side / short side; the square crop would lose more
    min_caption_words: int = 0         # shorter captions are dropped (paper, appendix C; the number is ours); words end at blanks
    boilerplate: tuple[str, ...] = ()  # regular expressions; a caption in which one is found, lower-cased, is dropped
    language: str | None = None        # like en; captions in another are dropped, as far as py3langid can tell
    language_margin: float = 0.2       # dropped only if another language is likelier by more; of 1
    near_duplicates: Literal["none", "hash"] = "none"    # hash: of pictures that look the same the first stays
    near_duplicate_distance: int | None = 4    # bits of 64 that their hashes differ by at most; null: as the data say, read twice
    near_duplicate_colour: int = 24    # of 255 that a cell of 8 × 8 differs by at most; new encodings, sizes and light stay below
    max_refused_share: float = 0.2     # of the inputs that the caption filters leave; beyond it preparing stops
    rows_per_shard: int = 4096
    workers: int = 0                   # processes that decode; 0: one a core. What is written does not depend on it
    image_column: str = "image"        # csv, jsonl, parquet
    caption_column: str = "caption"    # csv, jsonl, parquet; also the key in the JSON of a WebDataset
    recaption_column: str | None = None    # the same, of a second text: what a machine wrote of the picture
    recaption_share: float = 0.0       # of the pairs, drawn by a hash of the key: these are trained on the second text alone
    sha256_column: str | None = None   # csv, jsonl, parquet, webdataset: the digest of the picture's file, checked where given
    delimiter: str | None = None       # csv; by default a tab in .tsv, a comma elsewhere
    image_folder: str | None = None    # csv, jsonl, parquet, coco: where pictures lie, from the list's folder; by default there
    licence: str | None = None         # both kept with every row
    origin: str | None = None
    sources: tuple[PartConfig, ...] = ()    # of a mixture; without weights training sees every pair once an epoch
    scenes: SceneCounts = field(default_factory=SceneCounts)

    def __post_init__(self) -> None:
        least_values = (("image_size", 8), ("min_side", 1), ("rows_per_shard", 1), ("max_aspect", 1), ("workers", 0))
        for name, least in least_values:
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it needs to be {least} or more")
        for name in ("path", "image_column", "caption_column"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty; it needs a name")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"data.validation_share is {self.validation_share}; it lies between 0 and 1")
        if not 0 <= self.max_refused_share <= 1:
            raise ValueError(f"data.max_refused_share is {self.max_refused_share}; it lies between 0 and 1")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"data.background is {self.background}; it is red, green, blue from 0 to 255")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"data.delimiter is {self.delimiter!r}; it is one character, like ';' or a tab")
        self._check_sources()
        self._check_recaptions()
        self._check_keep_side()
        _check_group_by(self.group_by)
        self._check_caption_filters()
        self._check_near_duplicates()

    @property
    def drops_near_duplicates(self) -> bool:
        return self.near_duplicates == "hash" and self.source != "scenes"

    @property
    def caption_rules(self) -> captions.Rules:
        """What is asked of captions; of scenes nothing."""
        if self.source == "scenes":
            return captions.Rules()
        return captions.Rules(self.min_caption_words, self.boilerplate, self.language, self.language_margin)

    @property
    def place(self) -> str:
        """Where the pictures come from, for messages."""
        if self.source == "mixture":
            return f"data.sources ({', '.join(part.path for part in self.sources)})"
        return self.source if self.source == "scenes" else self.url or self.path

    def _check_sources(self) -> None:
        if self.sources and self.source != "mixture":
            raise ValueError(f"data.sources is given, but data.source is {self.source}. "
                             "Set data.source: mixture, or take data.sources away")
        if self.source != "mixture":
            _check_known(self, "data.", self.source)
        elif not self.sources:
            raise ValueError("data.source is mixture, but data.sources is empty. List the sources there")
        elif self.url or self.licence or self.origin:
            raise ValueError("data.url, data.licence and data.origin are of one source, but data.source is mixture. "
                             "Say them of each source in data.sources")
        if len({part.weight is None for part in self.sources}) > 1:
            raise ValueError("some of data.sources have a weight and some have none. Give each one, or none")
        if self.url is not None and "://" not in self.url:
            raise ValueError(f"data.url is {self.url!r}, no URL like s3://bucket/folder. For a folder here, set data.path")

    def _check_recaptions(self) -> None:
        if not 0 <= self.recaption_share <= 1:
            raise ValueError(f"data.recaption_share is {self.recaption_share}; it lies between 0 and 1")
        has_column = self.recaption_column or any(part.recaption_column for part in self.sources)
        if self.recaption_share and not has_column:
            raise ValueError(f"data.recaption_share is {self.recaption_share}, but data.recaption_column names no second text. "
                             "Name it, or set the share to 0")

    def _check_caption_filters(self) -> None:
        if self.min_caption_words < 0:
            raise ValueError(f"data.min_caption_words is {self.min_caption_words}; it needs to be 0 (off) or more")
        captions.check_boilerplate(self.boilerplate)
        if self.language is not None and not re.fullmatch("[a-z]{2,3}", self.language):
            raise ValueError(f"data.language is {self.language!r}; it is a code of two or three letters, like en")
        if not 0 <= self.language_margin < 1:
            raise ValueError(f"data.language_margin is {self.language_margin}; it lies between 0 and 1")

    def _check_near_duplicates(self) -> None:
        for name, most in (("distance", MOST_BITS), ("colour", 255)):
            value = getattr(self, f"near_duplicate_{name}")
            if value is not None and not 0 <= value <= most:
                raise ValueError(f"data.near_duplicate_{name} is {value}; it lies between 0 and {most}")

    def _check_keep_side(self) -> None:
        if self.keep_side is not None and self.keep == "square":
            raise ValueError(f"data.keep_side is {self.keep_side}, but data.keep is square, of image_size. Set data.keep: whole")
        if self.keep_side is not None and self.keep_side < self.image_size:
            raise ValueError(f"data.keep_side is {self.keep_side}; it needs to be data.image_size ({self.image_size}) or more")


def _check_known(settings: Config | PartConfig, name: str, kind: str) -> None:
    """ValueError where a setting is given that this kind of source does not read."""
    known = KINDS[kind].settings if kind in KINDS else ()
    for setting in ("recaption_column", "sha256_column", "image_folder"):
        if getattr(settings, setting) is not None and setting not in known:
            able = ", ".join(other for other, source in KINDS.items() if setting in source.settings)
            raise ValueError(f"{name}{setting} is given, but {kind} knows no such thing. Take it away; it is for {able}")


def _check_group_by(group_by: str | None) -> None:
    try:
        if group_by is not None and re.compile(group_by).groups < 1:
            raise ValueError(f"data.group_by is {group_by!r}; it needs a group in (), like ^([^:]*)")
    except re.error as error:
        raise ValueError(f"data.group_by is {group_by!r}, no regular expression: {error}") from error


def settings_in_use(config: Config) -> dict:
    """All settings but the workers and those of what is off (whole pictures, filters, near duplicates, …): as they ever were."""
    off = ("workers",) if config.keep == "whole" else ("workers", "keep", "keep_side")
    off += () if config.caption_rules else CAPTION_SETTINGS
    off += () if config.drops_near_duplicates else TWIN_SETTINGS
    off += tuple(name for name in SOURCE_SETTINGS if not getattr(config, name))
    return {key: value for key, value in asdict(config).items() if key not in off}
