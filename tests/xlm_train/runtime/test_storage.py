"""Objects of a real S3 server: whole or absent, never outside of their prefix, fetched again from where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import command
from tests.s3_server import S3Server
from xlm_train.commands.verify import verify
from xlm_train.config.storage import with_local_runs
from xlm_train.data.corpus import Corpus
from xlm_train.runtime import checkpoint_file, run_store
from xlm_train.runtime.errors import CheckpointError, ConfigError, CorpusError, StorageError
from xlm_train.runtime.files import sha256_of
from xlm_train.runtime.lease import RECORD, Lease
from xlm_train.runtime.mirror import MirrorSettings, mirror
from xlm_train.runtime.run_store import Manifest, RunStore
from xlm_train.runtime.storage import DamagedObject, Store, uploaded, url_problem, url_problems


@pytest.fixture
def store(s3: S3Server) -> Store:
    return Store(s3.url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://bucket/a/b", None),
        ("s3://key:secret@bucket/a", "must not hold credentials"),
        ("s3://bucket/a/../../b", "is no URL of a folder"),
        ("s3://bucket//a", "is no URL of a folder"),
        ("s3:///a", "is no URL of a folder"),
        ("s3://bucket/a?versionId=1", "is no URL of a folder"),
        ("ftp://host/a", "ftp:// is not supported"),
        ("hf://datasets/a/b", "hf:// is not supported to write to"),
    ],
)
def test_urls(url: str, says: str | None) -> None:
    found = url_problem(url, writes=True)
    assert found is None if says is None else says in str(found)
    assert not [line for line in url_problems("paths.runs", url, writes=True) if "secret" in line]


def test_a_missing_extra_is_told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as Python marks what cannot be imported
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "s3fs")
    assert url_problem("s3://bucket/a") == "s3fs is not installed: pip install 'xlm_train[s3]'"


def test_runs_at_a_url_are_made_in_the_cache(s3: S3Server, tmp_path: Path) -> None:
    config = with_local_runs({"paths": {"runs": "s3://bucket/p/q"}, "storage": {"url": None}})
    assert config == {"paths": {"runs": f"{tmp_path}/cache/runs/s3/bucket/p/q"}, "storage": {"url": "s3://bucket/p/q"}}
    spoken = {"paths": {"runs": "s3://a:b@bucket"}, "storage": {"url": None}}
    assert with_local_runs(spoken) == spoken  # told by the rules, and never a folder's name


def test_objects(store: Store) -> None:
    assert store.read("a/b") is None
    assert store.names("") == []
    store.write("a/b", b"one")
    assert (store.read("a/b"), store.names("a"), store.size_and_time("a/b")[0]) == (b"one", ["a/b"], 3)
    assert not store.create("a/b", b"two")
    assert store.create("a/c", b"two")
    assert store.names("") == ["a/b", "a/c"]
    store.remove(["a/b", "a/none"])
    assert store.names("") == ["a/c"]
    for name in ("../other", "/a", "a/../../b"):
        with pytest.raises(StorageError, match="outside"):
            store.write(name, b"")
    with pytest.raises(StorageError, match="no-such-bucket"):
        Store("s3://no-such-bucket/a").write("x", b"1")


def test_a_download_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched is kept; what does not match is thrown away, and comes whole the next time."""
    monkeypatch.setattr("xlm_train.runtime.storage.BLOCK", 1000)
    data = bytes(range(250)) * 20
    (tmp_path / "source").write_bytes(data)
    sha256 = sha256_of(tmp_path / "source")
    store.upload(tmp_path / "source", "object")

    def matches(path: Path) -> bool:
        return sha256_of(path) == sha256

    (tmp_path / ".file.part").write_bytes(data[:2500])
    store.write("object", bytes(2500) + data[2500:])  # the beginning is not asked for again
    store.download("object", tmp_path / "file", matches)
    assert (tmp_path / "file").read_bytes() == data
    with pytest.raises(DamagedObject, match="its checksum is wrong"):
        store.download("object", tmp_path / "other", matches)
    store.write("object", data)
    store.download("object", tmp_path / "other", matches)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["file", "other", "source"]


def test_an_upload_is_refused_where_there_is_something(store: Store, s3: S3Server) -> None:
    with uploaded(f"{s3.url}/out", last="record") as out:
        out.mkdir()
        (out / "record").write_text("1")
        (out / "part").mkdir()
        (out / "part/a").write_text("2")
    assert store.names("out") == ["out/part/a", "out/record"]
    assert not out.exists()
    with pytest.raises(StorageError, match="is not empty"), uploaded(f"{s3.url}/out", last="record"):
        pass


