"""What the text is like, counted piece by piece, and what looks wrong in it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.manifest import entries
from xlm_train.runtime.console import counted
from xlm_train.text.files import CONTROL

SCRIPTS = (
    "Latin",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Devanagari",
    "Thai",
    "Han",
    "Hiragana",
    "Katakana",
    "Hangul",
)
NO_LETTER = len(SCRIPTS) + 1
SCRIPT_NAMES = (*SCRIPTS, "other letters", "no letters")

MOJIBAKE = (b"\xc3\x83\xc2", b"\xc3\x83\xc5", b"\xc3\x83\xe2", b"\xc3\x82\xc2", b"\xc3\xa2\xe2\x82\xac")
"""UTF-8 that was read as Windows-1252 and written as UTF-8 again: what no word has after a capital A with accent."""

FUNCTION_WORDS = {
    "cs": "je že se na by jsem jako ale který které byl jeho",
    "da": "og at det er jeg ikke på som af til han hun",
    "de": "und der die das ist nicht ein eine ich zu den mit sich auf",
    "en": "the and of to is that it was for with not you this are",
    "es": "que el los las por una con para del se como pero su más",
    "fi": "ja on ei että se hän oli mutta kun mitä joka niin",
    "fr": "les des est une que qui dans pas pour du il vous sur au",
    "hu": "az és hogy nem egy volt meg csak ez mint azt már",
    "it": "che di il per non una sono del con della gli è le anche",
    "nl": "het een van en niet ik dat zijn te voor met hij maar ook",
    "pl": "nie się jest na że do jak co ale był tak po jego",
    "pt": "que não os uma para com do da em um por mais como ao",
    "ro": "și nu este că pe cu un din mai care pentru sunt o la",
    "ru": "и в не на что я он как это она но по к из",
    "sv": "och att det är jag inte på som en av till han den med",
}
"""Frequent words for telling a wrong language, not for telling languages apart in general."""

PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)
MISTAKEN_LANGUAGE = 1.5  # times as many function words of another language
MOJIBAKE_PER_LINE = 0.002
REPLACED_PER_LINE = 0.001
CONTROL_SHARE = 0.001
FOREIGN_SCRIPT = 0.05  # of all letters
UNKNOWN_RATE = 0.01
EMPTY_SHARE = 0.2
IDENTICAL_SHARE = 0.1
OVERLAP_SHARE = 0.05


_LETTER = "|".join([*(rf"([\p{{L}}&&\p{{Script={script}}}])" for script in SCRIPTS), r"(\p{L})"])


@functools.lru_cache(maxsize=1 << 16)
def _script_of(point: int) -> int:
    """Number in SCRIPT_NAMES of a code point."""
    import regex  # type: ignore[import-untyped]

    found = regex.match(rf"(?V1){_LETTER}", chr(point))
    return NO_LETTER if found is None else found.lastindex - 1


def script_counts(text: str) -> NDArray[np.int64]:
    """Number of characters by script, in the order of SCRIPT_NAMES."""
    counts = np.zeros(len(SCRIPT_NAMES), dtype=np.int64)
    for start in range(0, len(text), 1 << 20):
        points = np.frombuffer(text[start : start + (1 << 20)].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        times = np.bincount(points)
        for point in np.flatnonzero(times).tolist():
            counts[_script_of(point)] += times[point]
    return counts


def function_words(lines: Sequence[str]) -> dict[str, int]:
    """How many words of tokenised lines are frequent words of each language known here."""
    counts = dict.fromkeys(FUNCTION_WORDS, 0)
    owners: dict[str, list[str]] = _owners()
    for word in " ".join(lines).lower().split(" "):
        for language in owners.get(word, ()):
            counts[language] += 1
    return counts


@functools.lru_cache(maxsize=1)
def _owners() -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for language, words in FUNCTION_WORDS.items():
        for word in words.split():
            owners.setdefault(word, []).append(language)
    return owners


@dataclass
class RawCounts:
    """Counts of raw text, before anything is removed from it. Adds up over pieces.

    Args:
        size: Bytes of the text, decompressed.
        lines: Over-long ones not counted.
        empty: Lines that are blank.
        characters: Newlines not counted.
        replaced: U+FFFD that stand for undecodable bytes.
        control: Control bytes.
        crlf: Lines that end in a carriage return.
        mojibake: Places that look like UTF-8 read as something else.
        scripts: Characters by script.
        function_words: Frequent words of each language in a sample.
    """

    size: int = 0
    lines: int = 0
    empty: int = 0
    characters: int = 0
    replaced: int = 0
    control: int = 0
    crlf: int = 0
    mojibake: int = 0
    scripts: dict[str, int] = field(default_factory=dict)
    function_words: dict[str, int] = field(default_factory=dict)

    def add(self, other: RawCounts) -> None:
        """Add the counts of more text."""
        for entry in fields(self):
            mine, theirs = getattr(self, entry.name), getattr(other, entry.name)
            if isinstance(mine, dict):
                for name, count in theirs.items():
                    mine[name] = mine.get(name, 0) + count
            else:
                setattr(self, entry.name, mine + theirs)

    def totals(self) -> dict[str, int]:
        """The counts that are one number."""
        names = ("size", "characters", "replaced", "control", "crlf", "mojibake")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def of(raw: bytes, text: str, empty: int, tokenised_sample: Sequence[str]) -> RawCounts:
        """Count a piece of text.

        Args:
            raw: Its bytes.
            text: The same decoded.
            empty: How many of its lines are blank.
            tokenised_sample: Some of its lines tokenised.
        """
        lines = raw.count(b"\n")
        scripts = script_counts(text)
        scripts[NO_LETTER] -= lines
        return RawCounts(
            size=len(raw),
            lines=lines,
            empty=empty,
            characters=len(text) - lines,
            replaced=text.count("\ufffd") - raw.count(b"\xef\xbf\xbd"),
            control=len(raw) - len(raw.translate(None, CONTROL)),
            crlf=raw.count(b"\r\n"),
            mojibake=sum(raw.count(pattern) for pattern in MOJIBAKE),
            scripts={name: int(count) for name, count in zip(SCRIPT_NAMES, scripts, strict=True) if count},
            function_words={name: count for name, count in function_words(tokenised_sample).items() if count},
        )


def percentiles(histogram: NDArray[np.int64]) -> dict[str, int]:
    """Percentiles of lengths, from how many have each length: the smallest length that at least p % do not exceed."""
    total = int(histogram.sum())
    if not total:
        return {}
    reached = np.cumsum(histogram)
    return {f"p{p}": int(np.searchsorted(reached, -(-total * p // 100))) for p in PERCENTILES}


def script_shares(scripts: Mapping[str, int]) -> dict[str, float]:
    """Share of each script among all characters, the largest first."""
    total = sum(scripts.values())
    return {
        name: round(count / total, 6) for name, count in sorted(scripts.items(), key=lambda item: (-item[1], item[0]))
    }


def warnings_for(
    key: str, language: str, raw: RawCounts | None, counts: Mapping[str, Any], unknown_because: str
) -> list[str]:
    """What looks wrong in a text, in plain words.

    Args:
        key: Split and language, as `train.de`.
        language: Its code.
        raw: Counts of its raw text; None where it has none of its own.
        counts: Its entry of the manifest.
        unknown_because: What to say where many tokens are unknown.
    """
    found = []
    if raw is not None and raw.lines:
        found += _language_warning(key, language, raw)
        if raw.mojibake > MOJIBAKE_PER_LINE * raw.lines:
            found.append(
                f"{key}: {raw.mojibake:,} places look like mojibake (UTF-8 once read as something else: 'Ã¼' for 'ü')"
            )
        if raw.replaced > REPLACED_PER_LINE * raw.lines:
            found.append(
                f"{key}: {raw.replaced:,} undecodable places became U+FFFD; decode_errors=stop shows the first"
            )
        if raw.control > CONTROL_SHARE * raw.size:
            found.append(f"{key}: {raw.control:,} control characters: is this text?")
        letters = {name: count for name, count in raw.scripts.items() if name != SCRIPT_NAMES[NO_LETTER]}
        all_letters = sum(letters.values())
        main = max(letters, key=lambda name: letters[name]) if letters else None
        if (
            main
            and letters[main] < (1 - FOREIGN_SCRIPT) * all_letters
            and not {"Han", "Hiragana", "Katakana"} & set(letters)
        ):
            others = ", ".join(
                f"{name} {count / all_letters:.1%}" for name, count in sorted(letters.items(), key=lambda i: -i[1])
            )
            found.append(f"{key}: letters of several scripts: {others}")
        if language in LATIN_LANGUAGES and main not in (None, "Latin"):
            found.append(f"{key}: is given as {language}, but most of its letters are {main}")
    if counts["duplicates"] > 0.2 * max(counts["lines"], 1) and not counts["dropped"].get("duplicates"):
        found.append(
            f"{key}: {counts['duplicates'] / counts['lines']:.0%} of the lines repeat an earlier one "
            "(deduplicate=true removes them)"
        )
    if counts["empty"] > EMPTY_SHARE * max(counts["lines"], 1):
        found.append(f"{key}: {counts['empty'] / counts['lines']:.0%} of the lines are empty")
    found += overlap_warnings(key, counts["lines"], counts.get("overlap", {}))
    if counts["unknown_rate"] > UNKNOWN_RATE:
        found.append(f"{key}: {counts['unknown_rate']:.1%} of the tokens are unknown: {unknown_because}")
    return found


def long_line_warnings(key: str, lines: int, first: str | None) -> list[str]:
    """Say that lines were left out for their length.

    Args:
        key: Split and language or pair.
        lines: How many.
        first: Where the first of them is, if that is known.
    """
    if not lines:
        return []
    where = f" (the first is {first})" if first else ""
    return [
        f"{key}: {counted(lines, 'line')} above max_line_bytes left out{where}: does something else than newline end lines?"
    ]


def overlap_warnings(key: str, lines: int, overlap: Mapping[str, int]) -> list[str]:
    """Say what a text that scores are taken on shares with others.

    Args:
        key: Split and language, as `test.de`.
        lines: Of the text.
        overlap: Its entry of the manifest.
    """
    found = []
    if (repeated := overlap.get("lines_in_train", 0)) > OVERLAP_SHARE * max(lines, 1):
        found.append(
            f"{key}: {repeated / lines:.0%} of the lines are in the training text too "
            "(remove_test_overlap=true leaves them out of it)"
        )
    if repeated := overlap.get("lines_in_valid", 0):
        found.append(
            f"{key}: {repeated:,} of {counted(lines, 'line')} in the validation text too: "
            "what was chosen by validation scores better there"
        )
    return found


def pair_warnings(key: str, counts: Mapping[str, Any]) -> list[str]:
    """What looks wrong in parallel text beyond its sides.

    Args:
        key: Split and pair, as `train.de-en`.
        counts: Its entry of the manifest.
    """
    found = []
    lines = max(counts["lines"], 1)
    if counts["identical"] > IDENTICAL_SHARE * lines:
        found.append(f"{key}: {counts['identical'] / lines:.0%} of the pairs have the same text on both sides")
    if counts["dropped"]["empty"] > EMPTY_SHARE * lines:
        found.append(f"{key}: {counts['dropped']['empty'] / lines:.0%} of the pairs had an empty side and were dropped")
    return found


LATIN_LANGUAGES = frozenset(FUNCTION_WORDS) - {"ru"}


def _language_warning(key: str, language: str, raw: RawCounts) -> list[str]:
    if language not in FUNCTION_WORDS or not raw.function_words:
        return []
    own = raw.function_words.get(language, 0)
    best = max(raw.function_words, key=lambda name: raw.function_words[name])
    if best != language and raw.function_words[best] > MISTAKEN_LANGUAGE * own and raw.function_words[best] > 20:
        return [
            f"{key}: looks like {best}, not {language}: {raw.function_words[best]:,} frequent words of {best}, "
            f"{own:,} of {language} in a sample"
        ]
    return []


def rows(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The statistics of a manifest as cells by column title, one row a split and language, or a side of pairs."""
    of_pairs = {
        f"{split}.{name}.{language}": pair
        for split, pairs in manifest.get("pairs", {}).items()
        for name, pair in pairs.items()
        for language in pair["sides"]
    }
    return [_row(name, {**of_pairs.get(name, {}), **entry}) for name, entry in entries(manifest)]


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": name,
        "lines": f"{entry['lines']:,}",
        "sentences": f"{entry['sentences']:,}",
        "words": f"{entry['words']:,}",
        "tokens": f"{entry['tokens']:,}",
        "tokens/word": f"{entry['tokens_per_word']:.3f}",
        "unknown": f"{entry['unknown_rate']:.4%}",
        "length p50/p95/max": "{p50}/{p95}/{p100}".format(**entry["length"]),
        "duplicates": ("" if entry["duplicates_exact"] else "~") + f"{entry['duplicates']:,}",
        "empty": f"{entry['empty']:,}",
        "dropped": f"{sum(entry['dropped'].values()):,}",
        "script": _main_script(entry["scripts"]),
    }


