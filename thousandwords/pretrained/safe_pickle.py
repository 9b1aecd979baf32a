"""Read the pickle of a torch file without importing or calling anything it names.

A pickle is a program. The standard library's machine runs it here with the operations that torch.save writes,
and with its import, call and set-state steps replaced: a class or function becomes its name, a module a record
of its attributes, a storage its key, a tensor its position in a storage. Whatever else is named becomes a
`Foreign` without content. Memory is bounded by the length of the program.

Not torch.load(weights_only=True), with torch 2.15: 130 bytes with a nested tuple as a key hold it for ever,
20 bytes take 4.6 GB, and it reads no module from the legacy container.
"""

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from thousandwords.core.errors import UserError

# of one file's pickles: three times what the release needs, and twice a checkpoint of taming-transformers with the
# states of its optimizers; a byte may cost a hundred bytes of memory
MAX_PICKLE_BYTES = 2**18
MAX_PARTS = 2000  # modules and tensors; the release's encoder has 183, and a module can contain itself
MAX_PATH_LENGTH = 100  # characters of a parameter's path; a thousand long ones would fill the memory
MAX_DIMENSIONS = 8  # of a tensor; a kernel has 4


class RejectedPickle(UserError):
    """A file that is not from the DALL-E release, or incomplete. Nothing in it was run."""


class Name(str):
    """The full name of a class or a function; nothing is imported."""


@dataclass(frozen=True)
class Storage:
    """A block of numbers elsewhere in the file."""

    kind: Name
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor: its position in a storage, as the file gives it. `check` compares it with the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def check(self) -> None:
        """Raise RejectedPickle unless it is a tensor of floats within its storage, and not larger than it."""
        shape, strides = self.shape, self.strides
        _require_known(self.storage.kind in FLOATS, self.storage.kind)
        is_sized = all(map(_is_count, (self.offset, *shape, *strides))) and 0 not in shape
        is_sized = is_sized and len(shape) == len(strides) <= MAX_DIMENSIONS
        _require(is_sized, "has a tensor without a valid size")
        last = self.offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        _require(last < self.storage.count, f"has a tensor {shape} that reaches beyond its storage")
        # strides of 0 repeat numbers: a small file could fill the memory
        fits = self.count <= self.storage.count
        _require(fits, f"has a tensor {shape} of more numbers than its storage has")


@dataclass(eq=False, repr=False)  # on hostile input these may not end
class Module:
    """A pickled nn.Module: the name of its class and its attributes."""

    kind: Name
    state: dict | None = None

    def part(self, name: str) -> dict:
        """One of the attributes that hold parts by name: `_modules`, `_parameters`, `_buffers`."""
        parts = (self.state or {}).get(name, {})
        _require(type(parts) is dict, f"{name} of a module is not a dict")
        return parts


class Foreign:
    """What the file made of a class or function that the DALL-E release does not use; empty, also as a list."""

    def append(self, _: object) -> None:
        pass


class Network(NamedTuple):
    """What a pickled network holds, by path; the network itself is at ""."""

    modules: dict[str, Module]
    tensors: dict[str, StoredTensor]


def network_of(value: object) -> Network:
    """{"blocks.group_1.pool": Module, ...} and {"blocks.input.w": StoredTensor, ...}, each tensor checked."""
    _require(isinstance(value, Module), "holds no torch module")
    network, queue = Network({}, {}), [("", value)]
    while queue:
        path, module = queue.pop()
        network.modules[path] = module
        _require(not module.part("_buffers"), "has buffers, which the DALL-E release does not have")
        for name, tensor in module.part("_parameters").items():
            _require(isinstance(tensor, StoredTensor), "has a parameter that is not a tensor")
            tensor.check()
            network.tensors[_join(path, name)] = tensor
        for name, part in module.part("_modules").items():
            if part is not None:
                _require(isinstance(part, Module), "has a part that is not a module")
                queue.append((_join(path, name), part))
            count = len(network.modules) + len(queue) + len(network.tensors)
            _require(count <= MAX_PARTS, f"has more than {MAX_PARTS} modules and tensors")
    return network


