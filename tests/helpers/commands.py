"""Run `python -m thousandwords` in this process."""

import pytest

from thousandwords import __main__ as command


def rejected(capsys, *arguments: str) -> str:
    """The one sentence of a command that has to end with code 2."""
    with pytest.raises(SystemExit) as caught:
        command.main(list(arguments))
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    return err.rstrip("\n")