def pair_rows(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is counted of pairs as a whole, as cells by column title, one row a split and pair."""
    return [
        {
            "pairs": f"{split}.{name}",
            "lines": f"{pair['lines']:,}",
            "kept": f"{pair['sentences']:,}",
            "held out": f"{pair.get('held_out', 0):,}",
            "an empty side": f"{pair['dropped']['empty']:,}",
            "too long": f"{pair['dropped']['too_long']:,}",
            "duplicates left out": f"{pair['dropped']['duplicates']:,}",
            "in valid or test": f"{pair.get('overlap', {}).get('lines_in_valid_or_test', 0):,}",
            "both sides the same": f"{pair['identical']:,}",
        }
        for split, pairs in manifest.get("pairs", {}).items()
        for name, pair in pairs.items()
    ]


def table(cells: Sequence[Mapping[str, str]]) -> str:
    """Rows as aligned text under their titles; the first column to the left, the others to the right."""
    lines = [list(cells[0]), *(list(row.values()) for row in cells)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = (
        [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(line) for line in aligned)


def _main_script(shares: Mapping[str, float]) -> str:
    letters = {name: share for name, share in shares.items() if name != SCRIPT_NAMES[NO_LETTER]}
    if not letters:
        return "-"
    best = max(letters, key=lambda name: letters[name])
    return f"{best} {letters[best] / sum(letters.values()):.1%}"
