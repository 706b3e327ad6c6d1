"""Files of the work folder."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.work import Work, load, save
from xlm_train.runtime.errors import UserError


def _shortened(data: bytes) -> bytes:
    return data[:-100]


def _changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [_shortened, _changed])
def test_a_damaged_work_file_is_removed_and_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    save(path := tmp_path / "a.npz", n=np.arange(1000))
    assert np.array_equal(load(path, "n"), np.arange(1000))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path}: this work file was damaged and has been removed"):
        load(path, "n")
    assert not path.exists()


def test_a_work_file_that_cannot_be_opened_now_stays(tmp_path: Path) -> None:
    save(path := tmp_path / "a.npz", n=np.arange(10))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(UserError, match=f"{path}: Too many open files"):
            load(path, "n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in taken:
            os.close(file)
    assert np.array_equal(load(path, "n"), np.arange(10))


def test_a_damaged_copy_is_written_again(tmp_path: Path) -> None:
    work = Work(tmp_path, {})
    path = work.copy("held", b"some hashes")
    path.write_bytes(b"some")
    assert work.copy("held", b"some hashes") == path
    assert path.read_bytes() == b"some hashes"
