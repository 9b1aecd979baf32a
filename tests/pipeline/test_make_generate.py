"""make hands a prompt on as it was typed, and names settings that it would not use."""

import os
import subprocess

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.parametrize("prompt", ["a $5 bill", '`ls` "quoted" it\'s $(HOME) $(open # 100%', "红色 🌵 $$"])
def test_a_prompt_reaches_the_command_as_it_was_typed(prompt, tmp_path):
    (tmp_path / "Makefile").write_text(
        f'include {ROOT}/Makefile\nshow:\n\t@printf "%s|%s" "$$PROMPT" "$$PROMPTS"\n'
    )
    make = ["make", "-s", "-f", str(tmp_path / "Makefile"), "show"]
    typed = subprocess.run([*make, f"PROMPT={prompt}", f"PROMPTS={prompt}"], capture_output=True, text=True)
    assert typed.stdout == f"{prompt}|{prompt}", typed.stderr
    exported = subprocess.run(make, env=os.environ | {"PROMPT": prompt}, capture_output=True, text=True)
    assert exported.stdout == f"{prompt}|", exported.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("MINUTES=5", "MINUTES belongs to DATA=/your/images: give both, or leave MINUTES out"),
        ("SIZE=small", "SIZE belongs to DATA=/your/images: give both, or leave SIZE out"),
        ("FROM=champion", "FROM goes on from a model with the images of DATA: give both"),
        ("DATA=own PRESET=smoke", "PRESET and DATA both write params.yaml: give one of them"),
        ("DATA=own MINUTES=5 FROM=champion", None),
        ("PRESET=smoke", None),
    ],
)
@pytest.mark.parametrize("target", ["run", "plan"])
def test_a_setting_that_would_have_no_effect_is_named_before_any_work(target, settings, message):
    make = ["make", "--dry-run", "--assume-old=.venv/.ready", target, *settings.split()]
    done = subprocess.run(
        make, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"SIZE": "of a shell"}
    )
    assert (done.returncode == 0) == (message is None)
    assert message is None or f"*** {message}.  Stop." in done.stderr
