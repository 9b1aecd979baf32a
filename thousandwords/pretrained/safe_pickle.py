"""Read the pickle of a torch module without running it: a stack machine that can neither import nor call
anything.

A pickle is a program. Python's own reader imports and calls what the program names. This one knows the
operations that torch.save writes, and turns the ten classes of the DALL-E release (openai/DALL-E) into plain
records, a storage into its key, a tensor into its position in a storage. Anything else ends the reading.
Memory is bounded by the length of the program. Left out: every dtype but float32, buffers, strided views,
text operations, pickled bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from thousandwords.core.errors import UserError

# of one file's pickles: three times what the release needs; a byte may cost a hundred bytes of memory
MAX_PICKLE_BYTES = 2**18
MAX_MODULES = 1000  # the release's encoder has 109; a module that contains itself would never end
MAX_PATH_LENGTH = (
    100  # characters of a module's or parameter's path; a thousand long ones would fill the memory
)
MAX_DIMENSIONS = 8  # of a tensor; a kernel has 4
STOP = b"."


class RejectedPickle(UserError):
    """A file that is not from the DALL-E release, or incomplete. Nothing in it was run."""


@dataclass(frozen=True)
class Name:
    """The name of a class or a function; nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A block of float32 numbers elsewhere in the file."""

    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A contiguous float32 tensor: its position in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False, repr=False)
class Module:
    """A pickled nn.Module: the name of its class and its attributes. No eq and repr: on hostile input they
    may not end."""

    kind: Name
    state: dict | None = None

    def part(self, name: str) -> dict:
        """One of the attributes that hold parts by name: `_modules`, `_parameters`, `_buffers`."""
        parts = (self.state or {}).get(name, {})
        _require(type(parts) is dict, f"{name} of a module is not a dict")
        return parts


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
    """(the value that the pickle at `start` describes, the position of its end). Raises RejectedPickle."""
    machine = _Machine(data, start)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
        raise RejectedPickle(
            f"is damaged or cut short: its pickle ends at byte {machine.position:,}"
        ) from error


def modules_of(network: object) -> dict[str, Module]:
    """{path: Module} of every module, the network itself at "": "blocks.group_1.pool" -> Module."""
    _require(isinstance(network, Module), "holds no torch module")
    modules: dict[str, Module] = {}
    queue = [("", network)]
    while queue:
        path, module = queue.pop()
        modules[path] = module
        for name, part in module.part("_modules").items():
            if part is not None:
                _require(isinstance(part, Module), "has a part that is not a module")
                queue.append((_join(path, name), part))
            _require(len(modules) + len(queue) <= MAX_MODULES, f"has more than {MAX_MODULES} modules")
    return modules


def tensors_of(modules: dict[str, Module]) -> dict[str, StoredTensor]:
    """{path: StoredTensor} of every parameter: "blocks.input.w" -> StoredTensor."""
    tensors: dict[str, StoredTensor] = {}
    for path, module in modules.items():
        _require(not module.part("_buffers"), "has buffers, which the DALL-E release does not have")
        for name, tensor in module.part("_parameters").items():
            _require(isinstance(tensor, StoredTensor), "has a parameter that is not a tensor")
            tensors[_join(path, name)] = tensor
            _require(len(tensors) <= MAX_MODULES, f"has more than {MAX_MODULES} tensors")
    return tensors


def printable(text: str) -> str:
    """Text from an untrusted file, safe to print on a terminal."""
    return text[:80] if text.isascii() and text.isprintable() else ascii(text[:80])


def _join(path: str, name: str) -> str:
    joined = f"{path}.{name}" if path else name
    is_path = name != "" and "." not in name and len(joined) <= MAX_PATH_LENGTH
    _require(is_path, f"has a part {ascii(name[:80])} whose path is not one of the DALL-E release")
    return joined


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RejectedPickle(problem)


class _Machine:
    """A stack, marks on it, and a memo. The stack holds plain data only: str, int, float, bool, None, tuple,
    list, dict with text keys, and the records above."""

    def __init__(self, data: bytes, start: int):
        self.data, self.position = data, start
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        while (operation := self.take(1)) != STOP:
            step = OPERATIONS.get(operation)
            _require(
                step is not None,
                f"uses the pickle operation 0x{operation.hex()}, which the DALL-E release does not use",
            )
            step(self)
        return self.pop(object)

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        data = self.data[self.position : self.position + count]
        if len(data) < count:
            raise IndexError
        self.position += count
        return data

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

    def pop(self, expected: type) -> object:
        value = self.stack.pop()
        _require(
            expected is object or type(value) is expected,
            f"is damaged: no {expected.__name__} at byte {self.position:,}",
        )
        return value

    def pop_to_mark(self) -> list:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, expected: type) -> object:
        value = self.stack[-1]
        _require(type(value) is expected, f"is damaged: no {expected.__name__} at byte {self.position:,}")
        return value

    def push_name(self, module: str, name: str) -> None:
        full_name = Name(module, name)
        is_allowed = full_name in MODULES or full_name in FUNCTIONS or full_name == FLOATS
        _require(
            is_allowed,
            f"asks for {printable(str(full_name))}, which the DALL-E release does not use; it was not run",
        )
        self.push(full_name)

    def fill(self, pairs: list) -> None:
        target = self.top(dict)
        _require(len(pairs) % 2 == 0, "is damaged: a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            _require(type(key) is str, "has a key that is not text")  # hashing a nested tuple may not end
            target[key] = value


def _apply(machine: _Machine) -> None:
    """REDUCE: Python would call a function here. Five functions are allowed, and their result is
    described."""
    arguments, function = machine.pop(tuple), machine.pop(Name)
    _require(
        function in FUNCTIONS,
        f"calls {printable(str(function))}, which the DALL-E release does not do; it was not run",
    )
    machine.push(FUNCTIONS[function](arguments))


def _new_module(machine: _Machine) -> None:
    """NEWOBJ: Python would make an object of the class, without its __init__."""
    arguments, kind = machine.pop(tuple), machine.pop(Name)
    _require(
        kind in MODULES and not arguments,
        f"makes a {printable(str(kind))} in a way that the DALL-E release does not",
    )
    machine.push(Module(kind))


def _set_state(machine: _Machine) -> None:
    """BUILD: Python would run __setstate__ or set any attribute; here a new module gets its attributes,
    once."""
    state = machine.pop(dict)
    module = machine.top(Module)
    _require(module.state is None, "sets the attributes of a module twice")
    module.state = state


def _resolve(machine: _Machine) -> None:
    """BINPERSID: torch keeps storages outside the pickle; the legacy container also names a class with its
    source code."""
    reference = machine.pop(tuple)
    match reference:
        case ("module", Name() as kind, _, _) if kind in MODULES:
            machine.push(kind)
        case ("storage", Name() as kind, str() as key, str(), int() as count) | (
            "storage",
            Name() as kind,
            str() as key,
            str(),
            int() as count,
            None,
        ) if kind == FLOATS and _is_count(count):
            machine.push(Storage(key, count))
        case _:
            raise RejectedPickle("refers to something outside its pickle that is not a float32 storage")


def _tensor(arguments: tuple) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2 as a description; checks what torch does not check."""
    match arguments:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, bool(), dict()):
            pass
        case _:
            raise RejectedPickle("has a tensor that is not a plain float32 tensor")
    are_counts = all(_is_count(number) for number in (offset, *shape, *strides))
    _require(
        are_counts and 0 not in shape and len(shape) == len(strides) <= MAX_DIMENSIONS,
        "has a tensor without a valid size",
    )
    _require(
        _is_contiguous(shape, strides),
        f"has a tensor {shape} with the strides {strides}; it should be contiguous",
    )
    tensor = StoredTensor(storage, offset, shape)
    _require(offset + tensor.count <= storage.count, f"has a tensor {shape} that reaches beyond its storage")
    return tensor


