"""Scores of translation models: the original's own figures and files, `xlm-eval` as a command, and mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import read_lines
from xlm_train.commands.evaluate import main
from xlm_train.data.corpus import Corpus
from xlm_train.evaluation.bleu import detokenised_baselines, detokenised_scores, tokenised_bleu
from xlm_train.evaluation.parallel import ParallelText, translate_pairs
from xlm_train.evaluation.perplexity import Score
from xlm_train.interop.original.names import to_ours
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.shape import ModelShape
from xlm_train.model.translation import Beam
from xlm_train.model.translator import open_translator
from xlm_train.objectives.translation import translation_batch
from xlm_train.text.reader import TextReader

DIRECTIONS = (("de", "en"), ("en", "de"))
WORDS = "".join(f"w{i} {100 - i}\n" for i in range(26))  # with the 14 special words: 40
CODES = "w 1</w> 1\n"


@pytest.fixture(scope="module")
def golden_pairs(
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Path],
    golden_text: tuple[str, str],
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
        assert (
            tokenised_bleu(hypothesis, [text.references[place] for place in order])
            == printed[f"valid_{text.name}_mt_bleu"]
        )


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
    told: list[tuple[int, int]] = []
    search = Beam(4) if beam else None
    parts = [
        translate_pairs(model, text, search, share=(rank, 3), tell=lambda *done: told.append(done)) for rank in range(3)
    ]
    sources = sum(len(ids) for ids in text.read(text.numbers)[0])
    assert [sum(done) for done in zip(*told, strict=True)] == [sources, len(text.numbers)]
    assert text.n_pieces == sources
    score = Score.from_sums(torch.stack([sums for sums, _ in parts]).sum(dim=0))
    assert score.perplexity == pytest.approx(printed[f"valid_{name}_mt_ppl"], rel=1e-6)
    assert score.accuracy == pytest.approx(printed[f"valid_{name}_mt_acc"], rel=1e-12)
    made = {number: ids for _, part in parts for number, ids in part.items()}
    words = [text.words(made[number]) for number in text.numbers.tolist()]
    assert tokenised_bleu(words, text.references) == printed[f"valid_{name}_mt_bleu"]
    written = read_lines(folder / "eval_files" / f"{'hyp_beam4' if beam else 'hyp0'}.{name}.valid.txt")
    assert [words[place].replace("@@ ", "").removesuffix("@@") for place in in_batches(text)] == written


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path], make_checkpoint: Callable[..., Path]
) -> tuple[Path, Path]:
    """A random translation model and a corpus: 34 test pairs, one with an empty side and one that is too long."""
    folder, random = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    torch.manual_seed(1)
    model = Seq2Seq(ModelShape(n_words=40, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=24))
    lines = {code: [random.integers(14, 40, n).tolist() for n in random.integers(1, 20, 34)] for code in ("de", "en")}
    lines["en"][5], lines["de"][7] = [], [20] * 23
    corpus = make_corpus(folder / "corpus", WORDS, CODES, {}, pairs={"test": {"de-en": lines}})
    return make_checkpoint(folder / "model.pt", model, WORDS, CODES, bptt=12), corpus


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["xlm-eval", *overrides])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.mark.parametrize("search", [(), ("beam=3", "length_penalty=1.6")])
def test_the_command_scores_both_directions_of_a_corpus(
    small: tuple[Path, Path],
    search: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, folder = small
    out = tmp_path / "result.json"
    assert run(monkeypatch, f"checkpoint={checkpoint}", f"data.path={folder}", f"out={out}", *search) == 0
    result, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert result["search"] == ({"beam": 3, "length_penalty": 1.6} if search else {"beam": 1})
    assert list(result["directions"]) == ["de-en", "en-de"]
    translator = open_translator(checkpoint, "cpu")
    beam = Beam(3, 1.6) if search else None
    for name, measured in result["directions"].items():
        source, target = name.split("-")
        text = ParallelText(Corpus(folder), "test", (source, target), translator.text, 24)
        assert (measured["sentences"], measured["left_out"]) == (32, 2)
        sources, targets = text.read(text.numbers)
        batch = translation_batch(sources, text.languages[0], targets, text.languages[1])
        with torch.no_grad():
            assert measured["loss"] == pytest.approx(float(batch.loss(translator.model)), rel=1e-5)
        assert measured["predicted_tokens"] == sum(len(ids) - 1 for ids in targets)
        _, made = translate_pairs(translator.model, text, beam)
        lines = (tmp_path / f"result.{name}.txt").read_text().splitlines()
        assert result["files"][name] == str(tmp_path / f"result.{name}.txt")
        assert len(lines) == 34
        assert lines[5] == lines[7] == ""
        assert [line for place, line in enumerate(lines) if place not in (5, 7)] == [
            text.running_text(made[number], 1) for number in text.numbers.tolist()
        ]
        for kind in ("tokenised_bleu", "bleu", "chrf"):
            assert measured[kind].keys() >= {"value", "constant", "copied"}
        assert "tok:13a" in measured["bleu"]["signature"]
        assert measured["bleu"]["signature"] in shown
        assert f"{measured['perplexity']:,.2f}" in shown


def test_the_command_scores_raw_text_against_raw_text(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"de": ["w1 w2 w3", "", "w4 w5"], "en": ["w7 w8 w9 w10", "w11", "w12 w13"]}
    for code, lines in texts.items():
        (tmp_path / f"text.{code}").write_text("".join(f"{line}\n" for line in lines))
    out = tmp_path / "result.json"
    given = [f"text.{code}={tmp_path / f'text.{code}'}" for code in texts]
    assert run(monkeypatch, f"checkpoint={small[0]}", *given, f"out={out}") == 0
    result, translator = json.loads(out.read_text()), open_translator(small[0], "cpu")
    for source, target in DIRECTIONS:
        measured = result["directions"][f"{source}-{target}"]
        lines = (tmp_path / f"result.{source}-{target}.txt").read_text().splitlines()
        assert lines == translator.translate(texts[source], source, target)
        assert measured["sentences"] == 3
        assert measured["chrf"]["value"] == pytest.approx(detokenised_scores(lines, texts[target]).chrf.value)
        assert "perplexity" not in measured


def test_translations_without_a_word_score_zero() -> None:
    scores = detokenised_scores(["", ""], ["a b c d", "e f g h"])
    assert (scores.bleu.value, scores.bleu.mean, scores.bleu.interval, scores.chrf.value) == (0, 0, 0, 0)


def test_a_model_that_copies_is_no_better_than_the_copied_source() -> None:
    """What needs no model: the one sentence for everything, and the source as it is."""
    references = ["the king was dead .", "the queen was not dead .", "nobody knew ."]
    found = detokenised_baselines(references, references)
    assert [found[kind]["copied"] for kind in ("bleu", "chrf")] == pytest.approx([100, 100])
    one_for_all = {line: detokenised_scores([line] * 3, references).bleu.value for line in references}
    assert found["bleu"]["constant"] == pytest.approx(max(one_for_all.values()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text.en={text}"], "give two, text.LANGUAGE=FILE text.OTHER=FILE"),
        (["text.en={text}", "text.fr={text}"], "text.fr={text}: {checkpoint} knows the languages de, en"),
        (["text.en={text}", "text.de={short}"], "{text} 3 and {short} 2 lines"),
        (["data.path={corpus}", "split=valid"], "has no parallel text valid.de-en"),
        (["data.path={corpus}", "bptt=8"], "bptt=8: {checkpoint} is a translation model"),
    ],
)
def test_mistakes_are_one_line(
    small: tuple[Path, Path],
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"text": tmp_path / "a", "short": tmp_path / "b", "checkpoint": small[0], "corpus": small[1]}
    names["text"].write_text("w1\nw2\nw3\n")
    names["short"].write_text("w1\nw2\n")
    given = [override.format(**names) for override in overrides]
    assert run(monkeypatch, f"checkpoint={small[0]}", *given, f"out={tmp_path / 'x.json'}") == 2
    assert message.format(**names) in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
