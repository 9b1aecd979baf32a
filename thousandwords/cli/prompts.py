"""The prompts of a command line."""

from __future__ import annotations

from pathlib import Path

from thousandwords.core.errors import UserError
from thousandwords.inference.config import check_prompt


def read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts of a command line, or one per line of a file; raises UserError that names the line of a bad
    one."""
    if file is None:
        if not prompts:
            raise UserError(
                'no prompt was given. For example: make generate PROMPT="a small red star on sand"'
            )
        return [check_prompt(prompt) for prompt in prompts]
    if not file.is_file():
        raise UserError(f"there is no file {file}. Give a text file with one prompt per line")
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    prompts = [
        check_prompt(line, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{file} holds no prompt. Write one per line")
    return prompts
