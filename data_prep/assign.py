"""Tokenised text to its splits: held-out sets taken from training text, duplicates and overlap counted or left out.

A pair is held out, repeated and left out as one, by the hash of both its sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from data_prep import select, stages
from data_prep.settings import Settings
from data_prep.text import UNITS, PairText, PairTexts, Text, Texts
from data_prep.work import Work, load, load_json
from xlm_train.runtime.console import Progress, log, waiting
from xlm_train.runtime.errors import UserError

Selectable = Text | PairText

SMALL_TEXT = 20  # of a text too small for holdout.sentences each split gets this part of the different sentences


def leave_out_empty(pairs: PairTexts) -> None:
    """Leave out pairs of which a side is empty, in every split; count them, and those of twice the same text."""
    for pair in pairs.values():
        pair.counts["dropped"]["empty"] = sum(
            pair.drop(number, np.flatnonzero(pair.hashes(number) == select.EMPTY)) for number in range(len(pair.pieces))
        )
        pair.counts["identical"] = sum(load_json(paired, "counts")["identical"] for paired in pair.paired)


def hold_out(settings: Settings, work: Work, texts: Texts, pairs: PairTexts) -> None:
    """Move sentences and pairs from training text to splits that are not given: all copies leave it, one is kept."""
    wanted: list[tuple[Selectable, Sequence[str]]] = []
    wanted += [(texts["train", language], settings.held_out) for language in settings.trained]
    wanted += [(pairs["train", pair], splits) for pair, splits in settings.held_out_pairs.items()]
    for train, splits in wanted:
        if splits:
            with waiting("hold out", f"{settings.holdout.sentences:,} each of {train.name} for {' and '.join(splits)}"):
                for split, sides in zip(splits, _hold_out(settings, work, train, splits), strict=True):
                    if isinstance(train, Text):
                        texts[split, train.language] = sides[0]
                    else:
                        pairs[split, train.pair] = _held_pairs(work, sides)


def _hold_out(settings: Settings, work: Work, train: Selectable, splits: Sequence[str]) -> list[list[Text]]:
    """For each split the text of each side that is held out for it."""
    numbers = range(len(train.pieces))
    asked = n = settings.holdout.sentences
    sets = select.held_out((train.hashes(number) for number in numbers), [n] * len(splits), settings.seed)
    if len(sets[-1]) < n or not _has_more_than(train, sets):
        there = sum(map(len, sets))
        n = there // SMALL_TEXT
        what = f"{train.name} has {there:,} different {'sentences' if isinstance(train, Text) else 'pairs'}, too few to hold"
        if not n:
            key = f"{{}}.{train.language}" if isinstance(train, Text) else f"pairs.{train.pair}.{{}}"
            raise UserError(f"{what} any out: give more, or {' and '.join(key.format(split) for split in splits)}")
        log(
            f"warning: {what} out holdout.sentences={asked:,} for {' and '.join(splits)}: {n:,} for each are held out, "
            f"a {SMALL_TEXT}th of them"
        )
        sets = select.held_out((train.hashes(number) for number in numbers), [n] * len(splits), settings.seed)
    train.counts["held_out"] = 0
    held = []
    for split, hashes in zip(splits, sets, strict=True):
        sides = [Text(split, side.language, side.pair, given=False, inputs=side.inputs) for side in train.sides]
        sources = [piece.name for side in train.sides for piece in side.pieces]
        outs = [work.path("held_out", sources, side.name, split, splits, n, settings.seed) for side in train.sides]
        done = all(out.exists() for out in outs)
        first = select.FirstSeen(hashes)
        taken: list[_Taken] = [_Taken() for _ in sides]
        for number in numbers:
            own = train.hashes(number)
            chosen = first.lines(own)
            train.counts["held_out"] += train.drop(number, np.flatnonzero(select.is_among(own, hashes)))
            if len(chosen) and not done:
                for lines, side in zip(taken, train.sides, strict=True):
                    lines.add(side, number, chosen)
        for side, out, lines in zip(sides, outs, taken, strict=True):
            if not done:
                stages.write_lines(out, lines.lines, np.concatenate(lines.hashes), np.concatenate(lines.characters))
            side.add(out, len(hashes), int(load(out, "text_size")))
        held.append(sides)
    return held


class _Taken:
    """Lines gathered from pieces of a text."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.hashes: list[select.Hashes] = []
        self.characters: list[NDArray[np.uint32]] = []

    def add(self, text: Text, number: int, chosen: NDArray[np.int64]) -> None:
        """Take some lines of a piece."""
        is_chosen = np.zeros(text.lines[number], dtype=bool)
        is_chosen[chosen] = True
        self.lines += stages.read_text(text.pieces[number]).take(is_chosen).lines()
        self.hashes.append(text.hashes(number)[chosen])
        self.characters.append(load(text.pieces[number], "characters")[chosen])


