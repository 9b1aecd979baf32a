"""Pair shards: decode, check, quarantine, crop, split the pairs of a source; write them as Parquet.

`train-00000.parquet`, `validation-…` (and `unseen-…` for scenes) hold one row per pair, `quarantine.parquet`
one per refused input, with the reason. What goes in comes out or is counted: n_in = n_ok + n_quarantined +
n_duplicate + n_filtered, where "filtered" are sound inputs that a setting leaves out. `prepare` is a pure
function of one input and runs in worker processes, limited in time and memory, for foreign bytes may do anything to a decoder;
how many there are changes no byte of what is written. Left out: a second crop.

A copy (the same pixels under the same captions) is dropped, and on wish (`near_duplicates`) so is what looks the same: see
`duplicates`. Scenes are alike by design; of them copies alone are dropped.

Captions are filtered one by one, before the picture is decoded; a pair is filtered when none of its captions stays. Which
split a pair falls to is settled by what came in, so that a filter never moves what it leaves. Scenes are not filtered: their
captions and pictures are drawn as they should be.

A pair keeps the square that models see, or (`keep: whole`) the picture at its own shape, so that training can crop at random.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from thousandwords import captions
from thousandwords.duplicates import DUPLICATE_SCHEMA, DUPLICATES, MOST_BITS, Copies, Nearness, NearTwins, limits_by_chance
from thousandwords.errors import UserError
from thousandwords.files import MANIFEST, unit_hash, write_bytes, write_manifest
from thousandwords.images import WHITE, Refused, area_resize, decode_image, encode_png, fit_square
from thousandwords.pair_shards import PAIR_SCHEMA
from thousandwords.scenes import scene_pairs
from thousandwords.sources import KINDS, Mixture, Part, RawPair, Source, clean_captions, named, open_kind
from thousandwords.tables import table_bytes
from thousandwords.twins import Look, look_of
from thousandwords.workers import Fault, Limits, batches, cores, ordered_map

ROW_GROUP = 256    # rows
QUARANTINE = "quarantine.parquet"
LIMITS = Limits()    # of one picture
FILTERS = ("too_small", "bad_aspect", *captions.REASONS)    # reasons that lie in a setting, not in the input
SOURCE_SETTINGS = ("url", "version", "recaption_column", "recaption_share", "image_folder", "licence", "origin", "sources")
TWIN_SETTINGS = ("near_duplicates", "near_duplicate_distance", "near_duplicate_colour")
CAPTION_SETTINGS = ("min_caption_words", "boilerplate", "language", "language_margin")
QUARANTINE_SCHEMA = pa.schema([
    pa.field("id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("sha256", pa.string()),       # of the encoded picture, where it was read
    pa.field("byte_size", pa.int64()),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
])


class BadData(UserError):
    """The source can be read, but what it gave is not fit to train on."""


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
    licence: str | None = None           # both kept with every row
    origin: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    recaption_column: str | None = None
    image_folder: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data.sources: path is empty; it needs a path or a URL")
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
    delimiter: str | None = None       # csv; by default a tab in .tsv, a comma elsewhere
    image_folder: str | None = None    # csv, jsonl, parquet, coco: where pictures lie, from the list's folder; by default there
    licence: str | None = None         # both kept with every row
    origin: str | None = None
    sources: tuple[PartConfig, ...] = ()    # of a mixture
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
    for setting in ("recaption_column", "image_folder"):
        if getattr(settings, setting) is not None and setting not in known:
            able = ", ".join(other for other, source in KINDS.items() if setting in source.settings)
            raise ValueError(f"{name}{setting} is given, but {kind} knows no such thing. Take it away; it is for {able}")


def _check_group_by(group_by: str | None) -> None:
    try:
        if group_by is not None and re.compile(group_by).groups < 1:
            raise ValueError(f"data.group_by is {group_by!r}; it needs a group in (), like ^([^:]*)")
    except re.error as error:
        raise ValueError(f"data.group_by is {group_by!r}, no regular expression: {error}") from error


@dataclass(frozen=True)
class Pair:
    """One row of a pair shard, but for its split."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    provenance: str
    dropped: tuple[str, ...] = ()    # the reason of each caption that was filtered out; counted, no column of the shard
    is_recaptioned: bool = False     # counted, no column of the shard
    look: Look | None = None    # of the square that models see, where near duplicates are dropped; no column either


