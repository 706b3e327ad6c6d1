"""A run in object storage: its folder, mirrored below paths.runs=URL, and brought back to an empty disk.

    URL/RUN/lease/00000003.json      who trains it (runtime/lease.py)
    URL/RUN/00000003/manifest.json   what the holder of that lease has stored: of each file its object, size and SHA-256
    URL/RUN/00000003/metrics.jsonl.1f0a3b5c7d9e, .../checkpoints/step-00000100.pt.8b1d...   the objects

An object's name holds the beginning of its SHA-256, so no object is ever replaced; the manifest, written last, makes what
it names visible. A run is what one manifest says: the newest that names a whole checkpoint.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import CheckpointError, StorageError
from xlm_train.runtime.files import locked, sha256_of
from xlm_train.runtime.lease import Lease
from xlm_train.runtime.processes import is_first_process
from xlm_train.runtime.storage import DamagedObject, MissingObject, Store, cached, is_url

ASIDE = ".unmirrored"  # ends the names of files that the store's state of a run does not have
BEST = "checkpoints/best.pt"
NAME = re.compile(r"(?!\.)[^/\x00]+(/(?!\.)[^/\x00]+)*")  # of a file in a run's folder: nothing hidden, nothing outside


@dataclass(frozen=True)
class Stored:
    """One file of a run in the store.

    Args:
        object: its name, relative to the run.
        size: bytes.
        sha256: of its bytes; of a checkpoint, the one it ends with.
    """

    object: str
    size: int
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Whether a file is this one. A checkpoint is known by its end: who loads it verifies it."""
        if not path.is_file() or path.is_symlink() or path.stat().st_size != self.size:
            return False
        return (checkpoint_file.peek(path) or sha256_of(path)) == self.sha256

    def matches(self, path: Path) -> bool:
        """Whether a file that has just been fetched is this one; every byte of it is read."""
        try:
            return self.is_at(path) and (checkpoint_file.peek(path) is None or bool(checkpoint_file.checksum(path)))
        except CheckpointError:
            return False


@dataclass(frozen=True)
class Manifest:
    """What the holder of a lease has stored.

    Args:
        number: of the lease.
        files: by name in the run's folder.
        best: name of the checkpoint that best.pt links to.
    """

    number: int
    files: dict[str, Stored] = field(default_factory=dict)
    best: str | None = None

    @property
    def name(self) -> str:
        """The manifest's own object."""
        return f"{self.number:08d}/manifest.json"

    @property
    def checkpoints(self) -> list[str]:
        """Names of the run's checkpoints, newest first."""
        found = [name for name in self.files if checkpoint_file.NAME.fullmatch(name.removeprefix("checkpoints/"))]
        return sorted(found, key=lambda name: checkpoint_file.step_of(Path(name)), reverse=True)

    def to_bytes(self) -> bytes:
        """As it is stored."""
        files = {name: vars(stored) for name, stored in sorted(self.files.items())}
        return json.dumps({"files": files, "best": self.best}, indent=1).encode()

    @classmethod
    def from_bytes(cls, number: int, data: bytes) -> Manifest:
        """Read one; a name that would lead out of the run's folder or prefix is refused.

        Raises:
            ValueError: It is no manifest.
        """
        try:
            content = json.loads(data)
            files = {str(name): Stored(**stored) for name, stored in content["files"].items()}
            names = [*files, *(stored.object for stored in files.values()), *filter(None, [content["best"]])]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if wrong := [name for name in names if not NAME.fullmatch(name)]:
            raise ValueError(f"it names {wrong[0]!r}")
        return cls(number, files, content["best"])


