"""Byte-pair encoding, learned: the merges of a joint code from counted words, by either of two engines.

tokenizers   Hugging Face's trainer (Rust), the default. fastBPE's merges, but where two pairs are equally
             frequent it may take the other first (docs/bpe.md tells how much that is).
fastbpe      the tool of the original's recipe itself: the same codes, byte for byte.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep import fastbpe
from xlm_train.runtime.errors import UserError
from xlm_train.text.bpe_codes import END_OF_WORD, BpeCodes

if TYPE_CHECKING:
    from tokenizers import Tokenizer, models

ENGINES = ("tokenizers", "fastbpe")

MAX_PAIR_COUNT = (1 << 31) - 1  # both engines count pairs in 32 bits with sign, and go wrong silently beyond

_WORDS_A_LINE = 1000  # where words are handed to an engine: it only takes text
_WORDS_A_BLOCK = 10_000  # of different words, cut up at once

Apply = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

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


def learn(
    word_counts: Mapping[str, int], n_codes: int, engine: str = "tokenizers", apply: Apply = map, shares: int = 1
) -> BpeCodes:
    """Learn merges from words.

    With tokenizers the result depends on the words and their counts alone; with fastbpe also on the order of the
    mapping: with the order of first occurrence, which `count_words` keeps, fastBPE does exactly what it does on the
    text itself. Memory is that of the distinct words.

    Args:
        word_counts: How often each word occurs (`vocabulary.count_words`).
        n_codes: Merges to learn. Fewer are learned, with a warning, where every word is whole before that.
        engine: One of ENGINES.
        apply: Applies a function to jobs, in other processes perhaps.
        shares: Jobs to cut into what can be done side by side.

    Raises:
        UserError: There is nothing to learn from, a pair is too frequent for the engines' counters, or fastBPE is not
            built or fails.
    """
    check_engine(engine)
    if all(len(word) < 2 for word in word_counts):
        raise UserError("the training text has no word of two characters or more: there is no pair to learn")
    _check_pair_counts(word_counts)
    if engine == "fastbpe":
        codes = _learn_fastbpe(word_counts, n_codes)
    else:
        codes = _learn_tokenizers(word_counts, n_codes, apply, shares)
    if len(codes) < n_codes:
        log.warning("bpe.n_codes=%d: %d were learned, and every word is whole then", n_codes, len(codes))
    return codes


def _learn_tokenizers(word_counts: Mapping[str, int], n_codes: int, apply: Apply, shares: int) -> BpeCodes:
    from tokenizers import models, trainers

    words = {word: count for word, count in word_counts.items() if len(word) > 1}  # the others have no pair
    # The trainer breaks ties by symbol number, and numbers last characters in its hash table's random order.
    # Special tokens are numbered first and as given: naming the last characters there makes it deterministic.
    last = [character + END_OF_WORD for character in sorted({word[-1] for word in words})]
    trainer = trainers.BpeTrainer(
        vocab_size=len(last) + len(set().union(*words)) + n_codes,
        special_tokens=last,
        end_of_word_suffix=END_OF_WORD,
        min_frequency=1,
        show_progress=False,
    )
    tokenizer = _word_tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    with _one_thread():
        tokenizer.train_from_iterator(_repeated(words), trainer)
    pairs = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    # A piece can be joined from two different pairs. fastBPE refuses codes that hold both: keep the first.
    first = {left + right: (left, right) for left, right in reversed(pairs)}
    kept = [pair for pair in pairs if first["".join(pair)] == pair][:n_codes]
    ids = tokenizer.get_vocab()
    jobs = (SymbolsJob(kept, ids, dict(itertools.islice(words.items(), n, None, shares))) for n in range(shares))
    return _with_counts(kept, ids, np.sum(list(apply(count_symbols, jobs)), axis=0))


@dataclass(frozen=True)
class SymbolsJob:
    """Words to count the symbols of.

    Args:
        pairs: The merges.
        ids: The number of every symbol.
        words: How often each word comes.
    """

    pairs: list[tuple[str, str]]
    ids: dict[str, int]
    words: dict[str, int]


def count_symbols(job: SymbolsJob) -> NDArray[np.float64]:
    """How often each symbol stands in the words after all merges, by its number; exact up to 2**53."""
    from tokenizers import models

    model = models.BPE(job.ids, job.pairs, cache_capacity=0, end_of_word_suffix=END_OF_WORD)
    tokenizer = _word_tokenizer(model)
    made = np.zeros(max(job.ids.values()) + 1)
    entries = iter(job.words.items())
    while block := list(itertools.islice(entries, _WORDS_A_BLOCK)):
        encoding = tokenizer.encode(" ".join(word for word, _ in block))
        counts = np.array([count for _, count in block])[np.array(encoding.word_ids, np.intp)]
        made += np.bincount(encoding.ids, counts, minlength=len(made))
    return made


def _with_counts(pairs: list[tuple[str, str]], ids: dict[str, int], made: NDArray[np.float64]) -> BpeCodes:
    """Codes with how often each merge is made, which the trainer does not tell.

    A merge is made once for every place where its symbol stands in the end (`made`), and once for every later merge
    that takes the symbol up: going back through the merges gives all.
    """
    merges = []
    for left, right in reversed(pairs):
        count = int(made[ids[left + right]])
        made[ids[left]] += count
        made[ids[right]] += count
        merges.append((left, right, count))
    return BpeCodes(reversed(merges))


def _word_tokenizer(model: models.BPE) -> Tokenizer:
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    return tokenizer


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let tokenizers work in this thread only: handing words to its threads costs more than they save."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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

    To an engine this is the text: it only counts words, and fastBPE numbers them by first occurrence.
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
            f"the pair {' '.join(pair)!r} comes {count:,} times; the engines count to {MAX_PAIR_COUNT:,}: "
            "learn from a sample (bpe.sample=alpha bpe.sample_sentences=10_000_000)"
        )
