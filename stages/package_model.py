"""The models -> models/package: one folder that takes a prompt and gives ranked images."""

import dataclasses
from pathlib import Path

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords.core.config import section
from thousandwords.core.model_files import read_header
from thousandwords.inference.config import PromptsConfig, SamplingConfig
from thousandwords.inference.package import load_package, write_package


def package_model(
    text_tokenizer: Path,
    image_tokenizer: Path,
    decoder: Path,
    generator: Path,
    scorer: Path,
    out: Path,
    context: Stage,
    captioner: Path | None = None,
) -> None:
    config = dataclasses.asdict(section(context.params.get("sampling"), "sampling", PromptsConfig))
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    settings = SamplingConfig(**{name: config[name] for name in names})
    parts = {
        "text_tokenizer": text_tokenizer,
        "image_tokenizer": image_tokenizer,
        "decoder": decoder,
        "generator": generator,
        "scorer": scorer,
    }
    if captioner and read_header(captioner, "dvc repro recaption")["kind"] != "none":
        parts["captioner"] = captioner
    write_package(out, parts, settings, {"seed": context.seed})
    load_package(out)  # fails if the package cannot be read


main = program(package_model, "sampling")


if __name__ == "__main__":
    main()
