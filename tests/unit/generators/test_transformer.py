"""The transformer of arXiv 2102.12092: one sequence, two vocabularies, and a cache that changes no value."""

import copy
import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import _plain
from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.generators.transformer import decode_loop
from thousandwords.generators.transformer.attention_blocks import Lines, blocked_attention
from thousandwords.generators.transformer.decode_loop import count_leading_fixed
from thousandwords.generators.transformer.masks import KINDS, attention_mask
from thousandwords.generators.transformer.model import Transformer, TransformerConfig, drop_captions
from thousandwords.nn.causal_attention_cpu import query_blocks
from thousandwords.nn.chunked_cross_entropy import mean_loss
from thousandwords.nn.transformer_layers import ACTIVATIONS, dense_attention

TEXT_VOCAB, TEXT_LENGTH, IMAGE_VOCAB, SIDE = 11, 6, 13, 4


def tiny(num_layers: int = 3, kinds: list[str] | None = None, **settings) -> Transformer:
    """A transformer with large first weights, so that every part of it changes the logits."""
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=num_layers, num_heads=2, width=16, kernel=3, init_std=0.3, **settings
    )
    model = Transformer(config, TEXT_VOCAB, TEXT_LENGTH, IMAGE_VOCAB, (SIDE,))
    model.kinds = kinds or model.kinds
    return model


def captions(rows: int) -> torch.Tensor:
    """Different captions of 3 to 6 text tokens, the rest pads."""
    rng = torch.Generator().manual_seed(1)
    text = torch.randint(TEXT_VOCAB, (rows, TEXT_LENGTH), generator=rng)
    length = torch.randint(3, TEXT_LENGTH + 1, (rows, 1), generator=rng)
    return text.where(torch.arange(TEXT_LENGTH) < length, -1)


def random_images(rows: int) -> torch.Tensor:
    return torch.randint(IMAGE_VOCAB, (rows, SIDE * SIDE), generator=torch.Generator().manual_seed(2))


def no_fixed_tokens(rows: int) -> torch.Tensor:
    return torch.full((rows, SIDE * SIDE), UNKNOWN)