def state_dict_of(value: object, parts: Sequence[str] = ()) -> tuple[str, dict[str, StoredTensor]]:
    """Where the first state dict is, and its tensors: under one of `parts`, paths such as "trainer.model", then the
    value itself, "", then under any of its keys; without one ("", {})."""
    if type(value) is not dict:
        return "", {}
    named = [(part, _at(value, part)) for part in parts]
    for part, weights in (*named, ("", value), *value.items()):
        if type(weights) is dict:
            items = weights.items()
            tensors = {k: v for k, v in items if type(k) is str and isinstance(v, StoredTensor)}
            if tensors:
                return printable(str(part)), tensors
    return "", {}


def _at(value: object, path: str) -> object:
    """What dicts in dicts hold at "trainer.model", or None."""
    for key in path.split("."):
        value = value.get(key) if type(value) is dict else None
    return value


def printable(text: str) -> str:
    """Text from an untrusted file, safe to print on a terminal."""
    return text[:80] if text.isascii() and text.isprintable() else ascii(text[:80])


def _join(path: str, name: object) -> str:
    joined = f"{path}.{name}" if path else name
    is_path = type(name) is str and name != "" and "." not in name and len(joined) <= MAX_PATH_LENGTH
    _require(is_path, f"has a part {ascii(name)[:82]} whose path is not one of the DALL-E release")
    return joined


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RejectedPickle(problem)


def _require_known(condition: bool, name: Name | None) -> None:
    problem = f"asks for {printable(name or '')}, which the DALL-E release does not use; it was not run"
    _require(condition, problem)


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**40


# --- the names that the release uses ----------------------------------------------------------------------------------

MODULES = {
    *("dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock", "dall_e.decoder.Decoder"),
    *("dall_e.decoder.DecoderBlock", "dall_e.utils.Conv2d", "torch.nn.modules.container.Sequential"),
    *("torch.nn.modules.activation.ReLU", "torch.nn.modules.pooling.MaxPool2d"),
    *("torch.nn.modules.upsampling.Upsample", "torch.nn.modules.linear.Identity"),
}
NUMBER_BYTES = {
    f"torch.{kind}Storage": size
    for size, kinds in {
        1: "Byte Char Bool",
        2: "Half BFloat16 Short",
        4: "Float Int",
        8: "Double Long",
    }.items()
    for kind in kinds.split()
}
BFLOAT16 = "torch.BFloat16Storage"
FLOATS = ("torch.FloatStorage", "torch.HalfStorage", BFLOAT16)  # the kinds that float32 holds exactly


