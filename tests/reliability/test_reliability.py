"""Every row of the reliability plan has tests that exist: the last table of bench/reliability.md."""

import re

from tests.helpers.paths import ROOT


def test_every_row_names_existing_tests():
    text = (ROOT / "bench/reliability.md").read_text(encoding="utf-8")
    covered = text[text.index("| id | tests |") :]
    rows = re.findall(r"^\| ([A-D]\d+) \| `test_", covered, re.MULTILINE)
    last = {"A": range(1, 11), "B": (1, 2, 3, 4, 5, 7, 8, 9), "C": range(1, 11), "D": range(38)}
    assert rows == [f"{part}{number}" for part, numbers in last.items() for number in numbers]
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(re.findall(r"test_\w+", covered)) - {"test_reliability"} <= defined
