"""Errors that a user can make: one clear sentence, exit code 2, before any long work, and no earlier result
is lost."""

import copy
import errno
import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from scripts import plan, print_run_summary, use_data, use_preset
from stages import check_params
from stages.runtime import stage, tracking
from tests.helpers.images import png, write
from tests.helpers.paths import ROOT
from tests.helpers.smoke_project import set_value
from tests.helpers.tiny_models import fitting_package, tiny
from thousandwords import components, preflight
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.files import DiskFull
from thousandwords.core.init_models import SECTIONS
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import PARTS, write_package
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import prepare_all, write_pairs
from thousandwords.planning.presets import read_preset

SMOKE = read_preset("smoke", ROOT / "presets")


def smoke(**changes: object) -> dict:
    """The smoke preset with some settings changed: smoke(**{"data.path": "x"})."""
    params = copy.deepcopy(SMOKE)
    for path, value in changes.items():
        set_value(params, path, value)
    return params


def test_the_smoke_preset_and_the_augmentations_of_the_paper_pass_the_check():
    preflight.check_params(smoke(), 0)
    paper = {"data.keep": "whole", "image_tokenizer.augmentation": "paper", "generator.bpe_dropout": 0.1}
    preflight.check_params(smoke(**paper, **{"tokens.augmentation": "paper", "tokens.views_per_image": 2}), 0)


