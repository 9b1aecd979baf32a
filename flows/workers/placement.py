"""The GPUs and retries of each stage: flows/workers/placement.yaml -> frozen dataclasses."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from thousandwords.core.config import section
from thousandwords.core.errors import UserError

FILE = Path("flows/workers/placement.yaml")


@dataclass(frozen=True)
class Place:
    """The resources of one stage. A wrong setting and a stopped stage are not retried."""

    gpus: int = 0
    retries: int = 2
    retry_seconds: float = 10.0  # before the first retry; each later wait is twice as long

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.retries < 0 or self.retry_seconds < 0:
            raise ValueError(f"gpus, retries and retry_seconds must be 0 or more, found {self}")

    @property
    def retry_options(self) -> dict[str, object]:
        """Options of a Prefect task; 3 retries after 2 seconds: its waits are [2, 4, 8]."""
        delays = [self.retry_seconds * 2**number for number in range(self.retries)]
        return {"retries": self.retries, "retry_delay_seconds": delays}


@dataclass(frozen=True)
class Placement:
    """The whole table; a stage that it does not name gets `Place()`."""

    parallel: int = 2  # stages at once, in one run
    stages: Any = field(default_factory=dict)  # {stage: Place}

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise ValueError(f"parallel is {self.parallel}; it must be 1 or more")
        if not isinstance(self.stages, dict):
            raise ValueError(f"stages should be a block of keys, found {self.stages!r}")

    def of(self, stage: str) -> Place:
        return self.stages.get(stage, Place())


def read_placement(stages: list[str], path: Path = FILE) -> Placement:
    """Read the table; `stages` are those of dvc.yaml. Raises UserError for an unknown stage or key."""
    try:
        table = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    placement, places = section(table, "the table", Placement, str(path)), {}
    for name, values in placement.stages.items():
        if name not in stages:
            raise UserError(f"{path}: dvc.yaml has no stage {name!r}. It has: {', '.join(stages)}")
        places[name] = section(values, f"stages.{name}", Place, str(path))
    return replace(placement, stages=places)
