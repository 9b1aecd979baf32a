"""Compiled layers and FlexAttention: what a GPU trains with is what the masks say. Here without a GPU, as far as that goes."""
from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
import torch._dynamo.testing

from thousandwords import compiling
from thousandwords.compiling import Compiled, wants_compiling
from thousandwords.generators import _flex, transformer
from thousandwords.generators._flex import Order, attend_in_blocks, can_run, flexible
from thousandwords.generators._layers import dense
from thousandwords.generators._masks import KINDS, attention_mask
from thousandwords.generators.transformer import Config, Transformer

CPU, PREFIX = torch.device("cpu"), 5
needs_compiler = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def nothing_was_told(monkeypatch):
    monkeypatch.setattr(compiling, "TOLD", set())


def stream(length: int, width: int = 16) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (2, 3, length, width)."""
    return torch.randn(3, 2, 3, length, width, generator=torch.Generator().manual_seed(0)).unbind()


# --- the rule and the blocks -----------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(("side", "kernel"), [(1, 3), (4, 3), (7, 5), (5, 11), (32, 11)])
def test_the_rule_of_a_kind_is_its_mask_in_the_order_of_its_blocks(kind, side, kernel):
    order, mask = Order(kind, PREFIX, side, kernel), attention_mask(kind, PREFIX, side, kernel)
    place = torch.arange(len(mask))

    found = order.rule()(place, place, place[:, None], place[None, :])

    position = order.ordered(place.view(1, 1, -1, 1)).flatten()
    assert found.equal(mask[position][:, position])


@every_kind
@pytest.mark.parametrize("missing", [0, 1, 6])
def test_attending_in_blocks_is_attending_under_the_whole_mask(kind, missing):
    mask = attention_mask(kind, PREFIX, side=7, kernel=3)
    length = len(mask) - missing
    order, read = Order(kind, PREFIX, 7, 3), stream(length)

    found = attend_in_blocks(order, order.blocks(length, CPU))(*read)

    torch.testing.assert_close(found, dense(mask[:length, :length])(*read), atol=1e-5, rtol=0)


def test_of_the_papers_121_blocks_most_are_never_computed():
    def computed(kind: str) -> int:
        blocks = Order(kind, 258, 32, 11).blocks(1281, CPU)
        return int(blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum())

    assert {kind: computed(kind) for kind in KINDS} == {"row": 45, "column": 45, "convolutional": 51}


@pytest.mark.slow  # half a minute of compiling
@needs_compiler
def test_compiled_it_is_still_the_whole_mask():
    mask, read = attention_mask("column", PREFIX, side=7, kernel=3), stream(53)
    fails = Compiled(lambda *_: None, "the other way", instead=lambda *_: pytest.fail("it was not compiled"))
    with torch.no_grad():
        found = flexible(Order("column", PREFIX, 7, 3), 53, CPU, fails.instead)(*read)
    torch.testing.assert_close(found, dense(mask[:53, :53])(*read), atol=1e-5, rtol=0)


# --- where it cannot run ---------------------------------------------------------------------------------------------


def tiny(**settings) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Config(num_layers=6, num_heads=2, width=32, kernel=3, init_std=0.3, **settings), 11, 6, 13, (4,)).train()


TEXT, TOKENS = torch.randint(11, (2, 6)), torch.randint(13, (2, 16))


def learned(model: Transformer) -> list[torch.Tensor]:
    """The loss and all gradients."""
    loss = model.loss(TEXT, TOKENS, 0, torch.Generator())[0]
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_alike(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_on_a_cpu_flex_becomes_another_way_and_one_line_says_so(capfd):
    assert_alike(learned(tiny(attention="flex")), learned(tiny()))
    assert_alike(learned(tiny(attention="flex")), learned(tiny()))

    assert capfd.readouterr().err == (
        "transformer.attention is flex, but it has no gradients on cpu; attending line by line instead\n"
    )


def test_where_it_is_not_asked_for_nothing_is_said_of_it(capfd):
    assert not can_run(CPU, is_asked_for=False)
    assert capfd.readouterr().err == ""


def test_on_a_gpu_large_grids_train_by_it_and_are_read_without_it(monkeypatch):
    monkeypatch.setattr(_flex, "problem", lambda device: "")
    model = Transformer(Config(num_layers=4, num_heads=1, width=16), 5, 6, 5, (16,))

    def kind_of(attend) -> str:
        return type(attend).__name__ if isinstance(attend, Compiled) else attend.__qualname__.partition(".")[0]

    assert {kind_of(model._attend(kind, 263)) for kind in KINDS} == {"Compiled"}
    assert model._attend("row", 263) is model._attend("row", 263)
    with torch.no_grad():
        assert {kind_of(model._attend(kind, 263)) for kind in KINDS} <= {"blocked", "dense"}
    assert not tiny()._takes_flex(CPU) and tiny(attention="flex")._takes_flex(CPU)


# --- compiled layers -------------------------------------------------------------------------------------------------


def compiled_by(monkeypatch, backend) -> None:
    """Layers are compiled by that backend, with no C++ compiler in it."""
    monkeypatch.setattr(transformer, "Compiled", lambda function, name: Compiled(function, name, backend=backend))
    torch._dynamo.reset()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_layers_give_the_same_loss_and_gradients_from_one_graph(monkeypatch, recompute, precision):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled_by(monkeypatch, counter)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found = learned(tiny(compile=True, recompute=recompute))
        wanted = learned(tiny(recompute=recompute))

    assert_alike(found, wanted)
    assert counter.frame_count == 1  # 6 layers share it, as masks come in from outside


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
def test_flex_attention_gives_the_loss_and_gradients_of_the_whole_mask_compiled_alone_or_in_its_layer(
    monkeypatch, capfd, recompute, is_whole
):
    # torch refuses gradients on a CPU for want of a kernel, but has them without one: what is left is what a GPU does as well
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    monkeypatch.setattr(_flex, "problem", lambda device: "")
    monkeypatch.setattr(_flex, "Compiled", lambda *settings: Compiled(*settings, backend="aot_eager"))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled_by(monkeypatch, counter)

    found = learned(tiny(attention="flex", compile=is_whole, recompute=recompute))

    assert_alike(found, learned(tiny(attention="dense")))
    assert counter.frame_count == (3 if is_whole else 0)  # rows, columns, convolution: 6 layers share them
    assert capfd.readouterr().err == ""


@pytest.mark.slow  # half a minute of compiling
@needs_compiler
def test_layers_compiled_by_inductor_give_the_same_loss_and_gradients(capfd):
    assert_alike(learned(tiny(compile=True)), learned(tiny()))
    assert "could not be compiled" not in capfd.readouterr().err


def test_a_layer_that_cannot_be_compiled_runs_as_it_is_and_one_line_says_so(monkeypatch, capfd):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nwas found")

    compiled_by(monkeypatch, broken)
    assert_alike(learned(tiny(compile=True)), learned(tiny()))

    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("transformer: a layer could not be compiled, and runs uncompiled: BackendCompilerFailed: ")
    assert "no compiler was found" in line


def test_memory_that_ran_out_is_no_failure_of_the_compiler(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda function, **_: full)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(lambda: 1, "a part")()


def test_what_is_wrong_with_the_work_itself_is_raised_by_the_plain_function(monkeypatch):
    def wrong(*_):
        raise ValueError("a wrong size")

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(ValueError, match="a wrong size"):
        Compiled(wrong, "a part")()


def test_on_a_cpu_nothing_is_compiled_unasked_and_a_copied_model_is_its_own():
    assert not wants_compiling("auto", CPU) and not wants_compiling(False, CPU) and wants_compiling(True, CPU)
    assert not wants_compiling(True, torch.device("meta"))
    model = tiny()
    assert_alike(learned(copy.deepcopy(model)), learned(model))


def test_what_is_read_without_gradients_is_not_compiled(monkeypatch):
    compiled_by(monkeypatch, lambda graph, inputs: pytest.fail("it was compiled"))
    with torch.no_grad():
        tiny(compile=True).logits(TEXT, TOKENS)
