"""What a worker does with one piece of text: tokenise it, count its words, cut it into BPE pieces, encode it.

Each function takes one job, writes one work file and returns nothing: what it makes is a function of the job alone, so
jobs can run anywhere and in any order. The parent reads the results from the files.
"""

from __future__ import annotations

import functools
import os
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.counters import Sums, counter_arrays, load_counter, places_key, total
from data_prep.select import EMPTY, Hashes, mix, sampled_copies, sentence_hashes
from data_prep.statistics import RawCounts
from data_prep.work import compress, decompress, load, save
from xlm_train.runtime.errors import TextError
from xlm_train.text.bpe import BpeEncoder, CutText
from xlm_train.text.bpe_codes import BpeCodes, read_limit
from xlm_train.text.lines import Piece
from xlm_train.text.numbered import NumberedText
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import LINE_END, Vocabulary

TEXT_FORMAT = 2  # of a work file's text; another number where it is kept in another way
SAMPLE_LINES = 1000  # of a piece, looked at to guess its language


@dataclass(frozen=True)
class TokeniseJob:
    """Raw lines of one input to tokenise.

    Args:
        out: The work file.
        piece: The lines.
        source: Name of the input, for messages.
        language: Its code.
        lowercase: Whether to lower-case.
        remove_accents: Whether to remove accents.
        decode_errors: `replace` or `stop`.
        stored: A file that holds the piece's data, if that is not in the piece; it is removed when all is done.
    """

    out: Path
    piece: Piece
    source: str
    language: str
    lowercase: bool
    remove_accents: bool
    decode_errors: str
    stored: Path | None = None


def tokenise_piece(job: TokeniseJob) -> None:
    """Work file: the tokenised text, hashes and characters of each raw line, counts of the raw text.

    Raises:
        TextError: A byte cannot be decoded and decode_errors is "stop"; names file, line and byte offset.
    """
    raw = job.piece.data if job.stored is None else decompress(np.fromfile(job.stored, np.uint8))
    try:
        text = raw.decode("utf-8", errors="strict" if job.decode_errors == "stop" else "replace")
    except UnicodeDecodeError as error:
        line, offset = replace(job.piece, data=raw).locate(error.start)
        raise TextError(
            f"{job.source}: line {line:,}{'' if offset is None else f', byte {offset:,}'}: "
            f"byte 0x{raw[error.start]:02x} is not UTF-8 "
            f"({error.reason}); decode_errors=replace goes on and counts such places"
        ) from error
    lines = text.split("\n")
    lines.pop()
    tokeniser = Tokeniser(job.language, lowercase=job.lowercase, remove_accents=job.remove_accents)
    lowered = job.lowercase or job.remove_accents  # what is one sentence in the corpus is compared as one
    hashes = sentence_hashes(tokeniser.lower(text).split("\n")[:-1] if lowered else lines)
    characters = np.fromiter(map(len, lines), dtype=np.uint32, count=len(lines))
    tokens = tokeniser.number(lines)
    sample = tokens.take(np.arange(len(lines)) < SAMPLE_LINES).lines()
    counts = RawCounts.of(raw, text, int((hashes == EMPTY).sum()), sample)
    del text, lines
    save(job.out, hashes=hashes, characters=characters, counts=asdict(counts), **_packed(tokens))
    if job.stored is not None:
        job.stored.unlink()


@dataclass(frozen=True)
class PairJob:
    """The two sides of a piece of parallel text.

    Args:
        out: The work file.
        sides: The work files of `tokenise_piece`.
    """

    out: Path
    sides: tuple[Path, Path]


def pair_lines(job: PairJob) -> None:
    """Work file: a hash of each pair, EMPTY where a side has no word; and how many pairs have twice the same text."""
    first, second = (load(side, "hashes") for side in job.sides)
    has_words = [_has_words(read_text(side)) for side in job.sides]
    both = has_words[0] & has_words[1]
    hashes = np.where(both, np.maximum(mix(first, seed=1) ^ mix(second, seed=2), np.uint64(1)), EMPTY)
    save(job.out, hashes=hashes, counts={"identical": int((both & (first == second)).sum())})


def _has_words(text: NumberedText) -> NDArray[np.bool_]:
    """Which lines are not white space alone."""
    lengths = text.lengths()
    is_word = np.array([bool(word.strip()) for word in text.words])[text.numbers]
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths), is_word, len(lengths)) > 0


def write_lines(path: Path, lines: list[str], hashes: Hashes, characters: NDArray[np.uint32]) -> None:
    """A work file of tokenised lines gathered from others (a held-out set).

    Args:
        path: Of the work file.
        lines: Tokenised, without their ends.
        hashes: Of each raw line.
        characters: Of each raw line.
    """
    size = np.array(sum(len(line.encode()) + 1 for line in lines))
    packed = _packed(NumberedText.of(lines))
    save(path, hashes=hashes, characters=characters, counts=asdict(RawCounts()), text_size=size, **packed)


def _packed(text: NumberedText) -> dict[str, Any]:
    numbers = text.numbers
    return {
        "words": compress("\n".join(text.words[1:]).encode()),
        "numbers": compress(numbers.tobytes()),
        "number_bytes": np.array(numbers.itemsize),
    }


def read_text(path: Path) -> NumberedText:
    """The tokenised text of a work file."""
    numbers = np.frombuffer(decompress(load(path, "numbers")), f"u{load(path, 'number_bytes')}")
    words = decompress(load(path, "words")).decode().split("\n") if len(numbers) else []
    return NumberedText([LINE_END, *words], numbers)


