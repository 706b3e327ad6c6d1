"""WMT's test sets as published: SGML files whose <seg> elements are the sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from xlm_train.runtime.errors import TextError
from xlm_train.text.files import FileSource, ReadStats, TextFile

SEGMENT = re.compile(rb"<seg[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class SgmFile(FileSource):
    """One line a segment, in the file's order.

    Entities such as &amp; stay as they are, as the original's script leaves them. The file is read whole: it is small.

    Args:
        path: Of the file.
    """

    def check(self) -> list[str]:
        """Problems that the file shows."""
        problems = TextFile(self.path).check()
        if not problems and self.size > MAX_BYTES:
            problems = [f"{self.path}: is too large for a test set in SGML ({self.size:,} bytes)"]
        if not problems and not SEGMENT.search(b"".join(TextFile(self.path).chunks(ReadStats()))):
            problems = [f"{self.path}: holds no <seg> elements"]
        return problems

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, all at once.

        Raises:
            TextError: The file is truncated: some segments do not end.
        """
        data = b"".join(TextFile(self.path).chunks(stats))
        opened = len(re.findall(rb"<seg[\s>]", data, re.IGNORECASE))
        segments = SEGMENT.findall(data)
        if opened != len(segments):
            raise TextError(f"{self.path}: is truncated: {opened:,} segments begin, {len(segments):,} end")
        yield b"".join(re.sub(rb"\s*\n\s*", b" ", segment).strip() + b"\n" for segment in segments)
