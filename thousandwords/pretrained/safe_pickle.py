"""The pickle of a torch module, read as a description and never run: a stack machine that can import and call nothing.

A pickle is a program. Python's own reader imports whatever the program names and calls it; this one knows the operations
that torch.save writes and turns the ten classes of the released tokenizers (openai/DALL-E) into inert records, a storage
into its key, a tensor into where it lies. Whatever else is named ends the reading. Memory is bounded by the length of the
program. Left out: every dtype but float32, buffers, strided views, text operations, pickled bytes.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from thousandwords.errors import UserError

MOST_BYTES = 2**18  # of one file's pickles, three times what a released one takes; a byte may cost a hundred of memory
MOST_MODULES = 1000  # the released encoder has 109; a module that holds itself would have no end
LONGEST_PATH = 100  # letters of a module's or parameter's path; a thousand long ones would fill the memory
MOST_DIMENSIONS = 8  # of a tensor; a kernel has 4
STOP = b"."


class RefusedPickle(UserError):
    """A file that is no released tokenizer, or not whole. Nothing in it was run."""


@dataclass(frozen=True)
class Name:
    """A class or a function by its name alone; nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A run of float32 numbers elsewhere in the file."""

    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A contiguous float32 tensor: which numbers of which storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False, repr=False)
class Module:
    """What was an nn.Module: the name of its class and its attributes. eq and repr might never end on hostile ones."""

    kind: Name
    state: dict | None = None

    def part(self, name: str) -> dict:
        """One of the attributes that hold parts by their names: `_modules`, `_parameters`, `_buffers`."""
        found = (self.state or {}).get(name, {})
        _need(type(found) is dict, f"{name} of a module is no set of names")
        return found


MODULES = frozenset(
    Name(module, name)
    for module, name in (
        ("dall_e.encoder", "Encoder"),
        ("dall_e.encoder", "EncoderBlock"),
        ("dall_e.decoder", "Decoder"),
        ("dall_e.decoder", "DecoderBlock"),
        ("dall_e.utils", "Conv2d"),
        ("torch.nn.modules.container", "Sequential"),
        ("torch.nn.modules.activation", "ReLU"),
        ("torch.nn.modules.pooling", "MaxPool2d"),
        ("torch.nn.modules.upsampling", "Upsample"),
        ("torch.nn.modules.linear", "Identity"),
    )
)
FLOATS = Name("torch", "FloatStorage")


def read_pickle(data: bytes, start: int = 0) -> tuple[object, int]:
    """(what the pickle at `start` describes, where it ends). Raises RefusedPickle."""
    machine = _Machine(data, start)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
        raise RefusedPickle(f"is damaged or cut short: its pickle breaks off at byte {machine.position:,}") from error


def modules_of(network: object) -> dict[str, Module]:
    """Every module by its path, the network itself by "": "blocks.group_1.pool" -> Module."""
    _need(isinstance(network, Module), "holds no torch module")
    found: dict[str, Module] = {}
    waiting = [("", network)]
    while waiting:
        path, module = waiting.pop()
        found[path] = module
        for name, part in module.part("_modules").items():
            if part is not None:
                _need(isinstance(part, Module), "has a part that is no module")
                waiting.append((_joined(path, name), part))
            _need(len(found) + len(waiting) <= MOST_MODULES, f"has more than {MOST_MODULES} modules")
    return found


def tensors_of(modules: dict[str, Module]) -> dict[str, StoredTensor]:
    """Every parameter by its path: "blocks.input.w" -> StoredTensor."""
    found: dict[str, StoredTensor] = {}
    for path, module in modules.items():
        _need(not module.part("_buffers"), "has buffers, which no released tokenizer has")
        for name, tensor in module.part("_parameters").items():
            _need(isinstance(tensor, StoredTensor), "has a parameter that is no tensor")
            found[_joined(path, name)] = tensor
            _need(len(found) <= MOST_MODULES, f"has more than {MOST_MODULES} tensors")
    return found


def shown(text: str) -> str:
    """Text of a hostile file, fit for a terminal."""
    return text[:80] if text.isascii() and text.isprintable() else ascii(text[:80])


def _joined(path: str, name: str) -> str:
    joined = f"{path}.{name}" if path else name
    is_path = name != "" and "." not in name and len(joined) <= LONGEST_PATH
    _need(is_path, f"has a part {ascii(name[:80])} whose path is no path of a released tokenizer")
    return joined


def _need(is_so: bool, complaint: str) -> None:
    if not is_so:
        raise RefusedPickle(complaint)


class _Machine:
    """A stack, marks on it, and a memo. What lies on the stack is plain data: str, int, float, bool, None, tuple, list,
    dict with keys of text, and the records above."""

    def __init__(self, data: bytes, start: int):
        self.data, self.position = data, start
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        while (operation := self.take(1)) != STOP:
            step = OPERATIONS.get(operation)
            _need(step is not None, f"uses the pickle operation 0x{operation.hex()}, which no released tokenizer has")
            step(self)
        return self.pop(object)

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise IndexError
        self.position += count
        return taken

    def number(self, form: str) -> int | float:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise IndexError
        text = self.take(end - self.position).decode()
        self.position += 1
        return text

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, wanted: type) -> object:
        value = self.stack.pop()
        _need(wanted is object or type(value) is wanted, f"is damaged: no {wanted.__name__} at byte {self.position:,}")
        return value

    def pop_to_mark(self) -> list:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, wanted: type) -> object:
        value = self.stack[-1]
        _need(type(value) is wanted, f"is damaged: no {wanted.__name__} at byte {self.position:,}")
        return value

    def push_name(self, module: str, name: str) -> None:
        found = Name(module, name)
        is_known = found in MODULES or found in FUNCTIONS or found == FLOATS
        _need(is_known, f"asks for {shown(str(found))}, which no released tokenizer has; it was not run")
        self.push(found)

    def fill(self, pairs: list) -> None:
        target = self.top(dict)
        _need(len(pairs) % 2 == 0, "is damaged: a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            _need(type(key) is str, "has a key that is no text")  # hashing a nested tuple might never end
            target[key] = value


def _apply(machine: _Machine) -> None:
    """REDUCE: Python would call here. Five functions are known, and what they would have made is described."""
    arguments, function = machine.pop(tuple), machine.pop(Name)
    _need(function in FUNCTIONS, f"calls {shown(str(function))}, which no released tokenizer does; it was not run")
    machine.push(FUNCTIONS[function](arguments))


def _new_module(machine: _Machine) -> None:
    """NEWOBJ: Python would make an object of the class, without its __init__."""
    arguments, kind = machine.pop(tuple), machine.pop(Name)
    _need(kind in MODULES and not arguments, f"makes a {shown(str(kind))} in a way that no released tokenizer does")
    machine.push(Module(kind))


def _give_state(machine: _Machine) -> None:
    """BUILD: Python would run __setstate__, or set any attribute; here a new module gets its attributes, once."""
    state = machine.pop(dict)
    module = machine.top(Module)
    _need(module.state is None, "gives a module its attributes twice")
    module.state = state


def _follow(machine: _Machine) -> None:
    """BINPERSID: torch writes storages beside the pickle, and in the legacy container a class with its source code."""
    reference = machine.pop(tuple)
    match reference:
        case ("module", Name() as kind, _, _) if kind in MODULES:
            machine.push(kind)
        case ("storage", Name() as kind, str() as key, str(), int() as count) | (
            "storage", Name() as kind, str() as key, str(), int() as count, None
        ) if kind == FLOATS and _is_count(count):  # fmt: skip
            machine.push(Storage(key, count))
        case _:
            raise RefusedPickle("refers to something outside its pickle that is no float32 storage")


def _tensor(arguments: tuple) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2, on paper: it checks what torch takes on trust."""
    match arguments:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, bool(), dict()):
            pass
        case _:
            raise RefusedPickle("has a tensor that is no plain float32 tensor")
    are_counts = all(_is_count(number) for number in (offset, *shape, *strides))
    _need(are_counts and 0 not in shape and len(shape) == len(strides) <= MOST_DIMENSIONS, "has a tensor of no size")
    _need(_is_contiguous(shape, strides), f"has a tensor {shape} with the strides {strides}; it should be contiguous")
    tensor = StoredTensor(storage, offset, shape)
    _need(offset + tensor.count <= storage.count, f"has a tensor {shape} that reaches beyond its storage")
    return tensor


