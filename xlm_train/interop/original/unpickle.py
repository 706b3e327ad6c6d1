"""Files of `torch.save`, both formats, read as data: nothing that they name is imported or called.

A pickle is a program for a small stack machine. Here that machine is Python's own `pickle.Unpickler`, with an
allow-list of instructions and an allow-list of names; a name is only ever an inert `Name`, and stands for a function
of this file that makes plain data. `torch.load(weights_only=True)` reads neither the numpy numbers of these files nor
their Dictionary class.

The zip format (PyTorch 1.6 and later): records NAME/data.pkl and NAME/data/KEY. The older one: five pickles one after
the other (a magic number, a version, facts about the machine, the object, the keys of its storages), then each storage
as a 64-bit count and its bytes.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from xlm_train.runtime.errors import CheckpointError

DICTIONARIES = ("xlm.data.dictionary.Dictionary", "src.data.dictionary.Dictionary")  # the second: before 2020
STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
}  # fmt: skip
NUMBER = re.compile(r"[biuf][1248]")  # numpy's codes of plain numbers
OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_VERSION = 1001
DAMAGE = (  # what Python, numpy, torch and zipfile raise where a file is not well formed
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ArithmeticError, AttributeError, EOFError, LookupError,
    MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
ROOM = 3  # arrays and tensors may take this many times the file's size: tied weights are two tensors on one storage
PLAIN = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE
    BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""  # the instructions that plain containers, numbers, text, arrays and tensors need


class RefusedError(Exception):
    """Something in a file that is not plain data. The message says what, without the file's name."""


@dataclass(frozen=True)
class Name:
    """The name of a class or function in a pickle. Inert: what a call of it gives is in `CALLS`."""

    text: str


@dataclass
class DictionaryRecord:
    """State of an object of the original's Dictionary class (id2word, word2id, counts, ...)."""

    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class _NumberType:
    """A numpy dtype: kind and size first, byte order by the BUILD that follows."""

    code: str
    order: str = "="

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass(frozen=True)
class _Storage:
    """Where a tensor's numbers lie. data: 1-D, its bytes may be filled in later (old torch.save wrote them last)."""

    data: Tensor


