"""Ingest a source: prepare each input, assign its split, drop duplicates, write pair shards (`write_pairs`).

Each input is counted once: n_in = n_ok + n_quarantined + n_duplicate + n_filtered, where "filtered" inputs are valid
but excluded by a setting. The number of worker processes does not change the written bytes. The split depends on the
original input, so a filter never moves a pair to another split. Scenes, similar by design, are not filtered.
"""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from thousandwords.core.files import unit_hash, write_bytes
from thousandwords.core.manifest import write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.data.images import encode_png
from thousandwords.data.pair_shards import PAIR_SCHEMA, ROW_GROUP
from thousandwords.data.sampler import MIXTURES
from thousandwords.data.shard_writer import ShardWriter, table_of
from thousandwords.ingest import caption_filter
from thousandwords.ingest.config import DataConfig, active_settings
from thousandwords.ingest.counts import FILTERS, OutcomeCounter, check_counts, counts_of
from thousandwords.ingest.near_duplicates import (
    DUPLICATE_SCHEMA,
    DUPLICATES,
    ExactDuplicates,
    NearDuplicates,
    limits_by_chance,
)
from thousandwords.ingest.prepare import prepare_pair, reject
from thousandwords.ingest.records import QUARANTINE, QUARANTINE_SCHEMA, Pair, Rejection
from thousandwords.ingest.sources import Source, open_kind
from thousandwords.ingest.sources.base import RawPair
from thousandwords.ingest.sources.mixture import MixturePart, MixtureSource, naming_source
from thousandwords.parallel.process_pool import Fault, Limits, make_batches, num_cores, ordered_map
from thousandwords.scenes.render import scene_pairs

LIMITS = Limits()  # of one input


# ---- one pair


def group_of(pair: Pair | RawPair, config: DataConfig) -> str:
    """All pairs of a group get the same split: with "^(.*?): .*skin tone", "man: dark skin tone" is in "man"."""
    if config.group_by is None:
        return pair.key
    match = re.search(config.group_by, pair.captions[0])
    return match[1] if match and match[1] is not None else pair.captions[0]


def split_of(group: str, seed: int, validation_share: float) -> str:
    """train or validation, by a hash: independent of the other pairs of the data set."""
    return "validation" if unit_hash(group, seed) < validation_share else "train"


# ---- all pairs


def open_source(config: DataConfig) -> Source:
    """Open the source, or the mixture of sources, of the settings; not for scenes, which are rendered."""
    settings = asdict(config)
    parts = enumerate(settings["sources"]) if config.source == "mixture" else [(None, {})]
    return MixtureSource([_open_part(number, settings, part) for number, part in parts])


def _open_part(number: int | None, settings: dict, part: dict) -> MixturePart:
    """Open one source; those of its own settings that are set replace the common ones."""
    settings = {**settings, **{name: value for name, value in part.items() if value is not None}}
    with naming_source(number):
        return MixturePart(open_kind(settings), number, settings["licence"], settings["origin"])


def check_source(config: DataConfig) -> int:
    """The number of inputs; raises SourceError or UserError if the source cannot be used."""
    if config.source == "scenes":
        return sum(config.scenes.by_split().values())
    caption_filter.check_language(config.caption_rules)
    return open_source(config).check()


def prepare_all(config: DataConfig, seed: int) -> Iterator[tuple[str, Pair | Rejection]]:
    """(split, outcome) of each input in order; the split of a rejection is "quarantine"."""
    if config.source == "scenes":
        for split, count in config.scenes.by_split().items():
            for key, pixels, caption in scene_pairs(count, seed, split, config.image_size):
                yield split, Pair(key, encode_png(pixels), (caption,), f"scenes, seed {seed}")
        return
    for raw_pair, outcome in _outcomes(config, seed):
        if isinstance(outcome, Rejection):
            yield "quarantine", outcome
        else:
            yield split_of(group_of(raw_pair, config), seed, config.validation_share), outcome


