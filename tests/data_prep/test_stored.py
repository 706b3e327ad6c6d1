"""Text that is read from object storage, and corpora that are put there: a real S3 server."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep import publish
from data_prep.distributed import workers_for
from data_prep.prepare import prepare
from data_prep.settings import read_settings
from data_prep.sources import sources_of
from tests.conftest import process_environment
from tests.data_prep.test_prepare import made_text, request, write
from tests.s3_server import S3Server
from xlm_train.data.corpus import Corpus
from xlm_train.data.manifest import files_of
from xlm_train.runtime.errors import ConfigError, TextError, UserError
from xlm_train.runtime.storage import Store
from xlm_train.runtime.stored_object import FIRST_BLOCK, StoredObject
from xlm_train.text.files import ReadStats, TextFile


@pytest.fixture
def store(s3: S3Server) -> Store:
    return Store(s3.url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Training text of every kind that a file can be, of German and English."""
    folder = tmp_path / "text"
    folder.mkdir()
    write(folder / "train0.de", made_text("de", 300, 0))
    (folder / "train1.de.gz").write_bytes(gzip.compress("".join(f"{s}\n" for s in made_text("de", 300, 1)).encode()))
    write(folder / "train.en.jsonl", [json.dumps({"text": sentence}) for sentence in made_text("en", 300, 0)])
    pyarrow.parquet.write_table(pyarrow.table({"text": made_text("en", 300, 1)}), folder / "train.en.parquet")
    return folder


def upload(store: Store, folder: Path) -> None:
    for path in folder.iterdir():
        store.upload(path, f"text/{path.name}")


def words(where: str) -> dict[str, Any]:
    """The text in a folder or below a URL."""
    german = f"{where}/train*.de*"
    return {"train": {"de": german, "en": [f"{where}/train.en.jsonl", f"{where}/train.en.parquet"]}}


