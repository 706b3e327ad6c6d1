"""`python -m xlm_train` lists the commands."""

from __future__ import annotations

import importlib.metadata
import re
import sys

from xlm_train.runtime.entry import EntryPoint
from xlm_train.runtime.version import PACKAGE, version_line


def main() -> int:
    """Print each command with what it does. Returns the exit status: 2 where a command was expected to run."""
    print(f"{version_line(PACKAGE)}\n\nCommands; each has --help and --version:\n")
    for entry in sorted(importlib.metadata.entry_points(group="console_scripts"), key=lambda entry: entry.name):
        if entry.dist is not None and entry.dist.name == PACKAGE:
            found = entry.load()
            command = found.main if isinstance(found, EntryPoint) else found  # an older installation of this checkout
            purpose = re.split(r"(?<=[.;])\s", str(command.__doc__))[0].rstrip(";.")
            print(f"  {entry.name:<14}{purpose}")
    if words := sys.argv[1:]:
        print(f"\nxlm_train: error: {words[0]}: choose a command, such as xlm-train", file=sys.stderr)
    return 2 if words else 0


if __name__ == "__main__":
    sys.exit(main())
