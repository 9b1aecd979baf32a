"""The four models -> models/package: one folder that takes a prompt and gives ranked images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stages.runtime.stage import Stage, arguments, stage
from thousandwords.core.config import section
from thousandwords.inference.config import PromptsConfig, SamplingConfig
from thousandwords.inference.package import PARTS, load_package, write_package


def package_model(parts: dict[str, Path], out: Path, context: Stage) -> None:
    config = dataclasses.asdict(section(context.params.get("sampling"), "sampling", PromptsConfig))
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    settings = SamplingConfig(**{name: config[name] for name in names})
    write_package(out, parts, settings, {"seed": context.seed})
    load_package(out)  # fails if the package cannot be read


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, *(name.replace("_", "-") for name in PARTS), "out", argv=argv)
    with stage("package_model", options, "sampling") as context:
        package_model({name: getattr(options, name) for name in PARTS}, options.out, context)


if __name__ == "__main__":
    main()
