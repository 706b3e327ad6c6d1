"""What a validation during training measures: one evaluator for each kind of model, chosen by the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xlm_train.data.concatenation import JoinedPairs
from xlm_train.data.corpus import Corpus, TokenStream
from xlm_train.evaluation.bleu import chrf, sacrebleu_metrics, tokenised_bleu
from xlm_train.evaluation.pairs import batches_of, score_pairs
from xlm_train.evaluation.parallel import ParallelText, translate_pairs
from xlm_train.evaluation.perplexity import WINDOW_SCORES, Score
from xlm_train.model.translation import Beam
from xlm_train.runtime.console import log
from xlm_train.text.reader import TextReader

TRANSLATION = "translation"
KINDS = (*WINDOW_SCORES, TRANSLATION)  # values of an objective's `evaluation`
SAMPLES = 10  # translations shown at a validation, over all directions


@dataclass(frozen=True)
class Share:
    """This process's share of a validation, and how the processes put theirs together.

    Args:
        device: Where the model is.
        rank: Of this process.
        processes: How many there are.
        gather: Gives every process's object, by rank, the same on all of them. A collective.
    """

    device: torch.device
    rank: int = 0
    processes: int = 1
    gather: Callable[[Any], list[Any]] = lambda mine: [mine]

    def total(self, sums: Tensor) -> Tensor:
        """Add the processes' sums, in place. A collective."""
        if self.processes > 1:
            torch.distributed.all_reduce(sums)
        return sums


@dataclass(frozen=True)
class Measured:
    """What a validation found.

    Args:
        metrics: By name: those that the evaluator promises, and figures to compare them with.
        samples: Translations, each with direction, source, translation and reference.
    """

    metrics: dict[str, float]
    samples: Sequence[Mapping[str, str]] = ()


class Evaluator(Protocol):
    """Scores a model on the validation text of a run."""

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that each validation gives and a run may go by; none where there is no text."""

    def score(self, model: Any, share: Share) -> Measured:
        """Score this process's share and put all together: the result is the same on all processes. A collective."""


def text_metrics(texts: Iterable[str]) -> list[str]:
    """List the metrics of languages and pairs of these names; none where there are none."""
    ends = [f"_{text}" for text in texts]
    names = ["val/ppl", "val/acc", *(f"val/{kind}{end}" for kind in ("loss", "ppl", "acc") for end in ends)]
    return names if ends else []


def translation_metrics(directions: Iterable[tuple[str, str]]) -> list[str]:
    """List the metrics of directions; none where there are none."""
    ends = [f"_{'-'.join(direction)}" for direction in directions]
    kinds = ("bleu", "chrf", "loss", "ppl", "acc")
    names = ["val/bleu", "val/ppl", "val/acc", *(f"val/{kind}{end}" for kind in kinds for end in ends)]
    return names if ends else []


