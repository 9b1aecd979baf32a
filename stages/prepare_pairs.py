"""A source of captioned images -> pair shards (data/pairs), a quarantine of what was refused, and counts."""
from __future__ import annotations

import sys
from pathlib import Path

from stages._progress import progress
from stages._stage import Stage, arguments, stage
from thousandwords.config import section
from thousandwords.images import ANIMATED, BAD_PROFILE
from thousandwords.pairs import Config, write_pairs

FLAGS = {ANIMATED: "are animated (the first frame counts)", BAD_PROFILE: "have a bad colour profile (it is ignored)"}


def prepare_pairs(out: Path, run: Stage) -> None:
    config = section(run.params.get("data"), "data", Config)
    counts = write_pairs(config, run.seed, out,
                         lambda pairs, total: progress(pairs, "prepare_pairs", total, "pair"))
    run.record_metrics({name: count for name, count in counts.items() if name.startswith("n_")})
    run.record_metrics({f"pairs/{split}": count for split, count in counts["splits"].items()})
    for name in ("captions_dropped", "flags"):
        run.record_metrics({f"{name}/{reason}": count for reason, count in counts.get(name, {}).items()})
    if flags := counts.get("flags"):
        told = ", ".join(f"{count} {FLAGS[flag]}" for flag, count in flags.items())
        print(f"prepare_pairs: of the {counts['n_ok']} pictures that were taken {told}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "out", argv=argv)
    with stage("prepare_pairs", options, "data") as run:
        prepare_pairs(options.out, run)


if __name__ == "__main__":
    main()
