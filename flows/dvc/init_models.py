"""The models that `<section>.init` of params.yaml names, compared with what check_params recorded of them.

DVC watches the records in data/init, not the folders, whose names are settings, nor the registry's aliases.
"""

from pathlib import Path

from flows.dvc.damage import Damage, discard, locked_outputs, object_in_cache
from thousandwords.core.errors import UserError
from thousandwords.core.init_models import (
    RECORDS,
    SECTIONS,
    fingerprint_of,
    init_folder,
    perceptual_fingerprints,
    read_record,
    registered_version,
)


def discard_outdated_inits(params: dict) -> None:
    """Remove the records, here and in DVC's cache, of models that are others now: check_params makes them again,
    and the stages that start from them run again."""
    outdated = [name for name in SECTIONS if is_outdated(params.get(name), name)]
    if not outdated:
        return
    outs = locked_outputs(stages=["check_params"])
    for name in outdated:
        out = RECORDS / f"{name}.json"
        md5 = outs.get(out.as_posix())
        copies = [out, *([object_in_cache(md5)] if md5 else [])]
        discard([Damage(out, path, md5 or "", "another model") for path in copies])


def is_outdated(block: object, name: str) -> bool:
    """Whether the model is no longer the recorded one. A changed setting is none of it: DVC sees that."""
    record = read_record(name)
    if not isinstance(block, dict):
        return False
    try:
        found, recorded = perceptual_fingerprints(block, name), record.get("perceptual", {})
        if found.keys() == recorded.keys() and found != recorded:
            return True
        if not block.get("init") or record.get("init") != block["init"]:
            return False
        version = registered_version(block, name)
        if version and not _is_fetched(version, Path(record["folder"])):
            return True
        return fingerprint_of(init_folder(block, name)) != record["fingerprint"]
    except UserError:  # check_params says what is wrong
        return True


def _is_fetched(version: str, folder: Path) -> bool:
    """Whether the folder lies in that of the version that the alias names now: .store/registry/3-5f9c2a…/…"""
    from flows.registry.versions import number_of, pinned_sha256, registry_client, resolve  # late: MLflow

    with registry_client(Path(".")) as client:
        found = resolve(client, version)
        return f"{number_of(found)}-{pinned_sha256(found)[:16]}" in folder.parts
