"""The four models -> models/package: one folder that takes a prompt and gives ranked pictures."""
from __future__ import annotations

import dataclasses
from pathlib import Path

from stages._stage import Stage, arguments, stage
from thousandwords.config import section
from thousandwords.drawing import Prompts, Settings
from thousandwords.package import PARTS, load_package, write_package


def package_model(parts: dict[str, Path], out: Path, run: Stage) -> None:
    chosen = dataclasses.asdict(section(run.params.get("sampling"), "sampling", Prompts))
    settings = Settings(**{field.name: chosen[field.name] for field in dataclasses.fields(Settings)})
    write_package(out, parts, settings, {"seed": run.seed})
    load_package(out)  # what cannot be read back was not written


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, *(name.replace("_", "-") for name in PARTS), "out", argv=argv)
    with stage("package_model", options, "sampling") as run:
        package_model({name: getattr(options, name) for name in PARTS}, options.out, run)


if __name__ == "__main__":
    main()
