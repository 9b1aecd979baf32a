"""Before any work: every setting that names a file, a folder, a model or a server is there, and of the right kind."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from flows.dvc.graph import check_watched
from flows.sweep import untracked_inputs
from stages.runtime import tracking
from stages.sample_images import images_to_inpaint
from tests.helpers.images import png, write
from tests.helpers.malicious_files import saved_by_torch
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import web_page
from tests.helpers.smoke_project import command, new_project
from tests.pipeline.test_stages import smoke
from thousandwords import preflight
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.params import PATH_KEYS, paths_in
from thousandwords.inference.config import PromptsConfig

# a value for each setting that names a file or a folder here
SETTINGS = {
    "data.path": "{}",
    "data.image_folder": "{}",
    "data.link_roots": ["{}"],
    "data.sources": [{"source": "auto", "path": "{}"}],
    "sampling.inpaint": "{}",
    "evaluation.features": "{}",
    "scorer.clip.pretrained": "ViT-B-32:{}",
    "text_tokenizer.init": "{}",
    "image_tokenizer.init": "{}",
    "image_tokenizer.perceptual.network": "{}",
    "image_tokenizer.perceptual.lpips": "{}",
    "decoder.perceptual.network": "{}",
    "generator.init": "{}",
    "scorer.init": "{}",
}
CUT = saved_by_torch({"visual.proj": torch.zeros(500)})[:-100]
WEIGHTS = {
    "nothing.pt": (None, "there is no .*nothing.pt"),
    "text.pt": (b"some words\n", "text.pt,? is a text, not a file of weights. Fetch it again"),
    "page.pt": (b"<!DOCTYPE html><html>", "page.pt,? is a web page, not a file of weights. Download the file itself"),
    "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\n", "lfs.pt,? is a Git LFS pointer, .* git lfs pull"),
    "folder.pt": ("folder", "folder.pt,? is a folder, not a file of weights. Name the file in it"),
    "empty.pt": (b"", "empty.pt,? is empty, not a file of weights"),
    "cut.pt": (CUT, "cut.pt,? is truncated. Fetch it again"),
    "zeros.pt": (bytes(600), "zeros.pt,? is of another kind, not a file of weights"),
    "text.safetensors": (b"some words\n", "text.safetensors,? is no safetensors file"),
    "cut.safetensors": (
        b'\x3f\0\0\0\0\0\0\0{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}   \0\0',
        "cut.safetensors,? is truncated or damaged. Fetch it again",
    ),
    "other.pt": (saved_by_torch({"a": torch.zeros(2)}), "(belong to another architecture|does not hold FID's Inc)"),
}  # fmt: skip


def message(**changes: object) -> str:
    with pytest.raises(UserError) as caught:
        preflight.check_params(smoke(**changes), 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def value_of(setting: str, path: str) -> object:
    value = SETTINGS[setting]
    if setting == "data.sources":
        return [{"source": "auto", "path": path}]
    return [path] if isinstance(value, list) else value.format(path)


def test_the_table_has_every_setting_that_names_a_path():
    params = smoke(**{setting: value_of(setting, "x/y") for setting in SETTINGS})
    found = paths_in(params)
    assert set(found.values()) == {"x/y"}
    names = {name.partition("[")[0] for name in found}
    assert names == SETTINGS.keys()
    assert {name.rpartition(".")[2] for name in names} - {"sources"} == set(PATH_KEYS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_tilde_is_refused_in_every_setting_that_names_a_path(setting):
    assert message(**{setting: value_of(setting, "~/x")}).endswith(
        f" is '~/x'; ~ is not replaced. Write the whole path: {Path('~/x').expanduser()}"
    )


@pytest.mark.parametrize("setting", ["evaluation.features", "scorer.clip.pretrained"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_file_that_is_missing_or_holds_no_weights_is_named_before_any_work(tmp_path, setting, name):
    data, sentence = WEIGHTS[name]
    if data == "folder":
        (tmp_path / name).mkdir()
    elif data is not None:
        (tmp_path / name).write_bytes(data)
    if name == "nothing.pt" and setting == "evaluation.features":
        sentence = "there is no such file"

    found = message(**{setting: value_of(setting, f"{tmp_path}/{name}")})

    assert found.startswith(f"params.yaml: {setting}")
    assert re.search(sentence, found)


def test_with_several_grids_a_run_works_and_inpaints_nothing(capsys):
    """The default settings inpaint the images of a folder: no reason to refuse the tokenizer."""
    sizes = {"vocab_size": 64, "width": 16, "scales": [2, 4]}
    params = smoke(**{"sampling.inpaint": "data/inpaint"})
    training = params["image_tokenizer"]["training"]
    params["image_tokenizer"] = {"kind": "vqvae", "vqvae": sizes, "training": training}
    preflight.check_params(params, 0)

    settings = section(params["sampling"], "sampling", PromptsConfig)
    assert images_to_inpaint(settings, (2, 4), keeps_parts=False) == []
    assert capsys.readouterr().err.startswith(
        "sample_images: data/inpaint is not inpainted: the tokens of this image tokenizer form 2 grids, of 2, 4"
    )


@pytest.mark.parametrize("name", ["text_tokenizer", "image_tokenizer", "generator", "scorer"])
def test_a_model_to_go_on_from_is_of_the_right_kind(name, parts, package_folder, tmp_path):
    write(tmp_path, {"images/a.png": png(), "weights.pt": b"x"})
    for place, found in {
        **{parts[other]: other for other in parts if other != name},
        tmp_path / "images": "no model of this project",
        tmp_path / "weights.pt": "no model of this project",
    }.items():
        assert message(**{f"{name}.init": str(place)}) == (
            f"params.yaml: {name}.init is {place}, which holds {found}. Name the folder of a trained {name}, or a "
            "package that has one"
        )
    package = tmp_path / "package"
    shutil.copytree(package_folder, package)
    shutil.rmtree(package / name)
    assert f"{name}.init is {package}, which holds no model" in message(**{f"{name}.init": str(package)})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.source": "folder", "data.path": "{}/t.csv"}, "data.path: there is no folder {}/t.csv"),
        ({"data.source": "csv", "data.path": "{}/own"}, "data.path: there is no table {}/own"),
        ({"data.source": "parquet", "data.path": "{}/t.csv"}, "t.csv is not a Parquet file"),
        ({"data.source": "webdataset", "data.path": "{}/t.csv"}, "t.csv is not a plain tar"),
        ({"data.source": "auto", "data.path": "s3://bucket/x"}, "data.path is 's3://bucket/x', a URL, which DVC does"),
        ({"data.source": "scenes", "data.path": "{}/nothing"}, "data.path is {}/nothing, and there is no such file or"),
        ({"data.path": "{}/*.tar", "data.source": "auto"}, "a pattern, which DVC cannot follow. Set it to the folder"),
        ({"data.path": "{}/*.tar"}, "a pattern, which DVC cannot follow. Set it to the folder of these files"),
        ({"data.source": "auto", "data.path": "{}/t.csv", "data.image_folder": "t.csv"}, "no own/a.png. Set data.image_folder to the folder that"),
        ({"data.source": "auto", "data.path": "{}/t.csv", "data.image_folder": "no"}, "no own/a.png. Set data.image_folder to the folder that"),
        ({"data.source": "auto", "data.path": "{}/own", "data.link_roots": ["{}/no"]}, "link_roots[0] is {}/no, but "),
        ({"data.source": "auto", "data.path": "{}/own", "data.link_roots": ["{}/t.csv"]}, "link_roots[0] is {}/t.csv"),
        ({"sampling.inpaint": "{}/t.csv"}, "sampling.inpaint is {}/t.csv, a file, not a folder of captioned images"),
        ({"sampling.inpaint": "{}/no"}, "sampling.inpaint: there is no folder {}/no. Make it, or set"),
        ({"sampling.prompts": "prompts.txt"}, "sampling.prompts should be a list, found 'prompts.txt'"),
        ({"engine": {"kind": "ray", "address": "127.0.0.1:9"}}, "engine.address '127.0.0.1:9'"),
    ],
)  # fmt: skip
def test_what_is_missing_or_of_another_kind_is_named_before_any_work(
    tmp_path, monkeypatch, changes, sentence
):
    write(tmp_path, {"own/a.png": png(1), "own/a.txt": "a cat", "t.csv": "image,caption\nown/a.png,a cat\n"})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: name == "ray" or find_spec(name, *more)
    )
    changes = json.loads(json.dumps(changes).replace("{}", str(tmp_path)))
    assert sentence.replace("{}", str(tmp_path)) in message(**changes)


def test_a_server_that_is_not_mlflow_is_named(monkeypatch):
    monkeypatch.setenv(tracking.REQUIRED, "required")
    with web_page() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        sentence = f"MLflow at {uri} cannot be used .*the server there is not MLflow"
        with pytest.raises(UserError, match=sentence):
            tracking.open_tracker("check_params", {})


@pytest.mark.parametrize("setting", ["data.path", "sampling.inpaint"])
def test_a_setting_that_dvc_watches_is_not_null(setting):
    dvc_yaml = (ROOT / "dvc.yaml").read_text()
    message = f"params.yaml: {setting} is null or absent, but dvc.yaml watches what it names"
    with pytest.raises(UserError, match=message):
        check_watched(dvc_yaml, smoke(**{setting: None}))
    check_watched(dvc_yaml, smoke())


def test_without_git_one_sentence_says_how_to_begin(tmp_path):
    project = new_project(tmp_path / "project")
    shutil.rmtree(project / ".git")
    sentence = "this folder is not a git repository, which DVC needs. Run: git init"

    run = command(project, sys.executable, "-m", "flows.run_local")
    compare = command(project, sys.executable, "-m", "flows.compare", "HEAD", "workspace")

    assert (run.returncode, run.stderr.strip()) == (1, f"run: {sentence}")
    assert compare.stderr.strip() == f"compare: 'HEAD' is not a folder with results/ in it, and {sentence}"


def test_an_experiment_gets_the_images_that_git_does_not_track(tmp_path, monkeypatch):
    project = new_project(tmp_path / "project")
    command(project, "git", "add", "-A")
    monkeypatch.chdir(project)
    settings = {"data.path": "data/own", "sampling.inpaint": "data/inpaint", "scorer.init": "models/start"}
    params = smoke(**settings)
    assert untracked_inputs(params) == []

    write(project, {f"data/{name}.png": png() for name in ("own/pics/a", "own/b", "own/c", "inpaint/d")})
    write(project, {"models/start/config.json": "{}", "data/own/b.png.dvc": "outs: []"})
    expected = ["data/inpaint/d.png", "data/own/c.png", "data/own/pics", "models/start"]
    assert [path for path in untracked_inputs(params) if not path.endswith(".dvc")] == expected
    table = smoke(**{"data.path": "data/own/pics/t.csv"})
    write(project, {"data/own/pics/t.csv": "image,caption"})
    assert "data/own/pics" in untracked_inputs(table)  # with the images beside it

    write(tmp_path, {"own/a.png": png()})
    sentence = "data.path is ../own, relative and outside of this project, .*Write the whole"
    with pytest.raises(UserError, match=sentence):
        untracked_inputs(smoke(**{"data.path": "../own"}))
