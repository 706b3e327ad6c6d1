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
        self._record = folder / RECORD
        self._host = socket.gethostname()
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None

    def newest(self) -> int:
        """The number of the newest lease; 0 where there is none. A listing may be old, objects are not."""
        listed = [int(name[-13:-5]) for name in self.store.names("lease") if name.endswith(".json")]
        number = max(listed, default=0)
        while self._read(number + 1) is not None:
            number += 1
        return number

    def known(self) -> int:
        """The number of the lease under which what is in the run's folder was stored; 0 where nothing was."""
        return int(self._recorded().get("number", 0))

    def is_ours(self) -> bool:
        """Whether this folder was the one that held its lease, and so may have what the store has not."""
        return self._recorded().get("holder") is not None

    def remember(self, number: int, holder: str | None = None) -> None:
        """Write down that the folder holds what was stored under a lease.

        Args:
            number: Of the lease.
            holder: Its secret, where this folder holds it.
        """
        write_json(self._record, {"url": self.store.url, "host": self._host, "number": number, "holder": holder})

    def wait_until_free(self) -> None:
        """Return when nobody else holds the run: at once, or when its holder has let it expire.

        Raises:
            ConfigError: Its holder is alive, which it shows by renewing.
        """
        number = self.newest()
        lease = self._read(number)
        if lease is None or lease["released"] or self._is_mine(number, lease):
            return
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
                return
            if renewed != lease:
                raise self._held(lease)

    def claim(self) -> None:
        """Take the lease and keep it, from a thread, until `release`.

        Raises:
            ConfigError: Another machine has it.
        """
        number = self.newest()
        lease = self._read(number)
        if lease is not None and self._is_mine(number, lease):
            self.number, self._holder = number, lease["holder"]
            self._write(released=False)
        elif lease is not None and number != self.known():  # since the folder was brought up to date
            raise self._held(lease)
        else:
            self.number, self._holder = number + 1, secrets.token_hex(16)
            if not self.store.create(self._name(self.number), self._content(released=False)):
                raise self._held(self._read(self.number) or {"host": "another machine", "pid": 0})
            self.remember(self.number, self._holder)
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
            except StorageError:  # said by the mirror
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
        found = read_json(self._record) if self._record.is_file() else {}
        return found if found.get("url") == self.store.url else {}

    def _is_mine(self, number: int, lease: dict[str, Any]) -> bool:
        """Whether this folder on this host took it: the process that did is gone, as the folder's lock is ours now."""
        mine = self._recorded()
        return mine.get("number") == number and mine.get("host") == self._host and mine.get("holder") == lease["holder"]

    def _held(self, lease: dict[str, Any]) -> ConfigError:
        return ConfigError(
            f"run_name: {self.store.url} is being trained by {lease['host']} (process {lease['pid']}): stop it there, or choose"
            " another run_name"
        )
