"""Compiled layers and FlexAttention give the values of the masks; tested without a GPU."""

import copy
import functools
import os
import shutil
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing

from tests.helpers.tiny_models import SEVERAL_SCALES, captions_as_tokens, image_tokens, tiny_transformer
from thousandwords.generators.transformer import attention
from thousandwords.generators.transformer import model as transformer
from thousandwords.generators.transformer.attention import FlexOrder, flex_attention
from thousandwords.generators.transformer.masks import KINDS, attention_mask
from thousandwords.generators.transformer.model import Transformer, TransformerConfig
from thousandwords.nn import compile
from thousandwords.nn.compile import Compiled, should_compile
from thousandwords.nn.transformer_layers import dense_attention

CPU, PREFIX = torch.device("cpu"), 5
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler"
)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def no_line_was_logged(monkeypatch):
    monkeypatch.setattr(compile, "_logged", set())


def random_qkv(length: int, width: int = 16) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (2, 3, length, width)."""
    return torch.randn(3, 2, 3, length, width, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.paper("generator: column trick")
@every_kind
@pytest.mark.parametrize(("side", "kernel"), [(1, 3), (4, 3), (7, 5), (5, 11), (32, 11)])
def test_the_mask_function_of_a_kind_is_its_mask_in_flex_order(kind, side, kernel):
    order, mask = FlexOrder(kind, PREFIX, side, kernel), attention_mask(kind, PREFIX, side, kernel)
    index = torch.arange(len(mask))

    actual = order.mask_mod()(index, index, index[:, None], index[None, :])

    position = order.from_raster(index.view(1, 1, -1, 1)).flatten()
    assert actual.equal(mask[position][:, position])


@every_kind
@pytest.mark.parametrize("missing", [0, 1, 6])
def test_flex_attention_equals_dense_attention(kind, missing):
    mask = attention_mask(kind, PREFIX, side=7, kernel=3)
    length = len(mask) - missing
    order, qkv = FlexOrder(kind, PREFIX, 7, 3), random_qkv(length)

    actual = flex_attention(order, order.block_mask(length, CPU))(*qkv)

    torch.testing.assert_close(actual, dense_attention(mask[:length, :length])(*qkv), atol=1e-5, rtol=0)


def test_most_of_the_papers_121_blocks_are_never_computed():
    def computed(kind: str) -> int:
        block_mask = FlexOrder(kind, 258, 32, 11).block_mask(1281, CPU)
        return int(block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum())

    assert {kind: computed(kind) for kind in KINDS} == {"row": 45, "column": 45, "convolutional": 51}


tiny = functools.partial(tiny_transformer, 6, width=32)
TEXT = captions_as_tokens(2)


def loss_and_gradients(model: Transformer) -> list[torch.Tensor]:
    """The loss and all gradients."""
    loss = model.loss(TEXT, image_tokens(2, model.scales), 0, torch.Generator())[0]
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_on_a_cpu_flex_is_replaced_and_one_line_says_so(capfd):
    expected = loss_and_gradients(tiny())
    for _ in range(2):
        assert_close(loss_and_gradients(tiny(attention="flex")), expected)

    assert capfd.readouterr().err == (
        "transformer.attention is flex, but it has no gradients on cpu; attending under the whole mask instead\n"
    )


def test_on_a_gpu_large_grids_use_flex_in_training_only(monkeypatch):
    monkeypatch.setattr(attention, "why_flex_is_unsupported", lambda device: "")
    model = Transformer(TransformerConfig(num_layers=4, num_heads=1, width=16), 5, 6, 5, (16,))

    assert all(isinstance(model.attention.choose(kind, 263), Compiled) for kind in KINDS)
    assert model.attention.choose("row", 263) is model.attention.choose("row", 263)
    with torch.no_grad():
        assert not isinstance(model.attention.choose("row", 263), Compiled)
    assert not tiny().attention.uses_flex(CPU) and tiny(attention="flex").attention.uses_flex(CPU)


def compiled_by(monkeypatch, backend) -> None:
    """Layers are compiled by that backend, with no C++ compiler in it."""
    monkeypatch.setattr(
        transformer, "Compiled", lambda function, name: Compiled(function, name, backend=backend)
    )
    torch._dynamo.reset()


OPTIONS = {"activation": "swiglu", "rotary_extent": 4.0, "random_order_steps": (1, 1)}


@pytest.mark.parametrize(
    ("precision", "options"), [(torch.float32, OPTIONS), (torch.bfloat16, {"activation_checkpointing": True})]
)
def test_compiled_layers_give_the_same_loss_and_gradients_from_one_graph(monkeypatch, precision, options):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled_by(monkeypatch, counter)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        actual = loss_and_gradients(tiny(compile=True, **options))
        expected = loss_and_gradients(tiny(**options))

    assert_close(actual, expected)
    assert counter.frame_count == 1  # 6 layers share it, since masks are arguments


@pytest.mark.parametrize(
    ("options", "settings", "num_graphs"),
    [
        ({}, {"compile": True}, 3),  # one per kind of layer: 6 layers share them
        ({"scales": SEVERAL_SCALES}, {"activation_checkpointing": True}, 0),
        pytest.param({}, {"activation_checkpointing": True}, 0, marks=pytest.mark.slow),
        pytest.param({"scales": SEVERAL_SCALES}, {"compile": True}, 1, marks=pytest.mark.slow),
        pytest.param(OPTIONS, {"compile": True}, 1, marks=pytest.mark.slow),
    ],
)
def test_flex_attention_gives_the_loss_and_gradients_of_dense_attention_compiled_alone_or_in_its_layer(
    monkeypatch, capfd, options, settings, num_graphs
):
    # torch rejects gradients on a CPU, which has no kernel for them; uncompiled they work
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    monkeypatch.setattr(attention, "why_flex_is_unsupported", lambda device: "")
    monkeypatch.setattr(attention, "Compiled", lambda *part: Compiled(*part, backend="aot_eager"))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled_by(monkeypatch, counter)

    actual = loss_and_gradients(tiny(attention="flex", **options, **settings))

    assert_close(actual, loss_and_gradients(tiny(attention="dense", **options)))
    assert counter.frame_count == num_graphs
    assert capfd.readouterr().err == ""


@pytest.mark.slow  # half a minute of compiling
@needs_compiler
def test_layers_compiled_by_inductor_give_the_same_loss_and_gradients(capfd):
    assert_close(loss_and_gradients(tiny(compile=True)), loss_and_gradients(tiny()))
    assert "could not be compiled" not in capfd.readouterr().err


def test_a_layer_that_cannot_be_compiled_runs_uncompiled_and_one_line_says_so(monkeypatch, capfd):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nwas found")

    compiled_by(monkeypatch, broken)
    assert_close(loss_and_gradients(tiny(compile=True)), loss_and_gradients(tiny()))

    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "transformer: a layer could not be compiled, and runs uncompiled: BackendCompilerFailed: "
    )
    assert "no compiler was found" in line


def failing_with(error: Exception) -> Callable:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "fallback"),
    [(torch.OutOfMemoryError("CUDA out of memory"), lambda: 1), (ValueError("a wrong size"), None)],
)
def test_an_error_of_memory_or_of_the_function_itself_is_raised(monkeypatch, error, fallback):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(type(error), match=str(error)):
        Compiled(failing_with(error), "a part", fallback)()


def test_on_a_cpu_nothing_is_compiled_by_default_and_a_model_can_be_copied():
    assert not should_compile("auto", CPU) and not should_compile(False, CPU) and should_compile(True, CPU)
    assert not should_compile(True, torch.device("meta"))
    assert_close(loss_and_gradients(copy.deepcopy(tiny())), loss_and_gradients(tiny()))


def test_a_pass_without_gradients_is_not_compiled(monkeypatch):
    compiled_by(monkeypatch, lambda graph, inputs: pytest.fail("compiled"))
    with torch.no_grad():
        tiny(compile=True).logits(TEXT, image_tokens(2))
