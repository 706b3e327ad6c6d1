"""How a console script begins: with next to nothing imported, so that Ctrl-C ends it at once while modules are loaded."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

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
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        self.main()


_work_has_begun = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT: exit at once until `begin_work`, raise KeyboardInterrupt from then on.

    An exception in the middle of an import, or of reading a config, may come to nothing or to a traceback.
    """
    if _work_has_begun:
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):  # where nobody reads it
        os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())  # noqa: PTH119 (loads no pathlib)
    os._exit(EXIT_INTERRUPTED)


def begin_work() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: from here on there may be something to clean up."""
    global _work_has_begun
    _work_has_begun = True