@pytest.fixture
def stored_corpus(corpus_folder: Path, store: Store) -> str:
    for path in corpus_folder.iterdir():
        if path.is_file():
            store.upload(path, f"corpus/{path.name}")
    return f"{store.url}/corpus"


def test_a_corpus_is_fetched_once(stored_corpus: str, store: Store, corpus_folder: Path, tmp_path: Path) -> None:
    """By whoever comes first; the others wait. Then it is mapped from the cache."""
    found: list[Corpus] = []
    threads = [threading.Thread(target=lambda: found.append(Corpus(stored_corpus))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    folder = found[0].path
    assert folder.is_relative_to(tmp_path / "cache")
    found[0].verify()
    assert found[0].lineage == Corpus(corpus_folder).lineage
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    store.remove([name for name in store.names("corpus") if not name.endswith("manifest.json")])
    assert Corpus(stored_corpus).path == folder
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_corpus_that_is_not_whole(stored_corpus: str, store: Store) -> None:
    shard = next(name for name in store.names("corpus") if name.endswith(".idx.npy"))
    data = store.read(shard) or b""
    store.write(shard, data[:-8])
    with pytest.raises(StorageError, match=f"{shard}: its checksum is wrong"):
        Corpus(stored_corpus)
    store.write(shard, data)
    manifest = json.loads(store.read("corpus/manifest.json") or b"")
    manifest["codes"]["file"] = "../../codes"
    store.write("corpus/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(CorpusError, match=r"names a file '../../codes'"):
        Corpus(stored_corpus)
    with pytest.raises(CorpusError, match="no manifest"):
        Corpus(f"{store.url}/nothing")


def test_a_stored_corpus_is_verified_where_it_is(
    stored_corpus: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(stored_corpus) == 0
    assert f"ok       {stored_corpus}: every shard's checksum is right" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    shards = [name for name in store.names("corpus") if name.endswith(".npy")]
    data = store.read(shards[0]) or b""
    store.write(shards[0], data[:-1] + bytes([data[-1] ^ 1]))
    store.remove([shards[1]])
    with pytest.raises(CorpusError) as caught:
        verify(f"{stored_corpus}/")
    assert len(caught.value.problems) == 2
    assert f"{store.url}/{shards[0]}: its checksum differs" in str(caught.value)
    assert f"{store.url}/{shards[1]}: there is no such object" in str(caught.value)
    with pytest.raises(CheckpointError, match="is neither a corpus nor a run with a checkpoint"):
        verify(f"{store.url}/nothing")


def test_of_many_one_gets_the_lease(store: Store, tmp_path: Path) -> None:
    """All at the same moment, each with a disk of its own."""
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
    leases = [Lease(store, folder, 600.0) for folder in folders]
    for lease in leases:
        lease.remember(0)
    got: list[Lease] = []
    refused: list[str] = []
    start = threading.Barrier(len(leases))

    def claim(lease: Lease) -> None:
        start.wait()
        try:
            lease.claim()
            got.append(lease)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=claim, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    assert got[0].newest() == 1
    began = time.monotonic()
    got[0].release()
    leases[0 if got[0] is not leases[0] else 1].wait_until_free()
    assert time.monotonic() - began < 60  # not the 600 seconds


def a_run(store: Store, folder: Path, host: str = "a") -> RunStore:
    run = RunStore(store.url, "run", folder, 600.0)
    run.lease._host = host
    return run


def mirrored(run: RunStore) -> Manifest:
    """The run's folder, brought up to date and mirrored; what the store says of it then."""
    run.bring()
    with mirror(run, MirrorSettings(run.store.url, 2, 600.0, 60.0), lambda *_: None):
        pass
    return next(run.manifests())


@pytest.mark.parametrize("order", ["ab", "ba", "acb"])
def test_hosts_with_one_folder(order: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process's host keeps its lease, whenever those of another one look at the same folder."""
    checkpoints = tmp_path / "shared/checkpoints"
    checkpoints.mkdir(parents=True)
    checkpoint_file.write(checkpoints / "step-00000003.pt", {"model": {}})
    for start in range(2):
        first, other = a_run(store, tmp_path / "shared"), a_run(store, tmp_path / "shared", "b")
        for turn in order:
            monkeypatch.setattr(run_store, "is_first_process", lambda turn=turn: turn == "a")
            first.claim() if turn == "c" else (first if turn == "a" else other).bring()
        if "c" not in order:
            first.claim()
        (tmp_path / f"shared/metrics{start}.jsonl").touch()  # of this start: no one puts it aside
        if order[-1] == "b":
            monkeypatch.setattr(run_store, "is_first_process", lambda: False)
            other.bring()
        assert json.loads((tmp_path / "shared" / RECORD).read_text())["host"] == "a"
        with mirror(a_run(store, tmp_path / "shared"), MirrorSettings(store.url, 2, 600.0, 60.0), lambda *_: None):
            pass
        first.lease.release()
        assert not list((tmp_path / "shared").rglob("*.unmirrored"))


def test_a_host_with_a_disk_of_its_own_gets_the_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    checkpoint_file.write(tmp_path / "a/checkpoints/step-00000003.pt", {"model": {}})
    mirrored(a_run(store, tmp_path / "a"))
    monkeypatch.setattr(run_store, "is_first_process", lambda: False)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / RECORD, tmp_path / "b" / RECORD)  # as a copy of an earlier state of a's disk has it
    a_run(store, tmp_path / "b", "b").bring()
    assert checkpoint_file.checksum(tmp_path / "b/checkpoints/step-00000003.pt")


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_whole_one(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a/checkpoints/step-00000003.pt"
    path.parent.mkdir(parents=True)
    checkpoint_file.write(path, {"model": {}})
    name, whole = "checkpoints/step-00000003.pt", path.read_bytes()
    before = mirrored(a_run(store, tmp_path / "a")).files[name]
    os.truncate(path, len(whole) - 7)
    (tmp_path / "a/metrics.jsonl").write_text("{}")
    after = mirrored(a_run(store, tmp_path / "a"))
    assert after.files[name] == before
    assert Store(f"{store.url}/run").read(before.object) == whole
    path.with_name("step-00000006.pt").write_bytes(whole[:-7])
    assert "checkpoints/step-00000006.pt" not in mirrored(a_run(store, tmp_path / "a")).files


def test_a_lease_that_is_taken_while_another_looks(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who found the run free must not take it from who was faster."""
    slow, fast = a_run(store, tmp_path / "slow", "slow"), a_run(store, tmp_path / "fast", "fast")
    looks = Lease.wait_until_free

    def is_slow(lease: Lease) -> int:
        number = looks(lease)
        monkeypatch.setattr(Lease, "wait_until_free", looks)
        fast.bring()
        fast.claim()
        return number

    monkeypatch.setattr(Lease, "wait_until_free", is_slow)
    slow.bring()
    with pytest.raises(ConfigError, match="is being trained by fast"):
        slow.claim()
    fast.lease.check()
    fast.lease.release()


def test_a_part_of_another_object_is_no_obstacle(store: Store, tmp_path: Path) -> None:
    store.write("a", b"new and whole")
    (tmp_path / ".a.part").write_bytes(b"of an old")
    store.download("a", tmp_path / "a", lambda path: path.read_bytes() == b"new and whole")
    assert (tmp_path / "a").read_bytes() == b"new and whole"
    with pytest.raises(DamagedObject):
        store.download("a", tmp_path / "b", lambda path: False)


def test_a_manifest_names_nothing_outside() -> None:
    good = {"object": "00000001/a", "size": 1, "sha256": "0"}
    for files, best in (
        ({"../a": good}, None),
        ({"a": {**good, "object": "/etc/passwd"}}, None),
        ({}, "../../a"),
        ({".b": good}, None),
    ):
        with pytest.raises(ValueError, match="it names"):
            Manifest.from_bytes(1, json.dumps({"files": files, "best": best}).encode())
    with pytest.raises(ValueError, match="KeyError"):
        Manifest.from_bytes(1, b'{"best": null}')


@pytest.mark.slow
def test_an_export_to_a_url(s3: S3Server, store: Store, stored_corpus: str) -> None:
    command("xlm_train.commands.export", f"data.path={stored_corpus}", f"out={s3.url}/exported", "format=xlm")
    names = store.names("exported")
    assert {"exported/export.json", "exported/train.en.pth"} <= {*names}


@pytest.mark.slow
def test_a_large_object_in_parts(store: Store, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        for number in range(120):
            file.write(bytes([number]) * (1 << 20))
    sha256 = sha256_of(tmp_path / "large")
    store.upload(tmp_path / "large", "large")
    store.download("large", tmp_path / "back", lambda path: sha256_of(path) == sha256)
    shutil.rmtree(tmp_path, ignore_errors=True)
