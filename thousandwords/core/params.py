"""params.yaml as a dict, and flattened to dotted names."""

from pathlib import Path

import yaml

from thousandwords.core.config import ConfigError


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def read_params(path: Path) -> dict:
    """params.yaml as a dict; raises ConfigError if it is missing or not valid YAML."""
    if not Path(path).is_file():
        raise ConfigError(f"{path} is missing. Start from one of presets/: cp presets/default.yaml {path}")
    try:
        params = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(params, dict):
        raise ConfigError(f"{path} should be a set of named sections, found {type(params).__name__}")
    return params