def _tensor(arguments: tuple) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2 or _rebuild_parameter as a description."""
    match arguments:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, bool(), dict()):
            return StoredTensor(storage, offset, shape, strides)
        case (StoredTensor() as tensor, bool(), dict()):
            return tensor
    raise RejectedPickle("has a tensor or a parameter that is not a plain float32 tensor")


def _ordered_dict(arguments: tuple) -> dict:
    _require(arguments == (), "fills an OrderedDict in a way that the DALL-E release does not")
    return {}


FUNCTIONS: dict[str, Callable[[tuple], object]] = {  # described, not called
    "collections.OrderedDict": _ordered_dict,
    # names of buffers that are not saved, and flags: not needed
    **dict.fromkeys(("__builtin__.set", "builtins.set", "torch.device"), lambda _: None),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _tensor,
}
KNOWN = MODULES | FUNCTIONS.keys() | NUMBER_BYTES.keys()


# --- the machine ------------------------------------------------------------------------------------------------------

# what torch.save writes (protocol 2), and what later protocols use for names
OPERATIONS = (
    "PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT "
    "MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID"
)
# hashing a nested tuple may not end; the name of a class is the key of a Lightning callback, and members of an enum
# are keys of its loops
KEYS = (str, int, float, bool, type(None), Name, Foreign)


class _Operations(dict):
    def __missing__(self, operation: int) -> Callable:
        problem = f"uses the pickle operation 0x{operation:02x}, which the DALL-E release does not use"
        raise RejectedPickle(problem)


class Unpickler(pickle._Unpickler):
    """The standard library's machine in Python; every step in it that imports, calls or sets is replaced.

    Its stack holds plain data, dicts with plain keys or names, and the records above.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.file = file
        self.storages: dict[str, Storage] = {}  # by key
        self.foreign: Name | None = None  # the first name in it that the DALL-E release does not use

    def load(self) -> object:
        """The value that the next pickle of the file describes. Raises RejectedPickle."""
        try:
            return super().load()
        except Exception as error:  # a hostile program can fail in any step, with any error
            self.check_names()
            if isinstance(error, RejectedPickle):
                raise
            problem = f"is damaged or cut short: its pickle ends at byte {self.file.tell():,}"
            raise RejectedPickle(problem) from error

    def check_names(self) -> None:
        """Raise RejectedPickle if it asks for a name that the DALL-E release does not use."""
        _require_known(self.foreign is None, self.foreign)

    def find_class(self, module: str, name: str) -> Name:
        full_name = Name(f"{module}.{name}")
        if full_name not in KNOWN:
            self.foreign = self.foreign or full_name
        return full_name

    def persistent_load(self, reference: object) -> object:
        """torch keeps storages outside the pickle; the legacy container also names a class with its source."""
        match reference:
            case ("module", Name() as kind, _, _):
                return kind
            case ("storage", Name() as kind, str() as key, str(), int() as count, *rest) if (
                kind in NUMBER_BYTES and _is_count(count) and rest in ([], [None])
            ):
                self.storages[key] = Storage(kind, key, count)
                return self.storages[key]
        raise RejectedPickle("refers to something outside its pickle that is not a float32 storage")

    def load_reduce(self) -> None:
        """Python would call a function here. A few are described; a foreign one leaves nothing."""
        function, arguments = self._pop_call()
        is_allowed = function not in KNOWN or function in FUNCTIONS
        _require(is_allowed, f"calls {function}, which the DALL-E release does not do; it was not run")
        self.append(FUNCTIONS[function](arguments) if function in FUNCTIONS else Foreign())

    def load_newobj(self) -> None:
        """Python would make an object of the class, without its __init__."""
        kind, arguments = self._pop_call()
        is_allowed = kind not in KNOWN or (kind in MODULES and not arguments)
        _require(is_allowed, f"makes a {kind} in a way that the DALL-E release does not")
        self.append(Module(kind) if kind in MODULES else Foreign())

    def _pop_call(self) -> tuple[Name, tuple]:
        arguments, function = self.stack.pop(), self.stack.pop()
        is_call = type(function) is Name and type(arguments) is tuple
        _require(is_call, "is damaged: it calls what is no function")
        return function, arguments

    def load_build(self) -> None:
        """Python would run __setstate__ or set any attribute. Here a new module gets its attributes, once."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Module:
            _require(type(state) is dict, "is damaged: the attributes of a module are no dict")
            _require(target.state is None, "sets the attributes of a module twice")
            target.state = state
        else:  # the attributes of an OrderedDict are not needed
            _require(type(target) in (dict, Foreign), "sets attributes of what is no module")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, pairs: list) -> None:
        target = self.stack[-1]
        _require(type(target) in (dict, Foreign) and len(pairs) % 2 == 0, "is damaged: a key without a value")
        if type(target) is dict:
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                _require(type(key) in KEYS, "has a key that is not text")
                target[key] = value

    dispatch = _Operations(
        {
            code: pickle._Unpickler.dispatch[code]
            for code in (getattr(pickle, op)[0] for op in OPERATIONS.split())
        }
        | {pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj, pickle.BUILD[0]: load_build}
        | {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}
    )
