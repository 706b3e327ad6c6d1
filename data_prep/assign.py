"""Tokenised text to its splits: held-out sets taken from training text, duplicates and overlap counted or left out.

A pair is held out, repeated and left out as one, by the hash of both its sides. What is read of every line is read by
jobs of FAN pieces each; what comes together here is bounded by the lines held out and the validation and test text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep import stages
from data_prep.choosing import (
    ChooseJob,
    RepeatJob,
    SortJob,
    Survey,
    SurveyJob,
    TakeJob,
    choose,
    find_repeated,
    merge_surveys,
    sort_lines,
    survey,
    take,
)
from data_prep.overlap import Overlap, compare_with_valid
from data_prep.select import Smallest
from data_prep.settings import Settings
from data_prep.stages import Dropped
from data_prep.statistics import RawCounts
from data_prep.text import PairText, PairTexts, Text, Texts
from data_prep.work import FAN, Sized, Work, Workers, fold, load, load_json, run
from xlm_train.runtime.console import log, waiting
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import digest

Selectable = Text | PairText

SMALL_TEXT = 20  # of a text too small for holdout.sentences each split gets this part of the different sentences
PART_LINES = 1 << 22  # whose hashes are compared at once, about: 230 MB


def assign(settings: Settings, work: Work, workers: Workers, texts: Texts, pairs: PairTexts) -> None:
    """Fill the splits that are not given, and decide which lines stay.

    Args:
        settings: What was asked for.
        work: Where the work files are.
        workers: Do the jobs.
        texts: All text by itself; held-out splits are added to it, and each text is told which of its lines stay.
        pairs: All pairs; likewise.
    """
    given: list[Selectable] = [*texts.values(), *pairs.values()]
    splits = [_held_for(settings, text) for text in given]
    found = look_through(settings, work, workers, given, splits)
    held = hold_out(settings, work, workers, given, splits, [smallest for smallest, _ in found], texts, pairs)
    every: list[Selectable] = [*texts.values(), *pairs.values()]
    duplicates = dict.fromkeys((text.name for text in every), (0, True))  # what was held out does not repeat
    duplicates |= {text.name: counted for text, (_, counted) in zip(given, found, strict=True)}
    repeated = repeats(work, workers, every) if settings.deduplicate else {}
    leave_out(settings, work, workers, every, held, duplicates, repeated)


def _held_for(settings: Settings, text: Selectable) -> Sequence[str]:
    """The splits that are held out of a text."""
    if text.split != "train":
        return ()
    return settings.held_out if isinstance(text, Text) else settings.held_out_pairs.get(text.pair, ())


def groups(lines: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Consecutive pieces that one job takes, and the number of their first line in the text; of each piece's lines."""
    first = 0
    for start in range(0, len(lines), FAN):
        part = slice(start, start + FAN)
        yield part, first
        first += sum(lines[part])


# ---- what all sentences of a text decide


def look_through(
    settings: Settings, work: Work, workers: Workers, given: Sequence[Selectable], splits: Sequence[Sequence[str]]
) -> list[tuple[Smallest, tuple[int, bool]]]:
    """Survey texts.

    Args:
        settings: What was asked for.
        work: Where the work files are.
        workers: Do the jobs.
        given: The texts.
        splits: What is held out of each.

    Returns:
        Of each the sentences to hold out, and one more; how many lines repeat an earlier one, and whether that is exact.
    """
    jobs: list[Sized] = []
    files: list[list[Path]] = []
    wanted = [settings.holdout.sentences * len(held) + 1 if held else 0 for held in splits]  # one must be left
    for text, smallest in zip(given, wanted, strict=True):
        files.append([])
        for part, first in groups(text.lines):
            hashed = tuple(text.hashed[part])
            files[-1].append(work.path("surveyed", [file.name for file in hashed], first, smallest, settings.seed))
            job = SurveyJob(files[-1][-1], hashed, first, smallest, settings.seed)
            jobs.append(Sized(job, sum(text.bytes[part]), sum(text.lines[part])))
    run("survey", survey, jobs, workers)
    found = []
    for smallest, parts in zip(wanted, files, strict=True):

        def merged(some: tuple[Path, ...], smallest: int = smallest) -> SurveyJob:
            out = work.path("surveyed", [file.name for file in some], smallest, settings.seed)
            return SurveyJob(out, some, 0, smallest, settings.seed)

        whole = Survey(smallest, settings.seed).merge(fold(workers, merge_surveys, parts, merged))
        found.append((whole.smallest, (whole.duplicates.duplicates, whole.duplicates.exact)))
    return found