def _outcomes(config: DataConfig, seed: int) -> Iterator[tuple[RawPair, Pair | Rejection]]:
    """(input, outcome) in source order, from worker processes; closing the iterator ends them."""
    batches = make_batches(open_source(config), lambda raw_pair: len(raw_pair.image or b""))
    prepare = functools.partial(prepare_pair, config=config, seed=seed)
    outcomes = ordered_map(prepare, batches, config.workers or num_cores(), LIMITS)
    with contextlib.closing(outcomes):
        for raw_pair, outcome in outcomes:
            if isinstance(outcome, Fault):
                outcome = reject(raw_pair, outcome.reason, outcome.detail)
            yield raw_pair, outcome


def write_pairs(
    config: DataConfig,
    seed: int,
    folder: Path,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> dict:
    """Write shards, quarantine and, last, the manifest of all pairs of the source to `folder`; return the counts.

    Raises SourceError or BadData.
    """
    total = check_source(config)
    rejections, counter = [], OutcomeCounter()
    rows_by_source: dict[str, Counter] = {}  # split -> rows of each source
    duplicates = _duplicate_finder(config, lambda: progress(prepare_all(config, seed), total))
    with (
        ShardWriter(folder, PAIR_SCHEMA, config.rows_per_shard, ROW_GROUP) as shards,
        contextlib.closing(prepare_all(config, seed)) as outcomes,
    ):
        for split, outcome in progress(outcomes, total):
            if isinstance(outcome, Rejection):
                rejections.append(outcome)
                counter.add(outcome, "n_filtered" if outcome.reason in FILTERS else "n_quarantined")
            elif duplicates.is_duplicate(outcome, split):
                counter.add(outcome, "n_duplicate")
            else:
                counter.add(outcome, "n_ok")
                if config.source == "mixture":
                    number = int(outcome.key.partition("/")[0])
                    rows_by_source.setdefault(split, Counter())[number] += 1
                shards.add(split, table_of([{**vars(outcome), "split": split}], PAIR_SCHEMA))
        shards.commit()
    counts = {**counts_of(shards.splits(), rejections, duplicates.count), **counter.image_counts()}
    if config.drops_near_duplicates:
        counts["near_duplicates"] = duplicates.summary()
    if config.caption_rules:
        counts["captions_dropped"] = dict(counter.dropped.most_common())
    if config.recaption_share:
        counts["texts"] = dict(counter.texts)
    check_counts(counts, rejections, config)
    tables = {QUARANTINE: table_of(map(vars, rejections), QUARANTINE_SCHEMA)}
    if config.drops_near_duplicates:
        tables[DUPLICATES] = table_of(duplicates.rows, DUPLICATE_SCHEMA)
    for name, table in tables.items():
        write_bytes(Path(folder) / name, table_bytes(table, ROW_GROUP))
    metadata = {
        "image_size": config.image_size,
        "source": config.source,
        "seed": seed,
        "counts": counts,
        "settings": active_settings(config),
        **_mixtures(config, rows_by_source),
    }
    rows = {**shards.rows, **{name: table.num_rows for name, table in tables.items()}}
    write_manifest(folder, rows, metadata, shards.digests)
    return counts


def _mixtures(config: DataConfig, rows_by_source: dict[str, Counter]) -> dict:
    """The manifest's block for `data.sampler.Mixture`, if sources have weights."""
    numbers = range(len(config.weights))
    blocks = {
        split: {"rows": [rows[number] for number in numbers], "weights": config.weights}
        for split, rows in rows_by_source.items()
    }
    return {MIXTURES: blocks} if numbers else {}


def _duplicate_finder(
    config: DataConfig, outcomes: Callable[[], Iterable[tuple[str, Pair | Rejection]]]
) -> ExactDuplicates | NearDuplicates:
    """The duplicate search of the settings; without a distance, all inputs are read once to choose one."""
    if not config.drops_near_duplicates:
        return ExactDuplicates()
    if config.near_duplicate_distance is None:
        image_hashes = (outcome.image_hash for _, outcome in outcomes() if isinstance(outcome, Pair))
        config = limits_by_chance(image_hashes, config)
    return NearDuplicates(config)