class RunStore:
    """One run's place in object storage.

    Args:
        url: below which all runs are (storage.url).
        name: of the run.
        folder: of the run on this machine.
        lease_seconds: see Lease.
    """

    def __init__(self, url: str, name: str, folder: Path, lease_seconds: float) -> None:
        self.store = Store(f"{url.rstrip('/')}/{name}")
        self.folder = folder
        self.lease = Lease(self.store, folder, lease_seconds)

    def manifests(self) -> Iterator[Manifest]:
        """All there are, newest first. One that is damaged is named and skipped."""
        for number in range(self.lease.newest(), 0, -1):
            data = self.store.read(Manifest(number).name)
            if data is None:
                continue
            try:
                yield Manifest.from_bytes(number, data)
            except ValueError as error:
                log(f"warning: {self.store.url}/{Manifest(number).name}: is damaged and skipped: {error}")

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file of the run, as it is stored beside the newest checkpoint; None where it is not."""
        for manifest in self.manifests():
            if manifest.checkpoints:
                stored = manifest.files.get(name)
                return None if stored is None else self.store.read(stored.object)
        return None

    def bring(self) -> None:
        """Let the folder hold the run as it is in the store, unless it has all of that already and maybe more.

        One process of a machine does, the others wait. On another machine they need it too, if the folder is not the same.

        Raises:
            ConfigError: Another machine is training the run (told by the first process).
            CheckpointError: There are checkpoints in the store, and none is whole.
        """
        with locked(self.folder / ".store.lock"):
            newest = self.lease.wait_until_free() if is_first_process() else self.lease.newest()
            is_there = self.lease.is_mine(newest)
            if not is_there and not is_first_process():  # the first brings a shared folder up to date, and works in it
                is_there = self.lease.is_shared(newest) and self._has_a_checkpoint()
            if not is_there:
                self._restore()
                self.lease.remember(newest)

    def claim(self) -> None:
        """Take the lease. Raises ConfigError where another machine has it."""
        with locked(self.folder / ".store.lock"):
            self.lease.claim()

    def _has_a_checkpoint(self) -> bool:
        """Whether one of the newest stored checkpoints is in the folder; there may be none yet."""
        manifest = next((found for found in self.manifests() if found.checkpoints), Manifest(0))
        return not manifest.files or any(manifest.files[c].is_at(self.folder / c) for c in manifest.checkpoints)

    def _restore(self) -> None:
        damaged: list[str] = []
        for manifest in self.manifests():
            for name in manifest.checkpoints:
                try:
                    self.fetch(manifest, name)
                except (DamagedObject, MissingObject) as error:
                    damaged.append(str(error))
                    log(f"warning: {error}")
                    continue
                self._complete(manifest, name)
                return
        if damaged:
            raise CheckpointError(
                [f"{self.store.url}: no checkpoint in it is whole; choose another run_name to start again", *damaged]
            )

    def _complete(self, manifest: Manifest, newest: str) -> None:
        """Fetch what belongs to a checkpoint that is there; put aside what does not."""
        log(f"{self.store.url}: goes on from {Path(newest).name}")
        best = [f"checkpoints/{manifest.best}"] if manifest.best else []
        unneeded = {*manifest.checkpoints} - {newest, *best}
        kept = {newest}
        for name in sorted(manifest.files.keys() - unneeded - {newest}):
            try:
                self.fetch(manifest, name)
                kept.add(name)
            except (DamagedObject, MissingObject) as error:
                log(f"warning: {self.folder / name} is left out: {error}")
        for name, path in files_in(self.folder):
            if name not in kept and not (name in manifest.files and manifest.files[name].is_at(path)):
                aside = next(name for name in _names_aside(path) if not name.exists())
                log(f"{path}: is not what the store has of this run: now {aside.name}")
                path.rename(aside)

    def fetch(self, manifest: Manifest, name: str) -> None:
        """Let the folder hold a file as it is stored.

        Raises:
            MissingObject: it is not stored any more.
            DamagedObject: it is damaged.
        """
        stored, path = manifest.files[name], self.folder / name
        if not stored.is_at(path):
            self.store.download(stored.object, path, stored.matches)


def _names_aside(path: Path) -> Iterator[Path]:
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}{f'.{number}' if number > 1 else ''}{ASIDE}")


def files_in(folder: Path) -> list[tuple[str, Path]]:
    """The files of a run's folder with their names in it, checkpoints first: what is newer than them may be behind them.

    Left out are links, what is hidden (locks, files being written) and what was put aside.
    """
    found = [
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    wanted = [(name, path) for name, path in found if NAME.fullmatch(name) and not name.endswith((ASIDE, ".damaged"))]
    return sorted(wanted, key=lambda one: (not one[0].startswith("checkpoints/"), one[0]))


def local_checkpoint(path: str | Path) -> Path:
    """Return the file that stands for a checkpoint; one of a URL is fetched into the cache.

    Args:
        path: A file, the folder of a run, or the URL of one of these; of a run, its best checkpoint is taken, else its newest.

    Raises:
        StorageError: It cannot be fetched.
        CheckpointError: The run's checkpoints are damaged.
    """
    if not is_url(path):
        return checkpoint_file.of_run(path)
    url = str(path).rstrip("/")
    folder, name = _parts(url)
    store = RunStore(folder, name, cached("fetched", url), lease_seconds=0.0)
    for manifest in store.manifests():
        best = [f"checkpoints/{manifest.best}"] if manifest.best else []
        for file in [*best, *manifest.checkpoints]:
            try:
                with locked(store.folder / ".lock"):
                    store.fetch(manifest, file)
                return store.folder / file
            except (DamagedObject, MissingObject) as error:
                log(f"warning: {error}")
    return fetch_object(url)


def _parts(url: str) -> tuple[str, str]:
    """The folder and the name of a URL. Raises StorageError where it cannot be used, or names a bucket alone."""
    Store(url)
    folder, _, name = url.rpartition("/")
    if folder.endswith("/"):
        raise StorageError(f"{url}: is no URL of a file or run: {url.partition('://')[0]}://BUCKET/NAME")
    return folder, name


def fetch_records(url: str, names: Iterable[str]) -> Path:
    """Fetch everything of some runs but their checkpoints into the cache.

    Args:
        url: below which they are.
        names: of the runs.

    Returns:
        The folder below which the runs are.

    Raises:
        StorageError: one of them is not there.
    """
    Store(url)  # raises where it is no URL that could be used
    for name in names:
        run = RunStore(url, name, cached("fetched", f"{url.rstrip('/')}/{name}"), lease_seconds=0.0)
        manifest = next(run.manifests(), None)
        if manifest is None:
            raise StorageError(f"run_name={name}: there is no such run below {url}")
        with locked(run.folder / ".lock"):
            for file in manifest.files.keys() - {*manifest.checkpoints}:
                run.fetch(manifest, file)
    return cached("fetched", url)


def fetch_object(url: str) -> Path:
    """Fetch one object into the cache, again where it has changed since. Returns the file."""
    folder, name = _parts(url)
    store = Store(folder)
    size, when = store.size_and_time(name)
    path = cached("fetched", folder) / f"{when:%Y%m%d%H%M%S}-{size}" / name
    store.download_all({name: lambda file: file.stat().st_size == size}, path.parent)
    return path
