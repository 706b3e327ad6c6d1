"""Pickles that run a program, ask for too much or are not well formed, and the files of torch.save to put them in."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMATS = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickle of a file of torch.save."""
    if not zipfile.is_zipfile(path):
        path.write_bytes(change(path.read_bytes()))
        return
    with zipfile.ZipFile(path) as source:
        records = {info.filename: source.read(info) for info in source.infolist()}
    write_zip(path, {name: change(data) if name.endswith("data.pkl") else data for name, data in records.items()})


def write_zip(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in records.items():
            target.writestr(name, data)


# -- parts of pickles --------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


class WithState(Call):
    """... and the result's state set to `state`."""

    def __init__(self, state: Any, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments, state)  # type: ignore[assignment]


def named(name: str, arguments: bytes = b")") -> bytes:
    """A pickle that calls `name` ("module attribute") with what `arguments` pushes."""
    module, attribute = name.split(" ")
    return b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n" + arguments + b"R."


def stacked(module: str, attribute: str, arguments: bytes) -> bytes:
    """The same by STACK_GLOBAL, the names read from the stack."""
    return b"\x80\x04" + short(module) + short(attribute) + b"\x93" + arguments + b"R."


def push(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def short(text: str) -> bytes:
    """Push text as protocol 4 does."""
    return b"\x8c" + bytes([len(text)]) + text.encode()


def number_type(code: str = "i8", order: str = "<", fields: bytes = b"NN") -> bytes:
    """A numpy dtype as protocol 2 has it; `fields` pushes what structured types have there."""
    call = b"cnumpy\ndtype\n" + push(code) + b"K\x00K\x01\x87R"
    return call + b"(K\x03" + push(order) + b"N" + fields + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array_state(
    data: bytes | None, code: str = "i8", order: str = "<", fields: bytes = b"NN", shape: bytes = b"K\x01"
) -> bytes:
    pushed = b"]" if data is None else b"C" + bytes([len(data)]) + data
    return b"(K\x01" + shape + b"\x85" + number_type(code, order, fields) + b"\x89" + pushed + b"t"


def array(
    data: bytes | None, code: str = "i8", order: str = "<", fields: bytes = b"NN", shape: bytes = b"K\x01"
) -> bytes:
    """A numpy array of one number, or of what else `shape` pushes."""
    call = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return call + array_state(data, code, order, fields, shape) + b"b"


def scalar(code: str = "i8", data: bytes = b"\x00" * 8) -> bytes:
    pushed = b"C" + bytes([len(data)]) + data
    return b"cnumpy.core.multiarray\nscalar\n" + number_type(code) + pushed + b"\x86R"


def persistent(
    key: bytes = b"X\x01\x00\x00\x000",
    kind: bytes = b"ctorch\nFloatStorage\n",
    numel: bytes = b"K\x00",
    rest: bytes = b"",
) -> bytes:
    """A pickle of one tensor's data."""
    return b"\x80\x02(" + push("storage") + kind + key + push("cpu") + numel + rest + b"tQ."


def touch(sentinel: Path) -> bytes:
    """Arguments: a shell command that makes the sentinel."""
    return push(f"touch {sentinel}") + b"\x85"


def tensor_call(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A zip file's pickle of one tensor on a storage of `numel` floats."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    storage = (
        b"(" + push("storage") + b"ctorch\nFloatStorage\n" + push("0") + push("cpu") + numbers((numel,))[1:-1] + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + numbers((offset,))[1:-1] + numbers(size) + numbers(stride) + b"\x89" + hooks + b"t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


# -- attacks ------------------------------------------------------------------------------------------------------------


def attacks(sentinel: Path) -> dict[str, Any]:
    """Pickles that make `sentinel` when they are loaded by pickle; objects are pickled, bytes are pickles already."""
    shell = f"touch {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    inner = pickle.dumps(Call(os.system, shell))
    shape = b"K\x01\x85"
    return {
        "os.system": Call(os.system, shell),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(sentinel), "w"),
        "nested pickle": Call(pickle.loads, inner),
        "torch.load": Call(torch.load, io.BytesIO(inner)),
        "import by name": Call(__import__, "os"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "stack global": stacked("posix", "system", touch(sentinel)),
        "stack global through an allowed module": stacked("torch", "os.system", touch(sentinel)),
        "dotted name": stacked("collections", "OrderedDict.__init__.__globals__", touch(sentinel)),
        "name with a module in it": named("torch.serialization os.system", touch(sentinel)),
        "legacy storage loader": named("torch.storage _load_from_bytes", b"U" + bytes([len(inner)]) + inner + b"\x85"),
        "instance": b"(X" + struct.pack("<I", len(shell)) + shell.encode() + b"ios\nsystem\n.",
        "object": b"\x80\x02(cos\nsystem\n" + push(shell) + b"o.",
        "text protocol": b"cos\nsystem\n(S'" + shell.encode() + b"'\ntR.",
        "new object": b"\x80\x02csubprocess\nPopen\n" + push(shell) + b"\x85\x81.",
        "new object with keywords": b"\x80\x04csubprocess\nPopen\n" + push(shell) + b"\x85}\x92.",
        "extension": b"\x80\x02\x82\x01.",
        "build on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + push("__doc__") + push("x") + b"sb.",
        "build on a class": b"\x80\x02ccollections\nOrderedDict\n}" + push("__reduce__") + push("x") + b"sb.",
        "build with slots": b"\x80\x02ccollections\nOrderedDict\n)RN}" + push("__class__") + push("x") + b"s\x86b.",
        "state of an OrderedDict": WithState({"__class__": "x"}, OrderedDict),
        "call of a marker": named("numpy ndarray", shape),
        "call of a storage type": named("torch FloatStorage", shape),
        "call of text": b"\x80\x02" + push("os.system") + touch(sentinel) + b"R.",
        "array of objects": np.array([Call(os.system, shell)], dtype=object),
        "scalar of objects": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
        + push("O8")
        + b"\x85R"
        + push("x")
        + b"\x86R.",
        "record array": np.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
        "structured array": np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        "text array": np.array(["a", "b"]),
        "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
        "numpy.frombuffer": Call(np.frombuffer, b"\0" * 8, "f8"),
        "numpy.load": Call(np.load, str(sentinel)),
        "numpy array of another class": named(
            "numpy.core.multiarray _reconstruct", b"cnumpy\nmemmap\nK\x00\x85C\x01b\x87"
        ),
        "encode with another codec": named("_codecs encode", push("x") + push("idna") + b"\x86"),
        "decode": named("_codecs decode", push("x") + push("unicode_escape") + b"\x86"),
        "ordered dict made of a call": named("collections OrderedDict", b"]" + b"\x85"),
        "another class": b"\x80\x02cargparse\nNamespace\n)\x81.",
        "a module of torch": torch.nn.Linear(2, 2),
        "a function": os.system,
        "a class": os.PathLike,
        "out of band buffer": b"\x80\x05\x97.",
        "bytearray": bytearray(8),
        "set": {1, 2},
        "dotted name below an allowed module": stacked("torch", "_utils._rebuild_tensor_v2", b")"),
        "dotted name below an allowed class": stacked("collections", "OrderedDict.fromkeys", b"]\x85"),
        "name that is no text": b"\x80\x04" + short("posix") + b"K\x01\x93.",
        "arguments that are no tuple": named("collections OrderedDict", b"]"),
        "new object of a class that is a function": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "new object of an array": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x85\x81.",
        "new object with arguments": b"\x80\x02cxlm.data.dictionary\nDictionary\nK\x01\x85\x81.",
        "call of a class": named("xlm.data.dictionary Dictionary"),
        "slots of a function": b"\x80\x02c_codecs\nencode\nN}" + push("__defaults__") + b")s\x86b.",
        "slots of a record": b"\x80\x02cxlm.data.dictionary\nDictionary\n)\x81N}" + push("state") + b"Ns\x86b.",
        "state of a list": b"\x80\x02]}b.",
        "state of text": b"\x80\x02" + push("x") + b"}b.",
        "method of an OrderedDict": b"\x80\x02ccollections\nOrderedDict\n)R}" + push("items") + b"Nsb.",
        "state of a built array": b"\x80\x02" + array(b"\x00" * 8) + array_state(b"\x00" * 8) + b"b.",
        "state of a number": b"\x80\x02" + scalar() + array_state(b"\x00" * 8) + b"b.",
        "items of a list": b"\x80\x02]K\x00K\x00s.",
        "items of an array": b"\x80\x02" + array(b"\x00" * 8) + b"K\x00K\x01s.",
        "items of an array at once": b"\x80\x02" + array(b"\x00" * 8) + b"(K\x00K\x01u.",
        "append to an array": b"\x80\x02" + array(b"\x00" * 8) + b"K\x00a.",
        "append to text": b"\x80\x02" + push("x") + b"(K\x00e.",
        **{
            f"array of {code}": b"\x80\x02" + array(b"\x00" * 8, code) + b"."
            for code in ("O", "O8", "V8", "U2", "S8", "M8[s]", "c8", "f8,f8", "(2,)f4", "f16", "n", "<f8", "f8\n")
        },
        "array with fields": b"\x80\x02" + array(b"\x00" * 8, fields=push("x") + b"\x85}") + b".",
        "array in an unknown byte order": b"\x80\x02" + array(b"\x00" * 8, order="O") + b".",
        "array without data": b"\x80\x02" + array(b"", shape=b"\x8a\x08" + struct.pack("<q", 2**40)) + b".",
        "array whose size overflows": b"\x80\x02"
        + array(b"", shape=b"\x8a\x09" + struct.pack("<Q", 2**63) + b"\x00")
        + b".",
        "array whose size is not a number": b"\x80\x02" + array(b"\x00" * 8, shape=push("1")) + b".",
        "array of numbers in a list": b"\x80\x02" + array(None) + b".",
        "number of objects": b"\x80\x02" + scalar("O8") + b".",
        "number that is too short": b"\x80\x02" + scalar(data=b"\x00" * 7) + b".",
        "data by number": b"\x80\x02K\x01Q.",
        "data with a path for a key": persistent(push("../x")),
        "data without a type": persistent(kind=b"N"),
        "data of a type that is no storage": persistent(kind=b"cnumpy\nndarray\n"),
        "as many data as true": persistent(numel=b"\x88"),
        "less than no data": persistent(numel=b"\x8a\x01\xff"),
        "view of data": persistent(rest=b"(" + push("1") + b"K\x00K\x01t"),
        "data of an array": persistent(kind=array(b"\x00" * 8)),
    }
