"""Pickles read as data: nothing in them is ever imported or called.

A pickle is a program for a small stack machine. This is that machine with about forty instructions, those that
plain containers, numbers, text, numpy arrays and tensors need, and with a fixed table of names. A name outside
the table, an instruction outside the list, or a known name used in another way than numpy and torch use it ends
the reading. The standard library's `pickletools` decodes the instructions; `pickle` itself is not used.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

STORAGE_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
}
DTYPE = re.compile(r"[biuf][1248]")
DICTIONARIES = (
    "xlm.data.dictionary Dictionary",
    "src.data.dictionary Dictionary",
)  # the second: the original before 2020


class RefusedError(Exception):
    """Something in a pickle that is not plain data, or not well formed. The message says what, without the file."""


@dataclass(frozen=True)
class Name:
    """A global's name. Inert: it stands for numpy.ndarray, torch.FloatStorage and so on as an argument."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers lie. data: 1-D, its bytes may be filled in later (old torch.save wrote them last)."""

    data: Tensor


@dataclass
class DictionaryRecord:
    """State of an object of the original's Dictionary class (id2word, word2id, counts, ...)."""

    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class _NumpyType:
    """A numpy dtype under construction: kind and size first, byte order by the BUILD that follows."""

    code: str
    order: str = "="

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Mark:
    pass


MARK = _Mark()


def read_pickle(stream: IO[bytes] | mmap, max_bytes: int, load_storage: Callable[[Any], Storage] | None = None) -> Any:
    """Read one pickle from `stream`, up to its end; the stream then stands behind it.

    max_bytes: bound on the arrays, tensors and byte strings made, so that a small file cannot fill the memory.
    load_storage: resolves persistent ids, which is how torch.save refers to tensors' data; without it they are
    refused. Returns dicts, lists, tuples, text, numbers, bytes, numpy arrays and scalars, tensors and
    `DictionaryRecord`s. Containers may refer to themselves. Raises RefusedError.
    """
    try:
        operations = pickletools.genops(stream)  # type: ignore[arg-type]  # a memory map reads as a file does
        return _Machine(max_bytes, load_storage).run(operations)
    except RefusedError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise RefusedError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:100]})") from error


