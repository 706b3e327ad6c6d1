"""Wikipedia as WikiExtractor writes it: a folder of AA/wiki_00, AA/wiki_01 ..., marked up or JSON lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.jsonl import MAX_HELD, texts_of, whole_lines
from xlm_train.text.files import ReadStats, TextFile

FILE = re.compile(r"wiki_\d+(\.bz2|\.gz)?")
NOT_TEXT = re.compile(rb"^(?:<doc id=.*>|</doc>|[ \t\r]*)\n", re.MULTILINE)


@dataclass(frozen=True)
class WikiExtractor:
    """All files of one such folder, in the order of their names, as one input.

    Marks (<doc ...>, </doc>) and blank lines are left out, as the original's script for Wikipedia does; titles stay.

    Args:
        folder: Where AA, AB ... are.
    """

    folder: Path

    @staticmethod
    def files_in(folder: Path) -> list[Path]:
        """The files that WikiExtractor wrote into a folder."""
        return sorted(path for path in folder.rglob("wiki_*") if FILE.fullmatch(path.name))

    @property
    def name(self) -> str:
        """The path of the folder."""
        return str(self.folder)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files_in(self.folder))

    def check(self) -> list[str]:
        """Problems that the first and the last file show."""
        files = self.files_in(self.folder)
        return [
            problem
            for path in (files[:1] + files[-1:] if len(files) > 1 else files)
            for problem in TextFile(path).check()
        ]

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, file by file; what is hashed are the names and hashes of the files."""
        for path in self.files_in(self.folder):
            yield from self._text_of(path, stats)

    def _text_of(self, path: Path, stats: ReadStats) -> Iterator[bytes]:
        own = ReadStats()
        before = stats.done
        as_json: bool | None = None
        inside = False  # the block begins inside a line too long to hold
        for block in whole_lines(TextFile(path).chunks(own), MAX_HELD):
            if as_json is None:
                as_json = block.lstrip()[:1] == b"{"
            head = b""
            if inside:
                end = block.find(b"\n") + 1 or len(block)
                head, block_rest = block[:end], block[end:]
            else:
                block_rest = block
            inside = not block.endswith(b"\n")
            yield head + (texts_of(block_rest, "text", path) if as_json else NOT_TEXT.sub(b"", block_rest))
            stats.done = before + own.done
        if inside:
            yield b"\n"
        stats.digest.update(f"{path.relative_to(self.folder)}\0{own.sha256}\n".encode())
