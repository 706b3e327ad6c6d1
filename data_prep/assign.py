"""Tokenised text to its splits: held-out sets taken from training text, duplicates and overlap counted or left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep import select, stages
from data_prep.settings import Settings
from data_prep.text import UNITS, Text, Texts
from data_prep.work import Work, load
from xlm_train.runtime.console import Progress, waiting
from xlm_train.runtime.errors import UserError


def hold_out(settings: Settings, work: Work, texts: Texts) -> None:
    """Move sentences from the training text to the splits that are not given: all copies leave it, one is kept."""
    if not settings.held_out:
        return
    with waiting("hold out", f"{settings.holdout.sentences:,} sentences each for {' and '.join(settings.held_out)}"):
        for language in settings.languages:
            _hold_out(settings, work, texts, language)


def _hold_out(settings: Settings, work: Work, texts: Texts, language: str) -> None:
    splits = settings.held_out
    train = texts["train", language]
    numbers = range(len(train.pieces))
    wanted = [settings.holdout.sentences] * len(splits)
    sets = select.held_out((train.hashes(number) for number in numbers), wanted, settings.seed)
    if len(sets[-1]) < wanted[-1] or not _has_more_than(train, sets):
        raise UserError(
            f"holdout.sentences={settings.holdout.sentences}: train.{language} has too few different sentences "
            f"to hold out that many for {' and '.join(splits)}; lower it, or give "
            f"{' and '.join(f'{split}.{language}' for split in splits)}"
        )
    train.counts["held_out"] = 0
    for split, hashes in zip(splits, sets, strict=True):
        texts[split, language] = held = Text(split, language, inputs=train.inputs)
        out = work.path(
            "held_out",
            [piece.name for piece in train.pieces],
            split,
            splits,
            settings.holdout.sentences,
            settings.seed,
        )
        first = select.FirstSeen(hashes)
        taken: list[str] = []
        characters: list[NDArray[np.uint32]] = []
        in_order: list[select.Hashes] = []
        for number in numbers:
            own = train.hashes(number)
            chosen = first.lines(own)
            train.counts["held_out"] += train.drop(number, np.flatnonzero(select.is_among(own, hashes)))
            if len(chosen) and not out.exists():
                lines = stages.read_lines(train.pieces[number])
                taken += [lines[line] for line in chosen]
                characters.append(load(train.pieces[number], "characters")[chosen])
                in_order.append(own[chosen])
        if not out.exists():
            stages.write_lines(out, taken, np.concatenate(in_order), np.concatenate(characters))
        held.add(out, len(hashes), int(load(out, "text_size")))


def _has_more_than(train: Text, sets: list[select.Hashes]) -> bool:
    """Whether the training text has any sentence outside of some sets."""
    taken = np.sort(np.concatenate(sets))
    for number in range(len(train.pieces)):
        own = train.hashes(number)
        if not np.all(select.is_among(own[own != select.EMPTY], taken)):
            return True
    return False


def leave_out(settings: Settings, texts: Texts) -> None:
    """Count duplicates, and training sentences that the given test sets have too; leave them out where asked to."""
    progress = Progress("select", sum(sum(text.bytes) for text in texts.values()), UNITS)
    for key, text in texts.items():
        numbers = range(len(text.pieces))
        counter = select.DuplicateCounter()
        for number in numbers:
            counter.add(text.hashes(number))
            progress.add(text.bytes[number], text.bytes[number] / 1e6, text.lines[number])
        text.counts |= {"duplicates": counter.duplicates, "duplicates_exact": counter.exact}
        gone = {"too_long": text.dropped_lines.long_lines, "duplicates": 0, "test_overlap": 0}
        if key[0] == "train":
            gone["test_overlap"] = _overlap(settings, texts, text)
            if settings.deduplicate:
                with waiting("select", f"repeated lines of {text.name}"):
                    for number, lines in select.repeated_lines(text.hashes, text.lines):
                        gone["duplicates"] += text.drop(number, lines)
            if not any(text.n_kept(number) for number in numbers):
                raise UserError(f"{text.name}: no line is left of it")
        text.counts["dropped"] = gone
    progress.end()


def _overlap(settings: Settings, texts: Texts, train: Text) -> int:
    """Compare a language's given valid and test sets with its training text. Returns how many lines were left out."""
    given = [
        text
        for key, text in texts.items()
        if key in settings.sources and key[0] != "train" and key[1] == train.language
    ]
    if not given:
        return 0
    sets = {
        text.split: np.unique(np.concatenate([text.hashes(number) for number in range(len(text.pieces))]))
        for text in given
    }
    sets = {split: hashes[hashes != select.EMPTY] for split, hashes in sets.items()}
    together = np.unique(np.concatenate(list(sets.values())))
    seen = np.zeros(len(together), dtype=bool)
    lines_in_both = gone = 0
    for number in range(len(train.pieces)):
        own = train.hashes(number)
        found = np.flatnonzero(select.is_among(own, together))
        lines_in_both += len(found)
        seen[np.searchsorted(together, own[found])] = True
        if settings.remove_test_overlap:
            gone += train.drop(number, found)
    train.counts["overlap"] = {"lines_in_valid_or_test": lines_in_both, "removed": settings.remove_test_overlap}
    shared = together[seen]
    for text in given:
        lines = sum(int(select.is_among(text.hashes(number), shared).sum()) for number in range(len(text.pieces)))
        text.counts["overlap"] = {"lines_in_train": lines}
    return gone
