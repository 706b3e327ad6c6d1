"""The arithmetic of translation, as torch counts it, and a translation model's parameters."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from xlm_train.model.flops import DECODING, Row, row_flops, training_flops_per_token
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.shape import ModelShape
from xlm_train.model.transformer import XLM, count_parameters
from xlm_train.objectives.back_translation import Sentences, back_translated
from xlm_train.objectives.translation import translation_batch

SHAPE = ModelShape(n_words=96, dim=32, n_layers=2, n_heads=4, ffn_dim=64, dropout=0.0, attention_dropout=0.0)


def counted(row: Row, recompute: bool = False) -> int:
    """FLOPs of a row without those of scores, which torch does not count in its own kernel on a CPU."""
    D, L, S, T = SHAPE.dim, SHAPE.n_layers, row.source, row.positions
    of_scores = L * 4 * D * (S * S + T * (T + 1) / 2 + S * T)
    parts = row_flops(SHAPE, row, recompute)
    assert parts["attention scores"].forward + parts["attention over the source"].forward == (
        of_scores + L * 4 * D * D * (S + T)
    )
    trained = sum(part.total for name, part in parts.items() if name != DECODING)
    return trained - round((4 if recompute else 3) * of_scores)


@pytest.mark.parametrize("recompute", [False, True])
def test_flops_of_a_translation_step_are_those_that_torch_counts(recompute: bool) -> None:
    model = Seq2Seq(SHAPE, recompute=recompute, ops="plain")
    sentence = lambda length: [1, *range(20, 18 + length), 1]  # noqa: E731
    batch = translation_batch([sentence(9)] * 3, 0, [sentence(7)] * 3, 1)
    with FlopCounterMode(display=False) as counter:
        batch.loss(model).backward()
    # 7 positions have 6 words to predict
    assert counter.get_total_flops() == 3 * counted(Row(16, 6, source=9), recompute=recompute)


def test_flops_of_back_translating_are_those_that_torch_counts() -> None:
    model = Seq2Seq(SHAPE, ops="plain")
    model.decoder.output_bias.data[1] = -100.0  # no eos: all are as long as allowed
    sentences = [[1, 20, 21, 22, 23, 24, 25, 1]] * 2
    with FlopCounterMode(display=False) as counter:
        made = back_translated(model, Sentences(sentences, 0, 1))
    length = int(1.3 * 8 + 5)
    assert made.source_lengths_B.tolist() == [length] * 2
    D, L = SHAPE.dim, SHAPE.n_layers
    # the encoder reads 8 words; the last word of all is the eos of the limit, which costs nothing; scores are not counted
    decoded = row_flops(SHAPE, Row(8, 7, source=length - 1, decodes=True), recompute=False)[DECODING].forward
    steps = length - 2
    decoded -= L * 4 * D * (8 * 8 + steps * (steps + 1) // 2 + 8 * steps)
    assert counter.get_total_flops() == 2 * decoded


def test_a_translation_costs_what_is_counted_as_a_token() -> None:
    pair, alone = Row(20, 9, source=10), Row(10, 9, source=10)
    assert training_flops_per_token(SHAPE, alone, False) == 2 * training_flops_per_token(SHAPE, pair, False)
    back = training_flops_per_token(SHAPE, Row(10, 9, source=10, decodes=True), False)
    assert back == pytest.approx(4 / 3 * training_flops_per_token(SHAPE, alone, False), rel=1e-6)


@pytest.mark.parametrize("share", ["none", "embeddings"])
def test_parameters_of_both_sides_without_the_padding_rows_of_either(share: str) -> None:
    padded = ModelShape(n_words=93, dim=32, n_layers=2, n_heads=4, ffn_dim=64, vocab_multiple=8)
    exact = ModelShape(**{**padded.to_dict(), "vocab_multiple": 1})
    assert padded.n_rows == 96
    count = count_parameters(Seq2Seq(padded, share=share))
    assert (
        count
        == count_parameters(Seq2Seq(exact, share=share))
        == sum(p.numel() for p in Seq2Seq(exact, share=share).parameters())
    )
    sides = count_parameters(XLM(padded)) + count_parameters(XLM(padded, reads_source=True))
    assert sides - count == (93 * 32 if share == "embeddings" else 0)