def repeats(work: Work, workers: Workers, every: Sequence[Selectable]) -> dict[str, list[Path]]:
    """Work files with the numbers of the training lines that repeat an earlier one, by the text's name.

    Args:
        work: Where the work files are.
        workers: Do the jobs.
        every: All text; other splits than train are passed over.
    """
    comparisons: dict[str, list[RepeatJob]] = {}
    sorting: list[SortJob] = []
    for text in (text for text in every if text.split == "train"):
        n_parts = max(1, -(-sum(text.lines) // PART_LINES))
        name = digest([file.name for file in text.hashed], n_parts)
        jobs = [
            SortJob(work.path("sorted", name, part.start), tuple(text.hashed[part]), first, n_parts)
            for part, first in groups(text.lines)
        ]
        files, firsts = tuple(job.out for job in jobs), tuple(job.first for job in jobs)
        comparisons[text.name] = [
            RepeatJob(work.path("repeated", name, part), files, part, firsts) for part in range(n_parts)
        ]
        if not all(job.out.exists() for job in comparisons[text.name]):
            sorting += jobs
    with waiting("select", "repeated lines"):
        workers.do(sort_lines, sorting)
        workers.do(find_repeated, [job for jobs in comparisons.values() for job in jobs])
    for job in sorting:
        job.out.unlink(missing_ok=True)  # the same text twice is sorted once
    return {name: [job.out for job in jobs] for name, jobs in comparisons.items()}


# ---- held-out sets


def hold_out(
    settings: Settings,
    work: Work,
    workers: Workers,
    given: Sequence[Selectable],
    splits: Sequence[Sequence[str]],
    smallest: Sequence[Smallest],
    texts: Texts,
    pairs: PairTexts,
) -> dict[str, Path]:
    """Take sentences and pairs of training text for splits that are not given, one copy of each; adds these splits.

    Args:
        settings: What was asked for.
        work: Where the work files are.
        workers: Do the jobs.
        given: The texts and pairs that the user gave.
        splits: What is held out of each.
        smallest: Of each the sentences to hold out, and one more.
        texts: The splits of texts are added to it.
        pairs: Those of pairs are added to it.

    Returns:
        Files of their sorted hashes, by the training text's name: all copies are to leave it.

    Raises:
        UserError: A text is too small to hold out anything.
    """
    taken = [
        _Taken(settings, work, text, wanted, found)
        for text, wanted, found in zip(given, splits, smallest, strict=True)
        if wanted
    ]
    if taken:
        with waiting("hold out", f"of {', '.join(one.train.name for one in taken)}"):
            workers.do(take, [job for one in taken for jobs in one.jobs for job in jobs])
            for one in taken:
                for split, sides in one.sets(work):
                    if isinstance(one.train, Text):
                        texts[split, one.train.language] = sides[0]
                    else:
                        pairs[split, one.train.pair] = _held_pairs(work, sides)
    return {one.train.name: work.copy("held", one.hashes.tobytes()) for one in taken}


class _Taken:
    """What is taken from a training text.

    Args:
        settings: What was asked for.
        work: Where the work files are.
        train: The text or pairs.
        splits: To hold out of it.
        smallest: Of its sentences.

    Attributes:
        hashes: Of the sentences, sorted.
        jobs: What takes their lines, of each side.

    Raises:
        UserError: The text is too small to hold out anything.
    """

    def __init__(
        self, settings: Settings, work: Work, train: Selectable, splits: Sequence[str], smallest: Smallest
    ) -> None:
        self.train = train
        self.splits = splits
        n = _how_many(settings, train, splits, smallest)
        order = np.argsort(smallest.lines[: n * len(splits)])
        self.hashes = np.sort(smallest.hashes[: n * len(splits)])
        self.owners = order // n  # the split of each, in the order of the text
        lines, starts = smallest.lines[order], np.cumsum([0, *train.lines])
        pieces = np.searchsorted(starts, lines, side="right") - 1
        used = np.unique(pieces).tolist()
        self.jobs: list[list[TakeJob]] = [[] for _ in train.sides]
        for start in range(0, len(used), FAN):
            some = tuple(lines[pieces == piece] - starts[piece] for piece in used[start : start + FAN])
            for side, jobs in zip(train.sides, self.jobs, strict=True):
                files = tuple(side.pieces[piece] for piece in used[start : start + FAN])
                out = work.path("taken", [file.name for file in files], [mine.tolist() for mine in some])
                jobs.append(TakeJob(out, files, some))

    def sets(self, work: Work) -> Iterator[tuple[str, list[Text]]]:
        """Each split, and its sides."""
        for number, split in enumerate(self.splits):
            mine = np.flatnonzero(self.owners == number)
            pairs = zip(self.train.sides, self.jobs, strict=True)
            yield split, [_text_of(work, split, side, jobs, mine) for side, jobs in pairs]


def _how_many(settings: Settings, train: Selectable, splits: Sequence[str], smallest: Smallest) -> int:
    """Sentences or pairs to hold out for each split: one at least must stay in the training text."""
    n = settings.holdout.sentences
    if len(smallest.hashes) == smallest.wanted:
        return n
    there = len(smallest.hashes)
    what = (
        f"{train.name} has {there:,} different {'sentences' if isinstance(train, Text) else 'pairs'}, too few to hold"
    )
    if there < SMALL_TEXT:
        key = f"{{}}.{train.language}" if isinstance(train, Text) else f"pairs.{train.pair}.{{}}"
        raise UserError(f"{what} any out: give more, or {' and '.join(key.format(split) for split in splits)}")
    log(
        f"warning: {what} out holdout.sentences={n:,} for {' and '.join(splits)}: {there // SMALL_TEXT:,} for each are "
        f"held out, a {SMALL_TEXT}th of them"
    )
    return there // SMALL_TEXT


def _text_of(work: Work, split: str, side: Text, jobs: Sequence[TakeJob], mine: NDArray[np.int64]) -> Text:
    """Some of the lines that jobs took from a text, by their places in the order of the text."""
    held = Text(split, side.language, side.pair, given=False, inputs=side.inputs)
    out = work.path("held_out", [job.out.name for job in jobs], mine.tolist())
    if not out.exists():
        lines = [line for job in jobs for line in stages.read_text(job.out).lines()]
        hashes, characters = (
            np.concatenate([load(job.out, name) for job in jobs])[mine] for name in ("hashes", "characters")
        )
        stages.write_lines(out, [lines[n] for n in mine], hashes, characters)
    held.add(out, len(mine), int(load(out, "text_size")))
    return held


def _held_pairs(work: Work, sides: Sequence[Text]) -> PairText:
    """Pairs that were held out."""
    held = PairText((sides[0], sides[1]), counts={"dropped": {"too_long": 0, "empty": 0}})
    job = held.job(work, 0)
    if not job.out.exists():
        stages.pair_lines(job)
    held.long.append(np.empty(0, np.int64))
    return held


# ---- which lines stay


def leave_out(
    settings: Settings,
    work: Work,
    workers: Workers,
    every: Sequence[Selectable],
    held: Mapping[str, Path],
    duplicates: Mapping[str, tuple[int, bool]],
    repeated: Mapping[str, Sequence[Path]],
) -> None:
    """Leave out what is held out, empty or repeated, and training text that the test sets have too where asked to.

    Args:
        settings: What was asked for.
        work: Where the work files are.
        workers: Do the jobs.
        every: All text.
        held: Files of the hashes of what is held out, by the training text's name.
        duplicates: How many lines repeat an earlier one, and whether that is exact, by the text's name.
        repeated: Work files of the numbers of lines that repeat an earlier one, by name; none where these stay.

    Raises:
        UserError: No line is left of a text.
    """
    overlap = Overlap(settings, work, every)
    made: list[list[Path]] = []
    jobs: list[Sized] = []
    for text in every:
        made.append([])
        known = tuple(overlap.files.get(side.language) if text.split == "train" else None for side in text.sides)
        rest = (held.get(text.name), known, settings.remove_test_overlap, tuple(repeated.get(text.name, ())))
        decided_by = [file and file.name for file in (rest[0], *known, *rest[3])], settings.remove_test_overlap
        for part, first in groups(text.lines):
            sides = tuple(tuple(side.pieces[part]) for side in text.sides)
            paired = tuple(text.paired[part]) if isinstance(text, PairText) else ()
            long = tuple(text.long[part]) if isinstance(text, PairText) else ()
            names = [[file.name for file in side] for side in sides], [lines.tolist() for lines in long]
            made[-1].append(work.path("chosen", *names, first, *decided_by))
            job = ChooseJob(made[-1][-1], sides, paired, first, sum(text.lines[part]), long, *rest)
            jobs.append(Sized(job, sum(text.bytes[part]), sum(text.lines[part])))
    run("select", choose, jobs, workers)
    for text, chosen in zip(every, made, strict=True):
        counts = _note(text, chosen, overlap)
        if isinstance(text, PairText):
            text.counts["dropped"]["empty"] = counts["empty"]
            text.counts["identical"] = counts["identical"]
        if text.name in held:
            text.counts["held_out"] = counts["held_out"]
        text.counts |= dict(zip(("duplicates", "duplicates_exact"), duplicates[text.name], strict=True))
        gone = text.counts.setdefault("dropped", {"too_long": 0})
        gone |= {"duplicates": counts["duplicates"], "test_overlap": counts["test_overlap"]}
        if text.split == "train" and any(side.language in overlap.sets for side in text.sides):
            text.counts["overlap"] = {
                "lines_in_valid_or_test": counts["in_both"],
                "removed": settings.remove_test_overlap,
            }
        if not any(text.sides[0].stay):
            raise UserError(f"{text.name}: no line is left of it")
    overlap.tell()
    compare_with_valid(every)


def _note(text: Selectable, chosen: Sequence[Path], overlap: Overlap) -> Counter[str]:
    """Fill in what stays of a text. Returns what is counted of all of it."""
    counts: Counter[str] = Counter()
    for file in chosen:
        made = load_json(file, "counts")
        for number, side in enumerate(text.sides):
            side.stay += made["stay"]
            side.dropped += [sha256 and Dropped(file, n, sha256) for n, sha256 in enumerate(made["sha256"])]
            side.raw.add(RawCounts(**made["raw"][number]))
            side.characters += made["characters"][number]
            if text.split == "train":
                overlap.see(side.language, load(file, f"seen{number}"))
        counts.update({name: made.get(name, 0) for name in ("empty", "identical", "held_out", "duplicates")})
        counts.update({name: made.get(name, 0) for name in ("test_overlap", "in_both")})
    return counts
