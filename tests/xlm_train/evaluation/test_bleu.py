"""Translation scores against what multi-bleu.perl printed, and the baselines against a search by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlm_train.evaluation.bleu import (
    baselines,
    best_constant,
    detokenised_scores,
    multi_bleu,
    tokenised_bleu,
    undo_bpe,
)
from xlm_train.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((shared / "goldens/mt/bleu/cases.json").read_text(encoding="utf-8"))
    assert len(found) == 22
    return found


def test_scores_are_those_that_multi_bleu_prints(cases: list[dict[str, Any]]) -> None:
    found = {case["case"]: multi_bleu(case["hyp"], case["ref"]) for case in cases}
    assert found == {case["case"]: case["score_as_parsed"] for case in cases}


def test_bpe_is_undone_as_in_the_original(shared: Path) -> None:
    folder = shared / "goldens/mt/bleu"
    before, after = (folder / f"restore.{end}" for end in ("in", "out"))
    assert undo_bpe(before.read_bytes().decode()) == after.read_bytes().decode()


def test_pieces_are_joined_before_scoring() -> None:
    assert tokenised_bleu(["das ist ein gu@@ tes Haus ."], ["das ist ein gutes Haus ."]) == 100.0
    assert tokenised_bleu(["das ist ein gut es Haus ."], ["das ist ein gutes Haus ."]) < 60


def test_detokenised_scores_carry_signature_and_interval(cases: list[dict[str, Any]]) -> None:
    case = cases[0]
    hypotheses, references = (case[kind].splitlines()[:40] for kind in ("hyp", "ref"))
    scores = detokenised_scores(hypotheses, references)
    assert re.fullmatch(
        r"nrefs:1\|bs:1000\|seed:12345\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:[\d.]+", scores.bleu.signature
    )
    assert scores.chrf.signature.startswith("nrefs:1|bs:1000|seed:12345|case:mixed|eff:yes|nc:6|nw:0")
    for score in (scores.bleu, scores.chrf):
        assert 0 < score.interval < 15
        assert abs(score.mean - score.value) < score.interval
    assert detokenised_scores(references, references).bleu.value == pytest.approx(100)
    assert detokenised_scores(references, references).bleu.interval == pytest.approx(0)
    few = detokenised_scores(hypotheses[:10], references[:10])
    assert few.bleu.interval > scores.bleu.interval


def test_numbers_of_sentences_must_agree() -> None:
    with pytest.raises(ConfigError, match="1 translations cannot be scored against 2 references"):
        detokenised_scores(["a"], ["a", "b"])
    with pytest.raises(ConfigError, match="0 translations"):
        detokenised_scores([], [])


def test_the_best_constant_is_the_best_of_all_references() -> None:
    random = np.random.default_rng(1)
    for _ in range(5):
        words = np.array([*"abcde", "."])
        references = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(25)]
        scores = [tokenised_bleu([line] * len(references), references) for line in references]
        assert scores[references.index(best_constant(references))] == max(scores) > 0
    assert best_constant([]) == ""


def test_baselines() -> None:
    references = ["this is my hou@@ se .", "this is my house .", "a b c d e f"]
    sources = ["dies ist mein Haus .", "this is my house .", "1 2"]
    found = baselines(sources, references)
    assert found == {
        "constant": tokenised_bleu(["this is my house ."] * 3, references),
        "copied": tokenised_bleu(sources, references),
    }
    assert found["constant"] > found["copied"] > 0


def test_resamples_without_a_match_among_others_have_a_mean() -> None:
    """sacrebleu 2.6 cannot add the 0.0 of the one kind to the float32 of the other."""
    references = ["ein hund läuft"] * 5 + ["zwei katzen sitzen hier"] * 20
    scores = detokenised_scores(["ein"] * 5 + [""] * 20, references)
    assert 0 < scores.chrf.interval < scores.chrf.mean