def beginnings(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` tokens of each row fixed, the rest to be sampled."""
    return tokens.where(torch.arange(SIDE * SIDE) < count, UNKNOWN)


def generators(rows: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + row) for row in range(rows)]


# --- the size of the paper ----------------------------------------------------------------------------------


@pytest.mark.paper("generator: size")
def test_the_papers_size_is_12_billion_parameters():
    with torch.device("meta"):
        model = Transformer(TransformerConfig(), 16_384, 256, 8192, (32,))

    matrices = sum(weight.numel() for weight in model.layers.parameters() if weight.ndim == 2)
    assert matrices == 64 * 12 * 3968**2 == 12_092_178_432
    assert (
        sum(weight.numel() for weight in model.parameters()) == 12_292_840_960
    )  # with embeddings and output maps
    assert model.prefix_length + model.image_length == 1 + 256 + 1 + 1024


# --- what a token may depend on -----------------------------------------------------------------------------


@pytest.mark.paper("generator: masks")
@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [None])
def test_a_later_token_never_changes_an_earlier_logit(kinds):
    model = tiny(len(kinds) if kinds else 6, kinds)
    text, tokens = captions(1), random_images(1)
    text_logits, image_logits = model.logits(text, tokens)

    for position in range(TEXT_LENGTH):
        changed = text.clone()
        changed[:, position] = (text[:, position].clamp(min=0) + 1) % TEXT_VOCAB
        new_text_logits, new_image_logits = model.logits(changed, tokens)
        assert new_text_logits[:, : position + 1].equal(text_logits[:, : position + 1])
        assert not new_image_logits[:, 0].equal(image_logits[:, 0])  # the image does see the text
    for position in range(SIDE * SIDE):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % IMAGE_VOCAB
        new_text_logits, new_image_logits = model.logits(text, changed)
        assert new_text_logits.equal(text_logits)
        assert new_image_logits[:, : position + 1].equal(image_logits[:, : position + 1])


def test_an_early_token_reaches_the_last_logit_of_a_whole_model():
    model = tiny(6)
    tokens = random_images(1)
    changed = tokens.clone()
    changed[0, 0] = (tokens[0, 0] + 1) % IMAGE_VOCAB

    before, after = (model.logits(captions(1), some)[1] for some in (tokens, changed))

    assert not before[0, -1].equal(after[0, -1])


@pytest.mark.paper("generator: separation")
def test_text_positions_predict_text_tokens_and_image_positions_image_tokens_only():
    text_logits, image_logits = tiny().logits(captions(2), random_images(2))

    assert text_logits.shape == (2, TEXT_LENGTH, TEXT_VOCAB)
    assert image_logits.shape == (2, SIDE * SIDE, IMAGE_VOCAB)
    assert text_logits.dtype == image_logits.dtype == torch.float32


@pytest.mark.paper("generator: pads")
def test_every_text_position_has_a_pad_of_its_own():
    model, nothing = tiny(), torch.full((1, TEXT_LENGTH), -1)

    embedded = model.embed_text(nothing)[0, 1:-1]

    assert embedded.equal(model.pad_embedding.weight)
    assert len(embedded.unique(dim=0)) == TEXT_LENGTH


def test_logits_stay_float32_and_close_under_bfloat16_autocast():
    model, text, tokens = tiny(), captions(2), random_images(2)
    exact = model.logits(text, tokens)[1]

    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.logits(text, tokens)[1]
        sampled = model.sample(text, generators(2))

    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    assert sampled.shape == (2, SIDE * SIDE)


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.paper("generator: loss")
def test_the_loss_is_an_eighth_of_the_text_and_seven_eighths_of_the_image():
    loss, parts = tiny().loss(captions(4), random_images(4), step=0, rng=torch.Generator())

    assert set(parts) == {"text_loss", "image_loss"}
    assert loss.item() == pytest.approx(parts["text_loss"].item() / 8 + parts["image_loss"].item() * 7 / 8)


def test_the_loss_is_averaged_over_real_tokens_and_pads_are_left_out():
    logits = torch.tensor([[[0.0, 0.0], [9.0, -9.0]], [[0.0, 0.0], [0.0, 0.0]]])

    assert mean_loss(logits, torch.tensor([[1, -1], [0, 1]])).item() == pytest.approx(0.6931472)
    assert mean_loss(logits, torch.full((2, 2), -1)).item() == 0


def test_an_untrained_model_has_the_loss_of_a_uniform_guess():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(num_layers=2, num_heads=2, width=32), 100, TEXT_LENGTH, 50, (SIDE,))
    text, tokens = torch.randint(100, (8, TEXT_LENGTH)), torch.randint(50, (8, SIDE * SIDE))

    _, parts = model.loss(text, tokens, step=0, rng=torch.Generator())

    assert parts["text_loss"].item() == pytest.approx(4.605, abs=0.1)  # ln 100
    assert parts["image_loss"].item() == pytest.approx(3.912, abs=0.1)  # ln 50


@pytest.fixture(scope="module")
def learned():
    """Two layers that have memorized 8 pairs."""
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=2, num_heads=2, width=32, kernel=3)
    model = Transformer(config, TEXT_VOCAB, TEXT_LENGTH, IMAGE_VOCAB, (SIDE,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        loss, parts = model.loss(captions(8), random_images(8), step, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, parts


def test_two_layers_memorize_8_pairs(learned):
    model, parts = learned

    assert parts["image_loss"].item() < 0.05
    assert model.sample(captions(8), generators(8), top_k=1).equal(random_images(8))


def test_the_caption_decides_the_image(learned):
    model, _ = learned
    swapped = captions(8).flip(0)

    assert model.sample(swapped, generators(8), top_k=1).equal(random_images(8).flip(0))


# --- sampling -----------------------------------------------------------------------------------------------


every_layer_kind = pytest.mark.parametrize("kinds", [[kind] * 2 for kind in KINDS] + [None])


@every_layer_kind
@pytest.mark.parametrize("first", [0, 1, 5, 15])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_cache_gives_the_logits_of_the_whole_sequence(kinds, first, dtype, tolerance):
    model = tiny(len(kinds) if kinds else 6, kinds).to(dtype)
    text, tokens = captions(3)[[0, 1, 1, 2, 1]], random_images(5)
    expected = model.logits(text, tokens)[1]

    logits, caches = model.prefill(text, tokens[:, :first])
    actual = [logits]
    for position in range(first, SIDE * SIDE - 1):
        actual.append(
            model.decode_step(
                model.embed_image(tokens[:, position : position + 1], position)[:, 0], position, caches
            )
        )

    torch.testing.assert_close(torch.stack(actual, dim=1), expected[:, first:], rtol=0, atol=tolerance)


@pytest.mark.paper("generator: masks")
@every_layer_kind
@pytest.mark.parametrize("cells", [range(5), [0, 1, 3, 8, 9, 15], [15], range(2, 14)])
def test_tokens_are_sampled_from_the_logits_of_the_whole_sequence_wherever_some_are_fixed(
    kinds, cells, monkeypatch
):
    model, expected, seen = tiny(len(kinds) if kinds else 6, kinds), no_fixed_tokens(4), []
    expected[:, list(cells)] = random_images(4)[:, list(cells)]
    monkeypatch.setattr(decode_loop, "truncate", lambda logits, *_: seen.append(logits) or logits)

    sampled = model.sample(captions(4), generators(4), fixed_tokens=expected)

    expected = model.logits(captions(4), sampled)[1][:, count_leading_fixed(expected) :]
    torch.testing.assert_close(torch.stack(seen, dim=1), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def sample_without_cache(
    model: Transformer, text: torch.Tensor, rngs: list[torch.Generator], expected: torch.Tensor | None = None
) -> torch.Tensor:
    """The reference: run the whole sequence again for every token."""
    tokens = torch.zeros(len(text), SIDE * SIDE, dtype=torch.int64)
    uniform = torch.stack([torch.rand(SIDE * SIDE, generator=rng, dtype=torch.float64) for rng in rngs])
    for position in range(SIDE * SIDE):
        probabilities = model.logits(text, tokens)[1][:, position].double().softmax(dim=-1)
        tokens[:, position] = (probabilities.cumsum(dim=-1) <= uniform[:, position, None]).sum(dim=-1)
        if expected is not None:
            is_fixed = expected[:, position] >= 0
            tokens[is_fixed, position] = expected[is_fixed, position]
    return tokens


@every_layer_kind
def test_a_thousand_images_with_the_cache_equal_those_without(kinds):
    model, text = tiny(len(kinds) if kinds else 4, kinds), captions(40).repeat_interleave(25, dim=0)

    assert model.sample(text, generators(1000)).equal(sample_without_cache(model, text, generators(1000)))


# any cells of any row may be fixed: a row is a token or -1 for each cell
some_tokens = st.lists(st.one_of(st.just(UNKNOWN), st.integers(0, IMAGE_VOCAB - 1)), min_size=16, max_size=16)


@settings(max_examples=40)
@given(st.lists(some_tokens, min_size=1, max_size=3), st.integers(0, SIDE * SIDE), st.sampled_from(KINDS))
def test_fixed_tokens_are_kept_and_the_others_are_sampled_as_without_a_cache(rows, first, kind):
    model, expected = tiny(2, [kind] * 2), torch.tensor(rows)
    expected[:, :first] = expected[:, :first].clamp(min=0)  # fixed in all rows
    before, text = expected.clone(), captions(3)[: len(rows)]

    sampled = model.sample(text, generators(len(rows)), fixed_tokens=expected)

    assert sampled.equal(sample_without_cache(model, text, generators(len(rows)), expected))
    assert sampled[expected >= 0].equal(expected[expected >= 0]) and sampled.min() >= 0
    assert expected.equal(before)


def test_leading_tokens_count_as_fixed_up_to_one_that_some_row_lacks():
    assert count_leading_fixed(torch.tensor([[7, 3, -1, 5], [7, 2, 4, 5]])) == 2
    assert count_leading_fixed(torch.tensor([[-1, 3, 4, 5], [7, 2, 4, 5]])) == 0
    assert count_leading_fixed(torch.tensor([[0, 3, 4, 5]])) == 4


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_images_do_not_depend_on_the_batch_they_are_sampled_in(batch_size):
    model, text = tiny(6), captions(4).repeat_interleave(4, dim=0)
    together = model.sample(text, generators(16), temperature=0.9, top_p=0.95)

    apart = [
        model.sample(
            text[first : first + batch_size], generators(batch_size, first), temperature=0.9, top_p=0.95
        )
        for first in range(0, 16, batch_size)
    ]

    assert torch.cat(apart).equal(together)


def test_the_order_of_candidates_does_not_matter():
    model, text, order = tiny(), captions(3)[[0, 1, 1, 2, 0]], [4, 2, 0, 3, 1]
    straight = model.sample(text, generators(5))

    shuffled = model.sample(text[order], [generators(5)[row] for row in order])

    assert shuffled.equal(straight[order])


def test_the_same_seed_samples_the_same_image_and_another_seed_another():
    model, text = tiny(), captions(1)

    first, again, other = (model.sample(text, generators(1, seed)) for seed in (3, 3, 4))

    assert first.equal(again) and not first.equal(other)
    assert first.shape == (1, SIDE * SIDE) and first.min() >= 0 and first.max() < IMAGE_VOCAB


@pytest.mark.parametrize("count", [0, 1, 7, 15, 16])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_an_image_whose_own_beginning_is_fixed_stays_the_same(count, guidance):
    model, text = tiny(6), captions(3)
    whole = model.sample(text, generators(3), guidance=guidance)

    inpainted = model.sample(text, generators(3), guidance=guidance, fixed_tokens=beginnings(whole, count))

    assert inpainted.equal(whole)


def test_an_image_with_some_of_its_own_tokens_fixed_stays_the_same():
    model, text = tiny(6), captions(3)
    whole = model.sample(text, generators(3))
    is_fixed = torch.rand(whole.shape, generator=torch.Generator().manual_seed(5)) < 0.5

    assert model.sample(text, generators(3), fixed_tokens=whole.where(is_fixed, UNKNOWN)).equal(whole)


def test_a_fixed_token_changes_the_tokens_after_it_and_none_before():
    model, text = tiny(6), captions(3)
    whole, expected = model.sample(text, generators(3)), no_fixed_tokens(3)
    expected[:, 6] = (whole[:, 6] + 1) % IMAGE_VOCAB

    sampled = model.sample(text, generators(3), fixed_tokens=expected)

    assert sampled[:, :6].equal(whole[:, :6]) and not sampled[:, 7:].equal(whole[:, 7:])


def test_a_wholly_fixed_image_is_returned_unchanged():
    tokens = random_images(2)

    sampled = tiny().sample(captions(2), generators(2), fixed_tokens=tokens)

    assert sampled.equal(tokens) and sampled.data_ptr() != tokens.data_ptr()


def test_guidance_of_one_changes_nothing_and_more_samples_other_images():
    model, text = tiny(), captions(6)
    plain = model.sample(text, generators(6))
    assert torch.equal(model.sample(text, generators(6), guidance=1.0), plain)
    assert not torch.equal(model.sample(text, generators(6), guidance=3.0), plain)


def test_guided_images_follow_the_guided_logits_of_the_whole_sequence():
    model, text = tiny(), captions(3)
    sampled = model.sample(text, generators(3), guidance=2.0, top_k=1)
    with_caption, without = (
        model.logits(caption, sampled)[1] for caption in (text, torch.full_like(text, -1))
    )
    assert torch.equal((without + 2.0 * (with_caption - without)).argmax(dim=-1), sampled)


def test_captions_are_dropped_in_training_only_at_the_set_share():
    model, text, tokens = tiny(caption_dropout=0.5), captions(8), random_images(8)
    loss = model.eval().loss(text, tokens, 0, torch.Generator().manual_seed(0))[0]
    assert torch.equal(loss, tiny().eval().loss(text, tokens, 0, torch.Generator())[0])
    assert not torch.equal(loss, model.train().loss(text, tokens, 0, torch.Generator().manual_seed(0))[0])
    dropped = drop_captions(captions(1).expand(4000, -1), 0.25, torch.Generator().manual_seed(0))
    assert (dropped == -1).all(dim=1).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_top_k_of_one_is_deterministic():
    model, text = tiny(), captions(2)

    first, other = (model.sample(text, generators(2, seed), top_k=1) for seed in (0, 100))

    assert first.equal(other)


def test_sampling_touches_neither_the_global_generator_nor_the_weights():
    model = tiny()
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())

    model.sample(captions(2), generators(2))

    assert torch.get_rng_state().equal(state)
    assert all(weight.equal(weights[name]) for name, weight in model.state_dict().items())


def test_no_captions_give_no_images():
    assert tiny().sample(captions(1)[:0], []).shape == (0, SIDE * SIDE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_dense_attention_is_the_textbook_formula_in_either_precision(dtype, tolerance):
    queries, keys, values = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = (queries @ keys.transpose(2, 3) / 2).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ values

    actual = dense_attention(mask)(queries.to(dtype), keys.to(dtype), values.to(dtype))

    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1, 2, 5, 8, 14])
def test_cpu_attention_has_the_values_and_gradients_of_the_textbook_formula(kind, side):
    """Sequences of 26 to 221 positions: less than a block, whole blocks and a rest, blocks of 32 and 64."""
    mask = attention_mask(kind, 25, side, 5)
    whole = [tensor.double().requires_grad_() for tensor in random_tensor(3, 2, 2, len(mask), 4)]
    gradient = random_tensor(2, 2, len(mask), 4).double()
    actual, expected = dense_attention(mask)(*whole), textbook(*whole, mask)

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    for value, other in zip(
        torch.autograd.grad(actual, whole, gradient),
        torch.autograd.grad(expected, whole, gradient),
        strict=True,
    ):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "room"), [(torch.float32, 1e-5), (torch.bfloat16, None)])
def test_cpu_attention_rounds_no_more_than_the_formula_in_the_same_precision(dtype, room):
    mask, gradient = attention_mask("row", 26, 8, 11), random_tensor(2, 4, 90, 16)
    exact = gradients(textbook, random_tensor(3, 2, 4, 90, 16).double(), gradient.double(), mask)
    rounded = gradients(textbook, random_tensor(3, 2, 4, 90, 16).to(dtype), gradient.to(dtype), mask)

    actual = gradients(
        lambda *qkv: dense_attention(qkv[-1])(*qkv[:-1]),
        random_tensor(3, 2, 4, 90, 16).to(dtype),
        gradient.to(dtype),
        mask,
    )

    for value, usual, true in zip(actual, rounded, exact, strict=True):
        error = (value.double() - true).abs().max()
        assert error <= (room if room else 1.2 * (usual.double() - true).abs().max())


def random_tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def gradients(attend, qkv: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The attended values, and their gradients to queries, keys and values."""
    qkv = [tensor.requires_grad_() for tensor in qkv.unbind()]
    attended = attend(*qkv, mask)
    return [attended.detach(), *torch.autograd.grad(attended, qkv, gradient)]


def textbook(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ values


def test_query_blocks_are_about_eight_of_whole_vectors():
    assert query_blocks(20) == [(0, 20, 32)]
    assert query_blocks(70) == [(0, 32, 32), (32, 64, 64), (64, 70, 96)]
    assert query_blocks(322)[:2] == [(0, 64, 64), (64, 128, 128)] and query_blocks(322)[-1] == (320, 322, 352)
    assert len(query_blocks(1282)) == 11 and query_blocks(4096)[-1] == (3968, 4096, 4096)


# --- likelihood -----------------------------------------------------------------------------------------


def test_the_probabilities_of_all_possible_images_add_up_to_one():
    torch.manual_seed(0)
    settings = TransformerConfig(num_layers=3, num_heads=2, width=16, kernel=3, init_std=0.5)
    model = Transformer(settings, TEXT_VOCAB, TEXT_LENGTH, image_vocab_size=3, scales=(2,))
    every_image = torch.tensor(list(itertools.product(range(3), repeat=4)))

    for caption in captions(3):
        _, actual = model.log_probabilities(caption.expand(81, -1), every_image)
        assert actual.double().sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_probabilities_of_all_captions_of_one_length_add_up_to_one():
    torch.manual_seed(0)
    settings = TransformerConfig(num_layers=3, num_heads=2, width=16, kernel=3, init_std=0.5)
    model = Transformer(settings, 5, text_length=4, image_vocab_size=3, scales=(2,))
    words = torch.tensor(list(itertools.product(range(5), repeat=2)))
    captions = torch.nn.functional.pad(words, (0, 2), value=-1)

    actual, _ = model.log_probabilities(captions, torch.zeros(25, 4, dtype=torch.int64))

    assert actual.double().sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert actual[:, 2:].eq(0).all() and actual[:, :2].lt(0).all()


def test_a_token_is_sampled_as_often_as_it_is_likely():
    model, text = tiny(), captions(1).expand(4000, -1)
    sampled = model.sample(text, generators(4000))[:, 0]

    for word in range(IMAGE_VOCAB):
        tokens = random_images(1).index_fill(1, torch.tensor([0]), word)
        likely = model.log_probabilities(text[:1], tokens)[1][0, 0].exp().item()
        assert (sampled == word).float().mean().item() == pytest.approx(likely, abs=0.03)


# --- what is rejected -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens", "message"),
    [
        (
            captions(2)[:, :5],
            random_images(2),
            r"text has shape \(2, 5\), expected \(B, 6\); pad or cut captions",
        ),
        (
            captions(2),
            random_images(2)[:, :9],
            r"image_tokens has shape \(2, 9\), expected \(B, 16\) for scales \(4,\)",
        ),
        (
            captions(2) + 11,
            random_images(2),
            "text has tokens 1[0-9]..2[0-9], but this generator knows -1..10",
        ),
        (
            captions(2),
            random_images(2) + 13,
            "image_tokens has tokens 13..2[0-9], but this generator knows 0..12",
        ),
    ],
)
def test_tokens_of_another_shape_or_vocabulary_are_rejected(text, tokens, message):
    with pytest.raises(ValueError, match=message):
        tiny().logits(text, tokens)


def test_a_sampling_request_that_does_not_fit_together_is_rejected():
    with pytest.raises(ValueError, match="2 rows of text came with 3 random generators; give one per row"):
        tiny().sample(captions(2), generators(3))
    for wrong in (random_images(1), random_images(2)[:, :4]):
        with pytest.raises(
            ValueError,
            match=r"fixed_tokens is torch.int64 of shape \(., 1?[46]\*?\), expected torch.int64 \(2, 16\)",
        ):
            tiny().sample(captions(2), generators(2), fixed_tokens=wrong)
    with pytest.raises(
        ValueError, match=r"fixed_tokens is torch.float32 of shape \(2, 16\), expected torch.int64"
    ):
        tiny().sample(captions(2), generators(2), fixed_tokens=random_images(2).float())
    with pytest.raises(
        ValueError, match="fixed_tokens has tokens -2..1[0-9], but this generator knows -1..12"
    ):
        tiny().sample(captions(2), generators(2), fixed_tokens=random_images(2) - 2)


def test_a_tokenizer_with_several_scales_is_rejected():
    with pytest.raises(ValueError, match=r"generates one grid, but the image tokenizer has scales \(1, 2\)"):
        Transformer(TransformerConfig(num_layers=1, num_heads=1, width=8), 5, 3, 7, (1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "transformer.num_layers is 0; it must be 1 or more"),
        ({"width": 100, "num_heads": 3}, "transformer.width is 100, which 3 heads cannot share evenly"),
        ({"kernel": 4}, "transformer.kernel is 4; a neighborhood has an odd side"),
        ({"image_loss_weight": -1.0}, "transformer.image_loss_weight is -1.0; a loss weight is 0 or more"),
        ({"init_std": 0.0}, "transformer.init_std is 0.0; it must be above 0"),
    ],
)
def test_settings_that_make_no_model_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)


# --- blocked attention --------------------------------------------------------------------------------------


@pytest.mark.paper("generator: masks")
@pytest.mark.parametrize("side", [1, 2, 4, 7])
@pytest.mark.parametrize("kernel", [1, 3, 5, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_blocked_attention_equals_dense_attention(kind, kernel, side):
    prefix, rng = 5, torch.Generator().manual_seed(0)
    mask = attention_mask(kind, prefix, side, kernel)
    whole = [torch.randn(2, 3, prefix + side * side, 8, generator=rng, dtype=torch.float64) for _ in range(3)]
    lines = Lines(mask, prefix, side, kind == "column")

    for length in {len(mask), len(mask) - 1}:
        qkv = [tensor[:, :, :length] for tensor in whole]
        torch.testing.assert_close(
            blocked_attention(lines)(*qkv), dense_attention(mask[:length, :length])(*qkv), atol=1e-12, rtol=0
        )


@pytest.mark.paper("generator: column trick")
def test_a_column_is_a_line_once_the_grid_is_transposed():
    reach = {
        kind: Lines(attention_mask(kind, 258, 32, 11), 258, 32, kind == "column").reach for kind in KINDS
    }
    assert reach == {
        "row": 1,
        "column": 0,
        "convolutional": 6,
    }  # 5 lines above, and one more around the line's end


@pytest.mark.paper("generator: column trick")
@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_blocked_attention_gives_the_logits_and_gradients_of_dense_attention(num_layers):
    fast, slow = tiny(num_layers, attention="blocked"), tiny(num_layers, attention="dense")
    text, tokens = captions(3), random_images(3)

    for each in (fast, slow):
        each.loss(text, tokens, 0, torch.Generator())[0].backward()

    for actual, expected in zip(fast.logits(text, tokens), slow.logits(text, tokens), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    for actual, expected in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, atol=1e-5, rtol=0)


def logits_and_gradients(model, logits_of, dtype):
    """Both logits, and the gradients of the sum of their squares to every weight; products in `dtype`."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        actual = logits_of(captions(3), random_images(3))
    sum(part.float().square().mean() for part in actual).backward()
    return [part.detach().float() for part in actual] + [weight.grad.clone() for weight in model.parameters()]


def test_logits_and_gradients_are_those_of_the_model_in_plain_pytorch():
    """In float32 to 1e-5; in bfloat16 no further from float32 than plain PyTorch in bfloat16 is."""
    model = tiny(4)
    library, plain = model.logits, partial(_plain.logits, model)
    exact = logits_and_gradients(model, plain, torch.float32)

    for actual, expected in zip(logits_and_gradients(model, library, torch.float32), exact, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    fast, slow = (logits_and_gradients(model, logits_of, torch.bfloat16) for logits_of in (library, plain))
    actual, usual, expected = (torch.cat([part.flatten() for part in parts]) for parts in (fast, slow, exact))
    assert (actual - expected).norm() <= 1.1 * (usual - expected).norm()


def test_the_loss_is_that_of_the_model_in_plain_pytorch():
    model = tiny(4)
    actual, expected = (
        model.loss(captions(5), random_images(5), 0, torch.Generator())[0],
        _plain.loss(model, captions(5), random_images(5)),
    )
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.paper("generator: masks")
def test_a_later_token_never_changes_an_earlier_logit_under_blocked_attention():
    model, text, tokens = tiny(6, attention="blocked"), captions(1), random_images(1)
    before = model.logits(text, tokens)[1]

    for position in range(SIDE * SIDE):
        changed = tokens.clone()
        changed[:, position] = (tokens[:, position] + 1) % IMAGE_VOCAB
        assert model.logits(text, changed)[1][:, : position + 1].equal(before[:, : position + 1])


def test_large_grids_use_blocked_attention_where_it_has_far_fewer_keys():
    def chosen(side: int, text_length: int) -> set[str]:
        with torch.random.fork_rng(devices=[]):
            model = Transformer(
                TransformerConfig(num_layers=4, num_heads=1, width=4), 5, text_length, 5, (side,)
            )
        attends = {
            kind: model._attend(kind, model.prefix_length + side * side).__qualname__ for kind in KINDS
        }
        return {kind for kind, name in attends.items() if name.startswith("blocked_attention")}

    assert chosen(8, 24) == set()
    assert chosen(16, 64) == {"row", "column"}
    assert chosen(32, 256) == {"row", "column", "convolutional"}


# --- what the paper leaves open -----------------------------------------------------------------------------


@pytest.mark.paper("generator: ?")
def test_the_activation_is_a_setting():
    inputs = torch.tensor([-1.0, 0.0, 1.0])
    actual = {name: function(inputs).tolist() for name, function in ACTIVATIONS.items()}
    assert actual["relu"] == [0, 0, 1]
    assert actual["gelu"] == pytest.approx([-0.158655, 0, 0.841345], abs=1e-5)
    assert actual["quick_gelu"] == pytest.approx([-0.154204, 0, 0.845796], abs=1e-5)
    logits = [tiny(activation=name).logits(captions(1), random_images(1))[1] for name in ACTIVATIONS]
    assert not logits[0].equal(logits[1]) and not logits[0].equal(logits[2])


@pytest.mark.paper("generator: ?")
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_dropout_is_a_function_of_the_step_and_off_when_not_training(activation_checkpointing):
    model, text, tokens = (
        tiny(dropout=0.5, activation_checkpointing=activation_checkpointing),
        captions(2),
        random_images(2),
    )

    def loss_and_gradient(seed: int) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = model.loss(text, tokens, 0, torch.Generator().manual_seed(seed))[0]
        loss.backward()
        return float(loss.detach()), model.layers[0].mlp.hidden.weight.grad.clone()

    state = torch.get_rng_state()
    (first, gradient), (again, gradient_again), (other, _) = (loss_and_gradient(seed) for seed in (1, 1, 2))
    assert first == again != other and gradient.equal(gradient_again)
    assert torch.get_rng_state().equal(state)
    whole, bare = (
        each.eval().loss(text, tokens, 0, torch.Generator())[0].detach() for each in (model, tiny())
    )
    assert whole.equal(bare)


def test_recomputed_layers_give_the_same_gradients():
    gradients = []
    for activation_checkpointing in (False, True):
        model = tiny(activation_checkpointing=activation_checkpointing, dropout=0.5)
        model.loss(captions(2), random_images(2), 0, torch.Generator().manual_seed(0))[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(value.equal(other) for value, other in zip(*gradients, strict=True))
