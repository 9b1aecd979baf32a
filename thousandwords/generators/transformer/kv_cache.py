"""The keys and values that each layer caches, so that a new token costs the work of one token.

The candidates of one caption share the keys and values of their prefix. Of a candidate's own image tokens a
row layer caches the last row and one cell more, the convolutional layer as far back as its neighborhood
reaches, a column layer each column by itself: of 1,024 tokens 33, 166 and 1,024 are cached, and 33, 166 and
32 are read. Causal layers cache and read all tokens. All shapes are the same at every position, as CUDA graphs need.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.nn.transformer_layers import Attend, dense_attention


class PrefixGroups:
    """Which of U prefixes each of B candidates continues; groups the candidates of one prefix side by side.

    Groups are padded to the size of the largest: rows [0, 0, 1] -> 2 prefixes with 2 slots each, the last
    slot empty. Where all groups have one size and are in order, grouping moves no data.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows  # (B,), each from 0 to U - 1
        counts = torch.bincount(rows)
        self.num_prefixes, self.group_size = len(counts), int(counts.max())
        order = rows.argsort(stable=True)
        start = counts.cumsum(0) - counts  # of each group in that order
        number_in_group = torch.empty_like(rows)
        number_in_group[order] = torch.arange(len(rows), device=rows.device) - start[rows[order]]
        self.slot = rows * self.group_size + number_in_group
        all_slots = torch.arange(self.num_prefixes * self.group_size, device=rows.device)
        self.is_in_order = self.slot.equal(all_slots)

    def group(self, values: Tensor) -> Tensor:
        """(B, heads, x) -> (U, heads, group_size, x), 0 in empty slots."""
        if not self.is_in_order:
            grouped = values.new_zeros(self.num_prefixes * self.group_size, *values.shape[1:])
            grouped[self.slot] = values
            values = grouped
        return values.unflatten(0, (self.num_prefixes, self.group_size)).transpose(1, 2)

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(U, heads, group_size, x) -> (B, heads, x)."""
        values = grouped.transpose(1, 2).reshape(-1, grouped.shape[1], grouped.shape[3])
        return values if self.is_in_order else values[self.slot]


def unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The unique rows (U, n) in the order of first occurrence, and the index into them of each row: (B,)."""
    unique, index = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(rows), device=rows.device)
    first.scatter_reduce_(0, index, torch.arange(len(rows), device=rows.device), "amin")
    order = first.argsort()
    return unique[order], order.argsort()[index]


class CacheLayout:
    """Where the layers of one kind cache each image position, in lines of slots, and which ones it sees.

    A column layer has a line for every column and a slot for every row; a new position reads the line of its
    column. Other layers have one line, a ring buffer as long as their mask reaches back.
    """

    def __init__(self, image_mask: Tensor, side: int, is_by_column: bool):
        """`image_mask` (L, L): True where a query (row) sees a key (column)."""
        position = torch.arange(len(image_mask), device=image_mask.device)
        query, key = image_mask.nonzero().T
        self.num_slots = side if is_by_column else int((query - key).max()) + 1
        self.num_lines = side if is_by_column else 1
        self.line = (position % side if is_by_column else torch.zeros_like(position)).tolist()
        slot = position // side if is_by_column else position % self.num_slots
        self.slot = slot.tolist()
        # (L, slots), added to scores: 0 where a position sees a slot, else -inf
        shape = (len(position), self.num_slots)
        self.attention_bias = image_mask.new_full(shape, -torch.inf, dtype=torch.float32)
        self.attention_bias[query, slot[key]] = 0.0
        self._bias_with_prefix: dict[int, Tensor] = {}

    def bias_with_prefix(self, prefix_length: int) -> Tensor:
        """`attention_bias` after a prefix that all see: (L, prefix_length + slots), made on first use."""
        if prefix_length not in self._bias_with_prefix:
            self._bias_with_prefix[prefix_length] = F.pad(self.attention_bias, (prefix_length, 0))
        return self._bias_with_prefix[prefix_length]


