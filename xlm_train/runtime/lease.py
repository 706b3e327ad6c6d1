"""Which machine trains a run that is kept in object storage: one at a time, by a lease with an expiry.

Below the run's URL, `lease/00000003.json` is the third lease. It is created on the condition that it does not exist, so
of two machines one gets it; its holder alone writes it again, to renew it. Whoever finds the newest lease released, or not
renewed for its `seconds`, creates the next one, and the holder of the old finds that when it renews: it has lost the run.
What a holder stores lies below its lease's number (runtime/run_store.py), so even a machine that was suspended and wakes up
late overwrites nothing of its successor's. Clocks of machines are never compared: the age of a lease is the storage service's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, StorageError
from xlm_train.runtime.files import read_json, write_json
from xlm_train.runtime.storage import Store

RENEWALS = 4  # within the seconds of a lease
RECORD = ".store.json"  # in the run's folder: what this folder has of the store
NAME = re.compile(r"lease/(\d{8})\.json")


class LeaseLost(StorageError):
    """Another machine has taken the run over."""


class Lease:
    """The lease of one run.

    Args:
        store: At the run's URL.
        folder: The run's folder on this machine, which remembers what it holds.
        seconds: After which, not renewed, it is another's to take.
    """

    def __init__(self, store: Store, folder: Path, seconds: float) -> None:
        self.store = store
        self.seconds = seconds
        self.number = 0  # of the lease that is held
        self.lost: LeaseLost | None = None
        self._folder = folder
        self._host = socket.gethostname()
        self._holder: str | None = None  # what this folder's leases are known by
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None

    def newest(self) -> int:
        """The number of the newest lease; 0 where there is none. A listing may be old, objects are not."""
        listed = [NAME.fullmatch(name) for name in self.store.names("lease")]
        number = max((int(found[1]) for found in listed if found), default=0)
        while self._read(number + 1) is not None:
            number += 1
        return number

    def is_mine(self, number: int) -> bool:
        """Whether this folder on this host took a lease: then it has all that is stored, and maybe more."""
        lease = self._read(number)
        return lease is not None and self._took(lease)

    def is_shared(self, number: int) -> bool:
        """Whether this folder was brought up to date with a lease by whatever host: one that has the same folder."""
        record, lease = self._record(), self._read(number)
        is_theirs = lease is not None and lease["holder"] == record.get("holder")
        return record.get("url") == self.store.url and (record["number"] == number or is_theirs)

    def remember(self, number: int) -> None:
        """Write down that the folder holds what was stored under a lease and those before it."""
        place = {"url": self.store.url, "host": self._host, "folder": str(self._folder.absolute())}
        holder = self._recorded().get("holder") or secrets.token_hex(16)
        write_json(self._folder / RECORD, {**place, "number": number, "holder": holder})

    def wait_until_free(self) -> int:
        """Wait until nobody else holds the run: not at all, or until its holder has let it expire.

        Returns:
            The number of the lease that is free; one that was taken since is another's.

        Raises:
            ConfigError: Its holder is alive, which it shows by renewing.
        """
        number = self.newest()
        lease = self._read(number)
        if lease is None or lease["released"] or self._took(lease):
            return number
        left = lease["seconds"] - self._age(number)
        if left > 0:
            log(
                f"{self.store.url}: {lease['host']} held this run {lease['seconds'] - left:.0f} s ago: looking whether it still does"
            )
        deadline, renewed = time.monotonic() + left, lease
        while time.monotonic() < deadline:
            time.sleep(min(lease["seconds"] / RENEWALS, max(0.0, deadline - time.monotonic())))
            renewed = self._read(number) or lease
            if renewed["released"]:
                return number
            if renewed != lease:
                raise self._held(lease)
        return number

    def claim(self) -> None:
        """Take the lease and keep it, from a thread, until `release`. What is stored has been brought to the folder.

        Raises:
            ConfigError: Another machine has it.
        """
        number, record = self.newest(), self._recorded()
        lease, self._holder = self._read(number), record.get("holder")
        if lease is not None and self._took(lease):
            self.number = number
            self._write(released=False)
        elif lease is not None and number != record.get("number"):  # since the folder was brought up to date
            raise self._held(lease)
        else:
            self.number = number + 1
            if not self.store.create(self._name(self.number), self._content(released=False)):
                raise self._held(self._read(self.number) or {"host": "another machine", "pid": 0})
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._keeper.start()

    def check(self) -> None:
        """Look whether there is a newer lease.

        Raises:
            LeaseLost: There is.
        """
        if self.lost is None and (newer := self._read(self.number + 1)) is not None:
            self.lost = LeaseLost(
                f"{self.store.url}: {newer['host']} (process {newer['pid']}) has taken this run over, as this machine had"
                f" not renewed its lease for storage.lease_seconds={self.seconds:g}: it stops here, and its last steps go on there"
            )
        if self.lost is not None:
            raise self.lost

    def release(self) -> None:
        """Let others have it at once. Where the store cannot be reached it expires."""
        self._over.set()
        if self._keeper is not None:
            self._keeper.join(self.seconds)
        with contextlib.suppress(StorageError):
            self.check()
            self._write(released=True)

    def _keep(self) -> None:
        while not self._over.wait(self.seconds / RENEWALS):
            try:
                self.check()
                if not self._over.is_set():
                    self._write(released=False)
            except LeaseLost:
                return
            except Exception:  # said by the mirror: a thread that ended would let the lease expire
                continue

    # -- objects ---------------------------------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return f"lease/{number:08d}.json"

    def _read(self, number: int) -> dict[str, Any] | None:
        found = self.store.read(self._name(number))
        if found is None:
            return None
        try:
            return {"host": "?", "pid": 0, "released": False, "seconds": 60.0, "holder": None, **json.loads(found)}
        except (ValueError, TypeError) as error:
            raise StorageError(f"{self.store.url}/{self._name(number)}: is not a lease: {error}") from error

    def _content(self, released: bool) -> bytes:
        lease = {"host": self._host, "pid": os.getpid(), "holder": self._holder, "seconds": self.seconds}
        return json.dumps({**lease, "released": released, "renewal": secrets.token_hex(4)}).encode()

    def _write(self, released: bool) -> None:
        self.store.write(self._name(self.number), self._content(released))

    def _age(self, number: int) -> float:
        """Seconds since a lease was written. The service tells the time by an object that is written now."""
        clock = f"clock/{secrets.token_hex(8)}"
        self.store.write(clock, b"")
        now = self.store.size_and_time(clock)[1]
        self.store.remove([clock])
        return (now - self.store.size_and_time(self._name(number))[1]).total_seconds()

    def _recorded(self) -> dict[str, Any]:
        """What the folder remembers; nothing where it is a copy, or remembers another store."""
        found = self._record()
        place = (self.store.url, self._host, str(self._folder.absolute()))
        return found if (found.get("url"), found.get("host"), found.get("folder")) == place else {}

    def _record(self) -> dict[str, Any]:
        record = self._folder / RECORD
        return dict(read_json(record)) if record.is_file() else {}

    def _took(self, lease: dict[str, Any]) -> bool:
        """Whether this folder on this host took it. The process that did is gone where the folder's lock is held by this one."""
        return lease["holder"] is not None and self._recorded().get("holder") == lease["holder"]

    def _held(self, lease: dict[str, Any]) -> ConfigError:
        return ConfigError(
            f"run_name: {self.store.url} is being trained by {lease['host']} (process {lease['pid']}): stop it there, or choose"
            " another run_name"
        )
