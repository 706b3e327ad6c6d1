"""Files of torch.save read as data: what is harmless comes out as torch gives it, all else is refused unexecuted."""

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
import pytest
import torch

from xlm_train.interop.original import unpickle
from xlm_train.runtime.errors import CheckpointError

FORMATS = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and, for arrays and tensors, in dtype and shape."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def plain_data() -> dict[str, Any]:
    storage = torch.arange(24, dtype=torch.float32)
    return {
        "numbers": [0, 1, -1, 255, 65535, 2**31, -(2**63), 2**100, 0.5, float("inf")],
        "text": ("", "ä", "日本語", "\U0001f600", "x" * 300, b"", b"\x00\xff" * 200),
        "constants": (None, True, False, (), [], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        3: {("de", "en"): OrderedDict(a=1)},
        "tensors": [
            torch.randn(3, 4),
            torch.randn(3, 4).t(),
            storage[4:12].view(2, 4),
            storage,
            torch.empty(0, 5),
            torch.tensor(2.5),
            torch.nn.Parameter(torch.ones(2)),
        ],
        "types": [
            torch.arange(-3, 3).to(dtype)
            for dtype in (
                torch.float64,
                torch.float16,
                torch.bfloat16,
                torch.int64,
                torch.int32,
                torch.int16,
                torch.int8,
            )
        ],
        "arrays": [
            np.arange(6, dtype=kind).reshape(2, 3)
            for kind in ("uint8", "uint16", "int32", "int64", "float32", "float64", ">i4", ">f8")
        ],
        "more arrays": [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((0, 2)), np.array([True, False])],
        "scalars": [np.float64(1.5), np.int64(-3), np.float32(0.1), np.bool_(True)],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_plain_data_as_torch_reads_it(tmp_path: Path, options: dict[str, bool], protocol: int) -> None:
    torch.manual_seed(0)
    torch.save(plain_data(), tmp_path / "data.pth", pickle_protocol=protocol, **options)
    expected = torch.load(tmp_path / "data.pth", weights_only=False)
    expected["tensors"][-1] = expected["tensors"][-1].data  # a parameter comes as its tensor
    found = unpickle.load(tmp_path / "data.pth")
    for key in expected:
        assert same(found[key], expected[key]), key


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_tied_tensors_share_memory(tmp_path: Path, options: dict[str, bool]) -> None:
    weight = torch.randn(4, 4)
    torch.save({"a": weight, "b": weight}, tmp_path / "data.pth", **options)
    found = unpickle.load(tmp_path / "data.pth")
    assert found["a"].data_ptr() == found["b"].data_ptr()


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_both_names_of_numpys_core(tmp_path: Path, options: dict[str, bool], module: bytes) -> None:
    """numpy 1 wrote numpy.core, numpy 2 writes numpy._core."""
    value = {"array": np.arange(5), "scalar": np.float64(3)}
    torch.save(value, tmp_path / "data.pth", **options)
    rewrite(tmp_path / "data.pth", lambda data: data.replace(b"numpy._core", module).replace(b"numpy.core", module))
    assert same(unpickle.load(tmp_path / "data.pth"), value)


def test_module_state_dict_with_its_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), tmp_path / "data.pth")
    assert same({**unpickle.load(tmp_path / "data.pth")}, {**module.state_dict()})


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


# -- what must not happen ----------------------------------------------------------------------------------------------


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

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(attribute) + b"\x93" + arguments + b"R."


