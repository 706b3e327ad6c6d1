"""How well a model predicts a text: the sums behind every perplexity and accuracy of this project.

Validation during training, `xlm-eval` and the report all add up the same three numbers, so shares of windows scored by
different processes are merged by adding them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.corpus import TokenStream
from xlm_train.data.masking import evaluation_masks
from xlm_train.model.transformer import XLM
from xlm_train.model.translation import without_dropout
from xlm_train.text.vocabulary import EOS, MASK

READOUT_ELEMENTS = 2**23  # logits held at once, 32 MiB in float32: on 2 CPU cores as fast as any larger number


def exponential(nats: float) -> float:
    """exp, but infinity where a float cannot hold it: a perplexity of a diverged model is no reason to stop."""
    return math.inf if nats > 709 else math.exp(nats)


@dataclass(frozen=True)
class Score:
    """How well some tokens were predicted.

    Args:
        total_loss: Cross-entropy in nats over all predicted tokens.
        correct: Predictions whose most likely word is the right one.
        predicted: Tokens.
    """

    total_loss: float
    correct: int
    predicted: int

    @classmethod
    def from_sums(cls, sums: Tensor) -> Score:
        """From what `score_windows` returns, or a sum of several."""
        total_loss, correct, predicted = sums.tolist()
        return cls(total_loss, int(correct), int(predicted))

    def __add__(self, other: Score) -> Score:
        return Score(self.total_loss + other.total_loss, self.correct + other.correct, self.predicted + other.predicted)

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.total_loss / self.predicted

    @property
    def perplexity(self) -> float:
        """Per predicted token."""
        return exponential(self.loss)

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self.correct / self.predicted


def untold(count: int) -> None:
    """Tell nobody how much has been scored."""


@torch.no_grad()
def score_windows(
    model: XLM,
    stream: TokenStream,
    bptt: int,
    language: int,
    windows: range | None = None,
    batch_windows: int = 32,
    device: torch.device | str = "cpu",
    tell: Callable[[int], None] = untold,
) -> Tensor:
    """Score windows of a stream as the original evaluates a causal model.

    The stream is read in order, padded on the left with eos (see TokenStream), every window for itself with positions
    0 .. bptt-1; the eos padding counts as a target, the first token of a window never does.

    Args:
        model: Its dropout is off meanwhile.
        stream: Tokens of one language.
        bptt: Window length in tokens.
        language: The model's id of it.
        windows: Numbers of the windows; default all.
        batch_windows: Windows that go through the model at once; they do not depend on each other, so it changes
            rounding only.
        device: Where the model is.
        tell: Called with the number of windows that have been scored since its last call.

    Returns:
        A (3,) float64 tensor of cross-entropy in nats, correct predictions and predicted tokens. Processes that score
        disjoint ranges merge their results by adding the tensors.

    Source: the original's evaluation/evaluator.py.
    """
    windows = range(stream.n_windows(bptt)) if windows is None else windows
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with without_dropout(model):
        for numbers in _portions(windows, batch_windows):
            tokens_BT = torch.from_numpy(stream.windows(numbers, bptt)).to(device)
            targets = tokens_BT[:, 1:].reshape(-1)
            # the last position predicts nothing here, and no other sees it
            hidden = model(tokens_BT[:, :-1], langs=language).flatten(0, 1)
            losses, correct = predict(model, hidden, targets)
            sums[:2] += torch.stack([losses.double().sum(), correct.sum().double()])
            tell(len(numbers))
    sums[2] = len(windows) * (bptt - 1)
    return sums


@torch.no_grad()
def score_masked_windows(
    model: XLM,
    stream: TokenStream,
    bptt: int,
    language: int,
    windows: range | None = None,
    batch_windows: int = 32,
    device: torch.device | str = "cpu",
    tell: Callable[[int], None] = untold,
) -> Tensor:
    """Score windows of a stream as the original evaluates a masked model: hidden words, by masks that never change.

    The windows are those of `score_windows`, as is the result. A window's mask depends on its number alone: the masks
    of those before `windows` are drawn too, and thrown away.

    Args:
        model: Its dropout is off meanwhile.
        stream: Tokens of one language.
        bptt: Window length in tokens.
        language: The model's id of it.
        windows: Numbers of the windows; default all.
        batch_windows: Windows that go through the model at once; changes rounding only.
        device: Where the model is.
        tell: As in `score_windows`.

    Source: the original's evaluation/evaluator.py (mask_out).
    """
    windows = range(stream.n_windows(bptt)) if windows is None else windows
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    masks = itertools.islice(evaluation_masks(windows.stop, bptt), windows.start, None)
    with without_dropout(model):
        for numbers in _portions(windows, batch_windows):
            tokens_BT = torch.from_numpy(stream.windows(numbers, bptt))
            chosen_BT = torch.from_numpy(np.stack(list(itertools.islice(masks, len(numbers)))))
            sums += masked_sums(model, tokens_BT, chosen_BT, language, device)
            tell(len(numbers))
    return sums


def masked_sums(
    model: XLM,
    tokens_BT: Tensor,
    chosen_BT: Tensor,
    langs: Tensor | int,
    device: torch.device | str,
    lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
) -> Tensor:
    """Hide the chosen words and predict them; the model is in evaluation mode.

    Args:
        model: On `device`; all else is on the CPU.
        tokens_BT: The text, nothing hidden.
        chosen_BT: Which words are hidden, each by the mask token.
        langs: As in `XLM.forward`, like the last two.
        device: Where the model is.
        lengths_B: Of the rows.
        positions_BT: Of the tokens.

    Returns:
        The sums (3,) of `score_windows`.
    """
    targets, chosen = tokens_BT[chosen_BT].to(device), chosen_BT.flatten().nonzero().squeeze(1).to(device)
    langs = langs.to(device) if isinstance(langs, Tensor) else langs
    lengths_B = None if lengths_B is None else lengths_B.to(device)
    positions_BT = None if positions_BT is None else positions_BT.to(device)
    seen_BT = tokens_BT.masked_fill(chosen_BT, MASK).to(device)
    hidden = model(seen_BT, langs, lengths_B, causal=False, positions_BT=positions_BT, chosen_N=chosen)
    losses, correct = predict(model, hidden, targets)
    return torch.stack([losses.double().sum(), correct.sum().double(), losses.new_tensor(len(losses)).double()])


WINDOW_SCORES = {"causal": score_windows, "masked": score_masked_windows}  # by an objective's `evaluation`


def _portions(windows: range, size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(windows), size):
        yield np.asarray(windows[start : start + size], dtype=np.int64)


@torch.no_grad()
def score_sentences(
    model: XLM,
    sentences: Sequence[NDArray[np.int64]],
    language: int,
    context: int,
    batch_tokens: int = 8192,
    device: torch.device | str = "cpu",
) -> list[Score]:
    """Score sentences one by one, each as if it began a text.

    Each is read after an eos, and every one of its tokens is predicted, its own eos included.

    Args:
        model: Its dropout is off meanwhile.
        sentences: Ids, each sentence with its eos at the end.
        language: The model's id of it.
        context: Tokens the model reads at most to predict one; a longer sentence is read in overlapping pieces, so
            that each token after the first `context` is predicted from at least half as many.
        batch_tokens: Tokens, padding included, that go through the model at once.
        device: Where the model is.
    """
    pieces = [(number, *span) for number, ids in enumerate(sentences) for span in _spans(len(ids), context)]
    pieces.sort(key=lambda piece: piece[2] - piece[1])  # like lengths together: little padding
    texts = [np.concatenate([[EOS], ids]) for ids in sentences]
    sums = np.zeros((len(sentences), 2))
    with without_dropout(model):
        for batch in _batches(pieces, batch_tokens):
            length = max(end - begin for _, begin, end, _ in batch)
            inputs = np.full((len(batch), length), EOS, dtype=np.int64)
            targets = np.full((len(batch), length), EOS, dtype=np.int64)
            counted = np.zeros((len(batch), length), dtype=bool)
            for row, (number, begin, end, first) in enumerate(batch):
                inputs[row, : end - begin] = texts[number][begin:end]
                targets[row, : end - begin] = texts[number][begin + 1 : end + 1]
                counted[row, first - begin : end - begin] = True
            # padding stands on the right, where a causal model does not see it
            hidden = model(torch.from_numpy(inputs).to(device), langs=language)
            keep = torch.from_numpy(counted).to(device)
            losses, correct = predict(model, hidden[keep], torch.from_numpy(targets).to(device)[keep])
            rows = np.repeat([piece[0] for piece in batch], counted.sum(axis=1))
            np.add.at(sums, rows, np.stack([losses.double().cpu().numpy(), correct.cpu().numpy()], axis=1))
    return [Score(float(loss), int(correct), len(ids)) for (loss, correct), ids in zip(sums, sentences, strict=True)]


def predict(model: XLM, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy in nats (N,) and whether the most likely word is the target (N,), a chunk of logits at a time.

    Args:
        model: In evaluation mode; its output layer reads the states out.
        hidden_ND: Of its last layer.
        targets_N: Ids of the right words.
    """
    chunk = max(1, READOUT_ELEMENTS // model.shape.n_rows)
    losses, correct = [], []
    for hidden, target in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
        logits = model.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        # of equally likely words the first counts, as by argmax (in half precision ties are common); max costs half of it
        correct.append(logits.max(dim=1).indices == target)
    return torch.cat(losses), torch.cat(correct)


def _spans(n_targets: int, context: int) -> Iterator[tuple[int, int, int]]:
    """How a sentence is read in pieces: (begin, end, first); read inputs begin..end-1, count targets first..end-1."""
    begin = end = 0
    while end < n_targets:
        first, begin = end, max(0, end - context // 2)
        end = min(begin + context, n_targets)
        yield begin, end, first


def _batches(
    pieces: Sequence[tuple[int, int, int, int]], batch_tokens: int
) -> Iterator[Sequence[tuple[int, int, int, int]]]:
    """Consecutive pieces, sorted by length, in batches of at most `batch_tokens` with padding (one piece at least)."""
    start = 0
    for position, (_, begin, end, _) in enumerate(pieces):
        if position > start and (end - begin) * (position + 1 - start) > batch_tokens:
            yield pieces[start:position]
            start = position
    if start < len(pieces):
        yield pieces[start:]
