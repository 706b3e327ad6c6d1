"""`xlm-eval`: the original's figures through the whole command, its other measures, raw text, and mistakes."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from xlm_train.commands.evaluate import main
from xlm_train.data.corpus import Corpus
from xlm_train.evaluation import ngram
from xlm_train.evaluation.corpus import evaluate
from xlm_train.model.pretrained import open_checkpoint
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file

WORDS = "".join(f"w{i} {100 - i}\n" for i in range(26))  # with the 14 special words: 40
CODES = "w 1</w> 1\n"


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["xlm-eval", *overrides])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path], make_checkpoint: Callable[..., Path]
) -> tuple[Path, Path]:
    """A random model's checkpoint and a corpus with its vocabulary."""
    folder, random = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    torch.manual_seed(1)
    model = XLM(ModelShape(n_words=40, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=32, dropout=0.5))
    splits = {
        split: {lang: [random.integers(3, 40, random.integers(0, 9)) for _ in range(n)] for lang in ("de", "en")}
        for split, n in (("train", 300), ("valid", 3), ("test", 40))
    }
    corpus = make_corpus(folder / "corpus", WORDS, CODES, splits)
    return make_checkpoint(folder / "model.pt", model, WORDS, CODES, bptt=12), corpus


def test_the_originals_evaluation(
    golden_checkpoint: Path,
    golden_corpus: Path,
    golden_scores: Callable[[str], dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected, out = golden_scores("final"), tmp_path / "result.json"
    given = (f"checkpoint={golden_checkpoint}", f"data.path={golden_corpus}", "split=valid", f"out={out}")
    assert run(monkeypatch, *given) == 0
    result = json.loads(out.read_text())
    assert result["bptt"] == 64
    for lang in ("de", "en"):
        measured = result["languages"][lang]
        assert measured["perplexity"] == pytest.approx(expected[f"valid_{lang}_clm_ppl"], rel=1e-5)
        assert measured["accuracy"] == pytest.approx(expected[f"valid_{lang}_clm_acc"], rel=1e-12)
    assert result["mean"]["perplexity"] == pytest.approx(expected["valid_clm_ppl"], rel=1e-5)
    assert result["mean"]["accuracy"] == pytest.approx(expected["valid_clm_acc"], rel=1e-12)
    assert f"{result['mean']['perplexity']:,.2f}" in capsys.readouterr().out


def test_measures_that_compare_between_vocabularies(small: tuple[Path, Path]) -> None:
    trained, corpus = open_checkpoint(small[0], "cpu"), Corpus(small[1])
    result = evaluate(trained, corpus, "test")
    for lang, measured in result["languages"].items():
        counts = corpus.manifest["splits"]["test"][lang]
        nats = math.log(measured["perplexity"]) * counts["tokens"]
        assert measured["perplexity_per_word"] == pytest.approx(math.exp(nats / counts["words"]))
        assert measured["bits_per_character"] == pytest.approx(nats / math.log(2) / counts["characters"])
        assert measured["unknown"] == counts["unknown"] > 0
        windows = -(-counts["tokens"] // 12)
        assert measured["predicted_tokens"] == 11 * windows
    for key in ("perplexity", "accuracy", "perplexity_per_word", "bits_per_character"):
        assert result["mean"][key] == pytest.approx(sum(m[key] for m in result["languages"].values()) / 2)
    assert result["checkpoint"]["sha256"] == checkpoint_file.checksum(small[0])
    assert result["corpus"]["lineage"] == corpus.lineage


def test_baselines_beside_the_model_and_default_place_of_the_result(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(monkeypatch, f"checkpoint='{small[0]}'", f"data.path='{small[1]}'", "bptt=7", "baselines=true")
    assert status == 0
    # the model was not trained on this corpus: the file says which it was
    result = json.loads(small[0].with_name("model.corpus.test.json").read_text())
    corpus = Corpus(small[1])
    for lang, measured in result["languages"].items():
        both = ngram.estimate(corpus.stream("train", lang), 40)
        unigram, bigram = ngram.score(*both, corpus.stream("test", lang), 7)
        assert (measured["unigram_perplexity"], measured["bigram_perplexity"]) == (unigram, bigram)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[-2:] == ["unigram", "bigram"]
    assert [line.split()[0] for line in shown[1:]] == ["de", "en", "mean"]


def test_batching_and_languages_in_another_order(
    small: tuple[Path, Path], tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    """The language id is the checkpoint's, whatever number the corpus gave the language."""
    trained = open_checkpoint(small[0], "cpu")
    sentences = [[14, 15, 16, 17, 18], [20, 21, 22]] * 20
    alone = Corpus(make_corpus(tmp_path / "en", WORDS, CODES, {"test": {"en": sentences}}, {"en": 0}))
    both = Corpus(make_corpus(tmp_path / "both", WORDS, CODES, {"test": {"de": sentences, "en": sentences}}))
    whole = evaluate(trained, both, "test")["languages"]
    assert evaluate(trained, alone, "test", batch_tokens=1)["languages"]["en"]["perplexity"] == pytest.approx(
        whole["en"]["perplexity"], rel=1e-6
    )
    assert whole["de"]["perplexity"] != pytest.approx(whole["en"]["perplexity"], rel=1e-6)


def test_raw_text_is_scored_line_by_line(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    english = ["The king was dead.", "", "He saw the old man's house, and \u4e2d\u4e2d\u4e2d.", "No."]
    german = ["Der König war tot."] * 3
    (tmp_path / "a.txt").write_text("\n".join(english), encoding="utf-8")
    (tmp_path / "b.gz").write_bytes(gzip.compress(("\n".join(german) + "\n").encode()))
    out = tmp_path / "scores.json"
    texts = (f"text.en='{tmp_path / 'a.txt'}'", f"text.de='{tmp_path / 'b.gz'}'")
    assert run(monkeypatch, f"checkpoint='{golden_checkpoint}'", *texts, f"out='{out}'") == 0

    trained, result = open_checkpoint(golden_checkpoint, "cpu"), json.loads(out.read_text())
    for lang, lines in (("en", english), ("de", german)):
        records = [json.loads(line) for line in (tmp_path / f"scores.{lang}.jsonl").read_text().splitlines()]
        assert [record["line"] for record in records] == list(range(1, len(lines) + 1))
        for line, record in zip(lines, records, strict=True):
            ids = torch.tensor([1, *trained.text.encode([line], lang).ids.tolist()])
            with torch.no_grad():
                logits = trained.model.logits(trained.model(ids[None, :-1], langs=trained.text.languages[lang]))[0]
            expected = logits.log_softmax(1).gather(1, ids[1:, None]).sum().item()
            assert record["score"] == pytest.approx(expected, rel=1e-5)
            assert record["tokens"] == len(ids) - 1
            assert record["unknown"] == int((ids == 3).sum())
            assert record["perplexity"] == pytest.approx(math.exp(-expected / record["tokens"]), rel=1e-5)
        total = result["languages"][lang]
        assert total["loss"] == pytest.approx(-sum(r["score"] for r in records) / sum(r["tokens"] for r in records))
        assert total["characters"] == sum(map(len, lines))
        assert total["sentences"] == len(lines)
    assert records[0] == {**records[1], "line": 1}
    assert sum(json.loads(line)["unknown"] for line in (tmp_path / "scores.en.jsonl").read_text().splitlines()) > 0
    assert result["languages"]["de"]["words"] == 15
    assert "mean" in capsys.readouterr().out


def test_words_without_end_have_no_perplexity(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text without spaces has: beyond what a number holds."""
    (tmp_path / "a.txt").write_text("x" * 1000)
    given = (
        f"checkpoint='{golden_checkpoint}'",
        f"text.en='{tmp_path / 'a.txt'}'",
        f"out='{tmp_path / 'scores.json'}'",
    )
    assert run(monkeypatch, *given) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["languages"]["en"]
    assert scores["perplexity_per_word"] is None
    assert math.isfinite(scores["perplexity"])


def test_a_corpus_of_another_vocabulary_is_refused(
    small: tuple[Path, Path],
    tmp_path: Path,
    make_corpus: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    splits = {"test": {"de": [[14, 15]], "fr": [[16]]}}
    other = make_corpus(tmp_path / "other", WORDS.replace("w7 ", "z7 "), CODES, splits, {"de": 0, "fr": 1})
    assert run(monkeypatch, f"checkpoint='{small[0]}'", f"data.path='{other}'") == 2
    message = capsys.readouterr().err
    assert "another vocabulary" in message
    assert "differ from id 21 on" in message
    assert "has the language fr" in message
    # other counts of the same words are no difference
    recounted = "".join(f"w{i} {1000 - i}\n" for i in range(26))
    same = make_corpus(tmp_path / "same", recounted, CODES, {"test": {"de": [[14, 15, 16]]}}, {"de": 0})
    assert evaluate(open_checkpoint(small[0], "cpu"), Corpus(same), "test")["languages"]["de"]["tokens"] == 4


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["split=dev"], ["split=dev: must be one of train, valid, test", "give data.path=FOLDER"]),
        (["data.path={corpus}", "text.en=x", "baselines=true"], ["one of them", "baselines=true needs a corpus"]),
        (["data.path={corpus}", "bptt=33"], ["bptt=33: must be from 2 to 32"]),
        (["data.path=nowhere"], ["data.path=nowhere: there is no such folder"]),
        (
            ["data.path={corpus}", "out=no/where.json", "threads=0"],
            ["no is no folder", "threads=0: must be at least 1"],
        ),
        (["data.path={corpus}", "device=tpu"], ["device=tpu: must be one of auto, cpu, cuda"]),
        (["text.fr={folder}/latin.txt"], ["text.fr={folder}/latin.txt: ", "knows the languages de, en"]),
        (["text.en={folder}/no.txt"], ["no.txt: there is no such file"]),
        (["text.en={folder}/latin.txt"], ["latin.txt:2: is not UTF-8"]),
    ],
)
def test_mistakes(
    small: tuple[Path, Path],
    overrides: list[str],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (small[0].parent / "latin.txt").write_bytes(b"one\nz\xfcrich\n")
    before = sorted(small[0].parent.iterdir())
    filled = [o.format(corpus=small[1], folder=small[0].parent) for o in overrides]
    assert run(monkeypatch, f"checkpoint='{small[0]}'", *filled) == 2
    message = capsys.readouterr().err
    assert all(part.format(folder=small[0].parent) in message for part in parts), message
    assert sorted(small[0].parent.iterdir()) == before


def test_a_diverged_model_is_named(
    small: tuple[Path, Path], tmp_path: Path, make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = XLM(ModelShape(n_words=40, dim=8, n_layers=1, n_heads=1, ffn_dim=8, max_positions=16))
    model.output_bias.data[20] = float("nan")
    file = make_checkpoint(tmp_path / "model.pt", model, WORDS, CODES, bptt=8)
    assert run(monkeypatch, f"checkpoint='{file}'", f"data.path='{small[1]}'") == 2
    assert "not finite" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("module", ["evaluate", "generate"])
def test_a_command_starts_without_torch(module: str) -> None:
    program = f"import sys, xlm_train.commands.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def command(name: str, *overrides: str) -> None:
    module = {"xlm-prep": "data_prep.prepare", "xlm-import": "xlm_train.commands.import_"}[name]
    program = f"from {module} import main; main()"
    subprocess.run([sys.executable, "-c", program, *overrides], check=True)


@pytest.mark.slow
def test_rehearsal_of_the_published_model(
    shared: Path,
    tmp_path: Path,
    golden_scores: Callable[[str], dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """docs/evaluation.md's commands, on the small checkpoint of the original: its file, its codes, raw text."""
    bpe, corpora = shared / "goldens" / "bpe", shared / "corpora"
    original = shared / "goldens" / "train" / "checkpoint.pth"
    command("xlm-import", f"file={original}", f"codes={bpe / 'codes'}", f"out={tmp_path / 'model'}")
    names = {"train": "sutta.parvalid", "valid": "voice.valid", "test": "novels.valid"}
    texts = [f"{s}.{lang}={corpora / f'{name}.{lang}.gz'}" for s, name in names.items() for lang in ("de", "en")]
    given = (f"codes={bpe / 'codes'}", f"vocab={bpe / 'vocab'}", "bpe.vocab_limit=[]", f"out={tmp_path / 'corpus'}")
    command("xlm-prep", *texts, *given)
    (file,) = (tmp_path / "model").rglob("*.pt")
    expected = golden_scores("final")
    for split in ("valid", "test"):
        assert run(monkeypatch, f"checkpoint={file}", f"data.path={tmp_path / 'corpus'}", f"split={split}") == 0
        result = json.loads(file.with_suffix(f".corpus.{split}.json").read_text())
        for lang in ("de", "en"):
            measured = result["languages"][lang]
            assert measured["perplexity"] == pytest.approx(expected[f"{split}_{lang}_clm_ppl"], rel=1e-4)
            assert measured["accuracy"] == pytest.approx(expected[f"{split}_{lang}_clm_acc"], rel=1e-4)
        assert result["mean"]["perplexity"] == pytest.approx(expected[f"{split}_clm_ppl"], rel=1e-4)
