"""The table of conformance: every row has tests, and a failed test makes its row red."""

import re
from collections import Counter

import pytest

from tests.architecture.conformance import ROWS, Outcomes, marked_tests, table_of
from tests.helpers.paths import ROOT

PAPER = ROOT.parent / "shared" / "paper.md"


def test_every_row_has_tests_and_every_marker_names_a_row():
    assert marked_tests().keys() == {row.id for row in ROWS}


@pytest.mark.skipif(not PAPER.is_file(), reason="../shared/paper.md is absent")
def test_every_row_of_the_papers_tables_has_a_row():
    tables = re.findall(r"^\| (.+?) \|", PAPER.read_text(encoding="utf-8"), flags=re.MULTILINE)
    expected = Counter(name for name in tables if name != "what")

    assert expected - Counter(row.what for row in ROWS) == Counter()


def test_a_row_is_green_when_all_its_tests_passed():
    tests = {row.id: [f"tests/test_paper.py::test_{number}"] for number, row in enumerate(ROWS)}
    outcomes = Outcomes()
    outcomes.passed = {node for nodes in tests.values() for node in nodes}
    lines, green = table_of(outcomes, tests)
    assert green == len(ROWS) and not any("NOT GREEN" in line for line in lines)

    outcomes.failed = set(tests[ROWS[0].id])
    outcomes.passed -= set(tests[ROWS[1].id])
    del tests[ROWS[2].id]
    lines, green = table_of(outcomes, tests)
    assert green == len(ROWS) - 3 and sum("NOT GREEN" in line for line in lines) == 3
