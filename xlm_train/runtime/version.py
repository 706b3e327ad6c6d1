"""Which version of this project runs, without importing what would say so slowly."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

PACKAGE = "xlm_train"
ROOT = Path(__file__).parents[2]


def version_of(package: str) -> str | None:
    """Return an installed package's version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit that this code is of: its checkout's, or the one that pip installed; None where it is unknown."""
    if (ROOT / ".git").exists():
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of another user's
            return None
    if version_of(PACKAGE) is None:
        return None
    origin = json.loads(importlib.metadata.distribution(PACKAGE).read_text("direct_url.json") or "{}")
    found = origin.get("vcs_info", {}).get("commit_id")
    return found and str(found)[:12]


def version_line(command: str) -> str:
    """Say what `--version` prints.

    Args:
        command: such as `xlm-train`.

    Returns:
        Such as `xlm-train 0.2.0 (commit 0123456789ab), torch 2.13.0`.
    """
    at = commit()
    own = f"{command} {version_of(PACKAGE) or 'of unknown version'}" + (f" (commit {at})" if at else "")
    return f"{own}, torch {version_of('torch') or 'is not installed'}"
