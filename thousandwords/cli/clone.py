"""thousandwords run DATA=/your/images MINUTES=20, thousandwords studio --port 8000: make's targets, in a clone of the project."""

import argparse
import os
import shlex

from thousandwords.clone import check_clone


def add_run_options(parser: argparse.ArgumentParser) -> None:
    text = "settings of make run: PRESET=smoke, DATA=/your/images, MINUTES=20"
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help=text)


def run(options: argparse.Namespace) -> None:
    """Become `make run`, which also sets up the environment."""
    _make("run", *options.settings)


def add_studio_options(parser: argparse.ArgumentParser) -> None:
    parser.prefix_chars = ""  # every option is the studio's own, --help too
    parser.add_argument("options", nargs="*")


def studio(options: argparse.Namespace) -> None:
    """Become `make studio`."""
    text = shlex.join(options.options).replace("$", "$$")  # make would expand it
    _make("studio", f"OPTIONS={text}")


def _make(target: str, *settings: str) -> None:
    check_clone(f"thousandwords {target}", f"make {target}")
    os.execvp("make", ["make", target, *settings])