class LayerCache:
    """Keys and values of one layer: shared (2, U, heads, prefix, x), own (2, B, heads, lines, slots, x).

    x is a head's width. Where each candidate has a prefix of its own, nothing is shared; on a CPU, where
    calling an operation costs as much as its arithmetic, `combined` then has prefix and own positions side by
    side, (2, B, heads, prefix + slots, x), so that attention is one product each way.
    """

    def __init__(self, groups: PrefixGroups, prefix_length: int, layout: CacheLayout):
        self.groups, self.prefix_length, self.layout = groups, prefix_length, layout
        self.shared = self.own = torch.empty(0)
        self.combined: Tensor | None = None

    def prefill(self, mask: Tensor) -> Attend:
        """As `dense_attention` for the U unique beginnings (prefix and fixed tokens), storing keys and values."""

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.store(keys, values)
            return dense_attention(mask)(queries, keys, values)

        return attend

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of the U unique beginnings: (U, heads, prefix + P, x) each."""
        both = torch.stack([keys, values])
        self.shared = both[:, :, :, : self.prefix_length].contiguous()
        self.own = self._allocate_own(both[:, :, :, self.prefix_length :])
        if self.groups.group_size == 1 and not keys.is_cuda:
            self.combined = torch.cat([self.shared[:, self.groups.rows], self.own[:, :, :, 0]], dim=3)
            if self.layout.num_lines == 1:  # a view: what is stored in one is in both
                self.own = self.combined[:, :, :, None, self.prefix_length :]

    def _allocate_own(self, fixed: Tensor) -> Tensor:
        """Memory for every candidate, with the fixed tokens' keys and values (2, U, heads, P, x): as `own`."""
        layout, count = self.layout, fixed.shape[3]
        positions = list(range(0 if layout.num_lines > 1 else max(0, count - layout.num_slots), count))
        lines, slots = ([table[position] for position in positions] for table in (layout.line, layout.slot))
        own = fixed.new_zeros(*fixed.shape[:3], layout.num_lines, layout.num_slots, fixed.shape[4])
        own[:, :, :, lines, slots] = fixed[:, :, :, positions]
        return own[:, self.groups.rows]

    def step(self, position: int, qkv: Tensor) -> Tensor:
        """Attention of one new image token to the prefix and to what it sees of the image, itself included.

        `qkv`: its queries, keys and values (B, 3, heads, x) -> (B, heads * x).
        """
        layout, line = self.layout, self.layout.line[position]
        self.own[:, :, :, line, layout.slot[position]] = qkv[:, 1:].transpose(0, 1)
        queries = qkv[:, 0] * qkv.shape[-1] ** -0.5
        if self.combined is None:
            bias = layout.attention_bias[position].to(qkv.dtype)
            keys, values = self.own[:, :, :, line].flatten(1, 2)  # (B * heads, slots, x)
            return self.attend_separately(queries, keys, values, bias)
        if layout.num_lines > 1:
            self.combined[:, :, :, self.prefix_length :] = self.own[:, :, :, line]
        keys, values = self.combined.flatten(1, 2)
        bias = layout.bias_with_prefix(self.prefix_length)[position].to(qkv.dtype)
        rows, heads, width = queries.shape
        scores = torch.baddbmm(bias, queries.view(rows * heads, 1, width), keys.transpose(1, 2))
        return torch.bmm(_softmax(scores, values.dtype), values).view(rows, heads * width)

    def attend_separately(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """One softmax over shared prefix and own positions, in as few operations as possible."""
        group, ungroup = self.groups.group, self.groups.ungroup
        rows, heads, width = queries.shape
        to_own = torch.baddbmm(bias, queries.view(rows * heads, 1, width), keys.transpose(1, 2))
        to_prefix = ungroup(group(queries) @ self.shared[0].transpose(2, 3))  # (B, heads, prefix)
        weights = _softmax(torch.cat([to_prefix, to_own.view(rows, heads, -1)], dim=-1), values.dtype)
        own_weights = weights[..., self.prefix_length :].reshape(rows * heads, 1, -1)
        attended = torch.bmm(own_weights, values).view(rows, heads, width)
        return (attended + ungroup(group(weights[..., : self.prefix_length]) @ self.shared[1])).flatten(1)


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Over the last axis, summed in float32 at least."""
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
