"""What a layer caches and reads in decoding: layouts, candidates grouped by caption, CPU threads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thousandwords.generators.transformer.decode_step import limit_threads
from thousandwords.generators.transformer.kv_cache import CacheLayout, PrefixGroups, unique_rows
from thousandwords.generators.transformer.masks import KINDS, image_mask


def cache_layout(kind: str, side: int, kernel: int = 11) -> CacheLayout:
    return CacheLayout(image_mask(kind, side, kernel), side, kind == "column")


@pytest.mark.parametrize(
    ("kind", "num_lines", "num_slots"), [("row", 1, 33), ("column", 32, 32), ("convolutional", 1, 166)]
)
def test_of_the_papers_1024_tokens_a_layer_caches_what_its_mask_reaches(kind, num_lines, num_slots):
    layout = cache_layout(kind, 32)
    assert (layout.num_lines, layout.num_slots) == (num_lines, num_slots)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "kernel"), [(1, 3), (2, 3), (4, 3), (5, 11), (8, 11), (16, 5)])
def test_each_position_reads_exactly_the_positions_of_its_mask(kind, side, kernel):
    mask, layout = image_mask(kind, side, kernel), cache_layout(kind, side, kernel)
    cached: dict[tuple[int, int], int] = {}  # (line, slot) -> the position cached there
    for position in range(side * side):
        line = layout.line[position]
        cached[line, layout.slot[position]] = position
        read = [slot for slot, bias in enumerate(layout.attention_bias[position].tolist()) if bias == 0]
        assert sorted(cached[line, slot] for slot in read) == mask[position].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("rows", "is_in_order"),
    [([0, 0, 0], True), ([0, 1, 2], True), ([0, 0, 1, 1], True), ([0, 0, 1], False), ([0, 1, 0, 1], False)],
)
def test_candidates_are_grouped_by_caption_and_ungrouped_again(rows, is_in_order):
    groups = PrefixGroups(torch.tensor(rows))
    values = torch.arange(1.0, len(rows) + 1)[:, None, None].expand(-1, 2, 3)

    grouped = groups.group(values)

    assert groups.is_in_order is is_in_order
    assert grouped.shape == (max(rows) + 1, 2, max(rows.count(row) for row in rows), 3)
    for row, prefix in enumerate(rows):
        assert row + 1 in grouped[prefix, 0, :, 0].tolist()
    assert groups.ungroup(grouped).equal(values)


def test_unique_rows_are_in_the_order_of_their_first_occurrence():
    unique, index = unique_rows(torch.tensor([[5, 1], [5, 1], [2, 9], [5, 1], [3, 3]]))
    assert unique.tolist() == [[5, 1], [2, 9], [3, 3]] and index.tolist() == [0, 0, 1, 0, 2]


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (31, 1), (32, 2)])
def test_small_products_use_one_thread_and_the_setting_is_restored(rows, threads, two_threads):
    with limit_threads(rows, nn.Linear(128, 512)):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), limit_threads(1, nn.Linear(128, 512)):
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
