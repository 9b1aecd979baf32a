"""What the layers have already read, so that a new token costs the work of one token.

Candidates of one caption read the same text: its keys and values are held, and attended to, once for all of
them. What each candidate has drawn itself is held in room taken at once. Which positions a token sees comes from
_masks.py, as in the dense path; a test holds the two paths equal for every kind of layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.generators._layers import Attend, dense


class Candidates:
    """Which of U prefixes each of B candidates continues, and how to line up those of one prefix side by side.

    Groups are filled up to the size of the largest: rows [0, 0, 1] -> 2 prefixes, 2 places each, the last empty.
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

    def group(self, values: Tensor) -> Tensor:
        """(B, heads, 1, x) -> (U, heads, places, x), 0 at empty places."""
        grouped = values.new_zeros(self.prefixes * self.places, *values[:, :, 0].shape[1:])
        grouped[self.place] = values[:, :, 0]
        return grouped.unflatten(0, (self.prefixes, self.places)).transpose(1, 2)

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(U, heads, places, x) -> (B, heads, 1, x)."""
        return grouped.transpose(1, 2).flatten(0, 1)[self.place][:, :, None]


class LayerCache:
    """Keys and values of one layer: shared (U, heads, prefix, head width), own (B, heads, L, head width)."""

    def __init__(self, candidates: Candidates, prefix_length: int, image_length: int):
        self.candidates = candidates
        self.prefix_length = prefix_length
        self.image_length = image_length
        self.shared_keys = self.shared_values = self.own_keys = self.own_values = torch.empty(0)

    def prefill(self, mask: Tensor) -> Attend:
        """As `dense` for the U different beginnings, prefix and given image tokens, remembering keys and values."""
        masked = dense(mask)

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.shared_keys, self.own_keys = self._divide(keys)
            self.shared_values, self.own_values = self._divide(values)
            return masked(queries, keys, values)

        return attend

    def step(self, position: int, seen: Tensor) -> Attend:
        """Attention of one new image token to the prefix and the image positions it has `seen`, itself among them."""

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.own_keys[:, :, position] = keys[:, :, 0]
            self.own_values[:, :, position] = values[:, :, 0]
            return self._attend_to_both(queries, seen)

        return attend

    def _attend_to_both(self, queries: Tensor, seen: Tensor) -> Tensor:
        """One softmax over prefix and own positions: (B, heads, 1, head width) -> the same shape."""
        group, ungroup = self.candidates.group, self.candidates.ungroup
        keys, values = self.own_keys.index_select(2, seen), self.own_values.index_select(2, seen)
        to_prefix = ungroup(group(queries) @ self.shared_keys.transpose(2, 3))
        scores = torch.cat([to_prefix, queries @ keys.transpose(2, 3)], dim=-1)  # (B, heads, 1, prefix + seen)
        scale, exact = queries.shape[-1] ** -0.5, torch.promote_types(scores.dtype, torch.float32)
        weights = (scores.to(exact) * scale).softmax(dim=-1).to(values.dtype)
        prefix_weights, own_weights = weights.split([self.prefix_length, len(seen)], dim=-1)
        return ungroup(group(prefix_weights) @ self.shared_values) + own_weights @ values

    def _divide(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """(U, heads, prefix + P, x) -> shared (U, heads, prefix, x), own (B, heads, L, x) with 0 from P on."""
        shared, given = read[:, :, : self.prefix_length], read[:, :, self.prefix_length :]
        room = (0, 0, 0, self.image_length - given.shape[2])
        return shared.contiguous(), F.pad(given[self.candidates.rows], room)