def run(out: str, text: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return prepare(read_settings(request(out, text, holdout__sentences=20, **changes)))


def test_a_corpus_from_a_store_to_a_store(
    folder: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes as from disk to disk; nothing of it stays on the disk."""
    upload(store, folder)
    from_disk = run(str(tmp_path / "local"), words(str(folder)))
    url = f"{store.url}/corpus"
    made = run(url, words(f"{store.url}/text"))
    assert made["lineage"] == from_disk["lineage"]
    local = {path.name for path in (tmp_path / "local").iterdir() if path.is_file()} - {".lock"}
    assert {name.removeprefix("corpus/") for name in store.names("corpus")} == local
    for name in local - {"manifest.json", "report.html"}:
        assert store.read(f"corpus/{name}") == (tmp_path / "local" / name).read_bytes()
    Corpus(url).verify()
    assert [path.name for path in (tmp_path / "cache/prepared").rglob("*") if path.is_file()] == [".lock"]

    capsys.readouterr()
    assert run(url, words(f"{store.url}/text"))["created"] == made["created"]
    assert f"{url} holds exactly this corpus already" in "".join(capsys.readouterr())
    with pytest.raises(UserError, match=r"was made otherwise: seed: 0 then, 1 now"):
        run(url, words(f"{store.url}/text"), seed=1)


def test_tasks_upload_the_shards(folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setattr(publish, "FAN", 2)
    (tmp_path / "work").mkdir()
    made = run(str(tmp_path / "made"), words(str(folder)), shard_tokens=2000)
    tasks = workers_for("local", 3, 1, {}, tmp_path / "work")
    small = {name: tmp_path / "made" / name for name in ("codes", "vocab", "report.html")}
    publish._upload(Store(f"{store.url}/corpus"), made, tmp_path / "made", small, tasks, tmp_path / "work")
    assert len(files_of(made)) > 5
    assert len(list((tmp_path / "work").glob("datatrove/upload_shards-*/logs/task_*.log"))) == 3
    Corpus(f"{store.url}/corpus").verify()


def test_a_stored_corpus_is_replaced(folder: Path, store: Store) -> None:
    url = f"{store.url}/corpus"
    many = run(url, words(str(folder)), shard_tokens=1000)
    few = run(url, words(str(folder)), overwrite=True)
    assert len(few["splits"]["train"]["de"]["shards"]) == 1 < len(many["splits"]["train"]["de"]["shards"])
    assert "corpus/train.de.00001.npy" not in store.names("corpus")
    Corpus(url).verify()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.txt", "none.txt: there is no such object"),
        ("none*.txt", "no object has such a name"),
        ("text", "text: is a folder; a pattern names objects"),
        ("text/plain.gz", "plain.gz: is named .gz but is not such a file"),
        ("text/empty.txt", "empty.txt: is empty"),
        ("text/not.parquet", "not.parquet: is truncated or not a parquet file"),
        ("text/other.jsonl", "has no field 'text', but body"),
    ],
)
def test_what_is_wrong_with_an_object(name: str, problem: str, store: Store) -> None:
    objects = {"plain.gz": b"plain", "empty.txt": b"", "not.parquet": b"text\n", "other.jsonl": b'{"body": ""}\n{}\n'}
    for file, data in objects.items():
        store.write(f"text/{file}", data)
    found = sources_of("train.en", f"{store.url}/{name}", "en")[1]
    assert len(found) == 1, found
    assert problem in found[0]


def test_mistakes_in_urls_are_told_before_any_work(folder: Path, s3: S3Server) -> None:
    text = words(str(folder))
    text["valid"] = {"de": "s3://user:secret@bucket/v.de", "en": "ftp://host/v.en"}
    with pytest.raises(ConfigError) as caught:
        run("hf://datasets/a/b", text)
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3, problems
    for part in (
        "valid.de: a URL must not hold",
        "ftp:// is not supported",
        "out=hf://datasets/a/b: hf:// is not supp",
    ):
        assert part in problems
    assert "secret" not in problems
    with pytest.raises(UserError, match="no-such-bucket"):  # at once, not when all is made
        run("s3://no-such-bucket/corpus", words(str(folder)))


def test_an_object_that_is_replaced_while_it_is_read(store: Store) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(60_000))
    assert len(lines) > 4 * FIRST_BLOCK
    store.write("text", lines)
    source = TextFile(StoredObject(f"{store.url}/text"))
    assert source.size == len(lines)
    assert b"".join(source.chunks(ReadStats())) == lines
    rest = source.chunks(ReadStats())
    next(rest)
    store.write("text", lines[::-1])
    with pytest.raises(TextError, match="changed while it was read"):
        next(rest)


def test_an_object_is_read_from_any_place(store: Store) -> None:
    data = bytes(range(256)) * 2000
    store.write("data", data)
    with StoredObject(f"{store.url}/data").open() as file:
        for start, size in ((0, 10), (300_000, 70_000), (5, 3), (len(data) - 4, 100), (len(data), 1)):
            assert file.seek(start) == start
            assert file.read(size) == data[start : start + size]
        assert file.seek(-3, 2) == len(data) - 3
        assert file.read() == data[-3:]


@pytest.mark.slow
def test_kills_while_a_corpus_is_uploaded(store: Store, s3: S3Server, tmp_path: Path) -> None:
    """What is there then is no corpus; the same command makes it one."""
    names = [write(tmp_path / f"text.{language}", made_text(language, 40_000, 0)) for language in ("de", "en")]
    url = f"{store.url}/corpus"
    overrides = [f"out={url}", f"train.de={names[0]}", f"train.en={names[1]}", "bpe.n_codes=60", "workers=1"]
    command = [sys.executable, "-c", "from data_prep.prepare import main; main()", *overrides]
    s3.says("slow", "300000")  # bytes a second: seconds for a shard
    for uploaded in (0, 3, 6):
        while s3.is_receiving():
            time.sleep(0.01)
        process = subprocess.Popen(command, env=process_environment(), stdout=subprocess.DEVNULL, cwd=tmp_path)
        while not (s3.is_receiving() and len(store.names("corpus")) >= uploaded):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store.read("corpus/manifest.json") is None
    s3.says("slow", None)
    assert any((tmp_path / "cache/prepared").rglob("*.npz"))
    subprocess.run(command, env=process_environment(), stdout=subprocess.DEVNULL, cwd=tmp_path, check=True)
    assert not any((tmp_path / "cache/prepared").rglob("*.npz"))
    Corpus(url).verify()