def _parameter(arguments: tuple) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), dict()):
            return tensor
    raise RejectedPickle("has a parameter that is not a plain float32 tensor")


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**40


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected_stride = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected_stride:  # the stride of an axis of length 1 does not matter
            return False
        expected_stride *= length
    return True


def _without_arguments(arguments: tuple) -> dict:
    _require(arguments == (), "fills an OrderedDict in a way that the DALL-E release does not")
    return {}


FUNCTIONS: dict[Name, Callable[[tuple], object]] = {
    Name("collections", "OrderedDict"): _without_arguments,
    # names of buffers that are not saved, and flags: not needed
    Name("__builtin__", "set"): lambda _: None,
    Name("builtins", "set"): lambda _: None,
    Name("torch", "device"): lambda _: None,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
}


def _name_of_stack(machine: _Machine) -> None:
    name, module = machine.pop(str), machine.pop(str)
    machine.push_name(module, name)


def _instance(machine: _Machine) -> None:
    """INST: an old form of call; only the name is read, for the error message."""
    machine.push_name(machine.line(), machine.line())
    raise RejectedPickle("uses the pickle operation INST, which the DALL-E release does not use")


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
    machine.memo[index] = machine.stack[-1]  # a dict: an index of four billion costs no more memory than 0


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


# what torch.save writes (protocol 2), and a few others so that an error can name what they ask for
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
    b"b": _set_state,
    b"Q": _resolve,
}
