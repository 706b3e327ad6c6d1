"""Byte-pair encoding, learned: the merges of a joint code from counted words, by either of two engines.

builtin      merges.py, the default.
fastbpe      the tool of the original's recipe itself, to compare with: the same codes, byte for byte.
"""

from __future__ import annotations

import itertools
import logging
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping

from data_prep import fastbpe
from data_prep.merges import learn_merges
from data_prep.table_order import table_order
from xlm_train.runtime.errors import UserError
from xlm_train.text.bpe_codes import END_OF_WORD, BpeCodes

ENGINES = ("builtin", "fastbpe")

MAX_PAIR_COUNT = (1 << 31) - 1  # fastBPE counts pairs in 32 bits with sign, and goes wrong silently beyond

_WORDS_A_LINE = 1000  # where words are handed to fastBPE: it only takes text

log = logging.getLogger(__name__)


def check_engine(engine: str) -> None:
    """Check that `learn` can use an engine.

    Raises:
        UserError: There is no such engine, or fastBPE is not built.
    """
    if engine not in ENGINES:
        raise UserError(f"bpe.engine={engine}: there is no such engine; choose from {', '.join(ENGINES)}")
    if engine == "fastbpe":
        fastbpe.binary()


def learn(word_counts: Mapping[str, int], n_codes: int, engine: str = "builtin") -> BpeCodes:
    """Learn merges from words.

    The result depends on the words, their counts and their order: with the order of first occurrence, which
    `NumberedText.counts` keeps, it is what fastBPE learns from the text itself. Memory is that of the distinct words.

    Args:
        word_counts: How often each word occurs (`NumberedText.counts`).
        n_codes: Merges to learn. Fewer are learned, with a warning, where every word is whole before that.
        engine: One of ENGINES.

    Raises:
        UserError: There is nothing to learn from; or fastBPE is not built or fails, or a pair is too frequent for its
            counters.
    """
    check_engine(engine)
    if all(len(word) < 2 for word in word_counts):
        raise UserError("the training text has no word of two characters or more: there is no pair to learn")
    if engine == "fastbpe":
        _check_pair_counts(word_counts)
        codes = _learn_fastbpe(word_counts, n_codes)
    else:
        words = list(word_counts)
        in_order = {words[number]: word_counts[words[number]] for number in table_order(words).tolist()}
        codes = BpeCodes(learn_merges(in_order, n_codes))
    if len(codes) < n_codes:
        log.warning("bpe.n_codes=%d: %d were learned, and every word is whole then", n_codes, len(codes))
    return codes


def _learn_fastbpe(word_counts: Mapping[str, int], n_codes: int) -> BpeCodes:
    command = [str(fastbpe.binary()), "learnbpe", str(n_codes), "-"]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=messages) as process:
            assert process.stdin
            try:
                with process.stdin as text:
                    for line in _repeated(word_counts):
                        text.write(line.encode() + b"\n")
            except BrokenPipeError:
                pass  # it ended early: its status and messages say why
            except BaseException:
                process.kill()
                raise
        output.seek(0)
        messages.seek(0)
        if process.returncode != 0:
            why = messages.read().decode(errors="replace").strip()
            raise UserError(f"{' '.join(command)}: failed with status {process.returncode}: {why}")
        lines = output.read().decode().removesuffix("\n").split("\n")
    # With no pair left fastBPE writes merges that are made nowhere, count 0, up to the number asked for.
    real = itertools.takewhile(lambda line: not line.endswith(" 0"), lines)
    return BpeCodes.from_text("\n".join(real), name="fastBPE's codes")


def _repeated(word_counts: Mapping[str, int]) -> Iterator[str]:
    """Lines that hold each word as often as it was counted, in the order of the mapping.

    To fastBPE this is the text: it only counts words, and numbers them by first occurrence.
    """
    for word, count in word_counts.items():
        while count > 0:
            yield " ".join([word] * min(count, _WORDS_A_LINE))
            count -= _WORDS_A_LINE


def _check_pair_counts(word_counts: Mapping[str, int]) -> None:
    if sum(count * len(word) for word, count in word_counts.items()) <= MAX_PAIR_COUNT:
        return  # the usual case: no pair can be more frequent than there are characters
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in word_counts.items():
        for pair in itertools.pairwise([*word[:-1], word[-1] + END_OF_WORD]):
            pairs[pair] += count
    pair, count = pairs.most_common(1)[0]
    if count > MAX_PAIR_COUNT:
        raise UserError(
            f"the pair {' '.join(pair)!r} comes {count:,} times; fastBPE counts to {MAX_PAIR_COUNT:,}: "
            "use bpe.engine=builtin, or learn from a sample (bpe.sample=alpha bpe.sample_sentences=10_000_000)"
        )
