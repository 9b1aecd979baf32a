"""What the layers have already read, so that a new token costs the work of one token and reads no more than its layer may see.

Candidates of one caption read the same text: its keys and values are held, and attended to, once for all of them. Of what a
candidate has drawn itself a row layer keeps the last row and one cell more, the convolutional layer as far as its neighbourhood
reaches, and a column layer each column by itself: of 1,024 words 33, 166 and 1,024 are kept, and 33, 166 and 32 are read. Where
a position is kept and whom it sees there is read off the masks of _masks.py, the one source of truth; a test holds this path and
the dense one equal for every kind of layer. All shapes are the same at every position, as CUDA graphs want them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.generators._layers import Attend, dense


class Candidates:
    """Which of U prefixes each of B candidates continues, and how to line up those of one prefix side by side.

    Groups are filled up to the size of the largest: rows [0, 0, 1] -> 2 prefixes, 2 places each, the last empty. Where they are
    of one size and in order ([0, 0, 1, 1], or one caption, or all different) lining up moves nothing.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows  # (B,), each from 0 to U - 1
        members = torch.bincount(rows)
        self.prefixes, self.places = len(members), int(members.max())
        order = rows.argsort(stable=True)
        first = members.cumsum(0) - members  # where each group begins in that order
        number_in_group = torch.empty_like(rows)
        number_in_group[order] = torch.arange(len(rows), device=rows.device) - first[rows[order]]
        self.place = rows * self.places + number_in_group
        self.is_in_order = self.place.equal(torch.arange(self.prefixes * self.places, device=rows.device))

    def group(self, values: Tensor) -> Tensor:
        """(B, heads, x) -> (U, heads, places, x), 0 at empty places."""
        if not self.is_in_order:
            grouped = values.new_zeros(self.prefixes * self.places, *values.shape[1:])
            grouped[self.place] = values
            values = grouped
        return values.unflatten(0, (self.prefixes, self.places)).transpose(1, 2)

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(U, heads, places, x) -> (B, heads, x)."""
        values = grouped.transpose(1, 2).reshape(-1, grouped.shape[1], grouped.shape[3])
        return values if self.is_in_order else values[self.place]


def different_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows (U, n) in the order in which they first come, and which of them each row is: (B,)."""
    different, which = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(different),), len(rows), device=rows.device)
    first.scatter_reduce_(0, which, torch.arange(len(rows), device=rows.device), "amin")
    order = first.argsort()
    return different[order], order.argsort()[which]


class Window:
    """Where the layers of one kind keep each image position, and which of those kept it sees: lines of slots.

    A column layer has a line for every column and a slot for every row; a new position reads the line of its column. The others
    have one line, a ring as long as their mask reaches back, in which a new position takes the place of one that nobody sees.
    """

    def __init__(self, seen: Tensor, side: int, is_by_column: bool):
        """`seen` (L, L): the image part of a mask, True where a query (row) sees a key (column)."""
        position = torch.arange(side * side, device=seen.device)
        query, key = seen.nonzero().T
        self.slots = side if is_by_column else int((query - key).max()) + 1
        self.lines = side if is_by_column else 1
        self.line = (position % side if is_by_column else torch.zeros_like(position)).tolist()
        slot = position // side if is_by_column else position % self.slots
        self.slot = slot.tolist()
        self.hidden = torch.full((side * side, self.slots), -torch.inf, device=seen.device)
        self.hidden[query, slot[key]] = 0.0  # (L, slots), added to scores
        self._after: dict[int, Tensor] = {}

    def hidden_after(self, seen: int) -> Tensor:
        """`hidden` behind so many positions that all see: (L, seen + slots), made when first asked for."""
        if seen not in self._after:
            self._after[seen] = F.pad(self.hidden, (seen, 0))
        return self._after[seen]

    def kept(self, count: int) -> range:
        """Which of the first `count` positions are still kept."""
        return range(0 if self.lines > 1 else max(0, count - self.slots), count)


