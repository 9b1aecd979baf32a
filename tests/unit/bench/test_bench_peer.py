"""The peer that benchmarks compare with, where a benchmark has installed it."""

from __future__ import annotations

import pytest
import torch

from bench import _peer


@pytest.mark.skipif(not (_peer.FOLDER / "lock").exists(), reason="the peer is installed by benchmarks only")
@pytest.mark.parametrize("attention", ["full", "pattern"])
def test_the_peer_trains_and_samples_with_the_projects_tokens(attention):
    torch.manual_seed(0)
    peer = _peer.build(
        2, 24, 2, text_length=5, image_side=4, text_vocab=11, image_vocab=13, attention=attention
    )
    text, tokens = torch.tensor([[3, 10, 0, -1, -1]]).repeat(2, 1), torch.arange(32).view(2, 16) % 13

    peer.loss(text, tokens).backward()
    sampled = peer.sample(text)

    assert all(weight.grad is not None for weight in peer.parameters() if weight.requires_grad)
    assert sampled.shape == (2, 16) and 0 <= sampled.min() and sampled.max() < 13
