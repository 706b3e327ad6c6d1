"""How a console script begins: with next to nothing imported, so that Ctrl-C is answered while a command is loaded too."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from xlm_train.runtime.errors import EXIT_INTERRUPTED


class EntryPoint:
    """A command whose modules are imported when it is called.

    Args:
        module: Its function `main` is the command.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    @property
    def main(self) -> Callable[[], None]:
        """The command itself."""
        main: Callable[[], None] = importlib.import_module(self.module).main
        return main

    def __call__(self) -> None:
        """Run it."""
        try:
            main = self.main
        except KeyboardInterrupt:
            print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr, flush=True)  # noqa: PTH119 (light)
            sys.exit(EXIT_INTERRUPTED)
        main()
