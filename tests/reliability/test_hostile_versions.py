"""A forged or changed version is rejected, and its code never run: row F6 of the reliability plan."""

import io
import pickle
import re
import tarfile
import time
from pathlib import Path

import pytest
import torch

from flows.registry.commands import fetch
from tests.helpers.images import write
from tests.helpers.malicious_files import HOSTILE, PICKLES
from tests.helpers.registered_models import package_images, plant, seal
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.inference.package import load_package


def read_kilobytes(name: str) -> int:
    """Memory of this process: read_kilobytes("VmHWM") is its peak."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def rejection(root: Path, folder: Path) -> tuple[str, float, int]:
    """(error message for version 3, CPU seconds of this process, its peak of additional memory in MB)"""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, began = read_kilobytes("VmRSS"), time.process_time()
    with pytest.raises(UserError) as caught:
        load_package(fetch("3", folder, root))
    seconds, megabytes = time.process_time() - began, (read_kilobytes("VmHWM") - before) // 1024
    print(f"F6: rejected after {seconds:.2f} s and {megabytes} MB")
    return str(caught.value), seconds, megabytes


@pytest.mark.parametrize("hashes", ["of the version", "of its own"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_version_is_rejected_under_the_hashes_of_another_and_under_its_own(
    project, tmp_path, name, hashes
):
    marker, pins = tmp_path / "marker", {}

    def change(folder: Path) -> None:
        HOSTILE[name](folder, marker)
        if hashes == "of its own":
            pins.update(seal(folder))
        elif name == "name out of the version":
            seal(folder)  # the manifest itself was changed

    plant(tmp_path, change, pins)
    message, seconds, megabytes = rejection(project, tmp_path / "fetched")

    assert message.startswith(("version 3 of thousandwords", str(tmp_path / "fetched"))), message
    if hashes == "of its own" and "which is a link or a device" not in message:
        assert message.endswith("Do not use it; register a package of your own")
    assert not marker.exists() and seconds < 2 and megabytes < 100
    assert not list((tmp_path / "fetched").glob("*"))


def test_a_manifest_that_is_not_the_pinned_one_is_rejected(project, tmp_path):
    plant(tmp_path, seal)
    message = "version 3 .*: its manifest is [0-9a-f]{12}, but its tag pins [0-9a-f]{12}"
    with pytest.raises(DamagedArtefact, match=message):
        fetch("3", tmp_path / "fetched", project)


@pytest.mark.parametrize(
    "name",
    [
        *("_served_model.py", "python_model.pkl", "code/evil.py", "code/thousandwords/evil.so"),
        *("artifacts/package/evil.py", "artifacts/package/generator/data.pkl"),
        "artifacts/package/other/config.json",
    ],
)
def test_a_version_holds_no_file_that_is_neither_of_the_package_nor_code_of_the_library(
    project, tmp_path, name
):
    pins = {}

    def change(folder: Path) -> None:
        write(folder, {name: "print('code of a stranger')"})
        pins.update(seal(folder))

    plant(tmp_path, change, pins)
    message = re.escape(f"version 3 of thousandwords holds '{name}', which is no part of a package")
    with pytest.raises(DamagedArtefact, match=message):
        fetch("3", tmp_path / "fetched", project)


def test_code_in_a_version_is_neither_fetched_nor_run(project, tmp_path):
    """A stranger can register code under the names of the library's own; only MLflow's load_model would run it."""
    marker, pins = tmp_path / "marker", {}

    def change(folder: Path) -> None:
        for name in ("__init__.py", "mlflow_model.py", "inference/package.py"):
            (folder / "code/thousandwords" / name).write_text(f"open({str(marker)!r}, 'w').close()")
        pins.update(seal(folder))

    plant(tmp_path, change, pins)
    assert package_images(fetch("3", tmp_path / "fetched", project))
    fetched = {path.suffix for path in (tmp_path / "fetched").rglob("*") if path.is_file()}
    assert fetched == {".json", ".md", ".safetensors"} and not marker.exists()


def test_a_version_sealed_again_without_a_payload_is_accepted(project, tmp_path):
    """So the test before rejects the payload, not the seal."""
    pins = {}
    folder = plant(tmp_path, lambda folder: pins.update(seal(folder)), pins)
    (folder / "registered_model_meta").write_text("model_name: thousandwords")  # as MLflow's download adds it
    assert package_images(fetch("3", tmp_path / "fetched", project))


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
