"""What a run of a flow is called: its settings, its code and its seed."""

import contextlib
from pathlib import Path

from flows.dvc.git import changed_files, git
from thousandwords.core.errors import UserError
from thousandwords.core.params import read_params
from thousandwords.planning.presets import PRESETS, preset_text

PARAMS = Path("params.yaml")


def run_name() -> str:
    """ "smoke 8031f78 seed 0": a preset, or the images of settings that are no preset; + marks changes since that commit."""
    settings, code, seed = "unknown settings", "no commit", "unknown"
    with contextlib.suppress(UserError):  # the run itself reports what is wrong with params.yaml
        params, text = read_params(PARAMS), PARAMS.read_text(encoding="utf-8")
        seed, data = params.get("seed"), params.get("data") or {}
        settings = "scenes" if data.get("source") == "scenes" else Path(str(data.get("path"))).name
        presets = (path.stem for path in sorted(PRESETS.glob("*.yaml")) if preset_text(path.stem) == text)
        settings = next(presets, settings)
    with contextlib.suppress(UserError):  # outside git, or before the first commit
        code = git("rev-parse", "--short", "HEAD") + "+" * bool(changed_files("-uno"))
    return f"{settings} {code} seed {seed}"
