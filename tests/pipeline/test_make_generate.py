"""make hands a prompt on as it was typed."""

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
