"""What a decoding layer keeps and reads: windows read off the masks, candidates under their captions, and on how many cores."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from thousandwords.generators._cache import Candidates, Window, different_rows
from thousandwords.generators._decode import cores_for
from thousandwords.generators._masks import KINDS, image_mask


def window(kind: str, side: int, kernel: int = 11) -> Window:
    return Window(image_mask(kind, side, kernel), side, kind == "column")


@pytest.mark.parametrize(("kind", "lines", "slots"), [("row", 1, 33), ("column", 32, 32), ("convolutional", 1, 166)])
def test_of_the_papers_1024_words_a_layer_keeps_what_its_kind_may_see(kind, lines, slots):
    found = window(kind, 32)
    assert (found.lines, found.slots) == (lines, slots)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "kernel"), [(1, 3), (2, 3), (4, 3), (5, 11), (8, 11), (16, 5)])
def test_each_position_reads_just_those_that_its_mask_lets_it_see(kind, side, kernel):
    mask, found = image_mask(kind, side, kernel), window(kind, side, kernel)
    kept: dict[tuple[int, int], int] = {}  # (line, slot) -> the position that lies there
    for position in range(side * side):
        line = found.line[position]
        kept[line, found.slot[position]] = position
        read = [slot for slot, hidden in enumerate(found.hidden[position].tolist()) if hidden == 0]
        assert sorted(kept[line, slot] for slot in read) == mask[position].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("rows", "is_in_order"),
    [([0, 0, 0], True), ([0, 1, 2], True), ([0, 0, 1, 1], True), ([0, 0, 1], False), ([0, 1, 0, 1], False)],
)
def test_candidates_are_lined_up_under_their_captions_and_found_again(rows, is_in_order):
    candidates = Candidates(torch.tensor(rows))
    values = torch.arange(1.0, len(rows) + 1)[:, None, None].expand(-1, 2, 3)

    grouped = candidates.group(values)

    assert candidates.is_in_order is is_in_order
    assert grouped.shape == (max(rows) + 1, 2, max(rows.count(row) for row in rows), 3)
    for row, prefix in enumerate(rows):
        assert row + 1 in grouped[prefix, 0, :, 0].tolist()
    assert candidates.ungroup(grouped).equal(values)


def test_different_rows_come_in_the_order_in_which_they_are_first_seen():
    different, which = different_rows(torch.tensor([[5, 1], [5, 1], [2, 9], [5, 1], [3, 3]]))
    assert different.tolist() == [[5, 1], [2, 9], [3, 3]] and which.tolist() == [0, 0, 1, 0, 2]


@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (31, 1), (32, 2)])
def test_little_work_keeps_to_one_core_and_the_setting_comes_back(rows, seen, two_threads):
    with cores_for(rows, nn.Linear(128, 512)):
        assert torch.get_num_threads() == seen
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), cores_for(1, nn.Linear(128, 512)):
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
