"""A source of captioned images -> pair shards (data/pairs), a quarantine of rejected inputs, and counts."""

import sys
from pathlib import Path

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords.core.config import section
from thousandwords.core.progress import progress
from thousandwords.data.image_decoding import ANIMATED, BAD_PROFILE
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import write_pairs

FLAGS = {
    ANIMATED: "are animated (the first frame is used)",
    BAD_PROFILE: "have a bad color profile (it is ignored)",
}


def prepare_pairs(out: Path, context: Stage) -> None:
    config = section(context.params.get("data"), "data", DataConfig)
    counts = write_pairs(
        config, context.seed, out, lambda pairs, total: progress(pairs, "prepare_pairs", total, "pair")
    )
    context.record_metrics({name: count for name, count in counts.items() if name.startswith("n_")})
    context.record_metrics({f"pairs/{split}": count for split, count in counts["splits"].items()})
    for name in ("captions_dropped", "flags"):
        context.record_metrics({f"{name}/{reason}": count for reason, count in counts.get(name, {}).items()})
    if flags := counts.get("flags"):
        description = ", ".join(f"{count} {FLAGS[flag]}" for flag, count in flags.items())
        print(f"prepare_pairs: of the {counts['n_ok']} accepted images {description}", file=sys.stderr)


main = program(prepare_pairs, "data")


if __name__ == "__main__":
    main()
