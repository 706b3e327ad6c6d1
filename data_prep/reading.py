"""Raw text into tokenised pieces: every source is read once, side by side where two belong together."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import numpy as np

from data_prep import stages
from data_prep.aligned import misaligned
from data_prep.settings import Settings
from data_prep.sources.pairs import AlignedInputs
from data_prep.text import UNITS, PairText, PairTexts, Text, Texts
from data_prep.work import Work, Workers
from xlm_train.runtime.console import Progress, waiting
from xlm_train.runtime.errors import UserError
from xlm_train.text.files import ReadStats
from xlm_train.text.lines import Piece, cut


def check_aligned(settings: Settings) -> None:
    """Count the lines of aligned inputs, which is quick beside what follows.

    Raises:
        UserError: One of two has more lines than the other; names where they stop belonging together.
    """
    inputs = [
        (f"pairs.{pair}.{split}", source)
        for (split, pair), sources in settings.pair_sources.items()
        for source in sources
        if isinstance(source, AlignedInputs)
    ]
    if inputs:
        with waiting("count", "lines of parallel text"):
            problems = [f"{key}: {why}" for key, source in inputs if (why := misaligned(source.sides))]
        if problems:
            raise UserError(problems)


def tokenise(settings: Settings, work: Work, workers: Workers) -> tuple[Texts, PairTexts]:
    """Read every source once, cut it into pieces, tokenise those that are not tokenised yet."""
    texts = {key: Text(*key) for key in settings.sources}
    pairs = {key: PairText.named(*key) for key in settings.pair_sources}
    sizes = [source.size for sources in settings.sources.values() for source in sources]
    sizes += [source.size for sources in settings.pair_sources.values() for source in sources]
    workers.ahead(stages.tokenise_piece, functools.partial(jobs_to_tokenise, settings, work))
    total = None if None in sizes else sum(size for size in sizes if size)
    progress = Progress("tokenise", total, UNITS)

    def missing() -> Iterator[stages.TokeniseJob]:
        for job, done in pieces_to_tokenise(settings, work, texts, pairs):
            size = len(job.piece.data)
            if job.out.exists():
                progress.skip(done, size / 1e6)
            else:
                yield job
                progress.add(done, size / 1e6, job.piece.data.count(b"\n"))

    for _ in workers.map(stages.tokenise_piece, missing()):
        pass
    progress.end()
    for text in texts.values():
        text.counts["dropped"] = {"too_long": text.dropped_lines.long_lines}
        if text.dropped_lines.long_lines and text.split in settings.parallel:
            raise UserError(
                f"{text.name}: line {text.dropped_lines.first_long_line} is longer than max_line_bytes="
                f"{settings.max_line_bytes}; parallel text cannot leave lines out: "
                f"raise max_line_bytes, or take {text.split} out of parallel"
            )
    for split in settings.parallel:
        lines = {text.name: sum(text.lines) for text in texts.values() if text.split == split}
        if len(set(lines.values())) > 1:
            raise UserError(
                f"parallel={split}: not line-aligned: "
                + ", ".join(f"{name} has {n:,} lines" for name, n in lines.items())
            )
    return texts, pairs


def pieces_to_tokenise(
    settings: Settings, work: Work, texts: Texts, pairs: PairTexts
) -> Iterator[tuple[stages.TokeniseJob, int]]:
    """All pieces of all sources in order, as jobs, with the bytes of the source each took.

    Fills `texts` and `pairs` on the way.
    """

    def job(text: Text, piece: Piece, source: str) -> stages.TokeniseJob:
        shaped_by = (text.language, settings.lowercase, settings.remove_accents, settings.decode_errors)
        out = work.path("tokenised", hashlib.sha256(piece.data).hexdigest(), *shaped_by)
        text.add(out, piece.data.count(b"\n"), len(piece.data))
        return stages.TokeniseJob(out, piece, source, *shaped_by)

    for key, sources in settings.sources.items():
        text = texts[key]
        for source in sources:
            stats = ReadStats()
            done = 0
            for piece in cut(source.chunks(stats), settings.piece_bytes, settings.max_line_bytes, text.dropped_lines):
                if piece.data:
                    yield job(text, piece, source.name), stats.done - done
                    done = stats.done
            text.inputs.append({"path": source.name, "bytes": stats.done, "sha256": stats.sha256})
    for key, pair_sources in settings.pair_sources.items():
        pair = pairs[key]
        pair.counts["dropped"] = {"too_long": 0}
        for pair_source in pair_sources:
            reading = pair_source.reading()
            done = 0
            for both in pair_source.pieces(settings.piece_bytes, settings.max_line_bytes, reading):
                for side, piece, name in zip(pair.sides, both.sides, pair_source.names, strict=True):
                    yield job(side, piece, name), reading.done - done
                    done = reading.done
                long = np.array(both.long, dtype=np.int64)
                pair.counts["dropped"]["too_long"] += pair.drop(len(pair.pieces) - 1, long)
            for side, name, stats, dropped in zip(
                pair.sides, pair_source.names, reading.stats, reading.dropped, strict=True
            ):
                side.inputs.append({"path": name, "bytes": stats.done, "sha256": stats.sha256})
                side.dropped_lines.bom += dropped.bom


def jobs_to_tokenise(settings: Settings, work: Work) -> Iterator[stages.TokeniseJob]:
    """The same without anything to fill: for a task elsewhere."""
    texts = {key: Text(*key) for key in settings.sources}
    pairs = {key: PairText.named(*key) for key in settings.pair_sources}
    for job, _ in pieces_to_tokenise(settings, work, texts, pairs):
        yield job
