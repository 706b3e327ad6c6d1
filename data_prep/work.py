"""The work folder: finished results under names that tell all they depend on; and the processes that make them.

A work file's name is a hash of its stage, of the bytes it was made from and of every setting and tool version that
shapes it. So a file that is there need not be made again, and one that depends on something changed is simply not
there: restarting needs no other record.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from xlm_train.runtime.console import Progress
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import atomic_write, digest, make_folder

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

UNITS = {"MB": 1, "lines": 0}
"""What progress of the preparation is shown in: raw text."""

FAN = 64  # pieces, or results of other jobs, that a job takes which does little with each

VERSION = 3  # of what work files hold; raised where that changes, so that files of an earlier version are not read

Job = TypeVar("Job")
Result = TypeVar("Result")


def save(path: Path, **arrays: NDArray[Any] | bytes | Mapping[str, Any]) -> None:
    """Write named arrays, bytes and JSON values as one file that is whole or not there."""
    members: dict[str, NDArray[Any]] = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            value = json.dumps(value).encode()
        members[name] = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
    with atomic_write(path) as file:
        np.savez(file, **members)  # type: ignore[arg-type]


def load(path: Path, name: str) -> NDArray[Any]:
    """One array of a work file. Only its bytes are read; their checksum is compared.

    Raises:
        UserError: The file is damaged; it is removed, so that the same command makes it again. Or it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[name]  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ENOENT):
        return UserError(f"{path}: {error.strerror}")  # too many open files, a disk that fails: it may be whole
    path.unlink(missing_ok=True)
    return UserError(f"{path}: this work file was damaged and has been removed; run the same command again")


def load_json(path: Path, name: str) -> Any:
    """One JSON value of a work file."""
    return json.loads(load(path, name).tobytes())


def compress(data: bytes) -> bytes:
    """Compress by zstd at its fastest common level: about a third of the size, far faster than what reads it."""
    return zstandard.ZstdCompressor(level=1).compress(data)


def decompress(data: NDArray[Any]) -> bytes:
    """The inverse of `compress`."""
    return zstandard.ZstdDecompressor().decompress(data.data)


class Work:
    """Names in the work folder: a folder a stage, a file name that hashes all it depends on.

    Args:
        folder: The work folder.
        tools: Versions of all that shapes the bytes; every name depends on them.
    """

    def __init__(self, folder: Path, tools: Mapping[str, str]) -> None:
        self.folder = folder
        self.tools = dict(tools)

    def path(self, stage: str, *depends_on: Any, suffix: str = ".npz") -> Path:
        """The path of a result of a stage, by all that it depends on. Each of 256 folders takes some of them.

        Args:
            stage: Names the folder.
            depends_on: JSON values; the tools count too.
            suffix: Of the file's name.
        """
        name = digest(VERSION, stage, self.tools, *depends_on)[:40]
        folder = self.folder / stage / name[:2]
        make_folder(folder)
        return folder / (name + suffix)

    def copy(self, stage: str, data: bytes) -> Path:
        """A small file of the run, under a name that changes with its content. One that is damaged is written again."""
        path = self.path(stage, hashlib.sha256(data).hexdigest(), suffix="")
        if not path.exists() or path.read_bytes() != data:
            with atomic_write(path) as file:
                file.write(data)
        return path


class Workers:
    """Runs a function over jobs in several processes, in order.

    At most 2 n + 1 jobs are out at once, so memory does not depend on how many there are. The processes are spawned
    (not forked: threads of compiled libraries do not survive a fork) and end when this one does, even if it is killed.

    Args:
        n: Processes; with 1 all is done in this process, without any other.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.pool: ProcessPoolExecutor | None = None
        self.processes: list[BaseProcess] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def ahead(self, function: Callable[[Any], None], jobs: Sequence[Any]) -> bool:
        """A chance to do jobs elsewhere before `map` comes to those that are still missing. Nothing here.

        Returns:
            Whether they are done.
        """
        return False

    def do(self, function: Callable[[Any], None], jobs: Sequence[Any]) -> None:
        """Do the jobs whose work file `out` is not there."""
        missing = [job for job in jobs if not job.out.exists()]
        if not self.ahead(function, missing):
            for _ in self.map(function, missing):
                pass

    def killed(self, processes: Mapping[int, int]) -> str:
        """Say what was killed.

        Args:
            processes: The signals that ended processes of the pool, by process id.
        """
        return f"workers={self.n}: a worker process was killed from outside"

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results in the order of the jobs. Jobs are drawn as they are needed.

        Raises:
            UserError: A process was killed. What the function raises comes through.
        """
        if self.n == 1:
            yield from map(function, jobs)
            return
        import multiprocessing

        if self.pool is None:
            # where this process is killed, the one that then frees its semaphores has nothing to tell a person
            sys.warnoptions.append("ignore:resource_tracker")
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.n, mp_context=context, initializer=_start_worker)
        out: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                out.append(self.pool.submit(function, job))
                if len(self.processes) < self.n:  # the pool starts them one by one
                    self.processes = multiprocessing.active_children()
                if len(out) > 2 * self.n:
                    yield out.popleft().result()
            while out:
                yield out.popleft().result()
        except BrokenProcessPool as error:
            self.pool.shutdown()
            statuses = {process.pid: process.exitcode or 0 for process in self.processes if process.pid}
            # the pool itself ends the others by SIGTERM
            killed = {pid: -status for pid, status in statuses.items() if status < 0 and status != -signal.SIGTERM}
            raise UserError(
                f"{self.killed(killed)}, perhaps for want of memory; "
                "run the same command again to go on, with fewer workers if it recurs"
            ) from error


def _start_worker() -> None:
    """In a new process: leave Ctrl-C to the parent, use one thread, and end with the parent."""
    import multiprocessing
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@dataclass(frozen=True)
class Sized:
    """A job of a stage, and the raw text it stands for."""

    job: Any
    bytes: int
    lines: int


def run(name: str, function: Callable[[Any], None], jobs: Iterable[Sized], workers: Workers) -> None:
    """Do the jobs of a stage whose work file is not there yet.

    Args:
        name: Of the stage, for its progress.
        function: Does a job: makes its work file `out`.
        jobs: All of the stage, done or not; drawn at once.
        workers: Do them.
    """
    jobs = list(jobs)
    if not jobs:
        return
    workers.ahead(function, [sized.job for sized in jobs if not sized.job.out.exists()])
    progress = Progress(name, sum(sized.bytes for sized in jobs), UNITS)

    def missing() -> Iterator[Any]:
        for sized in jobs:
            if sized.job.out.exists():
                progress.skip(sized.bytes, sized.bytes / 1e6)
            else:
                yield sized.job
                progress.add(sized.bytes, sized.bytes / 1e6, sized.lines)

    for _ in workers.map(function, missing()):
        pass
    progress.end()


def fold(
    workers: Workers, function: Callable[[Any], None], files: Sequence[Path], job: Callable[[tuple[Path, ...]], Any]
) -> Sequence[Path]:
    """Make fewer files of many, FAN at a time, until there are at most FAN.

    Args:
        workers: Do the jobs.
        function: Makes one file.
        files: In an order that is kept.
        job: The job that makes one file, its `out`, of some that follow one another.
    """
    while len(files) > FAN:
        jobs = [job(tuple(files[start : start + FAN])) for start in range(0, len(files), FAN)]
        workers.do(function, jobs)
        files = [one.out for one in jobs]
    return files
