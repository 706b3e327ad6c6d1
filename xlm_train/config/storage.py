"""What configs say of object storage: where runs are mirrored, and URLs in place of files and folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from xlm_train.config.schema import Count, positive
from xlm_train.runtime.mirror import MirrorSettings
from xlm_train.runtime.storage import cached, is_url, url_problem


@dataclass(frozen=True)
class StorageConfig:
    """The storage section: see MirrorSettings. url: None where runs are not mirrored."""

    url: str | None
    max_behind: Count
    lease_seconds: Annotated[float, positive]
    wait_seconds: Annotated[float, positive]

    @property
    def mirrored(self) -> MirrorSettings | None:
        """Where runs are mirrored, if they are."""
        if self.url is None:
            return None
        return MirrorSettings(self.url, self.max_behind, self.lease_seconds, self.wait_seconds)


def with_local_runs(config: dict[str, Any]) -> dict[str, Any]:
    """Say paths.runs=URL as what it means: runs are made in a folder of the cache, and mirrored to storage.url.

    Args:
        config: A training config, `${...}` not replaced. It is not changed.
    """
    paths, storage = config.get("paths"), config.get("storage")
    if not isinstance(paths, Mapping) or not isinstance(storage, Mapping):
        return config
    runs = paths.get("runs")
    if not isinstance(runs, str) or not is_url(runs) or url_problem(runs, writes=True):
        return config
    return {**config, "paths": {**paths, "runs": str(cached("runs", runs))}, "storage": {**storage, "url": runs}}
