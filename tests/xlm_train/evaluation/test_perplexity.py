"""Sums behind perplexity and accuracy: the original's windows, its figures, and independence of batching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xlm_train.data.corpus import Corpus, Shard, TokenStream
from xlm_train.evaluation.perplexity import Score, _spans, score_sentences, score_windows
from xlm_train.model.transformer import XLM, ModelShape

EOS = 1


def stream_of(tokens: Any) -> TokenStream:
    """A stream in two shards."""
    tokens = np.asarray(tokens, dtype=np.uint16)
    half = len(tokens) // 2
    parts = [(tokens[:half], 0), (tokens[half:], half)]
    return TokenStream([Shard(part, start) for part, start in parts if len(part)], {})


def tiny_model(n_words: int = 40, dropout: float = 0.1) -> XLM:
    torch.manual_seed(3)
    shape = ModelShape(
        n_words=n_words, dim=16, n_layers=2, n_heads=2, ffn_dim=32, max_positions=16, dropout=dropout, vocab_multiple=8
    )
    model = XLM(shape)
    for parameter in model.parameters():  # larger than the usual initial weights, so that scores differ clearly
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def test_windows_are_the_originals_on_a_small_stream() -> None:
    # 7 tokens, windows of 3: padded with 2 eos to 9, shifted down behind one more eos; the last row is not used
    windows = stream_of([20, 21, 1, 22, 23, 24, 1]).windows(np.arange(3), 3)
    assert windows.tolist() == [[1, 1, 1], [20, 21, 1], [22, 23, 24]]


@given(n=st.integers(1, 60), bptt=st.integers(2, 17))
def test_windows_are_the_originals(n: int, bptt: int) -> None:
    tokens = np.arange(100, 100 + n)
    batches = -(-n // bptt)
    padded = np.concatenate([np.full(batches * bptt - n, EOS), tokens])
    rows = np.concatenate([[EOS], padded])[: batches * bptt]
    stream = stream_of(tokens)
    assert stream.n_windows(bptt) == batches
    assert np.array_equal(stream.windows(np.arange(batches), bptt), rows.reshape(batches, bptt))


def test_score_equals_one_window_at_a_time_in_float64() -> None:
    model, bptt = tiny_model(), 9
    stream = stream_of(np.random.default_rng(0).integers(4, 40, 100))
    sums = score_windows(model, stream, bptt, 1, batch_windows=4)

    double = tiny_model().double().eval()
    loss, correct, predicted = 0.0, 0, 0
    for window in stream.windows(np.arange(stream.n_windows(bptt)), bptt):
        tokens = torch.from_numpy(window)
        with torch.no_grad():
            logits = double.logits(double(tokens[None], langs=1))[0, :-1]
        loss += F.cross_entropy(logits, tokens[1:], reduction="sum").item()
        correct += int((logits.argmax(1) == tokens[1:]).sum())
        predicted += bptt - 1
    score = Score.from_sums(sums)
    assert score.total_loss == pytest.approx(loss, rel=1e-6)
    assert (score.correct, score.predicted) == (correct, predicted)
    assert score.perplexity == pytest.approx(np.exp(loss / predicted), rel=1e-6)
    assert score.accuracy == pytest.approx(100 * correct / predicted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_equally_likely_words_the_first_counts(dtype: torch.dtype) -> None:
    """As by argmax, in every precision: a target that shares the highest score with an earlier word is not correct."""
    model, bptt = tiny_model().eval(), 9
    for weights in (model.embeddings.weight, model.output_bias):
        weights.data[22:40] = weights.data[4:22]  # each word has a twin
    stream = stream_of(np.random.default_rng(0).integers(4, 40, 3000))
    correct, ties = 0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        sums = score_windows(model, stream, bptt, 0, batch_windows=1)
        for window in torch.from_numpy(stream.windows(np.arange(stream.n_windows(bptt)), bptt)):
            logits, targets = model.logits(model(window[None, :-1], langs=0)[0]), window[1:]
            correct += int((logits.argmax(1) == targets).sum())
            ties += int((logits.gather(1, targets[:, None])[:, 0] == logits.amax(1)).sum())
    assert Score.from_sums(sums).correct == correct < ties


def test_shares_of_windows_add_up_and_the_model_is_left_as_it_was() -> None:
    model = tiny_model(dropout=0.5).train()
    stream = stream_of(np.random.default_rng(1).integers(4, 40, 200))
    whole = score_windows(model, stream, 8, 0, batch_windows=7)
    shares = [score_windows(model, stream, 8, 0, windows, 3) for windows in (range(11), range(11, 12), range(12, 25))]
    nothing = score_windows(model, stream, 8, 0, range(0))
    assert stream.n_windows(8) == 25
    assert torch.allclose(sum(shares, nothing), whole, rtol=1e-6)
    assert model.training


def test_readout_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = tiny_model(), stream_of(np.random.default_rng(2).integers(4, 40, 120))
    whole = score_windows(model, stream, 8, 0)
    monkeypatch.setattr("xlm_train.evaluation.perplexity.READOUT_ELEMENTS", 3 * model.shape.n_rows)
    assert torch.allclose(score_windows(model, stream, 8, 0), whole, rtol=1e-6)


@pytest.mark.parametrize(("moment", "split"), [("init", "valid"), ("final", "valid")])
def test_the_originals_perplexities_and_accuracies(
    golden_corpus: Path,
    golden_model: Callable[[str], XLM],
    golden_scores: Callable[[str], dict[str, float]],
    moment: str,
    split: str,
) -> None:
    corpus, model, expected = Corpus(golden_corpus), golden_model(moment), golden_scores(moment)
    for lang, number in corpus.languages.items():
        score = Score.from_sums(score_windows(model, corpus.stream(split, lang), 64, number))
        assert score.perplexity == pytest.approx(expected[f"{split}_{lang}_clm_ppl"], rel=1e-5)
        assert score.accuracy == pytest.approx(expected[f"{split}_{lang}_clm_acc"], rel=1e-12)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_sentences_score_as_each_by_itself(batch_tokens: int) -> None:
    model = tiny_model().eval()
    random = np.random.default_rng(4)
    sentences = [np.append(random.integers(4, 40, n), EOS) for n in (3, 0, 9, 1, 3, 12)]
    scores = score_sentences(model, sentences, 1, context=16, batch_tokens=batch_tokens)
    for ids, score in zip(sentences, scores, strict=True):
        targets = torch.from_numpy(ids)
        inputs = torch.cat([torch.tensor([EOS]), targets[:-1]])
        with torch.no_grad():
            logits = model.logits(model(inputs[None], langs=1))[0]
        assert score.predicted == len(ids)
        assert score.total_loss == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-5)
        assert score.correct == int((logits.argmax(1) == targets).sum())


def test_a_long_sentence_is_scored_once_with_enough_context() -> None:
    model, context = tiny_model().eval(), 8
    ids = np.append(np.random.default_rng(5).integers(4, 40, 29), EOS)
    (score,) = score_sentences(model, [ids], 0, context)
    read = torch.from_numpy(np.concatenate([[EOS], ids]))
    expected = 0.0
    for target in range(1, len(read)):
        # the first piece is whole; every later one begins half a context before its first target
        moves = max(0, -(-(target - context) // (context // 2)))
        with torch.no_grad():
            logits = model.logits(model(read[None, moves * (context // 2) : target], langs=0))[0, -1]
        expected -= logits.log_softmax(0)[read[target]].item()
    assert score.predicted == len(ids)
    assert score.total_loss == pytest.approx(expected, rel=1e-5)


@given(n=st.integers(1, 50), context=st.integers(1, 12))
def test_pieces_of_a_sentence_cover_it_once(n: int, context: int) -> None:
    counted = []
    for begin, end, first in _spans(n, context):
        assert 0 <= begin <= first < end <= n
        assert end - begin <= context
        assert begin == 0 or first - begin >= context // 2
        counted += range(first, end)
    assert counted == list(range(n))
