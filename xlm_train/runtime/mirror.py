"""A run's folder mirrored to object storage by a thread: training never waits for the network, and never fails for it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import counted, duration, log
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.lease import LeaseLost
from xlm_train.runtime.run_store import Manifest, RunStore, Stored, files_in

EVERY = 30.0  # seconds between looks at what has changed, besides each new checkpoint
LONGEST_DELAY = 60.0  # seconds between two attempts where the network is down


@dataclass(frozen=True)
class MirrorSettings:
    """Where runs are mirrored, and how patiently.

    Args:
        url: below which they are.
        max_behind: checkpoints that may be unmirrored before training waits.
        lease_seconds: after which a machine that is gone no longer holds its run.
        wait_seconds: at the end, for what is not mirrored yet.
    """

    url: str
    max_behind: int
    lease_seconds: float
    wait_seconds: float


@contextlib.contextmanager
def mirror(run: RunStore, settings: MirrorSettings, record: Callable[[str, dict[str, str]], None]) -> Iterator[Mirror]:
    """Hold a run's lease and mirror its folder while the block runs, and what is left after it.

    Args:
        run: where it is kept.
        settings: see there.
        record: appends an event to the run's record.

    Raises:
        ConfigError: another machine is training the run.
    """
    run.claim()
    made = Mirror(run, settings.max_behind, record)
    made.start()
    try:
        yield made
    finally:
        made.finish(settings.wait_seconds)


class Mirror:
    """Uploads what changes in a run's folder, whole files, and then the manifest that makes them visible.

    Args:
        run: where the run is kept, its lease held.
        max_behind: checkpoints that may be unmirrored before `is_behind`.
        record: appends an event to the run's record.
    """

    def __init__(self, run: RunStore, max_behind: int, record: Callable[[str, dict[str, str]], None]) -> None:
        self.run = run
        self.max_behind = max_behind
        self._record = record
        self._written = self._mirrored = 0  # checkpoints of this start, on disk and in the store
        self._manifest = Manifest(run.lease.number)
        self._known: dict[str, tuple[tuple[int, int], str]] = {}  # of a file: time and size, and its SHA-256 then
        self._changed = threading.Condition()
        self._closing = self._complete = False
        self._failing_since: float | None = None
        self._error = ""
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    @property
    def is_behind(self) -> bool:
        """Whether as many checkpoints are unmirrored as may be."""
        return self._written - self._mirrored >= self.max_behind

    @property
    def lost(self) -> LeaseLost | None:
        """Set where another machine has taken the run over: this one must stop."""
        return self.run.lease.lost

    def checkpoint_written(self) -> None:
        """Say that a new checkpoint is on disk."""
        with self._changed:
            self._written += 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until something is mirrored, at most so long."""
        with self._changed:
            if self.is_behind:
                self._changed.wait(seconds)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Mirror what is left and release the lease; say what could not be mirrored within so many seconds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while not self._complete and self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        if not self._complete and self.lost is None:
            log(
                f"warning: {self.run.folder}: not all of it is in {self.run.store.url} after storage.wait_seconds={seconds:g}"
                f" ({counted(self._written - self._mirrored, 'checkpoint')} missing{self._error and f'; {self._error}'}):"
                " the same command on this machine mirrors the rest"
            )
        self.run.lease.release()

    # -- the thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        delay = 0.0
        while True:
            with self._changed:
                if delay:
                    self._changed.wait(delay)
                elif self._written == self._mirrored and not self._closing:
                    self._changed.wait(EVERY)
                closing = self._closing
            try:
                self._synchronise()
            except LeaseLost:
                return self._end()
            except Exception as error:  # whatever it is, training goes on
                delay = min(max(1.0, 2 * delay), LONGEST_DELAY)
                self._fails(error)
                continue
            delay = 0.0
            self._works()
            if closing:
                self._complete = True
                return self._end()

    def _end(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fails(self, error: Exception) -> None:
        self._error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log(f"warning: the run cannot be mirrored; training goes on, and it is tried again: {self._error}")
            self._record("mirror_fails", {"error": self._error})

    def _works(self) -> None:
        if self._failing_since is not None:
            after = duration(time.monotonic() - self._failing_since)
            log(f"the run is mirrored again, after {after}")
            self._record("mirrored_again", {"after": after})
            self._failing_since, self._error = None, ""

    def _synchronise(self) -> None:
        """Make the store's state of the run that of the folder."""
        self.run.lease.check()
        written = self._written
        store, number = self.run.store, self.run.lease.number
        files: dict[str, Stored] = {}
        before = self._manifest.files or self._stored_before(number)
        best = self.run.folder / "checkpoints" / "best.pt"
        for name, path in files_in(self.run.folder):
            with contextlib.suppress(FileNotFoundError):  # an old checkpoint goes while we look
                if (stored := self._stored(name, path, before.get(name))) is not None:
                    files[name] = stored
        target = best.readlink().name if best.is_symlink() else None
        manifest = Manifest(number, files, target if f"checkpoints/{target}" in files else None)
        if manifest != self._manifest:
            self.run.lease.check()
            store.write(manifest.name, manifest.to_bytes())
            self._manifest = manifest
            self._remove_unneeded()
        with self._changed:
            self._mirrored = written
            self._changed.notify_all()

    def _stored_before(self, number: int) -> dict[str, Stored]:
        """What an earlier start of this machine stored under the same lease."""
        data = self.run.store.read(Manifest(number).name)
        return {} if data is None else Manifest.from_bytes(number, data).files

    def _stored(self, name: str, path: Path, before: Stored | None) -> Stored | None:
        """Store a file, if it is not stored as it is. A damaged checkpoint is not: what the store has of it stays."""
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(name)
        if before is not None and known is not None and known == (stamp, before.sha256):
            return before
        sha256, data = checkpoint_file.peek(path), b""
        is_checkpoint = sha256 is not None  # it never changes under its name; other files grow, so they are read once
        if sha256 is None and checkpoint_file.NAME.fullmatch(path.name):
            return before
        if sha256 is None:
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
        self._known[name] = stamp, sha256
        size = status.st_size if is_checkpoint else len(data)
        if before is not None and (before.size, before.sha256) == (size, sha256):
            return before
        stored = Stored(f"{self.run.lease.number:08d}/{name}.{sha256[:12]}", size, sha256)
        if is_checkpoint:
            self.run.store.upload(path, stored.object)
        else:
            self.run.store.write(stored.object, data)
        return stored

    def _remove_unneeded(self) -> None:
        """Remove what is no longer named: our own at once, earlier holders' when a checkpoint of this start was mirrored before."""
        store, number = self.run.store, self.run.lease.number
        needed = {stored.object for stored in self._manifest.files.values()} | {self._manifest.name}
        for name in store.names(""):
            owner = name.split("/")[0]
            if not owner.isdigit() or int(owner) > number:
                continue
            mine = int(owner) == number
            if (name not in needed) if mine else (self._mirrored > 0):
                store.remove([name])
