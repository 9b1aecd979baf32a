"""thousandwords run and studio become make's targets in a clone; elsewhere a sentence says what is missing."""

import os

import pytest

import thousandwords
from tests.helpers import commands
from thousandwords import __main__ as command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], ["make", "run"]),
        (["run", "DATA=/my images", "MINUTES=5"], ["make", "run", "DATA=/my images", "MINUTES=5"]),
        (["studio"], ["make", "studio", "OPTIONS="]),
        (["studio", "--port", "80", "--help"], ["make", "studio", "OPTIONS=--port 80 --help"]),
        (["studio", "--package", "my $1"], ["make", "studio", "OPTIONS=--package 'my $$1'"]),
    ],
)
def test_in_a_clone_the_command_is_makes(tmp_path, monkeypatch, arguments, expected):
    (tmp_path / "flows").mkdir()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(os, "execvp", lambda *arguments: made.append(arguments))

    command.main(arguments)

    assert made == [("make", expected)]


@pytest.mark.parametrize("name", ["run", "studio"])
def test_elsewhere_one_sentence_says_that_a_clone_is_needed(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert commands.rejected(capsys, name) == (
        f"{name}: thousandwords {name} needs a clone of thousandwords, but {tmp_path} is none. In a clone run: make {name}"
    )


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"thousandwords {thousandwords.__version__}\n")
