"""The peer that benchmarks are held against: fetched aside, never into the project's environment, or left out by name."""
from __future__ import annotations

import pytest
import torch

from bench import _peer


def test_without_a_registry_the_peer_is_left_out_and_said_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(_peer, "ROOT", tmp_path)
    monkeypatch.setattr(_peer, "FOLDER", tmp_path / ".bench" / "peer")

    assert not _peer.installed()

    told = capsys.readouterr().err
    assert told.startswith("left out: everything against dalle-pytorch. pip could not install bench/peer.lock into .bench/peer: ")
    assert "dalle-pytorch" in told.splitlines()[0].rpartition(": ")[2]
    assert not (tmp_path / ".bench" / "peer" / "lock").exists()


@pytest.mark.skipif(not (_peer.FOLDER / "lock").exists(), reason="the peer is fetched by benchmarks only")
@pytest.mark.parametrize("attention", ["full", "pattern"])
def test_the_peer_learns_and_draws_in_our_words(attention):
    torch.manual_seed(0)
    peer = _peer.build(2, 24, 2, text_length=5, image_side=4, text_vocab=11, image_vocab=13, attention=attention)
    text, tokens = torch.tensor([[3, 10, 0, -1, -1]]).repeat(2, 1), torch.arange(32).view(2, 16) % 13

    peer.loss(text, tokens).backward()
    drawn = peer.sample(text)

    assert all(weight.grad is not None for weight in peer.parameters() if weight.requires_grad)
    assert drawn.shape == (2, 16) and 0 <= drawn.min() and drawn.max() < 13
