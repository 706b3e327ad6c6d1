"""What the recipe of the original's masked models says beyond that of its causal one, whose other settings it shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xlm_train.report.reading import Run
from xlm_train.report.recipe import CODE, COMMAND, NOT_IN_CONFIG, POINTS, Compared, Point, text, verdict
from xlm_train.report.translating import name_of_recipe, points_of_translation

CAUSAL_MODEL = "xlm-clm-ende-1024"
MASKED_MODEL = "xlm-mlm-ende-1024"
CAUSAL_RUN: Compared = ("a causal run: nothing is masked", "differs")
PAPER_ALPHA = 0.5  # frequency^-0.5
SHARES = {"mlm": 2, "tlm": 1}  # an iteration draws from two languages and from one pair


def points_of(runs: Sequence[Run]) -> list[Point]:
    """The points to compare runs by: those of masking where one of them masks, of pairs where one reads pairs.

    Translation runs have a recipe of their own; beside language models they are compared by theirs.
    """
    if all(run.translates for run in runs):
        return points_of_translation(runs)
    masked, paired = any(run.masked for run in runs), any(run.reads_pairs for run in runs)
    return [*(MASKING if masked else []), *(PAIRS if paired else []), *POINTS]


def models_of(runs: Sequence[Run]) -> str:
    """The published models that runs are compared with."""
    if all(run.translates for run in runs):
        return name_of_recipe(runs)
    kinds = {run.masked for run in runs}
    return " or ".join(name for name, masked in ((CAUSAL_MODEL, False), (MASKED_MODEL, True)) if masked in kinds)


def _objective(run: Run) -> Compared:
    if not run.masked:
        return CAUSAL_RUN
    windows = any("pairs" not in part for part in run.masked_parts)
    if not run.reads_pairs:
        return "windows of each language", "same"
    return "windows of each language, and pairs" if windows else "pairs alone", "differs"


def _masked_setting(key: str, title: str, original: Any, note: str = "") -> Point:
    """A setting of every masked part."""

    def compare(run: Run) -> Compared:
        if not run.masked:
            return CAUSAL_RUN
        values = [part.get(key) for part in run.masked_parts]
        if None in values:
            return NOT_IN_CONFIG
        shown = "; ".join(dict.fromkeys(map(text, values)))
        if key == "sample_alpha" and values == [PAPER_ALPHA] * len(values):
            shown += ": the paper's"
        return shown, verdict(all(value == original for value in values))

    return Point(f"{title} (objective.{key})", text(original) + note, CODE, compare)


def _shares(run: Run) -> Compared:
    shares = (run.config.get("objective") or {}).get("shares")
    if not isinstance(shares, Mapping):
        return "one objective alone", "differs"
    return ", ".join(f"{name} {text(share)}" for name, share in shares.items()), verdict(dict(shares) == SHARES)


def _pairs_of_a_slot(run: Run) -> Compared:
    tokens = run.setting("data.tokens_per_slot")
    return (
        NOT_IN_CONFIG if tokens is None else (f"about {text(tokens)} tokens a slot, pairs of like lengths", "differs")
    )


def _longest(run: Run) -> Compared:
    longest = run.setting("data.max_len")
    return NOT_IN_CONFIG if longest is None else (text(longest), verdict(longest == 100))


MASKING: Sequence[Point] = (
    Point("what is masked (objective)", "windows of each language: mlm_steps 'de,en'", COMMAND, _objective),
    _masked_setting("mask_share", "share of the words that are predicted", 0.15),
    _masked_setting("replacements", "mask token, kept, any word", [0.8, 0.1, 0.1]),
    _masked_setting("sample_alpha", "choice of words by frequency", 0, " (each alike); 0.5 in the paper"),
)
PAIRS: Sequence[Point] = (
    Point(
        "share of windows and pairs (objective.shares)",
        "two updates of languages, one of pairs: mlm_steps 'de,en,de-en'",
        COMMAND,
        _shares,
    ),
    Point("pairs of a batch (data.tokens_per_slot)", "32 a process, of any lengths", COMMAND, _pairs_of_a_slot),
    Point("longest side of a pair, tokens (data.max_len)", "100", CODE, _longest),
)
