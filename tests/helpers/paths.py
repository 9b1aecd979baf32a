"""Where the project lies, and the data beside it that some tests use."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
