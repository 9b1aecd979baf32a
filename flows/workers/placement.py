"""Which stage needs how many GPUs, and how often it is tried again: flows/placement.yaml -> frozen dataclasses."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from thousandwords.config import ConfigError, section
from thousandwords.errors import UserError

FILE = Path("flows/placement.yaml")


@dataclass(frozen=True)
class Place:
    """What one stage gets. A wrong setting is not tried again, nor is what somebody stopped."""

    gpus: int = 0
    retries: int = 2
    retry_seconds: float = 10.0  # before the first retry; each later wait is twice as long

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.retries < 0 or self.retry_seconds < 0:
            raise ValueError(f"gpus, retries and retry_seconds start at 0, found {self}")

    @property
    def delays(self) -> list[float]:
        """Seconds before each retry: Place(retries=3, retry_seconds=2).delays -> [2, 4, 8]"""
        return [self.retry_seconds * 2**number for number in range(self.retries)]


@dataclass(frozen=True)
class Placement:
    """The whole table; a stage that it does not name gets `Place()`."""

    parallel: int = 2  # stages at once, in one run
    stages: dict[str, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise ValueError(f"parallel is {self.parallel}; one stage at least has to run")

    def of(self, stage: str) -> Place:
        return self.stages.get(stage, Place())


def read_placement(known: list[str], path: Path = FILE) -> Placement:
    """The table of this project, whose stages are `known`; raises UserError for a stage or a key that does not exist."""
    if not path.is_file():
        return Placement()
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        stages = table.pop("stages", {})
        for name in stages:
            if name not in known:
                raise UserError(f"{path}: dvc.yaml has no stage {name!r}. It has: {', '.join(known)}")
        places = {name: section(values, f"stages.{name}", Place) for name, values in stages.items()}
        return Placement(**{**vars(section(table, "the table", _Top)), "stages": places})
    except ConfigError as error:
        raise UserError(str(error).replace("params.yaml", str(path))) from error
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(str(error) if isinstance(error, UserError) else f"{path}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class _Top:
    parallel: int = Placement.parallel
