"""Functions that are compiled where that works, and are what they were where it does not.

A compiler may be missing, too old, or refuse a size; training must not end for that. So the first failure is told in one line,
and the plain function does the work from then on. What is wrong with the work itself shows itself again there.
"""
from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch

ENOUGH = "_StopRecomputationError"  # how torch's checkpoint ends a forward pass whose last activations nobody needs
TOLD: set[str] = set()  # lines that were said already


def tell(line: str) -> None:
    """Says a line, once in a process."""
    if line not in TOLD:
        TOLD.add(line)
        print(line, file=sys.stderr, flush=True)


def wants_compiling(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether to compile at all: auto is yes on a GPU that Triton makes kernels for."""
    if setting == "auto":
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return setting and device.type != "meta"


class Compiled:
    """`function` compiled when first called; if that fails, `instead` (as a rule the function itself) from then on."""

    def __init__(self, function: Callable, name: str, instead: Callable | None = None, **settings: Any) -> None:
        self.function, self.name, self.instead, self.settings = function, name, instead or function, settings
        self.compiled: Callable | None = None  # made late: torch.compile takes seconds to import
        self.is_broken = False

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():  # a part of something larger, which is on guard itself
            return (self.instead if self.is_broken else self.function)(*arguments)
        if not self.is_broken:
            try:
                return self._made()(*arguments)
            except Exception as error:  # compilers raise anything
                if isinstance(error, torch.OutOfMemoryError) or type(error).__name__ == ENOUGH:
                    raise
                tell(f"{self.name} could not be compiled, and runs uncompiled: {in_short(error)}")
                self.is_broken = True
        return self.instead(*arguments)

    def _made(self) -> Callable:
        if self.compiled is None:
            self.compiled = torch.compile(self.function, dynamic=False, **self.settings)
        return self.compiled


def in_short(error: BaseException) -> str:
    """One line of an error, at most 200 letters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