@dataclass(frozen=True)
class Refusal:
    """One row of the quarantine table."""

    id: str
    source: str
    sha256: str | None
    byte_size: int | None
    reason: str
    detail: str


# ---- one pair


def prepare(raw: RawPair, config: Config) -> Pair | Refusal:
    """A raw pair, its captions sifted, its picture decoded, flattened and fitted to what is kept; or why it can't be had.

    Raises MemoryError, which says as much of this process as of the picture.
    """
    try:
        if raw.problem:
            raise raw.problem
        fit, dropped = captions.sift(raw.captions, config.caption_rules)
        pixels = decode_image(raw.image, config.background, config.min_side, config.max_aspect)
        look = look_of(fit_square(pixels, config.image_size)) if config.drops_near_duplicates else None
        return Pair(raw.key, encode_png(kept(pixels, config)), fit, raw.provenance, dropped, bool(raw.recaptions), look)
    except Refused as problem:
        return refusal(raw, problem.reason, problem.detail)


def _with_second_text(prepare: Callable, raw: RawPair, config: Config, seed: int) -> Pair | Refusal:
    """`prepare` of the pair with the text that it is trained on; the caller keeps the pair as it came, which tells its split."""
    return prepare(recaptioned(raw, seed, config.recaption_share), config)


def refusal(raw: RawPair, reason: str, detail: str) -> Refusal:
    """The row of the quarantine table for this input."""
    digest = None if raw.image is None else hashlib.sha256(raw.image).hexdigest()
    size = None if raw.image is None else len(raw.image)
    return Refusal(raw.key, raw.provenance, digest, size, reason, detail)


def kept(pixels: np.ndarray, config: Config) -> np.ndarray:
    """What a shard holds of a picture (H, W, 3): its square, or all of it, its short side at most `keep_side`."""
    if config.keep == "square":
        return fit_square(pixels, config.image_size)
    height, width = pixels.shape[:2]
    side = min(height, width)
    if config.keep_side is None or side <= config.keep_side:
        return pixels
    return area_resize(pixels, round(height * config.keep_side / side), round(width * config.keep_side / side))


def group_of(pair: Pair | RawPair, group_by: str | None) -> str:
    """What must not be torn apart by the split.

    With "^(.*?): .*skin tone", both "man surfing: dark skin tone" and plain "man surfing" give "man surfing".
    """
    if group_by is None:
        return pair.key
    found = re.search(group_by, pair.captions[0])
    return found[1] if found and found[1] is not None else pair.captions[0]


def split_of(group: str, seed: int, validation_share: float) -> str:
    """train or validation: by a hash, so that it never depends on what else is in the data set."""
    return "validation" if unit_hash(group, seed) < validation_share else "train"


# ---- all pairs


def open_source(config: Config) -> Source:
    """The source, or the mixture of sources, that the settings name; scenes have none, they are drawn."""
    common = asdict(config)
    if config.source != "mixture":
        source = open_kind(config.source, config.url or config.path, common)
        return Mixture([Part(source, None, config.licence, config.origin)])
    return Mixture([_part(number, part, common) for number, part in enumerate(config.sources)])


def _part(number: int, part: PartConfig, common: dict) -> Part:
    own = {name: value for name, value in asdict(part).items() if value is not None}
    with named(number):
        source = open_kind(part.source, part.path, {**common, **own})
    return Part(source, number, part.licence, part.origin)


def check_source(config: Config) -> int:
    """How many inputs there are; SourceError or UserError, with the mend, where there is nothing to begin with."""
    if config.source == "scenes":
        return sum(config.scenes.by_split().values())
    captions.check_language(config.language)
    return open_source(config).check()


def recaptioned(raw: RawPair, seed: int, share: float) -> RawPair:
    """The pair with the text that is trained on: for a share of the keys the second text instead of the first, if it has one."""
    texts = [text for text in raw.recaptions if text.strip()]
    if raw.problem or not texts or unit_hash(f"recaption\0{raw.key}", seed) >= share:
        return replace(raw, recaptions=())
    try:
        return replace(raw, captions=clean_captions(texts))
    except Refused as problem:
        return replace(raw, captions=(), problem=problem)