@dataclass(frozen=True)
class Dropped:
    """Lines of a piece that do not stay.

    Args:
        file: The work file of `choosing.choose`.
        number: Of the piece in it.
        sha256: Of the bits, one a line.
    """

    file: Path
    number: int
    sha256: str


@dataclass(frozen=True)
class Selection:
    """Which lines of a tokenised work file to take.

    Args:
        text: The work file.
        dropped: The lines not to take; None: take all.
    """

    text: Path
    dropped: Dropped | None = None

    def read(self) -> NumberedText:
        """The lines."""
        text = read_text(self.text)
        if self.dropped is None:
            return text
        dropped = load(self.dropped.file, f"dropped{self.dropped.number}")
        return text.take(np.unpackbits(dropped, count=len(text.lengths())) == 0)


@dataclass(frozen=True)
class WordsJob:
    """Words to count.

    Args:
        out: The work file.
        selection: The lines.
        sample: First sentence, share and seed of `sampled_copies`; None: every line once.
        parts: Counters to divide the words among, each word by its checksum.
    """

    out: Path
    selection: Selection
    sample: tuple[int, float, int] | None
    parts: int


def count_piece_words(job: WordsJob) -> None:
    """Work file: the counts of the words of some lines, as counters number 0 to parts - 1, with the words' places."""
    text = job.selection.read()
    if job.sample is None:
        counts = text.counts()
    else:
        first, share, seed = job.sample
        copies = sampled_copies(first, len(text.lengths()), share, seed)
        counts = text.take(copies > 0).counts(copies[copies > 0])
    words = list(counts)
    owners = np.zeros(len(words), np.intp)
    if job.parts > 1:
        owners = np.fromiter((zlib.crc32(word.encode()) % job.parts for word in words), np.intp, len(words))
    arrays: dict[str, Any] = {}
    for part in range(job.parts):
        places = np.flatnonzero(owners == part)
        chosen = [words[place] for place in places.tolist()]
        arrays |= counter_arrays({word: counts[word] for word in chosen}, part) | {places_key(part): places}
    save(job.out, **arrays)


@dataclass(frozen=True)
class SumJob:
    """Counters of one number to add up.

    Args:
        out: The work file.
        names: A file with the paths of work files, a NUL between two.
        part: The number of the counters.
    """

    out: Path
    names: Path
    part: int


def sum_words(job: SumJob) -> None:
    """Work file: the sum of the counters, as a counter; and where each word stands first, by file and place in it."""
    sums, places = Sums(), [np.empty(0, np.int64)]
    for number, path in enumerate(map(Path, os.fsdecode(job.names.read_bytes()).split("\0"))):
        is_new = sums.add(path, job.part)
        places.append((number << 32) + load(path, places_key(job.part))[is_new])
    save(job.out, **{places_key(): np.concatenate(places)}, **counter_arrays(sums.counter()))


@dataclass(frozen=True)
class TotalJob:
    """Counters to add up.

    Args:
        out: The work file.
        files: Work files with a counter each.
    """

    out: Path
    files: tuple[Path, ...]


def add_up(job: TotalJob) -> None:
    """Work file: the sum of the counters, as a counter."""
    save(job.out, **counter_arrays(total(job.files)))


@dataclass(frozen=True)
class CutJob:
    """Tokenised lines to cut into BPE pieces.

    Args:
        out: The work file.
        selection: The lines.
        codes: File of the BPE codes.
        limit: A vocabulary file whose entries alone may come out of a merge; None: no limit.
    """

    out: Path
    selection: Selection
    codes: Path
    limit: Path | None


def cut_piece(job: CutJob) -> None:
    """Work file: the lines as numbers of pieces, n_words, and how often each piece occurs, as a counter."""
    made = _encoder(job.codes, job.limit).cut(job.selection.read())
    save(job.out, numbers=made.numbers, n_words=np.array(made.words), **counter_arrays(made.counts()))


@dataclass(frozen=True)
class EncodeJob:
    """Lines that were cut into pieces, to be given ids.

    Args:
        out: The work file.
        cut: The work file of `cut_piece`.
        vocab: The vocabulary file.
    """

    out: Path
    cut: Path
    vocab: Path


def encode_piece(job: EncodeJob) -> None:
    """Work file: ids (eos after every line), starts, and counts: tokens, words, unknown pieces, special words dropped."""
    pieces = [LINE_END, *load_counter(job.cut)]
    encoded = CutText(pieces, load(job.cut, "numbers"), int(load(job.cut, "n_words"))).encode(
        read_vocabulary(job.vocab)
    )
    save(
        job.out,
        ids=encoded.ids,
        starts=encoded.starts,
        counts={
            "tokens": len(encoded.ids),
            "words": encoded.words,
            "unknown": encoded.unknown.total(),
            "special_words": dict(encoded.dropped),
        },
    )


@functools.lru_cache(maxsize=2)
def _encoder(codes: Path, limit: Path | None) -> BpeEncoder:
    """Kept from job to job: it remembers words it has seen. The files' names change with their content."""
    return BpeEncoder(read_codes(codes), None if limit is None else read_limit(limit))


@functools.lru_cache(maxsize=1)
def read_codes(path: Path) -> BpeCodes:
    """The codes of a work file."""
    return BpeCodes.from_file(path)


@functools.lru_cache(maxsize=1)
def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a work file."""
    return Vocabulary.from_file(path)
