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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from thousandwords import captions
from thousandwords.duplicates import DUPLICATE_SCHEMA, DUPLICATES, Copies, Nearness, NearTwins, limits_by_chance
from thousandwords.files import unit_hash, write_bytes, write_manifest
from thousandwords.images import Refused, area_resize, decode_picture, encode_png, fit_square
from thousandwords.mixing import MIXTURES
from thousandwords.pair_counts import FILTERS, Tally, check_counts, counts_of
from thousandwords.pair_settings import Config, PartConfig, settings_in_use
from thousandwords.pair_writer import ROW_GROUP, PairShardWriter, table_of
from thousandwords.scenes import scene_pairs
from thousandwords.sources import Mixture, Part, RawPair, Source, clean_captions, named, open_kind, source_of
from thousandwords.tables import table_bytes
from thousandwords.twins import Look, look_of
from thousandwords.workers import Fault, Limits, batches, cores, ordered_map

QUARANTINE = "quarantine.parquet"
LIMITS = Limits()    # of one picture
QUARANTINE_SCHEMA = pa.schema([
    pa.field("id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("sha256", pa.string()),       # of the encoded picture, where it was read
    pa.field("byte_size", pa.int64()),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
])


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
    format: str | None = None    # of the picture as it came; counted, as are its flags
    flags: tuple[str, ...] = ()
    shard: str | None = None    # the file of many pairs that it came from; counted by it


@dataclass(frozen=True)
class Refusal:
    """One row of the quarantine table."""

    id: str
    source: str
    sha256: str | None
    byte_size: int | None
    reason: str
    detail: str
    shard: str | None = None    # as of a pair; no column


# ---- one pair


def prepare(raw: RawPair, config: Config) -> Pair | Refusal:
    """A raw pair, its captions sifted, its picture decoded, flattened and fitted to what is kept; or why it can't be had.

    Raises MemoryError, which says as much of this process as of the picture.
    """
    try:
        if raw.problem:
            raise raw.problem
        fit, dropped = captions.sift(raw.captions, config.caption_rules)
        picture = decode_picture(raw.image, config.background, config.min_side, config.max_aspect)
        look = look_of(fit_square(picture.pixels, config.image_size)) if config.drops_near_duplicates else None
        return Pair(raw.key, encode_png(kept(picture.pixels, config)), fit, raw.provenance, dropped, bool(raw.recaptions), look,
                    picture.format, picture.flags, raw.shard)
    except Refused as problem:
        return refusal(raw, problem.reason, problem.detail)


def _with_second_text(prepare: Callable, raw: RawPair, config: Config, seed: int) -> Pair | Refusal:
    """`prepare` of the pair with the text that it is trained on; the caller keeps the pair as it came, which tells its split."""
    return prepare(recaptioned(raw, seed, config.recaption_share), config)


def refusal(raw: RawPair, reason: str, detail: str) -> Refusal:
    """The row of the quarantine table for this input."""
    digest = None if raw.image is None else hashlib.sha256(raw.image).hexdigest()
    size = None if raw.image is None else len(raw.image)
    return Refusal(raw.key, raw.provenance, digest, size, reason, detail, raw.shard)


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
    refusals, tally = [], Tally()
    of_sources: dict[str, Counter] = {}    # the rows of each source, by split
    known = _known(config, lambda: progress(prepared(config, seed), total))
    with PairShardWriter(folder, config.rows_per_shard) as shards, contextlib.closing(prepared(config, seed)) as outcomes:
        for split, outcome in progress(outcomes, total):
            if isinstance(outcome, Refusal):
                refusals.append(outcome)
                tally.add(outcome, "n_filtered" if outcome.reason in FILTERS else "n_quarantined")
            elif known.has(outcome, split):
                tally.add(outcome, "n_duplicate")
            else:
                tally.add(outcome, "n_ok")
                if config.source == "mixture":
                    of_sources.setdefault(split, Counter())[source_of(outcome.key)] += 1
                shards.add({**vars(outcome), "split": split})
        shards.commit()
    counts = {**counts_of(shards.splits(), refusals, known.count), **tally.found()}
    if config.drops_near_duplicates:
        counts["near_duplicates"] = known.summary()
    if config.caption_rules:
        counts["captions_dropped"] = dict(tally.dropped.most_common())
    if config.recaption_share:
        counts["texts"] = dict(tally.texts)
    check_counts(counts, refusals, config)
    tables = {QUARANTINE: table_of(map(vars, refusals), QUARANTINE_SCHEMA)}
    if config.drops_near_duplicates:
        tables[DUPLICATES] = table_of(known.rows, DUPLICATE_SCHEMA)
    for name, table in tables.items():
        write_bytes(Path(folder) / name, table_bytes(table, ROW_GROUP))
    facts = {"image_size": config.image_size, "source": config.source, "seed": seed, "counts": counts,
             "settings": settings_in_use(config), **_mixtures(config, of_sources)}
    rows = {**shards.rows, **{name: table.num_rows for name, table in tables.items()}}
    write_manifest(folder, rows, facts, shards.digests)
    return counts


def _mixtures(config: Config, of_sources: dict[str, Counter]) -> dict:
    """What the manifest says of weights, where there are any: rows lie source by source, as `Mixing` wants them."""
    weights = [part.weight for part in config.sources]
    if not weights or weights[0] is None:
        return {}
    rows = {split: [counted[number] for number in range(len(weights))] for split, counted in of_sources.items()}
    return {MIXTURES: {split: {"rows": counts, "weights": weights} for split, counts in rows.items()}}


def _known(config: Config, outcomes: Callable[[], Iterable[tuple[str, Pair | Refusal]]]) -> Copies | NearTwins:
    """What tells duplicates; where the data are to say what a near one is, they are gone through once before."""
    if not config.drops_near_duplicates:
        return Copies()
    if config.near_duplicate_distance is not None:
        return NearTwins(Nearness(config.near_duplicate_distance, config.near_duplicate_colour))
    looks = (outcome.look for _, outcome in outcomes() if isinstance(outcome, Pair))
    return NearTwins(limits_by_chance(looks, config.near_duplicate_colour))