def prepared(config: Config, seed: int) -> Iterator[tuple[str, Pair | Refusal]]:
    """(split, outcome) of every input in order; the split of a refusal is "quarantine"."""
    if config.source == "scenes":
        for split, count in config.scenes.by_split().items():
            for key, pixels, caption in scene_pairs(count, seed, split, config.image_size):
                yield split, Pair(key, encode_png(pixels), (caption,), f"scenes, seed {seed}")
        return
    for raw, outcome in _outcomes(config, seed):
        if isinstance(outcome, Refusal):
            yield "quarantine", outcome
        else:
            yield split_of(group_of(raw, config.group_by), seed, config.validation_share), outcome


def _outcomes(config: Config, seed: int) -> Iterator[tuple[RawPair, Pair | Refusal]]:
    """Every input of the source in order, prepared in worker processes; none of those is left when this is closed."""
    inputs = batches(open_source(config), lambda raw: len(raw.image or b""))
    work = functools.partial(_with_second_text, prepare, config=config, seed=seed)
    pairs = ordered_map(work, inputs, config.workers or cores(), LIMITS)
    with contextlib.closing(pairs):
        for raw, outcome in pairs:
            yield raw, refusal(raw, outcome.reason, outcome.detail) if isinstance(outcome, Fault) else outcome


def write_pairs(config: Config, seed: int, folder: Path,
                progress: Callable[[Iterable, int], Iterable] = lambda items, total: items) -> dict:
    """All pairs of the source -> shards, quarantine and manifest in `folder`; returns the counts.

    Raises SourceError or BadData. The manifest is written last: without it nothing in the folder counts.
    """
    total = check_source(config)
    shards, refusals, dropped = _Shards(folder, config.rows_per_shard), [], Counter()
    known, texts = _known(config, lambda: progress(prepared(config, seed), total)), Counter(original=0, recaptioned=0)
    with contextlib.closing(prepared(config, seed)) as outcomes:
        for split, outcome in progress(outcomes, total):
            if isinstance(outcome, Refusal):
                refusals.append(outcome)
            elif not known.has(outcome, split):
                dropped.update(outcome.dropped)
                texts["recaptioned" if outcome.is_recaptioned else "original"] += 1
                shards.add(split, outcome)
    shards.close()
    counts = _counts(shards.splits(), refusals, known.count)
    if config.drops_near_duplicates:
        counts["near_duplicates"] = known.summary()
    if config.caption_rules:
        counts["captions_dropped"] = dict(dropped.most_common())    # from pairs that stay
    if config.recaption_share:
        counts["texts"] = dict(texts)    # which of the two each pair that stays is trained on
    _check_counts(counts, refusals, config)
    tables = {QUARANTINE: _table(map(vars, refusals), QUARANTINE_SCHEMA)}
    if config.drops_near_duplicates:
        tables[DUPLICATES] = _table(known.rows, DUPLICATE_SCHEMA)
    for name, table in tables.items():
        write_bytes(Path(folder) / name, table_bytes(table, ROW_GROUP))
    facts = {"image_size": config.image_size, "source": config.source, "seed": seed, "counts": counts,
             "settings": _settings(config)}
    write_manifest(folder, {**shards.rows, **{name: table.num_rows for name, table in tables.items()}}, facts)
    return counts


def _known(config: Config, outcomes: Callable[[], Iterable[tuple[str, Pair | Refusal]]]) -> Copies | NearTwins:
    """What tells duplicates; where the data are to say what a near one is, they are gone through once before."""
    if not config.drops_near_duplicates:
        return Copies()
    if config.near_duplicate_distance is not None:
        return NearTwins(Nearness(config.near_duplicate_distance, config.near_duplicate_colour))
    looks = (outcome.look for _, outcome in outcomes() if isinstance(outcome, Pair))
    return NearTwins(limits_by_chance(looks, config.near_duplicate_colour))