def _predicted(scores: Mapping[str, Score]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, score in scores.items():
        metrics |= {
            f"val/loss_{name}": score.loss,
            f"val/ppl_{name}": score.perplexity,
            f"val/acc_{name}": score.accuracy,
        }
    return metrics


def _means(scores: Collection[Score]) -> dict[str, float]:
    return {
        "val/ppl": math.fsum(score.perplexity for score in scores) / len(scores),
        "val/acc": math.fsum(score.accuracy for score in scores) / len(scores),
    }


class TextEvaluator:
    """Perplexity and accuracy of languages, in windows, and of joined pairs: val/loss_NAME, val/ppl_NAME, val/acc_NAME.

    The means val/ppl and val/acc are over the languages, or over the pairs where there are no languages, as the
    original's are.

    Args:
        texts: By name.
        languages: Code -> the model's id.
        kind: "causal" or "masked".
        bptt: Tokens of a window.
        longest: Positions of the model. Pairs with a longer side are left out.
        batch_windows: Windows scored in one forward pass.
    """

    def __init__(
        self,
        texts: Mapping[str, TokenStream | JoinedPairs],
        languages: Mapping[str, int],
        kind: str,
        bptt: int,
        longest: int,
        batch_windows: int,
    ) -> None:
        self.texts = dict(texts)
        self.languages = languages
        self.kind = kind
        self.bptt = bptt
        self.batch_windows = batch_windows
        for name, text in texts.items():
            if isinstance(text, JoinedPairs) and (long := text.n - sum(map(len, batches_of(text, longest)))):
                _tell_left_out(name, long, text.n, longest)
                if long == text.n:
                    del self.texts[name]
        self.metrics = text_metrics(self.texts)

    def score(self, model: Any, share: Share) -> Measured:
        """Score every text."""
        scores = {
            name: Score.from_sums(share.total(self._sums(model, name, text, share)))
            for name, text in self.texts.items()
        }
        averaged = [score for name, score in scores.items() if name in self.languages] or list(scores.values())
        return Measured({**_predicted(scores), **_means(averaged)})

    def _sums(self, model: Any, name: str, text: TokenStream | JoinedPairs, share: Share) -> Tensor:
        if isinstance(text, JoinedPairs):
            return score_pairs(model, text, (share.rank, share.processes), device=share.device)
        count = text.n_windows(self.bptt)
        mine = range(share.rank * count // share.processes, (share.rank + 1) * count // share.processes)
        score_windows = WINDOW_SCORES[self.kind]
        return score_windows(model, text, self.bptt, self.languages[name], mine, self.batch_windows, share.device)


def translatable(corpus: Corpus, directions: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """List the directions that a corpus has validation pairs for."""
    return [direction for direction in directions if "-".join(sorted(direction)) in corpus.pair_names("valid")]


class TranslationEvaluator:
    """Translations of the validation pairs, and how well their words are predicted, in each direction.

    val/bleu_de-en is the original's BLEU, of tokenised text; val/chrf_de-en is of running text. Beside them stand
    val/constant_de-en and val/copied_de-en: the BLEU of the best single sentence for everything, and of the source; and
    val/constant-chrf_de-en and val/copied-chrf_de-en, their chrF.

    Args:
        corpus: Opened.
        directions: Those to be translated, of which the corpus has pairs.
        longest: Positions of the model. Pairs with a longer side are left out.
        search: Default greedy.

    Raises:
        ConfigError: sacrebleu is not installed.
    """

    def __init__(
        self, corpus: Corpus, directions: Sequence[tuple[str, str]], longest: int, search: Beam | None = None
    ) -> None:
        self.search = search
        self.texts = []
        reader = TextReader(corpus.text, name=str(corpus.path))
        for direction in directions:
            text = ParallelText(corpus, "valid", direction, reader, longest)
            if text.too_long:
                _tell_left_out(text.name, text.too_long, text.too_long + len(text.numbers), longest)
            if len(text.numbers):
                self.texts.append(text)
        if self.texts:
            sacrebleu_metrics()
        self.metrics = translation_metrics(text.direction for text in self.texts)
        for text in self.texts:
            given = " and ".join(f"{value:.2f} ({name})" for name, value in text.baselines.items())
            log(f"validation of {text.name}: {len(text.numbers):,} pairs; BLEU without a model: {given}")

    def score(self, model: Any, share: Share) -> Measured:
        """Translate and score every direction."""
        scores: dict[str, Score] = {}
        metrics: dict[str, float] = {}
        samples: list[dict[str, Any]] = []
        for text in self.texts:
            part = share.rank, share.processes
            sums, mine = translate_pairs(model, text, self.search, part, share.device)
            scores[text.name] = Score.from_sums(share.total(sums))
            made = {number: ids for found in share.gather(mine) for number, ids in found.items()}
            translations = [made[number] for number in text.numbers.tolist()]
            plain = [text.running_text(ids, 1) for ids in translations]
            metrics |= {
                f"val/bleu_{text.name}": tokenised_bleu([text.words(ids) for ids in translations], text.references),
                f"val/chrf_{text.name}": chrf(plain, text.plain_references),
            }
            metrics |= {f"val/{name}_{text.name}": value for name, value in text.baselines.items()}
            metrics |= {f"val/{name}-chrf_{text.name}": value for name, value in text.chrf_baselines.items()}
            samples += self._samples(text, plain)
        bleu = math.fsum(metrics[f"val/bleu_{text.name}"] for text in self.texts) / len(self.texts)
        return Measured({"val/bleu": bleu, **metrics, **_predicted(scores), **_means(scores.values())}, samples)

    def _samples(self, text: ParallelText, plain: Sequence[str]) -> list[dict[str, str]]:
        """Take this direction's share of the samples: the same pairs each time, from the shortest to the longest."""
        by_length = np.concatenate(text.batches)
        count = min(max(1, SAMPLES // len(self.texts)), len(by_length))
        chosen = by_length[(2 * np.arange(count) + 1) * len(by_length) // (2 * count)]
        return [
            {
                "direction": text.name,
                "source": text.plain_sources[place],
                "translation": plain[place],
                "reference": text.plain_references[place],
            }
            for place in np.searchsorted(text.numbers, chosen).tolist()
        ]


def _tell_left_out(name: str, long: int, n: int, longest: int) -> None:
    log(f"validation of {name}: {long:,} of {n:,} pairs have a side beyond {longest} positions and are left out")
