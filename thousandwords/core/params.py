"""params.yaml as a dict, and flattened to dotted names."""

from pathlib import Path

import yaml

from thousandwords.core.config import ConfigError

# keys that name a file or a folder, wherever they are
PATH_KEYS = (
    "path",
    "image_folder",
    "link_roots",
    "init",
    "pretrained",
    "features",
    "inpaint",
    "network",
    "lpips",
)


def paths_in(values: object, name: str = "", is_path: bool = False) -> dict[str, str]:
    """The settings that name a file or folder here: {"data": {"path": "own"}} -> {"data.path": "own"}.

    Of "MODEL:FILE" the file; no URL, and no model of a registry or hub.
    """
    if isinstance(values, dict):
        items = [(value, f"{name}.{key}".lstrip("."), key in PATH_KEYS) for key, value in values.items()]
    elif isinstance(values, list | tuple):
        items = [(value, f"{name}[{number}]", is_path) for number, value in enumerate(values)]
    elif (
        is_path
        and isinstance(values, str)
        and "://" not in values
        and not values.startswith(("models:", "hf-hub:"))
    ):
        model, colon, file = values.partition(":")
        has_model = colon and "/" not in model and name.endswith(("pretrained", "features"))
        return {name: file if has_model else values}
    else:
        items = []
    return {key: path for item in items for key, path in paths_in(*item).items()}


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
        found = "is a folder, not a file" if Path(path).is_dir() else "is missing"
        raise ConfigError(f"{path} {found}. Start from one of presets/: cp presets/default.yaml {path}")
    try:
        params = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(params, dict):
        raise ConfigError(f"{path} should be a set of named sections, found {type(params).__name__}")
    return params