def _held_pairs(work: Work, sides: Sequence[Text]) -> PairText:
    """Pairs that were held out."""
    held = PairText((sides[0], sides[1]), counts={"dropped": {"too_long": 0, "empty": 0}})
    job = held.job(work, 0)
    if not job.out.exists():
        stages.pair_lines(job)
    held.counts["identical"] = load_json(job.out, "counts")["identical"]
    return held


def _has_more_than(train: Selectable, sets: list[select.Hashes]) -> bool:
    """Whether the training text has any sentence outside of some sets."""
    taken = np.sort(np.concatenate(sets))
    for number in range(len(train.pieces)):
        own = train.hashes(number)
        if not np.all(select.is_among(own[own != select.EMPTY], taken)):
            return True
    return False


def leave_out(settings: Settings, work: Work, texts: Texts, pairs: PairTexts) -> None:
    """Count duplicates, and training text that the test sets have too; leave them out where asked to."""
    every: list[Selectable] = [*texts.values(), *pairs.values()]
    progress = Progress("select", sum(sum(text.bytes) for text in every), UNITS)
    overlap = Overlap(settings, every)
    for text in every:
        counter = select.DuplicateCounter()
        for number, size in enumerate(text.bytes):
            counter.add(text.hashes(number))
            progress.add(size, size / 1e6, text.lines[number])
        text.counts |= {"duplicates": counter.duplicates, "duplicates_exact": counter.exact}
        gone = text.counts.setdefault("dropped", {"too_long": 0})
        gone |= {"duplicates": 0, "test_overlap": 0}
        if text.split == "train":
            gone["test_overlap"] = overlap.leave_out(text)
            if settings.deduplicate:
                with (
                    waiting("select", f"repeated lines of {text.name}"),
                    TemporaryDirectory(prefix="repeated", dir=work.folder) as folder,
                ):
                    for number, lines in select.repeated_lines(text.hashes, text.lines, Path(folder)):
                        gone["duplicates"] += text.drop(number, lines)
        if not any(text.n_kept(number) for number in range(len(text.pieces))):
            raise UserError(f"{text.name}: no line is left of it")
    overlap.tell()
    compare_with_valid(every)
    progress.end()


def compare_with_valid(every: Sequence[Selectable]) -> None:
    """Count in each test set how many of its lines the validation text of its language has; nothing where none."""
    sides = [side for text in every for side in text.sides]
    for side in sides:
        valid = [other for other in sides if other.split == "valid" and other.language == side.language]
        if side.split == "test" and valid:
            known = _distinct(valid)
            shared = sum(int(select.is_among(side.hashes(n), known).sum()) for n in range(len(side.pieces)))
            if shared:
                side.counts.setdefault("overlap", {})["lines_in_valid"] = shared


class Overlap:
    """Valid and test sets compared with training text, language by language.

    A set that was held out of a text is compared with all training text but that. A training pair is in both where one
    of its sides is.

    Args:
        settings: What was asked for.
        every: All text.
    """

    def __init__(self, settings: Settings, every: Sequence[Selectable]) -> None:
        self.remove = settings.remove_test_overlap
        self.compared: set[str] = set()  # languages that there is training text of
        has_pairs = bool(settings.pair_sources)
        self.sides = [
            side for text in every if text.split != "train" and (text.given or has_pairs) for side in text.sides
        ]
        by_language: dict[str, list[Text]] = {}
        for side in self.sides:
            by_language.setdefault(side.language, []).append(side)
        self.sets = {language: _distinct(sides) for language, sides in by_language.items()}
        self.seen = {language: np.zeros(len(found), dtype=bool) for language, found in self.sets.items()}

    def leave_out(self, train: Selectable) -> int:
        """Compare training text. Returns how many of its lines were left out."""
        sides = [side for side in train.sides if side.language in self.sets]
        if not sides:
            return 0
        self.compared |= {side.language for side in sides}
        in_both = gone = 0
        for number in range(len(train.pieces)):
            found = np.zeros(train.lines[number], dtype=bool)
            kept = train.kept(number)
            for side in sides:
                own, known = side.hashes(number), self.sets[side.language]
                mine = select.is_among(own, known) & (True if kept is None else kept)
                self.seen[side.language][np.searchsorted(known, own[mine])] = True
                found |= mine
            in_both += int(found.sum())
            if self.remove:
                gone += train.drop(number, np.flatnonzero(found))
        train.counts["overlap"] = {"lines_in_valid_or_test": in_both, "removed": self.remove}
        return gone

    def tell(self) -> None:
        """Count in each valid and test set how many of its lines training text has."""
        for side in (side for side in self.sides if side.language in self.compared):
            shared = self.sets[side.language][self.seen[side.language]]
            lines = sum(int(select.is_among(side.hashes(n), shared).sum()) for n in range(len(side.pieces)))
            side.counts["overlap"] = {"lines_in_train": lines}


def _distinct(texts: Sequence[Text]) -> select.Hashes:
    """Sorted hashes of the sentences of some texts."""
    found = np.unique(np.concatenate([text.hashes(n) for text in texts for n in range(len(text.pieces))]))
    return found[found != select.EMPTY]
