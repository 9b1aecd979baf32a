"""The table of conformance itself: its tests exist, it covers the paper's tables, and it can tell red from green."""
from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance import ROWS, Outcomes, table_of

ROOT = Path(__file__).parent.parent
PAPER = ROOT.parent / "shared" / "paper.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.what}-{row.source}")
def test_every_test_of_a_row_is_there(row):
    for node in row.nodes:
        file, name = node.split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), node


@pytest.mark.skipif(not PAPER.is_file(), reason="../shared/paper.md is absent")
def test_every_row_of_the_papers_tables_has_a_row():
    tables = re.findall(r"^\| (.+?) \|", PAPER.read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = Counter(name for name in tables if name != "what")

    assert wanted - Counter(row.what for row in ROWS) == Counter()


def test_a_row_is_green_when_all_its_tests_have_run_and_passed():
    seen = Outcomes()
    seen.ran = {node for row in ROWS for node in row.nodes}
    lines, green = table_of(seen)
    assert green == len(ROWS) and not any("NOT GREEN" in line for line in lines)

    seen.failed = {ROWS[0].nodes[0]}
    seen.ran -= {ROWS[1].nodes[0]}
    lines, green = table_of(seen)
    assert green == len(ROWS) - 2 and sum("NOT GREEN" in line for line in lines) >= 2
