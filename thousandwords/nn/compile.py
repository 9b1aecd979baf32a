"""Functions that are compiled where possible: after the first failure, reported in one line, they run uncompiled."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch

# how torch's checkpoint ends a recomputation as soon as it has all activations that it needs
STOP_RECOMPUTATION = "_StopRecomputationError"
_logged: set[str] = set()


def log_once(line: str) -> None:
    """Print a line to stderr, once per process."""
    if line not in _logged:
        _logged.add(line)
        print(line, file=sys.stderr, flush=True)


def should_compile(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether to compile: auto means yes on a GPU if Triton is installed."""
    if setting == "auto":
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return setting and device.type != "meta"


class Compiled:
    """`function`, compiled at the first call; after a failure `fallback` (default: `function` itself)."""

    def __init__(
        self, function: Callable, name: str, fallback: Callable | None = None, **settings: Any
    ) -> None:
        self.function, self.name, self.settings = function, name, settings
        self.fallback = fallback or function
        self.compiled: Callable | None = None  # made at the first call: torch.compile takes seconds to import
        self.is_broken = False

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():  # part of a larger compiled function, which handles failures itself
            return (self.fallback if self.is_broken else self.function)(*arguments)
        if not self.is_broken:
            try:
                return self._compile()(*arguments)
            except Exception as error:  # compilers raise many types
                if isinstance(error, torch.OutOfMemoryError) or type(error).__name__ == STOP_RECOMPUTATION:
                    raise
                log_once(f"{self.name} could not be compiled, and runs uncompiled: {summarize_error(error)}")
                self.is_broken = True
        return self.fallback(*arguments)

    def _compile(self) -> Callable:
        if self.compiled is None:
            self.compiled = torch.compile(self.function, dynamic=False, **self.settings)
        return self.compiled


def summarize_error(error: BaseException) -> str:
    """An error as one line with at most 200 characters of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
