"""A real S3 server over HTTP for tests: moto's, in a process of its own, which can be slow, deaf or show old listings.

    python -m tests.s3_server PORT FOLDER

Files in FOLDER say how it behaves, at any time: `slow` holds the bytes per second that it takes; `stale` makes every
listing of objects the one that was true when the file came.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, free_port, process_environment

SECRET = "planted-secret-Zq8vN3kRw1"
TOKEN = "planted-token-Xr5bM9cTy7"
KEY_ID = "PLANTEDKEYID42"


class S3Server:
    """The server and what a client's environment must say to use it. `url` is of a bucket that is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.url = "s3://bucket"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers. Objects of an earlier start are gone: `deaf` keeps them."""
        words = [sys.executable, "-m", "tests.s3_server", str(self.port), str(self.folder)]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(words, env=process_environment(), stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """End it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def says(self, what: str, value: str | None) -> None:
        """Set or, with None, unset one of the files that say how it behaves."""
        if value is None:
            (self.folder / what).unlink(missing_ok=True)
        else:
            (self.folder / f".{what}").write_text(value)
            os.replace(self.folder / f".{what}", self.folder / what)

    def deaf(self, is_deaf: bool) -> None:
        """Refuse all connections, or no longer: the network is down, and objects stay."""
        self.says("deaf", "" if is_deaf else None)
        deadline = time.monotonic() + PATIENCE
        while self._answers() is is_deaf:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def is_receiving(self) -> bool:
        """Whether a large body is arriving; told of slow ones only."""
        return (self.folder / "receiving").is_file()

    def _answers(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests of a process; see `s3`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_process: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with a prefix of the test's own as `url`, this process as its client, and a cache of its own."""
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLM_TRAIN_CACHE", str(tmp_path / "cache"))
    s3_process.url = f"s3://bucket/{tmp_path.name}"
    yield s3_process
    for what in ("slow", "stale"):
        s3_process.says(what, None)
    s3_process.deaf(False)


def application(folder: Path) -> Callable[..., Any]:
    """Moto's S3 as a WSGI application that looks at the files in `folder`."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    moto = DomainDispatcherApplication(create_backend_app)
    writing = threading.Lock()  # moto looks whether there is an object and puts another one there, in two steps
    listings: dict[str, tuple[str, list[Any], list[bytes]]] = {}

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if (folder / "slow").is_file() and environ["REQUEST_METHOD"] == "PUT":
            rate, sign = float((folder / "slow").read_text()), folder / "receiving"
            try:
                return moto({**environ, "wsgi.input": Slow(environ["wsgi.input"], rate, sign)}, start_response)
            finally:
                sign.unlink(missing_ok=True)
        if environ["REQUEST_METHOD"] == "PUT":
            with writing:
                return moto(environ, start_response)
        query = environ["QUERY_STRING"]
        if environ["REQUEST_METHOD"] != "GET" or "list-type" not in query:
            return moto(environ, start_response)
        if not (folder / "stale").is_file():
            listings.clear()
        if query not in listings:
            kept: list[Any] = []
            body = [b"".join(moto(environ, lambda status, headers, info=None: kept.extend((status, headers))))]
            listings[query] = (kept[0], kept[1], body)
        status, headers, body = listings[query]
        start_response(status, headers)
        return body

    return serve


class Slow:
    """A request's body that arrives with so many bytes a second; while it does, there is a file that says so."""

    def __init__(self, body: Any, rate: float, sign: Path) -> None:
        self.body, self.rate, self.sign = body, rate, sign

    def read(self, size: int = -1) -> bytes:
        """All of it, in pieces."""
        pieces = []
        while piece := self.body.read(65536 if size < 0 else min(size, 65536)):
            pieces.append(piece)
            if len(piece) == 65536:
                self.sign.touch()
            time.sleep(len(piece) / self.rate)
            if 0 <= size <= sum(map(len, pieces)):
                break
        return b"".join(pieces)


def main() -> None:
    """Serve until killed; while `deaf` is there, nothing listens on the port."""
    import boto3
    from werkzeug.serving import make_server

    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve, parent = application(folder), os.getppid()
    started = False
    while os.getppid() == parent:
        if (folder / "deaf").is_file():
            time.sleep(0.02)
            continue
        server = make_server("127.0.0.1", port, serve, threaded=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        if not started:
            client = boto3.client(
                "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="x", aws_secret_access_key="x",
                region_name="us-east-1",
            )  # fmt: skip
            client.create_bucket(Bucket="bucket")
            print("ready", flush=True)
            started = True
        while not (folder / "deaf").is_file() and os.getppid() == parent:
            time.sleep(0.02)
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
