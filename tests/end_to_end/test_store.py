"""Runs that are kept in object storage, on machines that come and go: a real S3 server, real deaths."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, command, train_here
from tests.end_to_end.worlds import SERVER, Death, _process, assert_same_run, start
from tests.s3_server import KEY_ID, SECRET, TOKEN, S3Server
from xlm_train.commands.verify import verify
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError, ConfigError
from xlm_train.runtime.mirror import Mirror
from xlm_train.runtime.run_store import Manifest, RunStore, local_checkpoint
from xlm_train.runtime.storage import Store
from xlm_train.training.loggers import read_metrics

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def config(compose: Config, corpus_folder: Path, tmp_path: Path, s3: S3Server) -> Config:
    """config(machine, *overrides): experiment=smoke as run `run`, on that machine's disk and in the store."""

    def composed(machine: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={corpus_folder}", f"paths.runs={tmp_path / machine}", "run_name=run")
        often = ("callbacks.metrics.every_n_steps=2", "callbacks.checkpointing.every_n_steps=3", "trainer.max_steps=12")
        store = (
            f"storage.url={s3.url}",
            "storage.max_behind=1",
            "storage.lease_seconds=0.8",
            "storage.wait_seconds=60",
        )
        return compose("train", "experiment=smoke", *often, *where, *store, *overrides)

    return composed


@pytest.fixture(scope="module")
def undisturbed(compose: Config, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one disk, without a store."""
    folder = tmp_path_factory.mktemp("undisturbed")
    where = (f"data.path={corpus_folder}", f"paths.runs={folder}", "run_name=run")
    often = ("callbacks.metrics.every_n_steps=2", "callbacks.checkpointing.every_n_steps=3", "trainer.max_steps=12")
    train_here(compose("train", "experiment=smoke", *often, *where))
    return folder / "run"


def assert_the_same(undisturbed: Path, run: Path) -> None:
    """The same run, bit for bit, and no step twice or missing in its metrics."""
    assert_same_run(undisturbed, run)
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl")]
    assert steps == [line["step"] for line in read_metrics(undisturbed / "metrics.jsonl")]


def events(run: Path) -> list[tuple[str, int]]:
    """What happened, and at which step; not what other programs did to this machine."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [(one["event"], one["step"]) for one in map(json.loads, lines) if one["event"] != "busy_cores"]


def run_store(s3: S3Server, folder: Path) -> RunStore:
    return RunStore(s3.url, "run", folder, 1.0)


def steps_stored(s3: S3Server, folder: Path) -> list[int]:
    """Steps of the checkpoints that the newest manifest names."""
    manifest = next(run_store(s3, folder).manifests())
    return [checkpoint_file.step_of(Path(name)) for name in manifest.checkpoints]


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def training(settings: dict[str, Any]) -> Iterator[Any]:
    """A process that trains, and is gone afterwards; its output is beside the run's folder."""
    watched = Path(settings["paths"]["runs"]) / "run.watched"
    watched.mkdir(parents=True, exist_ok=True)
    process = SERVER.Process(target=_process, args=(dict(os.environ), settings, 0, 1, 0, watched, None))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_an_empty_disk_goes_on(config: Config, undisturbed: Path, tmp_path: Path, s3: S3Server) -> None:
    """A machine is lost in the middle of a step; the next one takes the run when the lease has expired."""
    one = config("one")
    assert start(one, 1, Death(step=10, slot=1)) == [-signal.SIGKILL]
    shutil.rmtree(tmp_path / "one/run")
    train_here(config("two"))
    assert_the_same(undisturbed, tmp_path / "two/run")
    (first, at_0), (second, at_6), *rest = events(tmp_path / "two/run")
    assert (first, at_0, second, rest) == ("start", 0, "start", [("finished", 12)])
    assert at_6 >= 6  # at most one checkpoint was not mirrored
    assert steps_stored(s3, tmp_path / "three/run")[0] == 12
    planted = [word.encode() for word in (SECRET, TOKEN, KEY_ID)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    store = Store(s3.url)
    contents = [path.read_bytes() for path in files] + [store.read(name) or b"" for name in store.names("")]
    assert len(contents) > 30
    assert not any(word in content for content in contents for word in planted)


def test_the_network_may_be_down(
    config: Config, undisturbed: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends without the store, which has all of it a while later; with too many checkpoints behind it waits."""
    run = tmp_path / "one/run"
    seen: list[int] = []

    def last_step() -> int:
        lines = read_metrics(run / "metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    told = Mirror.checkpoint_written

    def slowly(mirror: Mirror) -> None:
        time.sleep(0.3)  # a slow disk
        told(mirror)

    def cut_the_network(mirror: Mirror) -> None:
        monkeypatch.setattr(Mirror, "checkpoint_written", slowly)
        s3.deaf(True)  # before the first checkpoint can be mirrored
        slowly(mirror)

    def repair_the_network() -> None:
        until(lambda: last_step() >= 8 and "mirror_fails" in (run / "events.jsonl").read_text())
        seen.append(last_step())
        s3.deaf(False)

    monkeypatch.setattr(Mirror, "checkpoint_written", cut_the_network)
    thread = threading.Thread(target=repair_the_network)
    thread.start()
    train_here(config("one", "storage.max_behind=2", "trainer.max_steps=16"))
    thread.join()
    assert seen[0] <= 9  # it had written 3 and 6, and waited before the third
    names = [name for name, _ in events(run)]
    assert [name for name in names if "mirror" in name] == ["mirror_fails", "mirrored_again"]
    assert steps_stored(s3, run)[0] == 16


def test_one_machine_at_a_time(config: Config, undisturbed: Path, tmp_path: Path, s3: S3Server) -> None:
    """The second is refused while the first renews; suspended, the first loses the run, and stops when it wakes up."""
    first = config("one", "trainer.max_steps=100000", "storage.lease_seconds=10")
    with training(first) as process:
        until(lambda: any(manifest.checkpoints for manifest in run_store(s3, tmp_path / "x").manifests()))
        with pytest.raises(ConfigError, match="is being trained by"):
            train_here(config("two"))
        assert not (tmp_path / "two/run/config.yaml").exists()
        os.kill(process.pid, signal.SIGSTOP)
        step = steps_stored(s3, tmp_path / "two/run")[0]
        train_here(config("two", f"trainer.max_steps={step + 4}"))
        taken = steps_stored(s3, tmp_path / "two/run")
        os.kill(process.pid, signal.SIGCONT)
        process.join(PATIENCE)
        assert process.exitcode not in (0, None)
    assert "has taken this run over" in (tmp_path / "one/run/traceback.txt").read_text()
    assert json.loads((tmp_path / "one/run/status.json").read_text())["status"] == "failed"
    assert steps_stored(s3, tmp_path / "three/run") == taken
    assert taken[0] == step + 4


def test_damaged_objects(
    config: Config, undisturbed: Path, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated checkpoint is passed over for the one before; where none is whole the run is not begun again."""
    assert start(config("one"), 1, Death(step=11, slot=1)) == [-signal.SIGKILL]
    run = run_store(s3, tmp_path / "two/run")
    manifest = next(run.manifests())
    newest, before, *_ = manifest.checkpoints
    stored = manifest.files[newest]
    run.store.write(stored.object, (run.store.read(stored.object) or b"")[:-1000])
    train_here(config("two"))
    assert_the_same(undisturbed, tmp_path / "two/run")
    assert events(tmp_path / "two/run")[1] == ("start", checkpoint_file.step_of(Path(before)))
    assert verify(f"{s3.url}/run") == 0
    stored = next(run.manifests()).files[f"checkpoints/{checkpoint_file.name_of(12)}"]
    assert f"ok       {s3.url}/run/{stored.object}: step 12, 12 updates" in capsys.readouterr().out
    for manifest in run.manifests():
        for name in manifest.checkpoints:
            run.store.write(manifest.files[name].object, b"")
    assert verify(f"{s3.url}/run") == 1
    assert f"DAMAGED  {s3.url}/run/{stored.object}: its checksum is wrong" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no checkpoint in it is whole"):
        train_here(config("three"))


@pytest.mark.slow
def test_old_listings(config: Config, undisturbed: Path, tmp_path: Path, s3: S3Server) -> None:
    """Every listing is that of a time before the run: what is there is found by its name."""
    store = run_store(s3, tmp_path / "one/run")
    s3.says("stale", "")
    assert store.store.names("lease") == store.store.names("") == []
    assert start(config("one"), 1, Death(step=10, slot=0)) == [-signal.SIGKILL]
    assert store.store.names("lease") == []
    train_here(config("two"))
    assert_the_same(undisturbed, tmp_path / "two/run")
    assert events(tmp_path / "two/run")[1][1] >= 6


@pytest.mark.slow
def test_newer_on_disk_than_in_the_store(config: Config, undisturbed: Path, tmp_path: Path, s3: S3Server) -> None:
    """The disk counts on the machine that held the run last; once another has, the store does."""
    s3.says("slow", "20000")  # bytes a second: no checkpoint comes through in time
    loose = ("storage.max_behind=100", "callbacks.checkpointing.keep_last=10")
    assert start(config("one", *loose), 1, Death(step=10, slot=1)) == [-signal.SIGKILL]
    s3.says("slow", None)
    assert run_store(s3, tmp_path / "x").read("metrics.jsonl") is None
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    train_here(config("one", *loose))
    assert_the_same(undisturbed, tmp_path / "one/run")
    assert events(tmp_path / "one/run")[1] in (("start", 9), ("start", 10))  # whether 10 was whole when it died
    assert {12, 9, 6, 3} <= {*steps_stored(s3, tmp_path / "x")}
    # the copy is a disk that was left behind: its own checkpoints are put aside
    shutil.rmtree(tmp_path / "one")
    train_here(config("two", *loose, "trainer.max_steps=13"))
    (tmp_path / "copy").rename(tmp_path / "one")
    train_here(config("one", *loose, "trainer.max_steps=14"))
    assert events(tmp_path / "one/run")[-2:] == [("start", 13), ("finished", 14)]
    assert (tmp_path / "one/run/checkpoints/step-00000003.pt.unmirrored").is_file()


@pytest.mark.slow
def test_the_command_with_urls(config: Config, corpus_folder: Path, tmp_path: Path, s3: S3Server) -> None:
    """data.path and paths.runs are URLs; the checkpoint is found by the run's URL, and no name leads outside."""
    store = Store(f"{s3.url}/corpus")
    for path in corpus_folder.iterdir():
        if path.is_file():
            store.upload(path, path.name)
    words = (f"data.path={s3.url}/corpus", f"paths.runs={s3.url}/runs", "run_name=run")
    command("xlm_train.commands.train", "experiment=smoke", "trainer.max_steps=2", *words)
    file = local_checkpoint(f"{s3.url}/runs/run")
    assert file.is_relative_to(tmp_path / "cache")
    assert checkpoint_file.load(file)["progress"]["step"] == 2
    sweep = ("-m", "seed=1,2", "run_name=sweep", f"paths.runs={tmp_path / 'sweeps'}", f"storage.url={s3.url}/mirrored")
    command("xlm_train.commands.train", "experiment=smoke", "trainer.max_steps=2", words[0], *sweep)
    for seed in (1, 2):
        job = local_checkpoint(f"{s3.url}/mirrored/sweep,seed={seed}")
        assert checkpoint_file.load(job)["progress"]["step"] == 2
    files = {"../x": {"object": "00000001/x", "size": 1, "sha256": ""}}
    with pytest.raises(ValueError, match="it names"):
        Manifest.from_bytes(1, json.dumps({"files": files, "best": None}).encode())


@pytest.mark.slow
def test_fifty_kills_during_uploads(config: Config, tmp_path: Path, s3: S3Server) -> None:
    """SIGKILL while one of the first large objects of a start is on its way; then the same disk or an empty one goes on."""
    words = ("storage.max_behind=2", "trainer.max_steps=300")
    undisturbed = config("undisturbed", *words)
    undisturbed["storage"]["url"] = None
    train_here(undisturbed)
    draw, kills, disks = random.Random(17), 0, 0
    s3.says("slow", "2000000")
    while kills < 50:
        with training(config(f"disk-{disks}", *words)) as process:
            for _ in range(draw.randrange(5)):
                until(lambda: s3.is_receiving() or process.exitcode is not None)
                until(lambda: not s3.is_receiving())
            until(lambda: s3.is_receiving() or process.exitcode is not None)
            time.sleep(draw.uniform(0.0, 0.2))
            until(lambda: s3.is_receiving() or process.exitcode is not None)
            assert process.exitcode is None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        disks += draw.random() < 0.4
    s3.says("slow", None)
    train_here(config("last", *words))
    assert_the_same(tmp_path / "undisturbed/run", tmp_path / "last/run")
    starts = [step for name, step in events(tmp_path / "last/run") if name == "start"]
    print(f"{kills} kills, {disks} disks lost; the starts of the surviving history were at {starts}")
    assert starts == sorted(starts)
    assert len({*starts}) >= 3  # not all from the beginning
