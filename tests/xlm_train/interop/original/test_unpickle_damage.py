"""Files of torch.save that ask for too much memory or time, are truncated or damaged: refused, and named."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.xlm_train.interop.original.attacks import FORMATS, array, persistent, push, tensor_call, write_zip
from xlm_train.interop.original import unpickle
from xlm_train.runtime.errors import CheckpointError

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
    "key whose hash would take years": b"\x80\x02Nq\x00" + b"h\x00h\x00\x86q\x00" * 200 + b"}h\x00Ns.",
    "key in a key": b"\x80\x02}N\x85\x85Ns.",
    "long key": b"\x80\x02}(" + b"N" * 9 + b"tNs.",
    "key that is a name": b"\x80\x02}c_codecs\nencode\nNs.",
    "long key among others": b"\x80\x02}(K\x01K\x02(" + b"N" * 9 + b"tK\x03u.",
    "key without a value": b"\x80\x02}(K\x01u.",
    "frame in a frame": b"\x80\x04\x95" + struct.pack("<Q", 20) + b"\x95" + struct.pack("<Q", 2) + b"N." + b"N" * 9,
    "end before the stack is empty": b"\x80\x02NN.",
    "end behind a mark": b"\x80\x02(N.",
    "end before an array is built": b"\x80\x02" + array(b"\x00" * 8).split(b"(K\x01")[0] + b".",
    "array in an array": b"\x80\x02" + array(b"\x00" * 8).split(b"(K\x01")[0] + array(b"\x00" * 8) + b"b.",
    "protocol that is not known": b"\x80\x09N.",
    "one storage in two sizes": b"\x80\x02]" + persistent(numel=b"K\x04")[2:-1] + b"a" + persistent(numel=b"K\x03")[2:-1]
    + b"a.",
    "storage without a record": persistent(push("7")),
    "tensor of too many dimensions": tensor_call(4, (1,) * 9, (1,) * 9),
    "tensor larger than memory addresses": tensor_call(4, (2**62, 4), (1, 1)),
    "text copied a thousand times": b"\x80\x02](" + push("x" * 10_000) + b"q\x01"
    + b"".join(b"c_codecs\nencode\nh\x01" + push("latin1") + b"\x86R" for _ in range(1000)) + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("pickled", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused(tmp_path: Path, pickled: bytes) -> None:
    """Quickly and in little memory: sizes are compared with the file's before anything is made."""
    write_zip(tmp_path / "bomb.pth", {"bomb/data.pkl": pickled, "bomb/data/0": bytes(16), "bomb/version": b"3\n"})
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            unpickle.load(tmp_path / "bomb.pth")
        assert tracemalloc.get_traced_memory()[1] < 100 * len(pickled) + 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02Nr\xff\xff\xff\xff.", b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N."]
)
def test_high_numbers_that_mean_nothing_take_no_memory(tmp_path: Path, pickled: bytes) -> None:
    """A place in the memo, where Python's unpickler in C makes room for four billion entries; the size of a frame."""
    write_zip(tmp_path / "high.pth", {"high/data.pkl": pickled})
    tracemalloc.start()
    try:
        assert unpickle.load(tmp_path / "high.pth") is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_many_tensors_on_one_storage_are_refused(tmp_path: Path) -> None:
    """Views take no memory, but what is done with each of them later does."""
    tensor = tensor_call(1000, (1000,), (1,))[2:-2]
    function, arguments = tensor.split(b"v2\n")
    pickled = b"\x80\x02]" + function + b"v2\nq\x00" + arguments + b"q\x01Ra" + b"h\x00h\x01Ra" * 1000 + b"."
    write_zip(tmp_path / "many.pth", {"many/data.pkl": pickled, "many/data/0": bytes(4000)})
    with pytest.raises(CheckpointError, match="more data than the file can hold"):
        unpickle.load(tmp_path / "many.pth")


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


ODD_PARTS: dict[str, tuple[int, bytes]] = {  # by their place among the pickles of an old file
    "array for a magic number": (0, b"\x80\x02" + array(b"\x00" * 8) + b"."),
    "nested tuples for a version": (1, b"\x80\x02N" + b"\x85" * 200_000 + b"."),
    "array for a byte order": (2, b"\x80\x02}" + push("little_endian") + array(b"\x00" * 8) + b"s."),
    "nested lists for keys": (4, b"\x80\x02]" + b"]" * 200_000 + b"a" * 200_000 + b"."),
    "nested tuples for keys": (4, b"\x80\x02]N" + b"\x85" * 200_000 + b"a."),
    "keys that are numbers": (4, b"\x80\x02]K\x00a."),
}


@pytest.mark.parametrize(("place", "part"), ODD_PARTS.values(), ids=ODD_PARTS)
def test_old_files_with_odd_parts_are_refused(tmp_path: Path, place: int, part: bytes) -> None:
    """What stands around the object in an old file is untrusted too: comparing or printing it must not fail."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(part, protocol=2) for part in (unpickle.OLD_MAGIC, 1001, machine, {"a": 1}, [])]
    (tmp_path / "old.pth").write_bytes(b"".join(parts))
    assert unpickle.load(tmp_path / "old.pth") == {"a": 1}
    parts[place] = part
    (tmp_path / "old.pth").write_bytes(b"".join(parts))
    with pytest.raises(CheckpointError, match=r"old\.pth"):
        unpickle.load(tmp_path / "old.pth")


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


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_random_damage_anywhere_never_escapes(tmp_path: Path, options: dict[str, bool]) -> None:
    """The file as a whole: the zip's directory and records, the old format's parts and numbers."""
    random = np.random.default_rng(0)
    torch.save({"model": OrderedDict(a=torch.ones(3)), "y": np.arange(3)}, tmp_path / "good.pth", **options)
    good = (tmp_path / "good.pth").read_bytes()
    refused = 0
    for _ in range(500):
        data = bytearray(good)
        for position in random.integers(len(data), size=random.integers(1, 8)):
            data[position] = random.integers(256)
        (tmp_path / "bad.pth").write_bytes(data)
        try:
            unpickle.load(tmp_path / "bad.pth")
        except CheckpointError:
            refused += 1
    assert refused > 100
