"""flows/workers/placement.yaml: the resources of each stage, and the workers of a machine."""

import pytest
import yaml

from flows.workers.__main__ import plan_workers
from flows.workers.placement import Place, read_placement
from tests.helpers.paths import ROOT
from thousandwords.core.errors import UserError


def test_the_table_of_this_project_names_its_stages():
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    table = read_placement(stages, ROOT / "flows/workers/placement.yaml")
    assert table.of("train_generator").gpus == 1 and table.of("prepare_pairs") == Place(gpus=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {c: {gpus: 1}}", r"dvc\.yaml has no stage 'c'\. It has: a, b"),
        ("stages: {a: {gpu: 1}}", r"stages\.a has no key 'gpu'\. Did you mean 'gpus'\?"),
        ("stages: {a: {gpus: -1}}", "must be 0 or more"),
        ("paralel: 3", r"has no key 'paralel'\. Did you mean 'parallel'\?"),
        ("parallel: 0", "it must be 1 or more"),
        ("parallel: [", "while parsing"),
        ("stages: [a]", r"stages should be a block of keys, found \['a'\]"),
    ],
)
def test_an_error_in_the_table_is_named_with_its_place(tmp_path, text, message):
    (tmp_path / "placement.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_placement(["a", "b"], tmp_path / "placement.yaml")
    assert "placement.yaml" in str(caught.value)


def test_a_machine_gets_one_worker_per_gpu_and_one_for_the_cpu():
    planned = plan_workers(["0", "1"], name="big")
    assert [(worker.name, worker.pool, worker.gpus, worker.runs) for worker in planned] == [
        ("big-gpu0", "thousandwords-gpu", ("0",), 1),
        ("big-gpu1", "thousandwords-gpu", ("1",), 1),
        ("big-cpu", "thousandwords-cpu", (), 2),
    ]
    assert [worker.gpus for worker in plan_workers(["0", "1"], per_worker=2)] == [("0", "1"), ()]
    with pytest.raises(UserError, match="3 GPUs cannot be divided into groups of 2"):
        plan_workers(["0", "1", "2"], per_worker=2)
