"""Files of torch.save read as data: what is harmless comes out as torch gives it, all else is refused unexecuted."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.xlm_train.interop.original.attacks import (
    FORMATS,
    Call,
    array,
    attacks,
    named,
    persistent,
    push,
    rewrite,
    scalar,
    write_zip,
)
from xlm_train.interop.original import unpickle
from xlm_train.runtime.errors import CheckpointError


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


# -- what must not happen ----------------------------------------------------------------------------------------------


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


def test_what_the_attacks_are_made_of_is_read(tmp_path: Path) -> None:
    """An attack is refused for what is wrong in it: its right parts alone are data."""
    good = {
        "array": (array(b"\x07" + b"\x00" * 7), np.array([7])),
        "big-endian array": (array(b"\x00" * 7 + b"\x07", order=">"), np.array([7])),
        "number": (scalar(data=b"\x07" + b"\x00" * 7), np.int64(7)),
    }
    for name, (pickled, expected) in good.items():
        write_zip(tmp_path / "good.pth", {"good/data.pkl": b"\x80\x02" + pickled + b"."})
        assert same(unpickle.load(tmp_path / "good.pth"), expected), name
    write_zip(tmp_path / "good.pth", {"good/data.pkl": persistent(), "good/data/0": b""})
    unpickle.load(tmp_path / "good.pth")


NEEDED = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE
    BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""


def test_instructions_that_plain_data_does_not_need_are_refused(tmp_path: Path) -> None:
    """Each of them, even where it would find what it wants on the stack."""
    needed = NEEDED.split()
    others = [opcode for opcode in pickletools.opcodes if opcode.name not in needed]
    assert len(others) == len(pickletools.opcodes) - len(needed)
    for opcode in others:
        pickled = b"\x80\x04(ccollections\nOrderedDict\n)" + opcode.code.encode("latin1") + b"\x01\n1\n."
        write_zip(tmp_path / "evil.pth", {"evil/data.pkl": pickled})
        with pytest.raises(CheckpointError, match="uses the instruction"):
            unpickle.load(tmp_path / "evil.pth")


def test_nothing_of_this_program_is_changed(tmp_path: Path) -> None:
    """Names in a pickle are values that stand for nothing: even where they are returned, they cannot be called."""
    write_zip(tmp_path / "names.pth", {"names/data.pkl": b"\x80\x02]cnumpy\nndarray\nac_codecs\nencode\na."})
    assert [type(name) for name in unpickle.load(tmp_path / "names.pth")] == [unpickle.Name, unpickle.Name]
    before = {name: dict(vars(call)) for name, call in unpickle.CALLS.items()}
    for name, payload in attacks(tmp_path / "executed").items():
        if isinstance(payload, bytes):
            write_zip(tmp_path / "evil.pth", {"evil/data.pkl": payload})
            with pytest.raises(CheckpointError):
                unpickle.load(tmp_path / "evil.pth")
            assert {name: dict(vars(call)) for name, call in unpickle.CALLS.items()} == before, name


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