def _settings(config: Config) -> dict:
    """All settings but the workers and those of what is off (whole pictures, filters, near duplicates, …): as they ever were."""
    off = ("workers",) if config.keep == "whole" else ("workers", "keep", "keep_side")
    off += () if config.caption_rules else CAPTION_SETTINGS
    off += () if config.drops_near_duplicates else TWIN_SETTINGS
    off += tuple(name for name in SOURCE_SETTINGS if not getattr(config, name))
    return {key: value for key, value in asdict(config).items() if key not in off}


class _Shards:
    """Shards of `rows_per_shard` rows, written as they fill; what an earlier run left is removed first."""

    def __init__(self, folder: Path, rows_per_shard: int):
        self.folder, self.rows_per_shard = Path(folder), rows_per_shard
        self.rows: dict[str, int] = {}
        self._pending: dict[str, list[dict]] = {}
        for old in [self.folder / MANIFEST, *self.folder.glob("*.parquet")]:
            old.unlink(missing_ok=True)

    def add(self, split: str, pair: Pair) -> None:
        rows = self._pending.setdefault(split, [])
        rows.append({**vars(pair), "split": split})
        if len(rows) == self.rows_per_shard:
            self._flush(split)

    def close(self) -> None:
        for split in list(self._pending):
            self._flush(split)

    def splits(self) -> dict[str, int]:
        """How many rows each split has."""
        totals = Counter()
        for name, rows in self.rows.items():
            totals[name.rpartition("-")[0]] += rows
        return dict(totals)

    def _flush(self, split: str) -> None:
        if rows := self._pending.pop(split):
            number = sum(name.startswith(f"{split}-") for name in self.rows)
            name = f"{split}-{number:05d}.parquet"
            write_bytes(self.folder / name, table_bytes(_table(rows, PAIR_SCHEMA), ROW_GROUP))
            self.rows[name] = len(rows)


def _table(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """Column by column: `from_pylist` takes twice as long over pictures."""
    rows = list(rows)
    return pa.Table.from_arrays([pa.array([row[field.name] for row in rows], field.type) for field in schema], schema=schema)


def _counts(splits: dict[str, int], refusals: Sequence[Refusal], duplicates: int) -> dict:
    """What became of the inputs."""
    reasons = Counter(refusal.reason for refusal in refusals)
    filtered = sum(reasons[reason] for reason in FILTERS)
    return {
        "n_in": sum(splits.values()) + len(refusals) + duplicates, "n_ok": sum(splits.values()),
        "n_quarantined": len(refusals) - filtered, "n_duplicate": duplicates, "n_filtered": filtered,
        "reasons": dict(reasons.most_common()), "splits": splits,
    }


def _check_counts(counts: dict, refusals: Sequence[Refusal], config: Config) -> None:
    """BadData where too much was refused, or nothing is left, or a split has nothing.

    Captions are sifted only on request, so what they take with them is no sign of bad data and stays out of the share.
    """
    place = config.place
    refused = [refusal for refusal in refusals if refusal.reason not in captions.REASONS]
    looked_at = counts["n_in"] - (len(refusals) - len(refused))
    if refusals and not looked_at:
        raise BadData(f"The caption filters leave none of the {counts['n_in']} inputs of {place}: {_histogram(refusals)}. "
                      "Change data.min_caption_words, data.boilerplate or data.language")
    share = len(refused) / max(1, looked_at)
    if share > config.max_refused_share or share == 1:
        raise BadData(f"{len(refused)} of the {looked_at} inputs of {place} were refused "
                      f"({share:.0%}): {_histogram(refused)}. "
                      f"Mend them, or raise data.max_refused_share (now {config.max_refused_share:g})")
    for split in ("train", "validation"):
        if split not in counts["splits"]:
            raise BadData(f"None of the {counts['n_ok']} pairs of {place} fell to the {split} split. "
                          f"Add pairs, or change data.validation_share (now {config.validation_share:g}) "
                          "or data.group_by")


def _histogram(refusals: Sequence[Refusal]) -> str:
    """Each reason with its count and its first case: "2 truncated (cat.png: image file is truncated)"."""
    first = {refusal.reason: refusal for refusal in reversed(refusals)}
    reasons = Counter(refusal.reason for refusal in refusals)
    return ", ".join(f"{count} {reason} ({first[reason].id}: {first[reason].detail})"
                     for reason, count in reasons.most_common())
