"""Ingest a source: prepare each input, assign its split, drop duplicates, write pair shards (`write_pairs`).

Each input is counted once: n_in = n_ok + n_quarantined + n_duplicate + n_filtered, where "filtered" inputs are valid
but excluded by a setting. The number of worker processes does not change the written bytes. The split depends on the
original input, so a filter never moves a pair to another split. Scenes, similar by design, are not filtered.
"""

import contextlib
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

from thousandwords.core.errors import UserError
from thousandwords.core.files import unit_hash, write_bytes
from thousandwords.core.manifest import write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.data.images import encode_png
from thousandwords.data.pair_shards import PAIR_SCHEMA, ROW_GROUP
from thousandwords.data.sampler import MIXTURES
from thousandwords.data.shard_writer import ShardWriter, table_of
from thousandwords.ingest import caption_filter
from thousandwords.ingest.config import DataConfig, SourceConfig, active_settings
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
from thousandwords.ingest.sources import Source, detect, open_kind
from thousandwords.ingest.sources.base import RawPair
from thousandwords.ingest.sources.mixture import MixturePart, MixtureSource, naming_source
from thousandwords.parallel.process_pool import Fault, Limits, make_batches, num_cores, ordered_map
from thousandwords.scenes.render import scene_pairs

LIMITS = Limits()  # of one input


# ---- one pair


def group_of(pair: Pair | RawPair, config: DataConfig) -> str:
    """All pairs of a group get the same split: with "^(.*?): .*skin tone", "man: dark skin tone" is in "man".

    Without `group_by` a pair is a group. Its key counts without the number of its source in a mixture: no pair changes
    its split where another source is added.
    """
    if config.group_by is None:
        return pair.key.partition("/")[2] if config.source == "mixture" else pair.key
    match = re.search(config.group_by, pair.captions[0])
    return match[1] if match and match[1] is not None else pair.captions[0]


def split_of(group: str, seed: int, validation_share: float) -> str:
    """train or validation, by a hash: independent of the other pairs of the data set."""
    return "validation" if unit_hash(group, seed) < validation_share else "train"


# ---- all pairs


def resolve_source(config: DataConfig) -> tuple[DataConfig, str]:
    """(the settings with the kind and columns of each source, what was decided in one line, "" if nothing was)."""
    if config.source == "scenes":
        return config, ""
    settings, sources, lines = asdict(config), [], []
    own = asdict(config)["sources"] if config.source == "mixture" else [{}]
    for number, part in enumerate(own):
        with naming_source(number if config.source == "mixture" else None):
            parts, line = detect.resolve(_of_part(settings, part))
        lines += [line] * bool(line)
        weight = part.get("weight")
        sources += [
            {**each, "path": each["url"] or each["path"], "weight": weight and weight / len(parts)}
            for each in parts
        ]
    if config.source != "mixture" and len(sources) == 1:
        changes = {name: parts[0][name] for name in (*detect.DETECTED, "source", "path", "url")}
    else:
        names = [field.name for field in fields(SourceConfig)]
        parts = tuple(SourceConfig(**{name: source[name] or None for name in names}) for source in sources)
        changes = {"source": "mixture", "sources": parts, "url": None, "licence": None, "origin": None}
    return replace(config, **changes), "; ".join(lines)


def _of_part(settings: dict, part: dict) -> dict:
    """The settings of one source: those of its own that are set replace the common ones."""
    return {**settings, **{name: value for name, value in part.items() if value is not None}}


def open_source(config: DataConfig) -> Source:
    """Open the source, or the mixture of sources, of the settings; not for scenes, which are rendered."""
    config, _ = resolve_source(config)
    settings = asdict(config)
    parts = enumerate(settings["sources"]) if config.source == "mixture" else [(None, {})]
    return MixtureSource([_open_part(number, settings, part) for number, part in parts])


def _open_part(number: int | None, settings: dict, part: dict) -> MixturePart:
    """Open one source."""
    settings = _of_part(settings, part)
    with naming_source(number):
        return MixturePart(open_kind(settings), number, settings["licence"], settings["origin"])


def check_path(config: DataConfig) -> None:
    """Raise UserError unless DVC can follow data.path, and the folders of data.link_roots are there."""
    path = config.path
    if "://" in path:
        raise UserError(
            f"data.path is {path!r}, a URL, which DVC does not follow. Set data.url to it, and data.path: {DataConfig.path}"
        )
    if not Path(path).exists() and any(mark in path for mark in "*?["):
        raise UserError(
            f"data.path is {path!r}, a pattern, which DVC cannot follow. Set it to the folder of these files"
        )
    lies_elsewhere = config.source in ("scenes", "mixture") or config.url
    if lies_elsewhere and path != DataConfig.path and not Path(path).exists():
        raise UserError(
            f"data.path is {path}, and there is no such file or folder. DVC watches it, also where the images come from "
            f"elsewhere. Set data.path: {DataConfig.path}"
        )
    for number, root in enumerate(config.link_roots):
        if not Path(root).is_dir():
            raise UserError(
                f"data.link_roots[{number}] is {root}, but there is no such folder. Set it to the folder that the links "
                "lead to, or remove it"
            )


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
            thin_share = config.scenes.thin_share if split == "train" else 0.0
            for key, pixels, caption in scene_pairs(count, seed, split, config.image_size, thin_share):
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
    tell: Callable[[str], None] = lambda line: None,
) -> dict:
    """Write shards, quarantine and, last, the manifest of all pairs of the source to `folder`; return the counts.

    `tell` gets what was decided about the source, and what to look at. Raises SourceError or BadData.
    """
    config, detected = resolve_source(config)
    if detected:
        tell(detected)
    total = check_source(config)
    rejections, counter, num_several = [], OutcomeCounter(), 0
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
                num_several += len(outcome.captions) > 1
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
    check_counts(counts, rejections, config, lambda: _share_that_holds_out_one(config, seed))
    has_texts = config.source in ("folder", "webdataset") and config.caption_lines == "separate"
    if has_texts and num_several > counts["n_ok"] / 2:
        tell(
            f"{num_several} of {counts['n_ok']} images have several lines of text, and each line is a caption of "
            "its own. If the whole text is one caption, set data.caption_lines: joined"
        )
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
        **({"detected": detected} if detected else {}),
        **_mixtures(config, rows_by_source),
    }
    rows = {**shards.rows, **{name: table.num_rows for name, table in tables.items()}}
    write_manifest(folder, rows, metadata, shards.digests)
    return counts


def _share_that_holds_out_one(config: DataConfig, seed: int) -> float:
    """The smallest validation_share, in hundredths, with which the source has a validation pair."""
    pairs = (pair for pair in open_source(config) if pair.problem is None)
    first = min(unit_hash(group_of(pair, config), seed) for pair in pairs)
    return min(math.floor(first * 100 + 1) / 100, 0.99)


def _mixtures(config: DataConfig, rows_by_source: dict[str, Counter]) -> dict:
    """The manifest's block for `data.sampler.Mixture`; without weights a source counts by its rows."""
    if config.source != "mixture":
        return {}
    blocks = {}
    for split, counted in rows_by_source.items():
        rows = [counted[number] for number in range(len(config.sources))]
        blocks[split] = {"rows": rows, "weights": config.weights or rows}
    return {MIXTURES: blocks}


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
