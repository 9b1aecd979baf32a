"""Inpainting by scale: `fixed_tokens` of the next-scale generator."""

import pytest
import torch

from tests.helpers.tiny_models import captions_as_tokens, image_tokens, rngs, tiny
from thousandwords.generators.next_scale.latents import KeptPart
from thousandwords.nn.residual_scales import area_means

SCALES = (1, 2, 4)
UPPER = torch.arange(16) < 8  # of the finest grid
GENERATOR = tiny("generators", "next_scale", scales=SCALES, image_vocab_size=64)


def with_upper_half(tokens):
    """All tokens of images (B, 21), and -1 in the lower half of the finest grid."""
    fixed_tokens = tokens.clone()
    fixed_tokens[:, 5:][:, ~UPPER] = -1
    return fixed_tokens


def tokens_of(count):
    return torch.randint(64, (count, 21), generator=torch.Generator().manual_seed(1))


def test_the_sampled_cells_are_those_of_the_finest_grid_and_of_the_coarse_cells_that_touch_one():
    kept = KeptPart(GENERATOR.latents, with_upper_half(image_tokens(1, SCALES)))
    assert [is_kept[0].tolist() for is_kept in kept.is_kept] == [
        [False],
        [True] * 2 + [False] * 2,
        UPPER.tolist(),
    ]


def test_the_tokens_of_the_kept_part_approximate_what_the_sampled_grids_left_over():
    """A simple reference: each kept cell of a grid gets the code nearest to its own token's, moved by what its place lacks."""
    tokens = tokens_of(2)
    sampled = GENERATOR.sample(captions_as_tokens(2), rngs(2), fixed_tokens=with_upper_half(tokens))

    latents, codebook = GENERATOR.latents, GENERATOR.latents.codebook
    true, so_far = latents.after_each_scale(tokens), latents.after_each_scale(sampled)
    for scale, (first, kept_cells) in {1: (1, 2), 2: (5, 8)}.items():
        lacking = area_means(true[scale - 1] - so_far[scale - 1], SCALES[scale])
        for row in range(2):
            for cell in range(kept_cells):
                wanted = codebook[tokens[row, first + cell]] + lacking[row, cell]
                assert sampled[row, first + cell] == (codebook - wanted).square().sum(dim=1).argmin()


def test_so_the_kept_part_stays_nearer_than_with_its_own_tokens():
    tokens, text = tokens_of(64), captions_as_tokens(64)
    sampled = GENERATOR.sample(text, rngs(64), fixed_tokens=with_upper_half(tokens))
    own = sampled.clone()
    own[:, 5:][:, UPPER], own[:, 1:3] = tokens[:, 5:][:, UPPER], tokens[:, 1:3]

    true, corrected, copied = (
        GENERATOR.latents.after_each_scale(each)[-1][:, :, :2] for each in (tokens, sampled, own)
    )
    assert (corrected - true).square().mean() < 0.8 * (copied - true).square().mean()


@pytest.mark.parametrize("cells", [[3], [20], range(5)])
def test_cells_are_kept_by_all_tokens_of_their_image(cells):
    fixed_tokens = torch.full((2, 21), -1)
    fixed_tokens[1, list(cells)] = 0
    with pytest.raises(
        ValueError, match=r"among the first 5 tokens .* at the cells of its finest grid \(4 x 4\)"
    ):
        GENERATOR.sample(captions_as_tokens(2), rngs(2), fixed_tokens=fixed_tokens)
