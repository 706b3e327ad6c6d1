"""What the console shows: lines of the first process, progress, readable numbers. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from xlm_train.runtime.errors import UserError
from xlm_train.runtime.processes import is_first_process


def log(text: str) -> None:
    """Print a line to standard error, from the first process only. Where nobody reads it any more, the run goes on."""
    if is_first_process():
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> bool:
    """Print a result, or a part of one, to standard output.

    Args:
        text: What is printed.
        end: What comes behind it.

    Returns:
        False where nobody reads it any more (`| head`): what is shown later is for nobody, and files are still written.

    Raises:
        UserError: It cannot be written, as on a full disk.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        _close_standard_output()
        return False
    except OSError as error:
        _close_standard_output()
        raise UserError(f"standard output: cannot be written: {error.strerror}") from error
    except UnicodeEncodeError as error:
        unknown = error.object[error.start]
        raise UserError(
            f"standard output: its encoding, {error.encoding}, has no '{unknown}': set PYTHONIOENCODING=utf-8"
        ) from error
    return True


def _close_standard_output() -> None:
    """Let what is printed from here on go nowhere: Python tries again at its end, and would print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def counted(number: int, noun: str) -> str:
    """Format a count with its noun, such as `1 process` or `2 processes`.

    Args:
        number: How many.
        noun: In the singular.
    """
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def compact(number: float) -> str:
    """Shorten a number to three digits and a unit, such as `1.23 M` for 1234567."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds, such as `1:02:03` for 3723."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def columns_of(stream: TextIO) -> int | None:
    """Return how many characters a redrawn line may have on a terminal; None where the stream is none."""
    if not stream.isatty():
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        columns = 0
    return (columns or 80) - 1  # some terminals do not know their width


def fitted(parts: Sequence[str], columns: int | None) -> str:
    """Join the parts of a line, the most important first, and leave out those for which there is no room.

    Args:
        parts: The first is shown whatever its length.
        columns: Of the line at most; None: all parts fit.
    """
    line, *rest = parts
    for part in rest:
        if columns is None or len(line) + 2 + len(part) <= columns:
            line += f"  {part}"
    return line


EVERY_TERMINAL = 0.5  # seconds between two lines of progress
EVERY_PLAIN = 5.0  # likewise, where the output is not a terminal


class Progress:
    """Progress of some work: amount, rates, time left; one line redrawn on a terminal, plain lines elsewhere.

    Args:
        what: The work; begins every line.
        total: What `done` comes to in the end; None where that is not known.
        units: The units of the amounts, and how many decimals each is shown with. Of the first the amount is shown and
            the rate, of the others the rate.
        stream: Where lines go; standard error if not given.
        shown: Whether there are lines at all.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        units: Mapping[str, int],
        stream: TextIO | None = None,
        shown: bool = True,
    ) -> None:
        self.what = what
        self.total = total
        self.units = units
        self.stream = stream or sys.stderr
        self.shown = shown
        self.started = self.last = time.monotonic()
        self.done = self.skipped = 0
        self.skipped_amount = 0.0
        self.amounts = dict.fromkeys(units, 0.0)

    def add(self, done: int, *amounts: float) -> None:
        """Count more work done.

        Args:
            done: As `total` counts it.
            amounts: The same in each of the units.
        """
        self.done += done
        for unit, amount in zip(self.units, amounts, strict=True):
            self.amounts[unit] += amount
        now = time.monotonic()
        if now - self.last >= (EVERY_TERMINAL if self.stream.isatty() else EVERY_PLAIN):
            self.last = now
            self._show(final=False)

    def skip(self, done: int, amount: float) -> None:
        """Count work that was done before and so does not enter the rates.

        Args:
            done: As `total` counts it.
            amount: The same in the first unit.
        """
        self.done += done
        self.skipped += done
        self.skipped_amount += amount

    def end(self) -> None:
        """Show the totals."""
        self._show(final=True)

    def _show(self, final: bool) -> None:
        if not self.shown:
            return
        seconds = max(time.monotonic() - self.started, 1e-9)
        first, decimals = next(iter(self.units.items()))
        parts = [f"{self.what:<10}"]
        if self.total and not final:
            parts.append(f"{min(self.done / self.total, 1):4.0%}")
            if self.done > self.skipped:
                parts.append(f"{duration((self.total - self.done) * seconds / (self.done - self.skipped))} left")
        parts.append(f"{self.amounts[first]:10,.{decimals}f} {first}")
        parts += [f"{self.amounts[unit] / seconds:9,.{places}f} {unit}/s" for unit, places in self.units.items()]
        if final:
            parts.append(f"in {duration(seconds)}")
        if self.skipped_amount:
            parts.append(f"({self.skipped_amount:,.{decimals}f} {first} were done before)")
        if (columns := columns_of(self.stream)) is not None:
            self.stream.write(f"\r\x1b[K{fitted(parts, None if final else columns)}" + ("\n" if final else ""))
        else:
            self.stream.write(fitted(parts, None) + "\n")
        self.stream.flush()


@contextlib.contextmanager
def waiting(what: str, details: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show how long the block has been running, for a call that cannot report its progress.

    Args:
        what: The work; begins every line.
        details: What is being worked on.
        stream: Where lines go; standard error if not given.
    """
    started = time.monotonic()
    over = threading.Event()
    stream = stream or sys.stderr

    def show() -> None:
        while not over.wait(EVERY_PLAIN):
            print(f"{what:<10}  {details}: {duration(time.monotonic() - started)} so far", file=stream, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    print(f"{what:<10}  {details}: took {duration(time.monotonic() - started)}", file=stream, flush=True)
