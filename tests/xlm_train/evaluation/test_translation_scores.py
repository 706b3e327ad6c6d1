"""Scores of translation models: the original's own figures and files, `xlm-eval` as a command, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import read_lines
from xlm_train.commands.evaluate import main
from xlm_train.data.corpus import Corpus
from xlm_train.evaluation.bleu import detokenised_baselines, tokenised_bleu
from xlm_train.evaluation.parallel import ParallelText, translate_pairs
from xlm_train.evaluation.perplexity import Score
from xlm_train.interop.original.names import to_ours
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.shape import ModelShape
from xlm_train.model.translation import Beam
from xlm_train.text.reader import TextReader

DIRECTIONS = (("de", "en"), ("en", "de"))
WORDS = "".join(f"w{i} {100 - i}\n" for i in range(26))  # with the 14 special words: 40
CODES = "w 1</w> 1\n"


@pytest.fixture(scope="module")
def golden_pairs(
    shared: Path, tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path], golden_text: tuple[str, str]
) -> Corpus:
    """The validation pairs of goldens/mt."""
    words = {line.split(" ")[0]: number for number, line in enumerate(golden_text[0].splitlines(), start=14)}
    sides = {
        code: [[words.get(word, 3) for word in line.split()] for line in read_lines(shared / f"goldens/mt/valid.de-en.{code}.bpe.gz")]
        for code in ("de", "en")
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("mt") / "corpus"
    return Corpus(make_corpus(folder, *golden_text, {}, pairs={"valid": {"de-en": sides}}))


def in_batches(text: ParallelText) -> list[int]:
    """Places among the text's pairs in the order in which the original writes them."""
    return np.searchsorted(text.numbers, np.concatenate(text.batches)).tolist()  # type: ignore[no-any-return]


def test_references_and_bleu_are_the_originals(shared: Path, golden_pairs: Corpus) -> None:
    """What it wrote for multi-bleu.perl, and the scores that it read: empty sides left out, unknown words never matching."""
    folder = shared / "goldens/mt"
    printed = json.loads((folder / "aebt_eval_scores.json").read_text())
    reader = TextReader(golden_pairs.text)
    for direction in DIRECTIONS:
        text = ParallelText(golden_pairs, "valid", direction, reader, 512, batch_pairs=16)
        assert (len(text.numbers), text.n_pairs) == (201, 203)
        reference, hypothesis = (read_lines(folder / f"{kind}.{text.name}.valid.txt") for kind in ("ref", "hyp0"))
        order = in_batches(text)
        assert [text.references[place].replace("@@ ", "") for place in order] == reference
        assert "<<unk>>" in " ".join(reference)
        assert tokenised_bleu(hypothesis, [text.references[place] for place in order]) == printed[f"valid_{text.name}_mt_bleu"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["de-en", "en-de", "de-en beam4"])
def test_the_originals_evaluation(complete: Path, golden_pairs: Corpus, name: str) -> None:
    """Perplexity, accuracy, BLEU and every translation of its model."""
    folder = complete / "goldens/mt"
    model = Seq2Seq(ModelShape(n_words=6142, dim=64, n_layers=2, n_heads=4, ffn_dim=256))
    for side in ("encoder", "decoder"):
        with np.load(folder / f"aebt_final_{side}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        getattr(model, side).load_state_dict(to_ours(tensors, model.shape, side, reads_source=side == "decoder"))
    name, _, beam = name.partition(" ")
    printed = json.loads((folder / ("aebt_eval_scores_beam4.json" if beam else "aebt_eval_scores.json")).read_text())
    source, target = name.split("-")
    text = ParallelText(golden_pairs, "valid", (source, target), TextReader(golden_pairs.text), 512, batch_pairs=16)
    parts = [translate_pairs(model, text, Beam(4) if beam else None, share=(rank, 3)) for rank in range(3)]
    score = Score.from_sums(torch.stack([sums for sums, _ in parts]).sum(dim=0))
    assert score.perplexity == pytest.approx(printed[f"valid_{name}_mt_ppl"], rel=1e-6)
    assert score.accuracy == pytest.approx(printed[f"valid_{name}_mt_acc"], rel=1e-12)
    made = {number: ids for _, part in parts for number, ids in part.items()}
    words = [text.words(made[number]) for number in text.numbers.tolist()]
    assert tokenised_bleu(words, text.references) == printed[f"valid_{name}_mt_bleu"]
    written = read_lines(folder / "eval_files" / f"{'hyp_beam4' if beam else 'hyp0'}.{name}.valid.txt")
    assert [words[place].replace("@@ ", "").removesuffix("@@") for place in in_batches(text)] == written
