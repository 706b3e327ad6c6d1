"""Files of `torch.save`, both formats, read without executing anything.

The zip format (PyTorch 1.6 and later): records NAME/data.pkl and NAME/data/KEY. The older one: five pickles one
after the other (a magic number, a version, facts about the machine, the object, the keys of its storages), then
each storage as a 64-bit count and its bytes.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from xlm_train.interop.original.unpickle import STORAGE_DTYPES, Name, RefusedError, Storage, read_pickle
from xlm_train.runtime.errors import CheckpointError

OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_VERSION = 1001
ROOM = 3  # arrays and tensors may take this many times the file's size: tied weights are two tensors on one storage


def read(path: str | Path) -> Any:
    """The object that `torch.save` wrote to `path`, tensors on the CPU.

    Numbers, text, plain containers, numpy arrays and scalars of plain numbers, dense tensors, and objects of
    the original's Dictionary class (as `DictionaryRecord`) are read. Raises CheckpointError naming the file
    where it is missing, damaged or no such file, or asks for anything else; nothing it asks for has been
    executed then.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read(file)
    except RefusedError as error:
        reason = "".join(c if c.isprintable() else "?" for c in str(error))  # it may quote the file
        raise CheckpointError(f"{path}: cannot be read safely: {reason}. Nothing in it was executed") from error
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError) as error:
        raise CheckpointError(f"{path}: is damaged or truncated ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(file: IO[bytes]) -> Any:
    start = file.read(4)
    file.seek(0)
    size = os.fstat(file.fileno()).st_size
    if start == b"PK\x03\x04":
        return _read_zip(file, size)
    if start[:1] == b"\x80":
        return _read_old(file, size)
    raise RefusedError("it is not a file of torch.save")


class _Storages:
    """Storages by key, made when a pickle first refers to them; their sizes together are bounded by the file's."""

    def __init__(self, max_bytes: int, id_length: int, fill: Callable[[str, Storage], None] | None = None) -> None:
        self.by_key: dict[str, Storage] = {}
        self.bytes_left = max_bytes
        self.id_length = id_length
        self.fill = fill

    def load(self, persistent_id: Any) -> Storage:
        if type(persistent_id) is not tuple or len(persistent_id) != self.id_length or persistent_id[0] != "storage":
            raise RefusedError("its pickle refers to data outside it in an unusual way")
        kind, key, _, numel = persistent_id[1:5]
        dtype = STORAGE_DTYPES.get(kind.text) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(key, str) or not key.isdigit() or type(numel) is not int or numel < 0:
            raise RefusedError("its pickle has a tensor of a type that is not read")
        if any(part is not None for part in persistent_id[5:]):
            raise RefusedError("its pickle has a view of a storage, as PyTorch before 0.4 wrote them")
        if key not in self.by_key:
            self.bytes_left -= numel * dtype.itemsize
            if self.bytes_left < 0:
                raise RefusedError("its pickle speaks of more data than the file holds")
            self.by_key[key] = Storage(torch.empty(numel, dtype=dtype))
            if self.fill is not None:
                self.fill(key, self.by_key[key])
        storage = self.by_key[key]
        if storage.data.dtype != dtype or storage.data.numel() != numel:
            raise RefusedError("its pickle speaks of one storage in two ways")
        return storage


def _fill(storage: Storage, source: IO[bytes]) -> None:
    """Read a storage's bytes into its place."""
    if storage.data.numel():
        place: Any = storage.data.view(torch.uint8).numpy()
        if source.readinto(place) != storage.data.nbytes:  # type: ignore[attr-defined]
            raise EOFError("a tensor's numbers end too early")


def _read_zip(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        roots = [
            name.removesuffix("data.pkl")
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise RefusedError("it is a zip file, but not one of torch.save")
        (root,) = roots

        def record(name: str) -> zipfile.ZipInfo:
            try:
                info = archive.getinfo(root + name)
            except KeyError as error:
                raise EOFError(f"it has no record {name}") from error
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size or info.flag_bits & 1:
                raise RefusedError(f"its record {name} is compressed, which torch.save does not do")
            return info

        def fill(key: str, storage: Storage) -> None:
            info = record(f"data/{key}")
            if info.file_size != storage.data.nbytes:
                raise RefusedError(
                    f"its record data/{key} holds {info.file_size} bytes where {storage.data.nbytes} are spoken of"
                )
            with archive.open(info) as source:
                _fill(storage, source)

        if f"{root}byteorder" in archive.namelist() and archive.read(record("byteorder")) != b"little":
            raise RefusedError("it was written on a big-endian machine")
        storages = _Storages(size, id_length=5, fill=fill)
        return read_pickle(io.BytesIO(archive.read(record("data.pkl"))), ROOM * size, storages.load)


def _read_old(file: IO[bytes], size: int) -> Any:
    # as a memory map: where a pickle speaks of more bytes than there are, a file would make room for them first
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if read_pickle(view, size) != OLD_MAGIC or read_pickle(view, size) != OLD_VERSION:
            raise RefusedError("it is a pickle, but not a file of torch.save")
        machine = read_pickle(view, size)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise RefusedError("it was written on a big-endian machine")
        storages = _Storages(size, id_length=6)
        value = read_pickle(view, ROOM * size, storages.load)
        keys = read_pickle(view, size)
        file.seek(view.tell())
    if type(keys) is not list or {*map(str, keys)} != storages.by_key.keys():
        raise RefusedError("its list of storages is not that of its pickle")
    for key in keys:
        storage = storages.by_key[key]
        if file.read(8) != struct.pack("<q", storage.data.numel()):
            raise EOFError("a tensor's numbers are missing, or are not as many as its pickle says")
        _fill(storage, file)
    return value
