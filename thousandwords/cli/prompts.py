"""The prompts of a command line."""
from __future__ import annotations

from pathlib import Path

from thousandwords.drawing import check_prompt
from thousandwords.errors import UserError


def read_prompts(words: list[str], file: Path | None) -> list[str]:
    """The prompts of a command line, or one per line of a file; raises UserError that names the line with a wrong one."""
    if file is None:
        if not words:
            raise UserError('no prompt was given. For example: make draw PROMPT="a small red star on sand"')
        return [check_prompt(prompt) for prompt in words]
    if not file.is_file():
        raise UserError(f"there is no file {file}. Give a text file with one prompt per line")
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    prompts = [check_prompt(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise UserError(f"{file} holds no prompt. Write one per line")
    return prompts
