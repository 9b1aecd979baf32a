"""A package on a model hub: written, uploaded to a stand-in for the Hub, and fetched from it, verified."""

import base64
import json
import re
import shutil

import httpx2
import huggingface_hub
import pytest
import yaml

import thousandwords
from tests.helpers.tiny_models import flipped
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import write_package

REPO, COMMIT = "anna/scenes", "1" * 40


class HubStandIn:
    """The requests of huggingface_hub that upload and fetch a repository, answered from memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.visibility = ""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path, body = request.url.path, request.content
        if path == "/api/repos/create":
            self.visibility = json.loads(body)["visibility"]
            return httpx2.Response(200, json={"url": f"https://{request.url.host}/{REPO}"})
        if path == "/api/validate-yaml":
            return httpx2.Response(200, json={"warnings": [], "errors": []})
        if path == f"/api/models/{REPO}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return httpx2.Response(200, json={"files": modes})
        if path == f"/api/models/{REPO}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return httpx2.Response(200, json={"commitUrl": f"/{REPO}/commit/{COMMIT}", "commitOid": COMMIT})
        if path == f"/api/models/{REPO}/revision/main":
            return httpx2.Response(200, json={"id": REPO, "sha": COMMIT})
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": name}
                for name, data in self.files.items()
            ]
            return httpx2.Response(200, json=entries)
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in self.files:
            return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"})
        headers = {"ETag": f'"{hash(self.files[name])}"', "X-Repo-Commit": COMMIT}
        return httpx2.Response(200, headers=headers, content=self.files[name])


@pytest.fixture
def hub():
    stand_in = HubStandIn()
    huggingface_hub.set_client_factory(
        lambda: httpx2.Client(transport=httpx2.MockTransport(stand_in), follow_redirects=True)
    )
    yield stand_in
    huggingface_hub.set_client_factory(httpx2.Client)


def test_a_saved_package_has_a_card_with_a_header_and_is_the_same_package(package_folder, tmp_path):
    model = thousandwords.load(package_folder, device="cpu")

    model.save_pretrained(tmp_path / "scenes", license="cc-by-4.0")

    _, header, card = (tmp_path / "scenes/README.md").read_text().split("---\n")
    expected = {"library_name": "thousandwords", "pipeline_tag": "text-to-image", "license": "cc-by-4.0"}
    assert yaml.safe_load(header) == expected
    assert 'thousandwords.from_pretrained("scenes")' in card and "| generator | transformer | `" in card
    again = thousandwords.from_pretrained(tmp_path / "scenes", device="cpu")
    assert again.package.fingerprint == model.package.fingerprint


def test_a_package_that_was_pushed_is_fetched_and_verified(package_folder, tmp_path, hub):
    model = thousandwords.load(package_folder, device="cpu")

    url = model.push(REPO, token="secret")

    assert url.endswith(COMMIT) and hub.visibility == "private"
    assert f'from_pretrained("{REPO}")' in hub.files["README.md"].decode()
    again = thousandwords.from_pretrained(REPO, device="cpu", cache_dir=tmp_path / "a")
    assert again.package.fingerprint == model.package.fingerprint

    hub.files["scorer/weights.safetensors"] = flipped(hub.files["scorer/weights.safetensors"], 5000)
    message = (
        "^anna/scenes: .*weights.safetensors is damaged: .* Download it again, with force_download=True$"
    )
    with pytest.raises(DamagedArtefact, match=message):
        thousandwords.from_pretrained(REPO, device="cpu", cache_dir=tmp_path / "b")


def test_a_name_that_neither_a_folder_nor_the_hub_has_is_an_error(hub, tmp_path):
    message = "models/pakage is no folder here, and the Hub gave no model of that name: "
    with pytest.raises(UserError, match=message):
        thousandwords.from_pretrained("models/pakage", cache_dir=tmp_path)


def test_a_package_that_was_replaced_after_it_was_loaded_is_not_saved(package_folder, parts, tmp_path):
    folder = shutil.copytree(package_folder, tmp_path / "package")
    model = thousandwords.load(folder, device="cpu")
    write_package(folder, parts, SamplingConfig(candidates=5), {})

    with pytest.raises(
        UserError, match=f"^{re.escape(str(folder))} holds another package than the one that was"
    ):
        model.save_pretrained(tmp_path / "scenes")
    assert not (tmp_path / "scenes").exists() and read_manifest(folder)
