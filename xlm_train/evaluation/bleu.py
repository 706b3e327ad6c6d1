"""Translation scores: BLEU on tokenised text for the paper's tables, and sacrebleu's for everybody else.

The counting is sacrebleu's throughout (the extra `translation`). Lines are sentences, in the order of the references.

Source: Papineni et al. 2002 (BLEU); Popovic 2015 (chrF); Koehn 2004 (bootstrap); Moses' multi-bleu.perl, whose printed
scores the tests compare.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xlm_train.runtime.errors import ConfigError

ORDER = 4  # longest n-gram of BLEU
DEAD = -1.0  # multi-bleu.perl divides by zero where no hypothesis has a word; the original reads that as -1
NO_REFERENCE = 9999  # words that multi-bleu.perl counts for a hypothesis without a reference line
BOOTSTRAP = 1000  # resamples of the sentences
_WORDS = re.compile(r"[^ \t\n\r\f\v]+")  # perl splits at ASCII white space alone: a no-break space is part of a word


@dataclass(frozen=True)
class Score:
    """A score of a whole text.

    Args:
        value: From 0 to 100.
        mean: Of the scores of the resampled texts.
        interval: Half the width of the 95 % confidence interval around `mean`.
        signature: Says how it was computed, as sacrebleu wants it quoted.
    """

    value: float
    mean: float
    interval: float
    signature: str


@dataclass(frozen=True)
class TranslationScores:
    """Scores of detokenised text."""

    bleu: Score
    chrf: Score


def undo_bpe(text: str) -> str:
    """Join the pieces of words: `@@ ` goes, and `@@` or `@@ ` at the end of a line."""
    return re.sub(r"@@ |@@ ?$", "", text, flags=re.MULTILINE)


def multi_bleu(hypotheses: str, references: str) -> float:
    """BLEU of tokenised text as multi-bleu.perl prints it: cased, one reference, 4-grams, no smoothing.

    Both are the whole content of a file. As there, a last line without its newline loses its last character, and a
    hypothesis beyond the last reference counts 9,999 missing words.

    Args:
        hypotheses: Translations, words separated by white space.
        references: Their references.

    Returns:
        The score, from 0 to 100, with two decimals; -1 where no hypothesis has a word.
    """
    ids: dict[str, str] = {}  # numbers instead of words: sacrebleu would split at what perl takes for a letter

    def lines(text: str) -> list[str]:
        chopped = [*text.removesuffix("\n").split("\n")] if text else []
        if chopped and not text.endswith("\n"):
            chopped[-1] = chopped[-1][:-1]
        return [" ".join(ids.setdefault(word, str(len(ids))) for word in _WORDS.findall(line)) for line in chopped]

    translated, wanted = lines(hypotheses), lines(references)
    wanted += [" ".join(["none"] * NO_REFERENCE)] * (len(translated) - len(wanted))
    if not any(wanted):
        return 0.0
    if not any(translated):
        return DEAD
    metric = sacrebleu_metrics().BLEU(tokenize="none", smooth_method="none", force=True)
    return round(float(metric.corpus_score(translated, [wanted]).score), 2)


def tokenised_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """`multi_bleu` of sentences, their BPE undone."""
    return multi_bleu(*(undo_bpe("".join(f"{line}\n" for line in lines)) for lines in (hypotheses, references)))


def detokenised_scores(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """BLEU and chrF of detokenised text with sacrebleu's own tokenisation, intervals and signatures.

    Args:
        hypotheses: Translations.
        references: As many references.

    Raises:
        ConfigError: There are no sentences, or not as many of one as of the other, or sacrebleu is not installed.
    """
    if len(hypotheses) != len(references) or not references:
        raise ConfigError(f"{len(hypotheses):,} translations cannot be scored against {len(references):,} references")
    metrics = sacrebleu_metrics()
    return TranslationScores(
        *(_score(metric, hypotheses, references) for metric in (metrics.BLEU(force=True), metrics.CHRF()))
    )


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Score as `detokenised_scores` does, by chrF alone and without its interval."""
    return float(sacrebleu_metrics().CHRF().corpus_score(list(hypotheses), [list(references)]).score)


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    compute = metric._compute_score_from_stats

    def as_float(statistics: Any) -> Any:
        score = compute(statistics)
        score.score = float(score.score)  # 0.0 of one resample and float32 of another have no mean in sacrebleu
        return score

    metric._compute_score_from_stats = as_float
    found = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=BOOTSTRAP)
    signature = metric.get_signature().format()
    said = json.loads(found.format(signature=signature, is_json=True, width=6))
    # where every resample scores 0, sacrebleu leaves these out
    return Score(float(found.score), said.get("confidence_mean", 0.0), said.get("confidence_var", 0.0), signature)


def best_constant(references: Sequence[str]) -> str:
    """The one reference that has the highest BLEU when it is given for every sentence: what no model must stay below.

    Args:
        references: Tokenised.
    """
    length = sum(len(line.split()) for line in references)
    reaching: list[defaultdict[tuple[str, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(ORDER)]
    for line in references:
        for table, found in zip(reaching, _ngrams(line), strict=True):
            for ngram, count in found.items():
                table[ngram].update(range(1, count + 1))  # references that have it so many times at least

    def bleu(line: str) -> float:
        words, total = len(line.split()), 0.0
        if words < ORDER:
            return 0.0
        for order, (table, found) in enumerate(zip(reaching, _ngrams(line), strict=True)):
            matches = sum(table[ngram][k] for ngram, count in found.items() for k in range(1, count + 1))
            total += math.log(matches / (len(references) * (words - order)))
        return math.exp(total / ORDER + min(0.0, 1 - length / (len(references) * words)))

    return max(references, key=bleu, default="")


def _ngrams(line: str) -> Iterator[Counter[tuple[str, ...]]]:
    words = line.split()
    for order in range(1, ORDER + 1):
        yield Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def baselines(sources: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Tokenised BLEU of two systems that translate nothing, to be printed beside every score.

    Args:
        sources: Tokenised, BPE or not.
        references: Of the same sentences.

    Returns:
        `constant` (the best sentence, for every one) and `copied` (the source as it is).
    """
    plain = [undo_bpe(line) for line in references]
    constant = best_constant(plain)
    return {
        "constant": tokenised_bleu([constant] * len(plain), plain),
        "copied": tokenised_bleu(sources, plain),
    }


def detokenised_baselines(sources: Sequence[str], references: Sequence[str]) -> dict[str, dict[str, float]]:
    """BLEU and chrF, as `detokenised_scores`, of the same two systems.

    Args:
        sources: Running text.
        references: Of the same sentences.

    Returns:
        `constant` and `copied` of each of `bleu` and `chrf`.
    """
    metrics = sacrebleu_metrics()
    scorers = {"bleu": metrics.BLEU(force=True), "chrf": metrics.CHRF()}
    words = {scorers["bleu"].tokenizer(line): line for line in references}
    constant = words.get(best_constant(list(map(scorers["bleu"].tokenizer, references))), "")
    systems = {"constant": [constant] * len(references), "copied": list(sources)}
    return {
        kind: {
            name: float(scorer.corpus_score(lines, [list(references)]).score) for name, lines in systems.items()
        }
        for kind, scorer in scorers.items()
    }  # fmt: skip


def sacrebleu_metrics() -> Any:
    """Import what counts.

    Raises:
        ConfigError: sacrebleu is not installed; names the extra.
    """
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise ConfigError(
            "translation scores need the package sacrebleu: pip install 'xlm_train[translation]'"
        ) from error
    return metrics
