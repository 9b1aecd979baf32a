"""The models that `<section>.init` of params.yaml names, compared with what check_params recorded of them.

DVC watches the records in data/init, not the folders, whose names are settings, nor the registry's aliases.
"""

from pathlib import Path

from flows.dvc.damage import Damage, discard, locked_outputs, object_in_cache
from thousandwords.core import init_models
from thousandwords.core.errors import UserError


def discard_outdated_inits(params: dict) -> None:
    """Remove the records, here and in DVC's cache, of models that are others now.

    check_params makes them again, and the stages that start from them run again.
    """
    for name in init_models.SECTIONS:
        if is_outdated(params.get(name), name):
            out = init_models.RECORDS / f"{name}.json"
            md5 = locked_outputs(stages=["check_params"]).get(out.as_posix(), "")
            copies = [out, object_in_cache(md5)] if md5 else [out]
            discard([Damage(out, path, md5, "another model") for path in copies])


def is_outdated(block: object, name: str) -> bool:
    """Whether the model is no longer the recorded one. A changed setting is none of it: DVC sees that."""
    if not isinstance(block, dict):
        return False
    record = init_models.read_record(name)
    try:
        found, recorded = init_models.perceptual_fingerprints(block, name), record.get("perceptual", {})
        if found.keys() == recorded.keys() and found != recorded:
            return True
        if not block.get("init") or record.get("init") != block["init"]:
            return False
        if version := init_models.registered_version(block, name):
            from flows.registry import versions  # late: it loads MLflow

            with versions.registry_client(Path(".")) as client:
                model = versions.resolve(client, version)  # its folder: .store/registry/3-5f9c2a…/…
            fetched = f"{versions.number_of(model)}-{versions.pinned_sha256(model)[:16]}"
            if fetched not in Path(record["folder"]).parts:
                return True
        return init_models.fingerprint_of(init_models.init_folder(block, name)) != record["fingerprint"]
    except UserError:  # check_params says what is wrong
        return True
