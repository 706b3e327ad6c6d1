"""Raw text into tokenised pieces: every source is read once, side by side where two belong together."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from data_prep import stages
from data_prep.aligned import misaligned
from data_prep.settings import Settings
from data_prep.sources.pairs import AlignedInputs, PairSource
from data_prep.statistics import REPLACED_PER_LINE
from data_prep.text import PairText, PairTexts, Text, Texts
from data_prep.work import UNITS, Work, Workers, compress
from xlm_train.runtime.console import Progress, log, waiting
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import atomic_write, read_json, write_json
from xlm_train.text.files import ReadStats, Source
from xlm_train.text.lines import DroppedLines, Piece, cut


@dataclass(frozen=True)
class AlignedJob:
    """Two inputs to compare.

    Args:
        out: The work file.
        key: Of the pair and split, as `pairs.de-en.train`.
        source: The inputs.
    """

    out: Path
    key: str
    source: AlignedInputs


def compare_inputs(job: AlignedJob) -> None:
    """Work file: how two inputs fail to belong together; null where they do not."""
    why = misaligned(job.source.sides)
    write_json(job.out, why and f"{job.key}: {why}")


def check_aligned(settings: Settings, work: Work, workers: Workers) -> None:
    """Count the lines of aligned inputs, which is quick beside what follows.

    Args:
        settings: Names the inputs.
        work: Where the work files are.
        workers: Do the jobs.

    Raises:
        UserError: One of two has more lines than the other; names where they stop belonging together.
    """
    folder = work.folder / "aligned"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: inputs can have changed since
    jobs = [
        AlignedJob(work.path("aligned", split, pair, number, suffix=".json"), f"pairs.{pair}.{split}", source)
        for (split, pair), sources in settings.pair_sources.items()
        for number, source in enumerate(sources)
        if isinstance(source, AlignedInputs)
    ]
    if jobs:
        with waiting("count", "lines of parallel text"):
            workers.do(compare_inputs, jobs)
        problems = [why for job in jobs if (why := read_json(job.out))]
        shutil.rmtree(folder)
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class InputJob:
    """An input to read and cut into pieces.

    Args:
        out: The work file: its text, and the jobs that tokenise it.
        source: The input.
        text: Empty text of its language and split.
        work: Names the pieces.
        piece_bytes: Of raw text that a piece holds at least.
        max_line_bytes: Longer lines are left out.
        lowercase: For the jobs of its pieces.
        remove_accents: Likewise.
        decode_errors: Likewise.
    """

    out: Path
    source: Source | PairSource
    text: Text | PairText
    work: Work
    piece_bytes: int
    max_line_bytes: int
    lowercase: bool
    remove_accents: bool
    decode_errors: str

    def pieces(self, text: Text | PairText) -> Iterator[tuple[stages.TokeniseJob, int]]:
        """Its pieces in order, as jobs, with the bytes of the source each took; fills `text` on the way."""
        return self._pieces(text) if isinstance(text, Text) else self._pairs(text)

    def _pieces(self, text: Text) -> Iterator[tuple[stages.TokeniseJob, int]]:
        source = cast(Source, self.source)
        stats, dropped, done = ReadStats(), DroppedLines(), 0
        for piece in cut(source.chunks(stats), self.piece_bytes, self.max_line_bytes, dropped):
            if piece.data:
                yield self._job(text, piece, source.name), stats.done - done
                done = stats.done
        text.end_input(source.name, stats, dropped)

    def _pairs(self, pair: PairText) -> Iterator[tuple[stages.TokeniseJob, int]]:
        source = cast(PairSource, self.source)
        reading, done = source.reading(), 0
        for both in source.pieces(self.piece_bytes, self.max_line_bytes, reading):
            for side, piece, name in zip(pair.sides, both.sides, source.names, strict=True):
                yield self._job(side, piece, name), reading.done - done
                done = reading.done
            pair.long.append(np.array(both.long, dtype=np.int64))
            pair.counts["dropped"]["too_long"] += len(both.long)
        for side, name, stats, dropped in zip(pair.sides, source.names, reading.stats, reading.dropped, strict=True):
            side.end_input(name, stats, replace(dropped, long_lines=0))  # those are counted as pairs

    def _job(self, text: Text, piece: Piece, source: str) -> stages.TokeniseJob:
        shaped_by = (text.language, self.lowercase, self.remove_accents, self.decode_errors)
        if piece.line == 1 and self.decode_errors == "replace":
            tell_other_encoding(piece, source)
        out = self.work.path("tokenised", stages.TEXT_FORMAT, hashlib.sha256(piece.data).hexdigest(), *shaped_by)
        text.add(out, piece.data.count(b"\n"), len(piece.data))
        return stages.TokeniseJob(out, piece, source, *shaped_by)


def tell_other_encoding(piece: Piece, source: str) -> None:
    """Say at once, not at the end of all the text, that an input is not the UTF-8 it should be."""
    try:
        piece.data.decode()
    except UnicodeDecodeError as error:
        line, _ = piece.locate(error.start)
        places = piece.data.decode(errors="replace").count("\ufffd") - piece.data.count(b"\xef\xbf\xbd")
        if places > REPLACED_PER_LINE * piece.data.count(b"\n"):
            log(
                f"warning: {source}: {places:,} bytes of its first {len(piece.data) / 1e6:.1f} MB are not UTF-8, the first "
                f"0x{piece.data[error.start]:02x} in line {line:,}; they become U+FFFD. If it is Latin-1: iconv -f latin1 -t utf-8"
            )


def read_input(job: InputJob) -> None:
    """Work file: the text of an input, and jobs for what is not tokenised yet, whose raw lines lie beside it."""
    jobs = []
    for found, _ in job.pieces(job.text):
        if not found.out.exists():
            stored = job.work.path("inputs", found.out.name)
            with atomic_write(stored) as file:
                file.write(compress(found.piece.data))
            jobs.append(replace(found, piece=replace(found.piece, data=b""), stored=stored))
    with atomic_write(job.out) as file:
        file.write(pickle.dumps((job.text, jobs)))


def tokenise(settings: Settings, work: Work, workers: Workers) -> tuple[Texts, PairTexts]:
    """Read every source once, cut it into pieces, tokenise those that are not tokenised yet.

    Args:
        settings: Names the sources, and says how text is cut and tokenised.
        work: Where the work files are.
        workers: Do the jobs.

    Returns:
        The text by split and language, and the pairs by split and pair.

    Raises:
        UserError: No line is left of a text, or a split of `parallel` is not aligned or has a line that is too long.
    """
    texts = {key: Text(*key) for key in settings.sources}
    pairs = {key: PairText.named(*key) for key in settings.pair_sources}
    shutil.rmtree(work.folder / "inputs", ignore_errors=True)  # of a run that was killed: inputs can have changed since
    given: list[tuple[Text | PairText, Source | PairSource]] = []
    given += [(texts[key], source) for key, sources in settings.sources.items() for source in sources]
    given += [(pairs[key], source) for key, sources in settings.pair_sources.items() for source in sources]
    inputs = [
        InputJob(
            work.path("inputs", number),
            source,
            text.like(),
            work,
            settings.piece_bytes,
            settings.max_line_bytes,
            settings.lowercase,
            settings.remove_accents,
            settings.decode_errors,
        )
        for number, (text, source) in enumerate(given)
    ]
    if workers.ahead(read_input, inputs):
        jobs: list[stages.TokeniseJob] = []
        for (text, _), job in zip(given, inputs, strict=True):
            found, to_do = pickle.loads(job.out.read_bytes())
            text.extend(found)
            jobs += to_do
        workers.ahead(stages.tokenise_piece, jobs)
        shutil.rmtree(work.folder / "inputs")
    else:
        _tokenise_here([text for text, _ in given], inputs, workers)
    for one in texts.values():
        one.counts["dropped"] = {"too_long": one.dropped_lines.long_lines}
        if one.first_long_line and one.split in settings.parallel:
            raise UserError(
                f"{one.name}: {one.first_long_line} is longer than max_line_bytes="
                f"{settings.max_line_bytes}; parallel text cannot leave lines out: "
                f"raise max_line_bytes, or take {one.split} out of parallel"
            )
    if problems := [
        f"{one.name}: no line is left of it: {one.dropped_lines.long_lines:,} are longer than "
        f"max_line_bytes={settings.max_line_bytes}"
        for one in texts.values()
        if not one.lines
    ]:
        raise UserError(problems)
    for split in settings.parallel:
        lines = {text.name: sum(text.lines) for text in texts.values() if text.split == split}
        if len(set(lines.values())) > 1:
            raise UserError(
                f"parallel={split}: not line-aligned: "
                + ", ".join(f"{name} has {n:,} lines" for name, n in lines.items())
            )
    return texts, pairs


def _tokenise_here(texts: Sequence[Text | PairText], inputs: Sequence[InputJob], workers: Workers) -> None:
    """Read inputs in this process, piece by piece as workers tokenise them; fills their texts."""
    sizes = [job.source.size for job in inputs]
    progress = Progress("tokenise", None if None in sizes else sum(size for size in sizes if size), UNITS)

    def missing() -> Iterator[stages.TokeniseJob]:
        for text, job in zip(texts, inputs, strict=True):
            for found, done in job.pieces(text):
                size = len(found.piece.data)
                if found.out.exists():
                    progress.skip(done, size / 1e6)
                else:
                    yield found
                    progress.add(done, size / 1e6, found.piece.data.count(b"\n"))

    for _ in workers.map(stages.tokenise_piece, missing()):
        pass
    progress.end()
