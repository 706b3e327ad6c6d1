"""Exports sent to the Hub by its own client, here to a server of this machine that answers as the Hub does."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.xlm_train.interop.test_commands import tree

pytest.importorskip("huggingface_hub")
Run = Callable[..., tuple[int, str, str]]


class Hub(ThreadingHTTPServer):
    """Keeps what it is asked, and what a commit holds. refuses: nobody may make a repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.refuses = False


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.asked.append((self.path, lines[0]))
        url = f"http://{self.headers['Host']}/ann/model"
        answer: dict[str, Any] = {"url": url, "errors": [], "warnings": []}
        if "/preupload/" in self.path:
            names = [file["path"] for file in lines[0]["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif "/commit/" in self.path:
            sent = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {one["path"]: base64.b64decode(one["content"]) for one in sent}
            answer = {"commitUrl": f"{url}/commit/c0ffee", "commitOid": "c0ffee"}
        self.send_response(403 if self.server.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"error": "not yours"} if self.server.refuses else answer).encode())

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server
        server.shutdown()


def test_a_dry_run_lists_every_file_and_asks_nobody(run_command: Run, imported: Path, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [f"checkpoint={imported}", f"out={out}", "verify=false", "push_to_hub=ann/model", "dry_run=true"]
    status, told, err = run_command("export", *words)
    assert status == 0, err
    listed = {name: size for size, name in re.findall(r"^ +([\d,]+)  (\S+)$", told, re.MULTILINE)}
    assert listed == {name: f"{len(content):,}" for name, content in tree(out).items()}
    assert "ann/model on the Hub would get" in told
    assert hub.asked == []


def test_the_folder_is_sent_whole(run_command: Run, imported: Path, hub: Hub, tmp_path: Path) -> None:
    """After the comparison with transformers, which lets nothing of this process reach for a network."""
    out = tmp_path / "out"
    status, told, err = run_command("export", f"checkpoint={imported}", f"out={out}", "push_to_hub=ann/model")
    assert status == 0, err
    assert told.splitlines()[-1] == f"sent: http://127.0.0.1:{hub.server_port}/ann/model/commit/c0ffee"
    assert hub.files == tree(out)
    path, made = hub.asked[0]
    assert (path, made["name"], made["organization"]) == ("/api/repos/create", "model", "ann")
    assert "private" in (made.get("visibility"), "private" if made.get("private") else None)


def test_what_cannot_be_sent_stays(run_command: Run, imported: Path, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    words = [f"checkpoint={imported}", f"out={tmp_path / 'out'}", "verify=false", "push_to_hub=ann/model"]
    status, _, err = run_command("export", *words)
    assert status == 2
    assert re.search(r"error: push_to_hub=ann/model: .*403.*; .*out is whole$", err.strip().splitlines()[-1])
    assert (tmp_path / "out/export.json").is_file()


def test_mistakes_are_found_before_the_export(run_command: Run, imported: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={imported}", f"out={tmp_path / 'out'}"]
    for more, message in (
        (["push_to_hub=model"], "push_to_hub=model: is no name of a repository: OWNER/NAME"),
        (["push_to_hub=ann/a--b"], "is no name of a repository"),
        (["push_to_hub=ann/model", "format=xlm"], "push_to_hub: sends folders for transformers (format=hf)"),
        (["dry_run=true"], "dry_run=true lists what push_to_hub=OWNER/NAME would send"),
    ):
        status, _, err = run_command("export", *words, *more)
        assert (status, message in err) == (2, True), err
    assert not (tmp_path / "out").exists()