class LayerCache:
    """Keys and values of one layer: shared (2, U, heads, prefix, x), own (2, B, heads, lines, slots, x); x is a head's width.

    Where candidates are many for each prefix, reading the shared ones apart is what makes them cheap. Where each has a prefix of
    its own nothing is shared, and on a CPU, where an operation costs as much as its arithmetic, `whole` has prefix and own
    positions side by side, (2, B, heads, prefix + slots, x), so that attention is one product each way.
    """

    def __init__(self, candidates: Candidates, prefix_length: int, window: Window):
        self.candidates = candidates
        self.prefix_length = prefix_length
        self.window = window
        self.shared = self.own = torch.empty(0)
        self.whole: Tensor | None = None

    def prefill(self, mask: Tensor) -> Attend:
        """As `dense` for the U different beginnings, prefix and given image tokens, remembering keys and values."""
        masked = dense(mask)

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.remember(keys, values)
            return masked(queries, keys, values)

        return attend

    def remember(self, keys: Tensor, values: Tensor) -> None:
        """Keeps those of the U different beginnings: (U, heads, prefix + P, x) each."""
        both = torch.stack([keys, values])
        self.shared = both[:, :, :, : self.prefix_length].contiguous()
        self.own = self._own(both[:, :, :, self.prefix_length :])
        if self.candidates.places == 1 and not keys.is_cuda:
            self.whole = torch.cat([self.shared[:, self.candidates.rows], self.own[:, :, :, 0]], dim=3)
            if self.window.lines == 1:
                self.own = self.whole[:, :, :, None, self.prefix_length :]  # one memory: what is kept is in both

    def step(self, position: int, read: Tensor) -> Tensor:
        """Attention of one new image token to the prefix and what it sees of the image, itself among it.

        `read`: its queries, keys and values (B, 3, heads, x) -> (B, heads * x).
        """
        window, line = self.window, self.window.line[position]
        self.own[:, :, :, line, window.slot[position]] = read[:, 1:].transpose(0, 1)
        queries = read[:, 0] * read.shape[-1] ** -0.5
        if self.whole is None:
            hidden = window.hidden[position].to(read.dtype)
            keys, values = self.own[:, :, :, line].flatten(1, 2)  # (B * heads, slots, x)
            return self._attend_to_both(queries, keys, values, hidden)
        if window.lines > 1:
            self.whole[:, :, :, self.prefix_length :] = self.own[:, :, :, line]
        keys, values = self.whole.flatten(1, 2)
        return attend_to(queries, keys, values, window.hidden_after(self.prefix_length)[position].to(read.dtype))

    def _attend_to_both(self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """One softmax over prefix and own positions; few operations, since each costs as much as its arithmetic."""
        group, ungroup = self.candidates.group, self.candidates.ungroup
        rows, heads, width = queries.shape
        to_own = torch.baddbmm(hidden, queries.view(rows * heads, 1, width), keys.transpose(1, 2))
        to_prefix = ungroup(group(queries) @ self.shared[0].transpose(2, 3))  # (B, heads, prefix)
        scores = torch.cat([to_prefix, to_own.view(rows, heads, -1)], dim=-1)
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(dim=-1, dtype=exact).to(values.dtype)
        own_weights = weights[..., self.prefix_length :].reshape(rows * heads, 1, -1)
        attended = torch.bmm(own_weights, values).view(rows, heads, width)
        return (attended + ungroup(group(weights[..., : self.prefix_length]) @ self.shared[1])).flatten(1)

    def _own(self, given: Tensor) -> Tensor:
        """Room for every candidate, with what is kept of the given tokens: (2, U, heads, P, x) -> as `own`."""
        window, kept = self.window, list(self.window.kept(given.shape[3]))
        lines, slots = ([table[position] for position in kept] for table in (window.line, window.slot))
        two, prefixes, heads, _, width = given.shape
        own = given.new_zeros(two, prefixes, heads, window.lines, window.slots, width)
        own[:, :, :, lines, slots] = given[:, :, :, kept]
        return own[:, self.candidates.rows]


def attend_to(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """Attention of one query each: queries (B, heads, x), keys and values (B * heads, n, x), hidden (n,) -> (B, heads * x)."""
    rows, heads, width = queries.shape
    scores = torch.baddbmm(hidden, queries.view(rows * heads, 1, width), keys.transpose(1, 2))
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    return torch.bmm(weights, values).view(rows, heads * width)
