"""dvc.yaml: one stage per module, packages as dependencies, and each stage depends on exactly the packages that it imports."""

import grimp
import pytest
import yaml

from tests.helpers.paths import ROOT
from thousandwords.planning.presets import read_preset
from thousandwords.preflight import OPTIONAL, SECTIONS

FAMILIES = ("image_tokenizer", "decoder", "generator", "scorer", "captioner")
# stages.runtime changes no byte, so no stage depends on it; run_training alone brings in code that does: the training loop
RUNTIME, TRAINING = "stages.runtime", "stages.runtime.run_training"


def stages() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("thousandwords", "stages", cache_dir=None)


def imported_modules(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """Every module whose code can change what the stage writes."""
    modules, waiting = set(), [f"stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module not in modules and (module == TRAINING or not module.startswith(RUNTIME)):
            modules.add(module)
            waiting += graph.find_modules_directly_imported_by(module)
    return modules


def packages(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """The dependencies on code that dvc.yaml should name for a stage."""
    found = {f"stages/{stage}.py"}
    sources = ""
    for module in imported_modules(graph, stage):
        top, _, rest = module.partition(".")
        if top == "thousandwords" and rest:
            package = rest.partition(".")[0]
            is_folder = (ROOT / "thousandwords" / package).is_dir()
            found.add(f"thousandwords/{package}" if is_folder else f"thousandwords/{package}.py")
            if module != "thousandwords.components":
                path = ROOT / "thousandwords" / rest.replace(".", "/")
                sources += (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    sources += (ROOT / "stages" / f"{stage}.py").read_text()
    if "thousandwords/components.py" in found:  # it loads a kind by name: its folder, and what that needs
        for family in FAMILIES:
            if f'"{family}s"' in sources:
                kind = f"thousandwords/{family}s/${{{family}.kind}}"
                found |= {f"thousandwords/{family}s/base.py", kind, "thousandwords/nn"}
    return found


@pytest.mark.parametrize("stage", stages())
def test_a_stage_depends_on_the_packages_that_it_imports_and_on_no_other(graph, stage):
    listed = {dep for dep in stages()[stage]["deps"] if dep.startswith(("thousandwords", "stages"))}
    if stage == "check_params":  # it builds every model and reads every section
        assert listed == {"thousandwords", "stages"}
    else:
        assert listed == packages(graph, stage)


def test_the_stage_files_are_the_stages_and_each_says_what_it_does():
    assert {path.stem for path in (ROOT / "stages").glob("[!_]*.py")} == set(stages())
    for name, stage in stages().items():
        assert f"python -m stages.{name} " in stage["cmd"] and len(stage["desc"]) > 20


@pytest.mark.parametrize(
    ("package", "stages_that_run"),
    [
        ("evaluation", {"evaluate"}),
        ("reporting", {"evaluate"}),
        (
            "training",
            {"recaption", "train_image_tokenizer", "train_decoder", "train_generator", "train_scorer"},
        ),
    ],
)
def test_after_an_edit_of_the_evaluation_nothing_is_trained_again(package, stages_that_run):
    found = {name for name, stage in stages().items() if f"thousandwords/{package}" in stage["deps"]}
    assert found == stages_that_run


def test_the_metrics_of_dvc_are_the_headline_numbers_and_what_compares_runs_is_in_git_not_in_the_cache():
    evaluate = stages()["evaluate"]
    assert evaluate["metrics"] == [{"results/headline.json": {"cache": False}}]
    assert not any("metrics" in stage for name, stage in stages().items() if name != "evaluate")
    uncached = [path for out in evaluate["outs"] if isinstance(out, dict) for path in out]
    for path in ("results/headline.json", *uncached):
        assert f"\n!/{path}\n" in (ROOT / ".gitignore").read_text()
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert [artifact["path"] for artifact in artifacts.values()] == [stages()["package_model"]["outs"][0]]


def test_dvc_yaml_stays_short():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 200


def test_every_section_of_params_is_a_dependency_of_a_stage():
    used = {name.partition(".")[0] for stage in stages().values() for name in stage.get("params", [])}
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) <= used | set(OPTIONAL)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")))
def test_a_preset_has_all_sections_in_their_order(preset):
    """That its settings are valid and its models fit together is in test_paper.py."""
    params = read_preset(preset, ROOT / "presets")
    assert tuple(params)[: len(SECTIONS)] == SECTIONS and set(params) <= {*SECTIONS, *OPTIONAL}