ONE_UPDATE = {"steps": 1, "batch_size": 1, "learning_rate": 0.1}
NEXT_SCALE = {"kind": "next_scale", "next_scale": {}, "training": ONE_UPDATE}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("decoder.adversary", {"start": 20}, "decoder.adversary.start is 20, but decoder.training.steps is 20, so it"),
        ("decoder.adversary", {"start": 9, "layers": 5}, "decoder.adversary.layers is 5, which needs images of 96"),
        ("sampling.candidats", 4, "sampling has no key 'candidats'. Did you mean 'candidates'?"),
        ("image_tokenizer.dvae.vocabsize", 4, "image_tokenizer.dvae has no key 'vocabsize'. Did you mean 'voc"),
        ("generator.training.steps", "many", ".training.steps should be a whole number, found 'many'"),
        ("generator.training.learning_rate", "1e-3", "YAML reads that as text; write 0.001"),
        ("generator.kind", "transfomer", "no kind 'transfomer'. Did you mean 'transformer'?"),
        ("data.source", "zip", "data.source is 'zip'; it can be: scenes, folder, csv, webdataset"),
        ("device", "gpu", "device is 'gpu'; it can be: auto, cpu, cuda"),
        ("sampling.prompts", ["a red star", "  "], "sampling.prompts[1] is empty. Say what to generate"),
        ("data.image_size", 36, "image_size is 36"),
        ("sampling.top_p", 1.5, "sampling.top_p is 1.5; it needs to be in (0, 1]"),
        ("image_tokenizer.augmentation", "papre", "augmentation is 'papre'; it can be: none, paper"),
        ("image_tokenizer.augmentation", "paper", "but data.keep is square, which leaves nothing to crop. Set"),
        ("tokens.augmentation", "paper", "tokens.augmentation is paper, but data.keep is square"),
        ("tokens.views_per_image", 2, "all views of a center square are equal. Set tokens.augmentation: paper"),
        ("generator.bpe_dropout", 1.0, "generator.bpe_dropout is 1.0; it needs to be in [0, 1)"),
        ("generator.bpe_dropuot", 0.1, "generator has no key 'bpe_dropuot'. Did you mean 'bpe_dropout'?"),
        ("scorer.bpe_dropout", 0.1, "scorer has no key 'bpe_dropout'"),
        ("sampling.inpaint_keep_share", 1.0, "inpaint_keep_share is 1.0; it needs to be between 0 and 1"),
        ("generator.transformer.random_order_steps", [10, 31], "this model is ready only after 31 updates: until then"),
        ("sampling.guidance", 2.0, "Train it with generator.transformer.caption_dropout (0.1"),
        ("generator", NEXT_SCALE, "this image tokenizer has the grids [4] and no latents after each of them. Set image_"),
        ("extra", 1, "the file has no key 'extra'"),
        ("gate", {"minimum_promts": 8}, "gate has no key 'minimum_promts'. Did you mean 'minimum_prompts'?"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_fix(path, value, sentence):
    with pytest.raises(UserError) as caught:
        preflight.check_params(smoke(**{path: value}), 0)
    assert sentence in str(caught.value)


def test_images_to_inpaint_are_checked_before_any_work(tmp_path):
    settings = smoke(**{"sampling.inpaint": str(tmp_path)})
    write(tmp_path, {"cat.png": png(), "cat.txt": "a cat"})
    preflight.check_params(settings, 0)
    write(tmp_path, {"dog.png": png()[:40], "dog.txt": "a dog"})
    message = "^sampling.inpaint: dog.png in .* cannot be inpainted: .*Fix it, or remove it"
    with pytest.raises(UserError, match=message):
        preflight.check_params(settings, 0)


def rejected(main, capsys, *arguments: str) -> str:
    """The error of a command that has to end with code 2."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_stage_itself_ends_with_one_sentence_and_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(smoke(**{"sampling.candidats": 4})))
    error = rejected(check_params.main, capsys, "--out", "data/checked")
    assert error == (
        "check_params: params.yaml: sampling has no key 'candidats'. Did you mean 'candidates'?\n"
    )
    assert not Path("data/checked").exists()


@pytest.mark.parametrize("seed", [-1, 2**63, True, "7"])
def test_a_wrong_seed_is_named_with_its_range(tmp_path, monkeypatch, capsys, seed):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(smoke(seed=seed)))
    error = rejected(check_params.main, capsys, "--out", "data/checked")
    expected = f"params.yaml: seed should be a whole number from 0 to 2**63 - 1, found {seed!r}"
    assert error == f"check_params: {expected}\n"


def test_a_full_disk_ends_with_one_sentence_also_where_nothing_durable_is_written(
    tmp_path, monkeypatch, capsys
):
    def no_room(name, params):
        raise OSError(errno.ENOSPC, "No space left on device", ".mlflow")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "Tracker", no_room)
    Path("params.yaml").write_text(yaml.safe_dump(smoke()))
    assert rejected(check_params.main, capsys, "--out", "data/checked") == (
        "check_params: the disk is full ([Errno 28] No space left on device: '.mlflow'). Make room, then run the same again\n"
    )


def broken_database(folder: Path) -> None:
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(bytes(range(1, 256)) * 12)


@pytest.mark.parametrize(
    ("break_tracking", "uri", "reason"),
    [
        (broken_database, None, "file is not a database). Move that file away"),
        (lambda folder: (folder / "mlflow.db").mkdir(parents=True), None, "unable to open database file)"),
        (lambda folder: folder.write_text("a file"), None, "[Errno 17] File exists"),
        (lambda folder: None, "http://127.0.0.1:9", "refused>). Start it, or unset MLFLOW_TRACKING_URI"),
        (lambda folder: None, "nowhere://x", "). Start it, or unset MLFLOW_TRACKING_URI"),
    ],
)
def test_without_mlflow_the_work_goes_on_or_stops_as_a_setting_says(
    tmp_path, monkeypatch, capsys, break_tracking, uri, reason
):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(smoke(**{"sampling.inpaint": None})))
    break_tracking(Path(".mlflow"))
    with monkeypatch.context() as patch:
        if uri:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
        check_params.main(["--out", "data/checked"])
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("check_params: MLflow at ") and reason in line, line
        assert line.endswith("; the work goes on without tracking") and Path("data/checked").exists()
        assert json.loads(Path("results/runs/check_params.json").read_bytes())["run_id"] is None

        patch.setenv("THOUSANDWORDS_TRACKING", "required")
        assert reason in rejected(check_params.main, capsys, "--out", "data/checked")


def test_a_stage_that_cannot_save_its_state_still_ends_its_mlflow_run(tmp_path, monkeypatch):
    ends = []
    tracking = SimpleNamespace(run_id="run", metrics=lambda values, step: None, end=ends.append)
    context = stage.Stage("train_generator", {}, tracking, state=tmp_path)
    monkeypatch.setenv("THOUSANDWORDS_FAILPOINT", "mid-write:1:ENOSPC")
    monkeypatch.setattr("thousandwords.core.files._passed", Counter())
    with pytest.raises(DiskFull), stage._recorded(context, None):
        raise ValueError("the work went wrong")
    assert ends == ["FAILED"]


def test_a_preset_replaces_the_settings_and_backs_up_the_users_own(tmp_path):
    presets, params, backup = tmp_path / "presets", tmp_path / "params.yaml", tmp_path / "backup.yaml"
    presets.mkdir()
    (presets / "default.yaml").write_text("seed: 0\n")
    (presets / "big.yaml").write_text("seed: 1\n")
    params.write_text("seed: 7\n")

    message = use_preset.use_preset("default", presets, params, backup)

    assert params.read_text() == "seed: 0\n" and backup.read_text() == "seed: 7\n"
    assert message.endswith(f"your own settings were saved in {backup}")
    assert use_preset.use_preset("big", presets, params, backup) == "params.yaml is now the preset 'big'"
    assert backup.read_text() == "seed: 7\n"


@pytest.fixture
def own_project(tmp_path, monkeypatch) -> Path:
    """20 captioned images in own/, the presets, and a package of tiny models in models/package."""
    write_images(tmp_path / "own", range(20), "a cat of kind {}")
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "data/inpaint").mkdir(parents=True)
    fitting_package(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(use_data, "measure_update", lambda params, name, device: 0.1)
    return tmp_path


def write_images(folder: Path, numbers: range, caption: str) -> None:
    write(folder, {f"{n}.png": png(seed=n) for n in numbers})
    write(folder, {f"{n}.txt": caption.format(n) for n in numbers})


def write_params(**params: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params))


def settings_for(*arguments: str) -> dict:
    """The params.yaml that `make data` writes."""
    use_data.main(list(arguments))
    return yaml.safe_load(Path("params.yaml").read_text())


def test_own_images_get_whole_settings_and_the_users_own_are_backed_up(own_project, capsys):
    Path("params.yaml").write_text("seed: 1\n")
    params = settings_for("own", "--minutes", "5")

    assert params["budget"] == {"minutes": 5.0, "size": "auto", "pairs": 20}
    assert (params["data"]["source"], params["data"]["path"]) == ("auto", "own")
    preflight.check_params(params, 0)
    assert params["sampling"]["inpaint"] == "data/inpaint"  # a dependency of DVC, so never null
    assert Path("params.before.yaml").read_text() == "seed: 1\n"
    assert "20 pairs, about 2 held out; 8 × 8 tokens of 512" in capsys.readouterr().out


def test_what_is_left_out_is_said_before_the_run_and_too_much_ends_it(own_project, capsys):
    write(
        Path("own"), {"20.png": png(seed=20), "21.png": png(seed=0), "21.txt": Path("own/0.txt").read_text()}
    )
    settings_for("own", "--minutes", "5")
    text = capsys.readouterr().out
    assert text.startswith(
        "own is a folder of images with texts beside them (source folder)\nleft out of 22 inputs: "
    )
    assert ": 1 missing_pair (20.png: there is no 20.txt), 1 duplicate\n20 pairs, about 2 held out; " in text

    write(Path("own"), {f"{n}.png": b"" for n in range(20, 40)})
    assert "data: 20 of the 40 inputs of own were rejected (50%): " in rejected(use_data.main, capsys, "own")


def test_as_many_pairs_are_held_out_as_were_announced_also_of_several_lists(own_project, capsys):
    for split in ("train", "val"):
        rows = "".join(f"{split}{n}.png,a {split} {n}\n" for n in range(10))
        images = {f"{split}{n}.png": png(seed=ord(split[0]) + n) for n in range(10)}
        write(Path("lists"), images | {f"{split}.csv": f"image,caption\n{rows}"})
    params = settings_for("lists", "--minutes", "5")
    assert "20 pairs, about 2 held out" in capsys.readouterr().out
    counts = write_pairs(section(params["data"], "data", DataConfig), params["seed"], Path("pairs"))
    assert counts["splits"] == {"train": 18, "validation": 2}


def test_a_run_goes_on_from_the_last_ones_package_which_is_copied_first(own_project, capsys):
    params = settings_for("own", "--minutes", "5", "--from", "models/package")
    (copy,) = Path("models").glob("start-*")
    shutil.rmtree("models/package")  # as the pipeline does
    preflight.check_params(params, 0)
    assert [params[name]["init"] for name in SECTIONS] == [str(copy)] * len(SECTIONS)
    tokenizer = params["image_tokenizer"]
    assert (tokenizer["tune"], tokenizer["training"]["learning_rate"]) == ("decoder", 0.001)
    assert tokenizer["training"]["stop_after"] is None  # worse while the rate is high, best at the end
    assert (params["data"]["image_size"], params["generator"]["tune"]) == (16, "all")
    assert params["generator"]["training"]["learning_rate"] == 0.004 / 8
    assert params["scorer"]["training"]["learning_rate"] == 0.001 / 8
    assert params["generator"]["training"]["keep"] == "best"
    assert f"goes on from {copy}: 20 pairs, about 2 held out; 4 × 4 tokens" in capsys.readouterr().out
    assert "FROM=models/package`. Edit any value" in Path("params.yaml").read_text()


def test_a_run_paints_what_the_one_before_painted_and_says_that_it_has_no_captioner(own_project, capsys):
    parts = {name: Path("models/package", name) for name in PARTS}
    decoder = components.load("decoders", parts["decoder"])
    tokenizer = components.load("image_tokenizers", parts["image_tokenizer"])
    components.save(decoder, Path("kept"), image_tokenizer=tokenizer.fingerprint, paint="kept")
    components.save(tiny("captioners", "cross_attention"), Path("captioner"), captions={"candidates": 1})
    write_package(
        Path("other"), parts | {"decoder": Path("kept"), "captioner": Path("captioner")}, SamplingConfig(), {}
    )
    assert settings_for("own", "--from", "models/package")["decoder"]["paint"] == "all"
    assert settings_for("own", "--from", "other")["decoder"]["paint"] == "kept"
    assert "its captioner is not part of that: only " in capsys.readouterr().out


def test_from_champion_the_settings_name_the_registry_and_have_the_sizes_of_what_was_fetched(
    own_project, monkeypatch
):
    shutil.copytree("models/package", ".store/registry/1/package")
    monkeypatch.setattr(use_data, "fetch", lambda version, setting: Path(".store/registry", "1", "package"))
    params = settings_for("own", "--minutes", "5", "--from", "champion")
    assert {params[name]["init"] for name in SECTIONS} == {"models:/thousandwords@champion"}
    assert params["data"]["image_size"] == 16 and not list(Path("models").glob("start-*"))


def test_going_on_with_the_same_data_holds_out_no_pair_that_was_trained_on(own_project):
    data = {"source": "folder", "path": "own", "validation_share": 0.3, "group_by": None}
    write_params(seed=3, data=data)
    params = settings_for("own", "--from", "models/package")
    assert params["seed"] == 3 and params["data"] == data | {"image_size": 16}

    write_params(seed=3, data={"source": "scenes"})
    params = settings_for("own", "--from", "models/package")
    assert params["seed"] == 0 and params["data"]["source"] == "auto"


OWN = {"source": "folder", "path": "own", "licence": "CC0-1.0"}
UNWEIGHTED = {
    "source": "mixture",
    "sources": [{"source": "folder", "path": name} for name in ("own", "more")],
}


def held_out(data: dict, start: str = "") -> set[str]:
    """The held-out keys that begin with `start`, without it."""
    outcomes = prepare_all(section(data, "data", DataConfig), 3)
    keys = {pair.key for split, pair in outcomes if split == "validation"}
    return {key.removeprefix(start) for key in keys if key.startswith(start)}


def test_going_on_with_other_images_reads_those_before_as_often_and_holds_out_the_same(own_project):
    write_images(Path("more"), range(90, 98), "a star")
    rest = {"validation_share": 0.3, "image_size": 16}
    write_params(seed=3, data=OWN | {"validation_share": 0.3})
    params = settings_for("more", "--from", "models/package")

    preflight.check_params(params, 0)
    sources = [OWN | {"weight": 1}, {"source": "auto", "path": "more", "weight": 1}]
    assert params["seed"] == 3 and params["budget"]["pairs"] == 28
    assert params["data"] == rest | {"source": "mixture", "path": "data/own", "sources": sources}
    assert held_out(params["data"], "0/") == held_out(OWN | rest)

    write_images(Path("third"), range(99, 100), "a moon")
    params = settings_for("third", "--from", "models/package")
    assert [source["weight"] for source in params["data"]["sources"]] == [1, 1, 2]


def test_going_on_from_a_mixture_without_weights_reads_each_pair_before_once(own_project):
    write_images(Path("more"), range(90, 98), "a star")
    write_images(Path("third"), range(99, 100), "a moon")
    write_params(seed=3, data=UNWEIGHTED)
    params = settings_for("third", "--from", "models/package")
    assert [source["weight"] for source in params["data"]["sources"]] == [20, 8, 28]


def test_without_earlier_settings_a_run_goes_on_with_the_new_images_alone(own_project):
    assert settings_for("own", "--from", "models/package")["data"]["path"] == "own"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (UNWEIGHTED, "names more, which is not there. Bring it back, or delete the section data of params.yaml to go on"),
        ({"source": "folder", "url": "s3://mine/own"}, "are at s3://mine/own, and a mixture reads local files only. Copy"),
    ],
)  # fmt: skip
def test_images_before_that_cannot_be_read_again_are_named_with_the_fix(own_project, capsys, data, message):
    write_images(Path("third"), range(99, 100), "a moon")
    write_params(seed=3, data=data)
    assert message in rejected(use_data.main, capsys, "third", "--from", "models/package")


@pytest.mark.parametrize("more", [[], ["--from", "models/package"]])
def test_a_plan_says_before_the_start_what_a_run_on_own_images_takes(own_project, capsys, more):
    runs = ROOT / "bench/runs.yaml"
    plan.main(["--data", "own", "--minutes", "5", *more, "--runs", str(runs), "--benchmarks", "none"])

    text = capsys.readouterr().out
    assert "20 pairs, about 2 held out; " in text and " tokens of " in text and "; updates: " in text
    assert "\nepochs: " in text and " image tokens in all, " in text
    assert "\ntime: about 3 of the 5 minutes; with more pairs it would take all of them\n" in text
    assert "\nexpect: like emoji with 8 x 8 tokens" in text and "188 times as many pairs" in text
    assert "of memory in training, and about " in text and "\ntotal " in text and " minutes" in text
    assert "train_generator: " in text and "(measured: 0.1 s for an update here)" in text
    assert not Path("params.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own/*.tar"], "data: data.path is 'own/*.tar', a pattern, which DVC cannot follow. Set it to the folder"),
        (["nowhere"], "data: DATA is nowhere, and there is no such file or folder. Give the path"),
        (["own", "--from", "modles/package"], "FROM is modles/package, and there is no such folder. Give the folder of a"),
        (["own", "--from", "own"], "FROM is own, which is not a package: it has no package.json. Give the folder of a"),
        (["own", "--from", "models/package", "--size", "large"], "SIZE is large, but with FROM the sizes are those of"),
        (["own", "--from", "models:/other@x"], "FROM is models:/other@x, which names no package of this project's"),
        (["own", "--minutes", "1"], "data: MINUTES is 1; it needs to be 2 or more"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_go_on_from_is_said_before_any_work(own_project, capsys, arguments, message):
    assert message in rejected(use_data.main, capsys, *arguments) and not Path("params.yaml").exists()


def test_without_a_champion_the_message_says_how_to_get_one(own_project, capsys, monkeypatch):
    error = "registry: the registry has no version 'champion' of thousandwords. Run: make promote\n"
    failed = SimpleNamespace(returncode=2, stderr=error)
    monkeypatch.setattr(check_params.subprocess, "run", lambda *_, **__: failed)
    assert rejected(use_data.main, capsys, "own", "--from", "champion") == (
        "data: FROM is champion, which cannot be fetched: registry: the registry has no version 'champion' of "
        "thousandwords. Run: make promote. To go on from your own last run: FROM=models/package\n"
    )


def test_an_unknown_preset_lists_the_presets(tmp_path):
    with pytest.raises(UserError, match="no preset 'smok'. Did you mean 'smoke'\\? There is: .*smoke"):
        use_preset.use_preset("smok", ROOT / "presets", tmp_path / "params.yaml", tmp_path / "backup.yaml")


def test_the_prompt_to_try_is_one_of_this_data_set():
    prompts = ["flag: Italy", "a green apple"]
    assert print_run_summary.example({"sampling": {"prompts": prompts}}) == "flag: Italy"
    assert print_run_summary.example({"sampling": {}}) == "..."


def test_the_headline_has_each_metric():
    metrics = {
        "reconstruction": {"psnr_hard": 25.5, "psnr_kmeans": 22.25},
        "codebook": {"perplexity": 210.0, "perplexity_kmeans": 100.0, "used": 0.875, "vocab_size": 512},
        "generator": {"val_loss_image": 1.25, "val_loss_text": 0.5},
        "clip_score": {"n1": 0.6, "best": 0.75},
        "n": 32,
        "caption_match": {"seen": {"all": {"n1": 0.8, "best": 0.975}, "scene": {"n1": 0.99, "best": 1.0}}},
        "fidelity": {"true_or_nearest": {"prompts": 6, "closer_to_true": 0.5, "closer_than_neighbor": 0.75}},
        "held_out_pairs": 6,
        "verdicts": {"generator": "memorizing since step 120: held-out image loss 0.852"},
    }
    text = print_run_summary.headline(metrics)
    for expected in ("25.50 dB", "22.25 dB", "perplexity 210 (k-means 100)", "88% of 512"):
        assert expected in text
    assert "every attribute 80.0%" in text
    assert "generator        memorizing since step 120: held-out image loss 0.852" in text
    assert "50% of the best samples for 6 held-out captions are closer to the true image" in text
    assert "mean little: they are over 6 held-out pairs only" in text
    assert "held-out loss    1.250 nats per image token, 0.500 per text token\n" in text
    without_text = metrics | {"generator": {"val_loss_image": 1.25}}
    assert "held-out loss    1.250 nats per image token\n" in print_run_summary.headline(without_text)


def test_the_time_of_a_run_is_that_of_its_stages_and_those_that_were_made_elsewhere_are_named():
    records = {"evaluate": {"seconds": 61.0}, "train_generator": {"seconds": 120.0}}
    line = print_run_summary.time_line
    assert line([*records], records) == "time             3 min 1 s for all stages together"
    assert line(["prepare_pairs", *records, "package_model"], records) == (
        "time             3 min 1 s for the 2 of 4 stages together; not known of prepare_pairs, package_model, made elsewhere"
    )


def test_a_second_sigterm_does_not_cut_short_the_checkpoint_that_the_first_one_requested():
    """A cancelled flow signals the whole process group, and the end of `dvc` makes the stage signal itself
    again."""
    context = SimpleNamespace(is_stoppable=True, stop_requested=False)
    with stage._signals(context):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert context.stop_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