def push(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def touch(sentinel: Path) -> bytes:
    """Arguments: a shell command that makes the sentinel."""
    return push(f"touch {sentinel}") + b"\x85"


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
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("place", ["alone", "in a checkpoint", "old format", "persistent id"])
def test_whatever_is_not_plain_data_is_refused(tmp_path: Path, name: str, place: str) -> None:
    sentinel, path = tmp_path / "executed", tmp_path / "evil.pth"
    payload = attacks(sentinel)[name]
    if not isinstance(payload, bytes):
        payload = pickle.dumps(payload, protocol=2)
    if place == "alone":
        write_zip(path, {"evil/data.pkl": payload, "evil/version": b"3\n"})
    elif place == "in a checkpoint":
        torch.save({"model": torch.ones(2), "params": "PAYLOAD"}, path)
        rewrite(path, lambda data: data.replace(push("PAYLOAD"), payload.removeprefix(b"\x80\x02")[:-1]))
    elif place == "old format":
        torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
        good = pickle.dumps({"a": 1}, protocol=2)
        path.write_bytes(path.read_bytes().replace(good, payload))
    else:
        write_zip(path, {"evil/data.pkl": payload[:-1] + b"Q.", "evil/version": b"3\n"})
    with pytest.raises(CheckpointError, match="cannot be read safely") as caught:
        unpickle.load(path)
    assert str(path) in str(caught.value)
    assert not sentinel.exists()


def test_the_attacks_would_work(tmp_path: Path) -> None:
    """The sentinel proves something: pickle itself makes it."""
    for number, name in enumerate(["os.system", "eval", "nested pickle", "stack global", "instance", "text protocol"]):
        sentinel = tmp_path / str(number)
        payload = attacks(sentinel)[name]
        pickle.loads(payload if isinstance(payload, bytes) else pickle.dumps(payload))
        assert sentinel.exists(), name


def test_the_refused_name_is_told(tmp_path: Path) -> None:
    torch.save({"model": Call(os.system, "true")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: .*posix\.system.*Nothing in it was executed"):
        unpickle.load(tmp_path / "evil.pth")


def test_control_characters_are_not_printed(tmp_path: Path) -> None:
    write_zip(tmp_path / "evil.pth", {"evil/data.pkl": named("os \x1b[2Jsystem")})
    with pytest.raises(CheckpointError) as caught:
        unpickle.load(tmp_path / "evil.pth")
    assert "\x1b" not in str(caught.value)


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


BOMBS = {
    "storage larger than its record": tensor_call(10**12, (1,), (1,)),
    "tensor larger than its storage": tensor_call(4, (8,), (1,)),
    "tensor expanded over its storage": tensor_call(4, (10**9,), (0,)),
    "tensor from beyond its storage": tensor_call(4, (2,), (1,), offset=3),
    "negative size": tensor_call(4, (-1,), (1,)),
    "negative stride": tensor_call(4, (2,), (-1,)),
    "negative offset": tensor_call(4, (2,), (1,), offset=-1),
    "sizes and strides that differ": tensor_call(4, (2, 2), (1,)),
    "bytes longer than the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "text longer than the file": b"\x80\x02X" + struct.pack("<I", 2**31) + b"x.",
    "number longer than the file": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "memo that is not there": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02R.",
    "mark that is not there": b"\x80\x02t.",
    "no end": b"\x80\x02}",
    "key that is a list": b"\x80\x02}]Ns.",
    "key whose hash would overflow the stack": b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.",
    "text copied a thousand times": b"\x80\x02](" + push("x" * 10_000) + b"q\x01"
    + b"".join(b"c_codecs\nencode\nh\x01" + push("latin1") + b"\x86R" for _ in range(1000)) + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("pickled", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused(tmp_path: Path, pickled: bytes) -> None:
    """Quickly and in little memory: sizes are compared with the file's before anything is made."""
    write_zip(tmp_path / "bomb.pth", {"bomb/data.pkl": pickled, "bomb/data/0": bytes(16), "bomb/version": b"3\n"})
    with pytest.raises(CheckpointError):
        unpickle.load(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "name", ["bytes longer than the file", "text longer than the file", "number longer than the file"]
)
def test_bombs_in_old_files_are_refused(tmp_path: Path, name: str) -> None:
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    (tmp_path / "bomb.pth").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + BOMBS[name])
    with pytest.raises(CheckpointError, match="damaged"):
        unpickle.load(tmp_path / "bomb.pth")


def test_deeply_nested_data_does_not_crash(tmp_path: Path) -> None:
    write_zip(tmp_path / "deep.pth", {"deep/data.pkl": b"\x80\x02" + b"N" + b"\x85" * 200_000 + b"."})
    value = unpickle.load(tmp_path / "deep.pth")
    for _ in range(3):
        (value,) = value


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as source:
        records = {info.filename: source.read(info) for info in source.infolist()}
    write_zip(tmp_path / "bomb.pth", records, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        unpickle.load(tmp_path / "bomb.pth")


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path: Path, options: dict[str, bool], kept: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.randn(100), "b": "text"}, path, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        unpickle.load(path)


def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    path = tmp_path / "flipped.pth"
    weight = torch.randn(100)
    torch.save({"a": weight}, path)
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 17] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        unpickle.load(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02K\x01.", b"PK\x03\x04rubbish", b"\x80"])
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        unpickle.load(tmp_path / "other.pth")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            unpickle.load(path)


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Three hundred damaged pickles: each reads or is refused; nothing else comes out."""
    random = np.random.default_rng(0)
    torch.save(
        {"model": OrderedDict(a=torch.ones(3)), "params": {"x": np.float64(1), "y": np.arange(3)}},
        tmp_path / "good.pth",
    )
    with zipfile.ZipFile(tmp_path / "good.pth") as source:
        records = {info.filename: source.read(info) for info in source.infolist()}
    refused = 0
    for _ in range(300):
        data = bytearray(records["good/data.pkl"])
        for position in random.integers(len(data), size=random.integers(1, 4)):
            data[position] = random.integers(256)
        write_zip(tmp_path / "bad.pth", {**records, "good/data.pkl": bytes(data)})
        try:
            unpickle.load(tmp_path / "bad.pth")
        except CheckpointError:
            refused += 1
    assert refused > 150