class _Machine:
    def __init__(self, max_bytes: int, load_storage: Callable[[Any], Storage] | None) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = max_bytes
        self.load_storage = load_storage
        self.unbuilt: Any = None  # the array that waits for its BUILD: no other may be changed by one
        self.known: dict[str, Callable[..., Any]] = {
            "collections OrderedDict": self.ordered_dict,
            "_codecs encode": self.encode,
            "__builtin__ bytes": bytes_of_nothing,
            "builtins bytes": bytes_of_nothing,
            "numpy dtype": self.numpy_type,
            "torch._utils _rebuild_tensor": self.tensor,
            "torch._utils _rebuild_tensor_v2": self.tensor,
            "torch._utils _rebuild_parameter": self.parameter,
        }
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self.known[f"{module} _reconstruct"] = self.empty_array
            self.known[f"{module} scalar"] = self.numpy_scalar
        self.names = {*self.known, *STORAGE_DTYPES, *DICTIONARIES, "numpy ndarray"}

    def run(self, operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for operation, argument, _ in operations:
            name = operation.name
            if name == "STOP":
                if len(self.stack) != 1 or self.unbuilt is not None:
                    raise RefusedError("its pickle ends too early")
                return self.stack[0]
            if name in CONSTANTS:
                self.stack.append(argument)
            elif name in MEMO_WRITES:
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif name in MEMO_READS:
                self.stack.append(self.memo[argument])
            elif handler := HANDLERS.get(name):
                handler(self, argument)
            else:
                raise RefusedError(f"its pickle uses the instruction {name}, which plain data does not need")
        raise RefusedError("its pickle has no end")

    # -- containers ------------------------------------------------------------------------------------------------

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise RefusedError("its pickle appends to something that is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise RefusedError("its pickle sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not is_key(key):
                raise RefusedError(f"its pickle uses a {type(key).__name__} as the key of a dict")
            target[key] = value

    # -- names -----------------------------------------------------------------------------------------------------

    def push_name(self, name: str) -> None:
        if name not in self.names:
            raise RefusedError(
                f"its pickle asks for {name[:100].replace(' ', '.')}, which is not among the plain data types"
            )
        self.stack.append(Name(name))

    def stack_global(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise RefusedError("its pickle makes up a name from something that is not text")
        self.push_name(f"{module} {attribute}")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or function.text not in self.known or type(arguments) is not tuple:
            called = function.text.replace(" ", ".") if isinstance(function, Name) else f"a {type(function).__name__}"
            raise RefusedError(f"its pickle calls {called}, which is not a function that is known")
        self.stack.append(self.known[function.text](*arguments))

    def new_object(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Name) or cls.text not in DICTIONARIES or arguments != ():
            raise RefusedError("its pickle makes an object of a class other than the original's Dictionary")
        self.stack.append(DictionaryRecord())

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, DictionaryRecord) and type(state) is dict and not target.state:
            target.state = state
        elif isinstance(target, _NumpyType):
            self.set_byte_order(target, state)
        elif target is self.unbuilt and target is not None:
            self.fill_array(target, state)
        elif type(target) is OrderedDict and type(state) is dict and state.keys() == {"_metadata"}:
            pass  # version numbers of the modules in a state dict: nothing here depends on them
        else:
            raise RefusedError(f"its pickle sets the state of a {type(target).__name__}")

    def persistent_id(self) -> None:
        if self.load_storage is None:
            raise RefusedError("its pickle refers to data outside it")
        self.stack.append(self.load_storage(self.stack.pop()))

    # -- what the names stand for ----------------------------------------------------------------------------------

    def take(self, n_bytes: int) -> None:
        self.bytes_left -= n_bytes
        if self.bytes_left < 0:
            raise RefusedError("its pickle makes more data than the file can hold")

    def ordered_dict(self, *items: Any) -> OrderedDict[Any, Any]:
        if items:
            raise RefusedError("its pickle makes an OrderedDict in an unusual way")
        return OrderedDict()

    def encode(self, text: Any, encoding: Any) -> bytes:
        """How pickles of protocol 2 write bytes."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise RefusedError("its pickle encodes text in an unusual way")
        self.take(len(text))
        return text.encode("latin1")

    def numpy_type(self, code: Any, *rest: Any) -> _NumpyType:
        if (
            not isinstance(code, str)
            or not DTYPE.fullmatch(code)
            or len(rest) > 2
            or not all(isinstance(r, int) for r in rest)
        ):
            raise RefusedError("its pickle has a numpy array of a type that is not a plain number")
        return _NumpyType(code)

    def set_byte_order(self, target: _NumpyType, state: Any) -> None:
        if (
            type(state) is not tuple
            or len(state) < 5
            or state[1] not in ("<", ">", "|", "=")
            or any(s is not None for s in state[2:5])
        ):
            raise RefusedError("its pickle has a numpy array with fields or subarrays")
        target.order = state[1]

    def empty_array(self, cls: Any, shape: Any, code: Any) -> Any:
        if cls != Name("numpy ndarray") or shape != (0,) or code not in (b"b", "b"):
            raise RefusedError("its pickle makes a numpy array in an unusual way")
        if self.unbuilt is not None:
            raise RefusedError("its pickle begins a numpy array within another")
        self.unbuilt = np.empty(0, dtype=np.int8)
        return self.unbuilt

    def fill_array(self, array: Any, state: Any) -> None:
        version, shape, kind, is_fortran, data = state
        dtype = self.plain_dtype(kind)
        if version != 1 or not is_extent(shape) or not isinstance(is_fortran, bool | int) or type(data) is not bytes:
            raise RefusedError("its pickle has a numpy array that is not plain numbers")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise RefusedError("its pickle has a numpy array whose size and data do not agree")
        self.take(len(data))
        self.unbuilt = None
        array.__setstate__((1, shape, dtype, bool(is_fortran), data))

    def numpy_scalar(self, kind: Any, data: Any) -> Any:
        dtype = self.plain_dtype(kind)
        if type(data) is not bytes or len(data) != dtype.itemsize:
            raise RefusedError("its pickle has a numpy number that is not a plain number")
        return np.frombuffer(data, dtype)[0]

    @staticmethod
    def plain_dtype(kind: Any) -> np.dtype[Any]:
        if not isinstance(kind, _NumpyType):
            raise RefusedError("its pickle has a numpy array without a plain type")
        return kind.dtype()

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """rest: requires_grad, backward hooks, metadata: of no use here."""
        if (
            not isinstance(storage, Storage)
            or not is_extent((offset,))
            or not is_extent(size)
            or not is_extent(stride)
            or len(rest) > 3
        ):
            raise RefusedError("its pickle makes a tensor in an unusual way")
        if len(size) != len(stride) or len(size) > 8:
            raise RefusedError("its pickle has a tensor whose sizes and strides do not agree")
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numel > storage.data.numel() or (numel and last >= storage.data.numel()):
            raise RefusedError("its pickle has a tensor that is larger than its data")
        self.take(numel * storage.data.element_size())
        return storage.data.as_strided(size, stride, offset)

    @staticmethod
    def parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor:
        if not isinstance(data, Tensor):
            raise RefusedError("its pickle makes a parameter of something that is not a tensor")
        return data


def bytes_of_nothing() -> bytes:
    """How pickles of protocol 2 write empty bytes."""
    return b""


def is_extent(value: Any) -> bool:
    """A tuple of whole numbers that are not negative."""
    return type(value) is tuple and all(type(n) is int and n >= 0 for n in value)


def is_key(value: Any) -> bool:
    """Plain keys only: hashing a deeply nested tuple would overflow the C stack."""
    if type(value) is tuple:
        return len(value) <= 8 and all(isinstance(part, str | int | float | None) for part in value)
    return isinstance(value, str | int | float | bytes | None)


def _positional(method: Callable[[_Machine], None]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: method(machine)


CONSTANTS = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    ]
)
MEMO_WRITES = frozenset(("BINPUT", "LONG_BINPUT", "MEMOIZE"))
MEMO_READS = frozenset(("BINGET", "LONG_BINGET"))
HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "MARK": lambda machine, argument: machine.stack.append(MARK),
    "NONE": lambda machine, argument: machine.stack.append(None),
    "NEWTRUE": lambda machine, argument: machine.stack.append(True),
    "NEWFALSE": lambda machine, argument: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, argument: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, argument: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, argument: machine.stack.append(()),
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, argument: machine.tuple_of(1),
    "TUPLE2": lambda machine, argument: machine.tuple_of(2),
    "TUPLE3": lambda machine, argument: machine.tuple_of(3),
    "APPEND": lambda machine, argument: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, argument: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, argument: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.push_name(argument),
    "STACK_GLOBAL": _positional(_Machine.stack_global),
    "REDUCE": _positional(_Machine.reduce),
    "NEWOBJ": _positional(_Machine.new_object),
    "BUILD": _positional(_Machine.build),
    "BINPERSID": _positional(_Machine.persistent_id),
}
