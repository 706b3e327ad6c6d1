"""One folder a run, keyed by its name: starting the same name again resumes it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.files import (
    LONGEST_NAME,
    append_line,
    atomic_write,
    lock,
    read_json,
    remove_leftovers,
    write_json,
)
from xlm_train.runtime.mirror import Mirror, MirrorSettings, mirror
from xlm_train.runtime.processes import is_first_process
from xlm_train.runtime.run_store import RunStore

NAME = re.compile(r"[\w=+@-][\w.,=+@/-]*")
DONE = ("finished", "stopped")  # what a start of the same command would not change


def name_problem(name: str) -> str | None:
    """Say why no run can have a name; None where one can."""
    if not NAME.fullmatch(name) or ".." in name:
        return "use letters, digits and . , = + - _ @ (it becomes a folder's name)"
    longest = max(len(part.encode()) for part in name.split("/"))
    return f"has {longest} bytes; a folder's name has at most {LONGEST_NAME}" if longest > LONGEST_NAME else None


def parse_config(data: bytes, name: str | Path) -> dict[str, Any]:
    """Read the text of a run's config.yaml.

    Args:
        data: UTF-8.
        name: of the file, for messages.

    Raises:
        ConfigError: it is no config.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.load(io.BytesIO(data)))
    except Exception as error:  # OmegaConf and its YAML parser raise many types; all mean that the file is damaged
        raise ConfigError(f"{name}: is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: is damaged: not a config")
    return {str(key): value for key, value in found.items()}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a nested dict into {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_without_checkpoints(config: dict[str, Any]) -> bool:
    """Whether a run was told to save none (callbacks.checkpointing=null): then none are lost."""
    callbacks = config.get("callbacks")
    return isinstance(callbacks, dict) and "checkpointing" in callbacks and callbacks["checkpointing"] is None


class RunFolder:
    """Paths of a run, and the files beside its checkpoints.

    Opening compares the config of the last start with this one's and writes nothing.

    Args:
        runs: folder of all runs.
        name: of the run; may hold `/`.
        config: resolved config of this start.
        corpus_lineage: lineage hash of its corpus, which identifies the text wherever the folder is.
        identity: dotted keys (of values or of whole sections) that make two starts the same run. All others (devices,
            length, logging, paths) may change between starts.
        upgrade: converts an earlier version's config to today's names.
        mirrored: where the folder is kept besides; from there it is brought up to date before it is opened.

    Raises:
        ConfigError: with every identity key that differs.
    """

    def __init__(
        self,
        runs: str | Path,
        name: str,
        config: dict[str, Any],
        corpus_lineage: str,
        identity: Sequence[str],
        upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
        mirrored: MirrorSettings | None = None,
    ) -> None:
        if (why := name_problem(name)) is not None:
            raise ConfigError(f"run_name='{name}': {why}")
        self.path = Path(runs) / name
        for folder in Path(name).parents[:-1]:
            if (Path(runs) / folder / "config.yaml").is_file():
                raise ConfigError(f"run_name={name}: {Path(runs) / folder} is a run, and a run has no others inside")
        files = [] if self.config_file.is_file() else self.path.rglob("config.yaml")
        inner = [file.parent for file in files if (file.parent / "checkpoints").is_dir()]
        if inner and self.path not in inner:
            raise ConfigError(f"run_name={name}: {inner[0]} is a run, and {self.path} would be a run around it")
        self.mirror: Mirror | None = None  # of the first process, while it holds the folder
        self.is_mirrored = mirrored is not None  # by whichever process
        self._mirroring: contextlib.AbstractContextManager[Mirror | None] = contextlib.nullcontext()
        if mirrored is not None:
            store = RunStore(mirrored.url, name, self.path, mirrored.lease_seconds)
            store.bring()
            self._mirroring = mirror(store, mirrored, self._record_mirroring)
        self.config = {**config, "corpus_lineage": corpus_lineage}
        self.identity = identity
        self.upgrade = upgrade
        self.changes: list[str] = []  # execution keys that differ from the last start's
        self.excluded: set[int] = set()  # steps that rollbacks have found bad
        self.starts_again = False  # another config's start left this folder without a checkpoint
        self._lock: IO[str] | None = None
        previous = parse_config(self.config_file.read_bytes(), self.config_file) if self.config_file.is_file() else {}
        if not _is_without_checkpoints(previous):
            self._refuse_lost_checkpoints()
        # A start that failed before its first checkpoint left nothing that another config could spoil.
        if self.config_file.is_file():
            if "corpus_lineage" not in previous:  # its last line
                raise ConfigError(f"{self.config_file}: is damaged: not whole. Without it the same command goes on")
            self._compare(previous)
        if not self.starts_again and os.path.lexists(self.path / "excluded.json"):
            self.excluded = self._read_excluded()

    def _refuse_lost_checkpoints(self) -> None:
        step = self._step_in_status()
        if step and not checkpoint_file.any_in(self.checkpoints):
            raise ConfigError(
                f"run_name={self.path.name}: status.json says that this run has come to step {step:,}, but {self.checkpoints}"
                " holds no step-*.pt: bring them back, choose another run_name (init_from=FILE takes weights that are"
                f" elsewhere), or remove {self.path / 'status.json'} to start again from step 0 (metrics.jsonl is then"
                " written again)"
            )

    def _step_in_status(self) -> int:
        """The step that the last start had come to; 0 where there is none, or it never said."""
        step = self._status().get("step", 0)
        if not isinstance(step, int):
            raise ConfigError(f"{self.path / 'status.json'}: is damaged: its step is {step!r}")
        return step

    def _read_excluded(self) -> set[int]:
        file = self.path / "excluded.json"
        steps = read_json(file)
        if not isinstance(steps, list) or not all(isinstance(step, int) for step in steps):
            raise ConfigError(f"{file}: is damaged: it must be a list of steps")
        return set(steps)

    def _status(self) -> dict[str, Any]:
        file = self.path / "status.json"
        found = read_json(file) if file.is_file() else {}
        if not isinstance(found, dict):
            raise ConfigError(f"{file}: is damaged: not a JSON object")
        return found

    def _compare(self, previous: dict[str, Any]) -> None:
        different = self._differences(previous, identity=True)
        if previous.get("corpus_lineage") != self.config["corpus_lineage"]:
            different.append(
                f"data.path: another corpus (lineage {previous.get('corpus_lineage')}, now {self.config['corpus_lineage']})"
            )
        if different and not checkpoint_file.any_in(self.checkpoints):
            self.starts_again = True
        elif different:
            raise ConfigError(
                [
                    f"run_name={self.path.name}: {self.path} holds a run with another config; choose another run_name, or undo:",
                    *different,
                ]
            )
        self.changes = self._differences(previous, identity=False)

    def _differences(self, previous: dict[str, Any], identity: bool) -> list[str]:
        """Lines `key: was A, now B` for the values that differ, among identity keys or among all others."""

        def is_identity(key: str) -> bool:
            return any(key == name or key.startswith(f"{name}.") for name in self.identity)

        before, after = flatten(self.upgrade(previous)), flatten(self.config)
        absent = "nothing"
        return [
            f"{key}: was {before.get(key, absent)}, now {after.get(key, absent)}"
            for key in sorted(before.keys() | after.keys())
            if is_identity(key) is identity and before.get(key, absent) != after.get(key, absent)
        ]

    @property
    def lost(self) -> UserError | None:
        """Set on the first process where another machine has taken the run over: it must stop."""
        return None if self.mirror is None else self.mirror.lost

    @property
    def config_file(self) -> Path:
        """File with the resolved config of the last start."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the files `step-*.pt` and `best.pt`."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """File with the translations that validations show."""
        return self.path / "samples.jsonl"

    def bad_batch(self, step: int) -> Path:
        """Return the file for the text of a bad step."""
        return self.path / "bad_batches" / f"step-{step:08d}.txt"

    def prepare(self) -> None:
        """Create the folder and take its lock, on the first process of the run.

        Raises:
            ConfigError: the folder cannot be made, or another process is training in it.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until `release`
        except OSError as error:
            raise ConfigError(f"paths.runs: {self.path} cannot be made: {error.strerror}") from error
        try:
            lock(self._lock)
        except BlockingIOError as error:
            raise ConfigError(f"run_name={self.path.name}: another process is training in {self.path}") from error
        for folder in (self.path, self.checkpoints):
            remove_leftovers(folder)

    def release(self) -> None:
        """Release the lock, where this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def begin(self, corpus: Mapping[str, Any]) -> None:
        """Log what has changed since the last start, and write this start's config and environment.

        Args:
            corpus: what is known of the corpus; a report tells of it wherever run and corpus are by then.
        """
        for change in self.changes:
            log(f"changed since the last start: {change}")
        if not is_first_process():
            return
        with atomic_write(self.config_file) as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(self.config)).encode())
        write_json(self.path / "environment.json", environment())
        write_json(self.path / "corpus.json", corpus)
        self.write_status("running")

    def write_status(self, status: str, **details: Any) -> None:
        """Write status.json.

        Args:
            status: running, finished, preempted, stopped or failed.
            details: written beside it; without a step among them, the one written last stays.
        """
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(self.path / "status.json", {"status": status, "time": at, "step": self._step_in_status(), **details})

    @contextlib.contextmanager
    def held(self, explain: Callable[[BaseException], bool]) -> Iterator[None]:
        """Hold the folder's lock while the block runs; write status and traceback where it fails.

        Args:
            explain: whether this process's traceback shows the cause (it does not where another process is lost).

        Raises:
            ConfigError: the folder cannot be made, or another process is training in it.
        """
        with contextlib.ExitStack() as leaving:
            if is_first_process():
                self.prepare()
                leaving.callback(self.release)
                (self.path / "traceback.txt").unlink(missing_ok=True)  # of an earlier start
                self.mirror = leaving.enter_context(self._mirroring)
            with self._failure_written(explain):
                yield

    @contextlib.contextmanager
    def _failure_written(self, explain: Callable[[BaseException], bool]) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(UserError, OSError):  # a full disk must not hide what went wrong
                if is_first_process():
                    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    self.write_status("failed", error="aborted" if isinstance(error, KeyboardInterrupt) else text)
            with contextlib.suppress(UserError, OSError):
                if explain(error):
                    with atomic_write(self.path / "traceback.txt") as file:
                        file.write(traceback.format_exc().encode())
            raise

    def _record_mirroring(self, event: str, details: dict[str, str]) -> None:
        newest = next(iter(checkpoint_file.in_folder(self.checkpoints)), None)
        self.record(event, 0 if newest is None else checkpoint_file.step_of(newest), **details)

    def mismatch(self, content: dict[str, Any]) -> str | None:
        """Return why a checkpoint is not this run's, or None where it is, for `checkpoint_file.newest`.

        Args:
            content: what is inside the checkpoint.
        """
        different = self._differences(content["config"], identity=True)
        if content["lineage"]["corpus"] != self.config["corpus_lineage"]:
            different.append(f"corpus lineage: {content['lineage']['corpus']}, not {self.config['corpus_lineage']}")
        return f"is another run's checkpoint ({'; '.join(different)})" if different else None

    def newest_checkpoint(self) -> checkpoint_file.Found:
        """Find the newest whole checkpoint of this run; damaged ones and other runs' are named and skipped.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        found = checkpoint_file.newest(self.checkpoints, self.mismatch)
        for path, why in found.skipped:
            log(f"warning: {path} is skipped: {why}")
        if found.skipped and found.content is None:
            raise UserError(
                [
                    f"run_name={self.path.name}: no checkpoint in {self.checkpoints} is whole; move them away to start again",
                    *(why for _, why in found.skipped),
                ]
            )
        return found

    def record(self, event: str, step: int, **details: Any) -> None:
        """Append a line to events.jsonl, which, unlike metrics, a resumed run does not rewind.

        Args:
            event: what has happened.
            step: when.
            details: written beside it.
        """
        line = json.dumps({"time": round(time.time(), 3), "step": step, "event": event, **details})
        try:
            append_line(self.path / "events.jsonl", line)
        except OSError as error:  # the run matters more than its record
            log(f"warning: {self.path / 'events.jsonl'}: {event} is not recorded: {error.strerror}")

    def tracking_id(self) -> str:
        """Return the id of this run at a tracking service, the same over all restarts."""
        file = self.path / "tracking_id"
        if not file.is_file():
            with atomic_write(file) as out:
                out.write(secrets.token_hex(8).encode())
        return file.read_text()

    def exclude(self, step: int) -> None:
        """Exclude a step that a rollback found bad: neither this start nor a later one reads it again."""
        self.excluded.add(step)
        if is_first_process():
            write_json(self.path / "excluded.json", sorted(self.excluded))

    def read_status(self) -> str | None:
        """Return the status of the last start; None where there is none."""
        return self._status().get("status")


def environment() -> dict[str, Any]:
    """Describe interpreter, machine and every installed package, for those who repeat the run."""
    import torch

    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": dict(sorted(packages.items())),
    }
