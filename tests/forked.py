"""Runs commands as their console scripts do, each in a fork of one process that has imported everything: 0.1 s, not 3 s.

python -m tests.forked     requests as JSON lines on standard input, answers on standard output
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import pkgutil
import resource
import selectors
import signal
import struct
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import data_prep
import xlm_train
from tests.mistakes.table import BEGINNINGS

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = {
    "xlm-prep": "data_prep.prepare",
    "xlm-train": "xlm_train.commands.train",
    "xlm-eval": "xlm_train.commands.evaluate",
    "xlm-generate": "xlm_train.commands.generate",
    "xlm-translate": "xlm_train.commands.translate",
    "xlm-export": "xlm_train.commands.export",
    "xlm-import": "xlm_train.commands.import_",
    "xlm-report": "xlm_train.commands.report",
    "xlm-plan": "xlm_train.commands.plan",
}
AT_FIRST = dict(os.environ)  # before any test changed it
PATIENCE = 300.0  # seconds for what must happen; longer and it hangs, however busy the machine


def process_environment(**more: str) -> dict[str, str]:
    """Environment for a process of this checkout, one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


@dataclass(frozen=True)
class Request:
    """A command line to run.

    words: The command's name and its arguments.
    environment: Its whole environment: what the test has in it now.
    file_bytes: No file may become larger, as on a disk that gets full; None: no limit.
    plain_user: Permissions hold, as they do not for root.
    without: A package that is not installed.
    stdout: A device to write to, or "|": a pipe that nobody reads; empty: the answer has it.
    composed_once: Hydra does not compose the config a second time, as it does only to see that hydra.mode is not set in it.
    """

    words: list[str]
    folder: str
    environment: dict[str, str] = field(default_factory=process_environment)
    file_bytes: int | None = None
    plain_user: bool = False
    without: str = ""
    stdout: str = ""
    composed_once: bool = False


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks: one for all tests of this process, which it ends with. What a test sets is not in it."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **AT_FIRST,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )


def run(request: Request) -> Answer:
    """Run a command to its end."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(asdict(request)), file=server.stdin, flush=True)
    return Answer(**json.loads(server.stdout.readline()))


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for package in (xlm_train, data_prep):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    from xlm_train.config.overrides import check_overrides

    for line in BEGINNINGS:  # what is done once in a process is done before the forks
        name, *words = line.split()
        check_overrides(name.removeprefix("xlm-"), words)
    for line in sys.stdin:
        print(json.dumps(asdict(_forked(Request(**json.loads(line))))), file=answers, flush=True)


def _forked(request: Request) -> Answer:
    ends = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        for read, _ in ends:
            os.close(read)
        _become(request, *(write for _, write in ends))
    for _, write in ends:
        os.close(write)
    printed = {read: b"" for read, _ in ends}
    ended = os.pidfd_open(child)
    with selectors.DefaultSelector() as selector:
        for file in (ended, *printed):
            selector.register(file, selectors.EVENT_READ)
        ready: set[int] = set()
        while ended not in ready:
            ready = {key.fd for key, _ in selector.select()}
            for read in ready - {ended}:
                data = os.read(read, 1 << 16)
                printed[read] += data
                if not data:
                    selector.unregister(read)
    for read in printed:  # what is left; processes that it has started may hold the other end open
        os.set_blocking(read, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(read, 1 << 16):
                printed[read] += data
        os.close(read)
    os.close(ended)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Answer(status, *(text.decode(errors="backslashreplace") for text in printed.values()))


def _become(request: Request, out: int, err: int) -> None:
    """Be the command until it ends, in the forked process."""
    signal.alarm(int(PATIENCE))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request.stdout == "|":
        read, out = os.pipe()
        os.close(read)
    elif request.stdout:
        out = os.open(request.stdout, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.chdir(request.folder)
    sys.argv = list(request.words)
    os.environ.clear()
    os.environ.update(request.environment)
    if request.composed_once:
        from hydra._internal.hydra import Hydra

        Hydra.get_mode = lambda *args, **options: None  # type: ignore[method-assign]
    if request.without:
        sys.modules[request.without] = None  # type: ignore[assignment]
    if request.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.file_bytes, request.file_bytes))
    if request.plain_user:
        version_3, of_this_process = 0x20080522, 0
        assert ctypes.CDLL(None).capset(struct.pack("II", version_3, of_this_process), bytes(24)) == 0
    status = 1
    try:
        importlib.import_module(MODULES[request.words[0]]).main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
    except OSError:  # as the interpreter has it
        traceback.print_exc()
        status = 120
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below one, files with size and time of the last change; what links lead to is left out."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found


if __name__ == "__main__":
    serve()
