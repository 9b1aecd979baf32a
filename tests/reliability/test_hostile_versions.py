"""A version that somebody put together or changed is refused, and nothing of it is ever run: row F6 of the reliability plan."""
from __future__ import annotations

import io
import pickle
import re
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from flows import registry
from tests.payloads import HOSTILE, PICKLES
from tests.registered import pictures, plant, sealed
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact
from thousandwords.package import load_package


def kilobytes(what: str) -> int:
    """Of this process: kilobytes("VmHWM") is the most memory it had."""
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def refusal(root: Path, folder: Path) -> tuple[str, float, int]:
    """(what is said of version 3, after how many seconds of this process, how many MB more at the most)"""
    Path("/proc/self/clear_refs").write_text("5")  # the most memory counts from here on
    before, began = kilobytes("VmRSS"), time.process_time()
    with pytest.raises(UserError) as caught:
        load_package(registry.fetch("3", folder, root))
    seconds, megabytes = time.process_time() - began, (kilobytes("VmHWM") - before) // 1024
    print(f"F6: refused after {seconds:.2f} s and {megabytes} MB")
    return str(caught.value), seconds, megabytes


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_artefact_in_a_stored_version_is_refused(project, tmp_path, name):
    marker = tmp_path / "marker"
    folder = plant(tmp_path, lambda folder: HOSTILE[name](folder, marker))
    if name == "name out of the version":
        sealed(folder)  # the manifest itself is what was changed

    said, seconds, megabytes = refusal(project, tmp_path / "fetched")

    assert said.startswith("version 3 of thousandwords") or said.startswith(str(tmp_path / "fetched")), said
    assert not marker.exists() and seconds < 2 and megabytes < 100
    assert not list((tmp_path / "fetched").glob("*"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_version_with_hashes_of_its_own_is_refused(project, tmp_path, name):
    marker, pins = tmp_path / "marker", {}
    plant(tmp_path, lambda folder: pins.update((HOSTILE[name](folder, marker), sealed(folder))[1]), pins)

    said, seconds, megabytes = refusal(project, tmp_path / "fetched")

    assert said.startswith("version 3 of thousandwords") and said.endswith("Do not use it; register a package of your own") or (
        "which is a link or a device" in said
    ), said
    assert not marker.exists() and seconds < 2 and megabytes < 100
    assert not list((tmp_path / "fetched").glob("*"))


def test_a_manifest_that_is_not_the_pinned_one_is_refused(project, tmp_path):
    plant(tmp_path, sealed)
    with pytest.raises(DamagedArtefact, match="version 3 .*: its manifest is [0-9a-f]{12}, but its tag pins [0-9a-f]{12}"):
        registry.fetch("3", tmp_path / "fetched", project)


@pytest.mark.parametrize(
    "changes",
    [
        {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"},
        {"loader_module": "antigravity"},
        {"model_code_path": "conda.yaml"},
        {"python_model": "requirements.txt"},
        {"code": "artifacts"},
        {"data": "artifacts/package"},
        {"artifacts": {"package": {"path": "../elsewhere"}}},
        {"artifacts": {"package": {"path": "artifacts/package"}, "more": {"path": "artifacts"}}},
        {"artifacts": None},
    ],
)
def test_a_description_that_names_anything_else_to_run_is_refused(project, tmp_path, changes):
    def change(folder: Path) -> None:
        described = yaml.safe_load((folder / "MLmodel").read_text())
        described["flavors"]["python_function"] |= changes
        (folder / "MLmodel").write_text(yaml.safe_dump(described))
        pins.update(sealed(folder))

    pins = {}
    plant(tmp_path, change, pins)
    with pytest.raises(DamagedArtefact, match="version 3 of thousandwords: MLmodel (names other code|is no description)"):
        registry.fetch("3", tmp_path / "fetched", project)


def test_a_version_sealed_anew_without_a_payload_is_taken(project, tmp_path):
    """So what the test before refuses is the payload."""
    pins = {}
    plant(tmp_path, lambda folder: pins.update(sealed(folder)), pins)
    assert pictures(registry.fetch("3", tmp_path / "fetched", project))


@pytest.mark.parametrize("name", PICKLES)
def test_each_pickle_would_run_if_it_were_unpickled(tmp_path, name):
    data = PICKLES[name](tmp_path / "marker")
    if name == "torch bytes in torch bytes":
        data = torch.load(io.BytesIO(data), weights_only=False)["weights"]
        torch.load(io.BytesIO(data), weights_only=False)
    elif name == "legacy tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            pickle.load(tar.extractfile("pickle"))
    else:
        pickle.loads(data)
    assert (tmp_path / "marker").exists()