def _parameter(arguments: tuple) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), dict()):
            return tensor
    raise RefusedPickle("has a parameter that is no plain float32 tensor")


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**40


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    wanted = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != wanted:  # an axis of one has no stride to speak of
            return False
        wanted *= length
    return True


def _without_arguments(arguments: tuple) -> dict:
    _need(arguments == (), "fills an OrderedDict in a way that no released tokenizer does")
    return {}


FUNCTIONS: dict[Name, Callable[[tuple], object]] = {
    Name("collections", "OrderedDict"): _without_arguments,
    Name("__builtin__", "set"): lambda _: None,  # names of buffers that are not kept, and flags: nobody reads them
    Name("builtins", "set"): lambda _: None,
    Name("torch", "device"): lambda _: None,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
}


def _name_of_stack(machine: _Machine) -> None:
    name, module = machine.pop(str), machine.pop(str)
    machine.push_name(module, name)


def _instance(machine: _Machine) -> None:
    """INST: an old way to call; only the name is read, so that a refusal can tell it."""
    machine.push_name(machine.line(), machine.line())
    raise RefusedPickle("uses the pickle operation INST, which no released tokenizer has")


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


def _text(form: str) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.push(machine.take(machine.number(form)).decode("utf-8", "surrogatepass"))

    return step


def _number(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(form))


def _get(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.memo[machine.number(form)])


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]  # a dict: an index of four billion costs no more than one of 0


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        if len(machine.stack) < count:
            raise IndexError
        values = tuple(machine.stack[-count:])
        del machine.stack[-count:]
        machine.push(values)

    return step


def _append(machine: _Machine) -> None:
    value = machine.pop(object)
    machine.top(list).append(value)


def _extend(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(object), machine.pop(object)
    machine.fill([key, value])


# what torch.save writes (protocol 2), and a few others so that a refusal can name what was asked for
OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda machine: machine.take(1),  # PROTO: its number
    b"\x95": lambda machine: machine.take(8),  # FRAME: its length
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"J": _number("<i"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"\x8a": _long,
    b"G": _number(">d"),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"}": lambda machine: machine.push({}),
    b"]": lambda machine: machine.push([]),
    b")": lambda machine: machine.push(()),
    b"t": lambda machine: machine.push(tuple(machine.pop_to_mark())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"a": _append,
    b"e": _extend,
    b"s": _set_item,
    b"u": lambda machine: machine.fill(machine.pop_to_mark()),
    b"q": lambda machine: _put(machine, machine.number("<B")),
    b"r": lambda machine: _put(machine, machine.number("<I")),
    b"\x94": lambda machine: _put(machine, len(machine.memo)),
    b"h": _get("<B"),
    b"j": _get("<I"),
    b"c": lambda machine: machine.push_name(machine.line(), machine.line()),
    b"\x93": _name_of_stack,
    b"i": _instance,
    b"R": _apply,
    b"\x81": _new_module,
    b"b": _give_state,
    b"Q": _follow,
}