class _Instructions(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise RefusedError(f"its pickle uses the instruction {bytes([code])!r}, which plain data does not need")


# The unpickler in Python: the one in C hashes keys, sets state and makes room for memos before anybody can look.
class Unpickler(pickle._Unpickler):
    """Reads one pickle of plain data from a stream, which then stands behind it.

    `load` returns dicts, lists, tuples, text, numbers, bytes, numpy arrays and scalars, tensors, `Name`s and
    `DictionaryRecord`s; containers may refer to themselves. It raises RefusedError where a pickle asks for anything
    else, and one of `DAMAGE` where it is not well formed.

    Args:
        stream: A file in memory, or a memory map: where a pickle gives a text more bytes than there are, a file would
            make room for them first.
        size: Of the file, in bytes. Bounds the storages, arrays and tensors made: a small file cannot fill the memory.
        fill: Called with key and data of each new storage; where it is None, the caller fills `storages` later.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, stream: IO[bytes] | mmap.mmap, size: int, fill: Callable[[str, Tensor], None] | None = None
    ) -> None:
        super().__init__(stream)  # type: ignore[arg-type]  # a memory map reads as a file does
        self.bytes_left = ROOM * size
        self.storage_bytes_left = size
        self.storages: dict[str, _Storage] = {}
        self.fill = fill
        self.unbuilt: Any = None  # the array that waits for its BUILD: no other may be changed by one

    def find_class(self, module: str, name: str) -> Name:
        """The allow-list of names."""
        text = f"{module}.{name}"
        if "." in name or (text not in CALLS and text not in INERT):
            raise RefusedError(f"its pickle asks for {text[:100]}, which is not among the plain data types")
        return Name(text)

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage with an id: "storage", type, key, device, numel; in old files also a view of a storage, or None.

        torch.save refers to tensors' data so. A storage is made when the pickle first refers to it.
        """
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise RefusedError("its pickle refers to data outside it in an unusual way")
        kind, key, _, numel = pid[1:5]
        dtype = STORAGE_DTYPES.get(kind.text) if type(kind) is Name else None
        if dtype is None or type(key) is not str or not key.isdigit() or type(numel) is not int or numel < 0:
            raise RefusedError("its pickle has a tensor of a type that is not read")
        if any(part is not None for part in pid[5:]):
            raise RefusedError("its pickle has a view of a storage, as PyTorch before 0.4 wrote them")
        if key not in self.storages:
            self.storage_bytes_left -= numel * dtype.itemsize
            if self.storage_bytes_left < 0:
                raise RefusedError("its pickle refers to more data than the file holds")
            self.storages[key] = _Storage(torch.empty(numel, dtype=dtype))
            if self.fill is not None:
                self.fill(key, self.storages[key].data)
        data = self.storages[key].data
        if data.dtype != dtype or data.numel() != numel:
            raise RefusedError("its pickle gives one storage two types or sizes")
        return self.storages[key]

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        call = CALLS.get(function.text) if type(function) is Name else None
        if call is None or type(arguments) is not tuple:
            called = function.text if type(function) is Name else f"a {type(function).__name__}"
            raise RefusedError(f"its pickle calls {called}, which is not a function that is known")
        self.append(call(self, *arguments))

    def _load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if type(cls) is not Name or cls.text not in DICTIONARIES or type(arguments) is not tuple or arguments:
            raise RefusedError("its pickle makes an object of a class other than the original's Dictionary")
        self.append(DictionaryRecord())

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is DictionaryRecord and type(state) is dict and not target.state:
            target.state = state
        elif type(target) is _NumberType and type(state) is tuple and state[2:5] == (None, None, None):
            if state[1] not in ("<", ">", "|", "="):
                raise RefusedError("its pickle has a numpy array of an unknown byte order")
            target.order = state[1]
        elif type(target) is np.ndarray and target is self.unbuilt:
            self._fill_array(target, *state)
        elif type(target) is OrderedDict and type(state) is dict and state.keys() == {"_metadata"}:
            pass  # version numbers of the modules in a state dict: nothing here depends on them
        else:
            raise RefusedError(f"its pickle sets the state of a {type(target).__name__}")

    def _load_stop(self) -> None:
        if len(self.stack) != 1 or self.metastack or self.unbuilt is not None:
            raise RefusedError("its pickle ends too early")
        pickle._Unpickler.dispatch[pickle.STOP[0]](self)  # type: ignore[arg-type]

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise RefusedError("its pickle sets items of something that is not a dict")
        for key in items[::2]:
            if not _is_key(key):
                raise RefusedError(f"its pickle uses a {type(key).__name__} as the key of a dict")
        target.update(zip(items[::2], items[1::2], strict=True))

    dispatch = _Instructions(
        {code[0]: pickle._Unpickler.dispatch[code[0]] for code in (getattr(pickle, name) for name in PLAIN.split())}
        | {
            pickle.REDUCE[0]: _load_reduce,
            pickle.NEWOBJ[0]: _load_newobj,
            pickle.BUILD[0]: _load_build,
            pickle.STOP[0]: _load_stop,
            pickle.SETITEM[0]: _load_setitem,
            pickle.SETITEMS[0]: _load_setitems,
        }
    )

    # -- what the names stand for ----------------------------------------------------------------------------------

    def _take(self, n_bytes: int) -> None:
        self.bytes_left -= n_bytes
        if self.bytes_left < 0:
            raise RefusedError("its pickle makes more data than the file can hold")

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How pickles of protocol 2 write bytes."""
        if type(text) is not str or encoding != "latin1":
            raise RefusedError("its pickle encodes text in an unusual way")
        self._take(len(text))
        return text.encode("latin1")

    def _number_type(self, code: Any, align: Any = 0, copy: Any = 1) -> _NumberType:
        if type(code) is not str or not NUMBER.fullmatch(code):
            raise RefusedError("its pickle has a numpy array of a type that is not a plain number")
        return _NumberType(code)

    def _empty_array(self, cls: Any, shape: Any, code: Any) -> Any:
        if cls != Name("numpy.ndarray") or shape != (0,) or code not in (b"b", "b"):
            raise RefusedError("its pickle makes a numpy array in an unusual way")
        if self.unbuilt is not None:
            raise RefusedError("its pickle begins a numpy array within another")
        self.unbuilt = np.empty(0, dtype=np.int8)
        return self.unbuilt

    def _fill_array(self, array: Any, version: Any, shape: Any, kind: Any, is_fortran: Any, data: Any) -> None:
        if version != 1 or type(kind) is not _NumberType or not _is_extent(shape) or type(data) is not bytes:
            raise RefusedError("its pickle has a numpy array that is not plain numbers")
        if len(data) != math.prod(shape) * kind.dtype().itemsize:
            raise RefusedError("its pickle has a numpy array whose size and data do not agree")
        self._take(len(data))
        self.unbuilt = None
        array.__setstate__((1, shape, kind.dtype(), bool(is_fortran), data))

    def _scalar(self, kind: Any, data: Any) -> Any:
        if type(kind) is not _NumberType or type(data) is not bytes or len(data) != kind.dtype().itemsize:
            raise RefusedError("its pickle has a numpy number that is not a plain number")
        return np.frombuffer(data, kind.dtype())[0]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> Tensor:
        """unused: requires_grad, backward hooks, metadata."""
        if type(storage) is not _Storage or not all(map(_is_extent, ((offset,), size, stride))) or len(unused) > 3:
            raise RefusedError("its pickle makes a tensor in an unusual way")
        if len(size) != len(stride) or len(size) > 8:
            raise RefusedError("its pickle has a tensor whose sizes and strides do not agree")
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numel > storage.data.numel() or (numel and last >= storage.data.numel()):
            raise RefusedError("its pickle has a tensor that is larger than its data")
        self._take(numel * storage.data.element_size())
        return storage.data.as_strided(size, stride, offset)


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda unpickler: OrderedDict(),
    "__builtin__.bytes": lambda unpickler: b"",  # how pickles of protocol 2 write empty bytes
    "builtins.bytes": lambda unpickler: b"",
    "_codecs.encode": Unpickler._encode,
    "numpy.dtype": Unpickler._number_type,
    "numpy.core.multiarray._reconstruct": Unpickler._empty_array,  # numpy 1
    "numpy._core.multiarray._reconstruct": Unpickler._empty_array,  # numpy 2
    "numpy.core.multiarray.scalar": Unpickler._scalar,
    "numpy._core.multiarray.scalar": Unpickler._scalar,
    "torch._utils._rebuild_tensor": Unpickler._tensor,
    "torch._utils._rebuild_tensor_v2": Unpickler._tensor,
    "torch._utils._rebuild_parameter": lambda unpickler, data, requires_grad, hooks: data,
}
INERT = {*STORAGE_DTYPES, *DICTIONARIES, "numpy.ndarray"}  # names that are arguments, and cannot be called


def _is_extent(value: Any) -> bool:
    """A tuple of whole numbers that are not negative."""
    return type(value) is tuple and all(type(n) is int and n >= 0 for n in value)


def _is_key(value: Any) -> bool:
    """Plain keys only: hashing a tuple of tuples can take years, or overflow the C stack."""
    if type(value) is tuple:
        return len(value) <= 8 and all(isinstance(part, str | int | float | None) for part in value)
    return isinstance(value, str | int | float | bytes | None)


# -- files -------------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Any:
    """Read the object that `torch.save` wrote to a file, tensors on the CPU.

    Numbers, text, plain containers, numpy arrays and scalars of plain numbers, dense tensors, and objects of the
    original's Dictionary class (as `DictionaryRecord`) are read. Nothing that the file asks for is executed.

    Raises:
        CheckpointError: If the file is missing, damaged or not of torch.save, or asks for anything else.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start, size = file.read(4), os.fstat(file.fileno()).st_size
            file.seek(0)
            if start == b"PK\x03\x04":
                return _load_zip(file, size)
            if start[:1] == b"\x80":
                return _load_old(file, size)
            raise RefusedError("it is not a file of torch.save")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (RefusedError, *DAMAGE) as error:
        reason = f"it is damaged or truncated ({type(error).__name__}: {str(error)[:100]})"
        if isinstance(error, RefusedError):
            reason = str(error)
        reason = "".join(c if c.isprintable() else "?" for c in reason)  # it may quote the file
        raise CheckpointError(f"{path}: cannot be read safely: {reason}. Nothing in it was executed") from error


def _read_into(data: Tensor, source: IO[bytes]) -> None:
    if data.numel():
        place: Any = data.view(torch.uint8).numpy()
        if source.readinto(place) != data.nbytes:  # type: ignore[attr-defined]
            raise EOFError("a tensor's numbers end too early")


def _load_zip(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise RefusedError("it is a zip file, but not one of torch.save")

        def open_record(name: str, n_bytes: int | None = None) -> IO[bytes]:
            info = archive.getinfo(roots[0] + name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size or info.flag_bits & 1:
                raise RefusedError(f"its record {name} is compressed, which torch.save does not do")
            if n_bytes not in (None, info.file_size):
                raise RefusedError(f"its record {name} holds {info.file_size} bytes where its pickle has {n_bytes}")
            return archive.open(info)

        def fill(key: str, data: Tensor) -> None:
            with open_record(f"data/{key}", data.nbytes) as source:
                _read_into(data, source)

        if f"{roots[0]}byteorder" in names and open_record("byteorder").read() != b"little":
            raise RefusedError("it was written on a big-endian machine")
        return Unpickler(io.BytesIO(open_record("data.pkl").read()), size, fill).load()


def _load_old(file: IO[bytes], size: int) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for expected in (OLD_MAGIC, OLD_VERSION):
            found = Unpickler(view, size).load()
            if type(found) is not int or found != expected:
                raise RefusedError("it is a pickle, but not a file of torch.save")
        machine = Unpickler(view, size).load()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise RefusedError("it was written on a big-endian machine")
        unpickler = Unpickler(view, size)
        value = unpickler.load()
        keys = Unpickler(view, size).load()
        file.seek(view.tell())
    if type(keys) is not list or not all(type(key) is str for key in keys) or {*keys} != unpickler.storages.keys():
        raise RefusedError("its list of storages is not that of its pickle")
    for key in keys:
        data = unpickler.storages[key].data
        if file.read(8) != struct.pack("<q", data.numel()):
            raise EOFError("a tensor's numbers are missing, or are not as many as its pickle says")
        _read_into(data, file)
    return value
