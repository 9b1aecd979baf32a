"""The arguments of the flows sweep and generate: values that are combined, and what is rejected."""

import pytest

from flows import generate, sweep
from thousandwords.core.errors import UserError


@pytest.mark.parametrize("prompts", [[], [" "], ["two\nlines"]])
def test_prompts_that_are_not_one_line_of_text_are_rejected(prompts):
    with pytest.raises(UserError, match="each prompt must be one line of text"):
        generate.generate.fn(prompts)


def test_all_combinations_of_values_are_tried():
    assert sweep.parse_grid(["a.b=1,0.5", "seed=0"]) == {"a.b": [1, 0.5], "seed": [0]}
    assert sweep.combinations({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


@pytest.mark.parametrize("grid", [{}, {"a": []}])
def test_a_sweep_over_no_values_or_too_many_is_rejected(grid):
    with pytest.raises(UserError, match="a sweep needs values"):
        sweep.combinations(grid)
    with pytest.raises(UserError, match="more than 200"):
        sweep.combinations({"a": list(range(201))})


def test_a_setting_that_does_not_exist_is_rejected_before_any_experiment(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("generator: {training: {steps: 1}}")
    monkeypatch.chdir(tmp_path)
    sweep.check_settings({"generator.training.steps": [1]})
    with pytest.raises(UserError, match=r"params\.yaml has no generator\.training\.step\."):
        sweep.check_settings({"generator.training.step": [1]})
