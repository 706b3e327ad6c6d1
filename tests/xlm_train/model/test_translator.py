"""`xlm-translate` and what stands behind it: raw text in, as many lines out, in their order, whatever they hold."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xlm_train.commands.translate import main
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.transformer import ModelShape
from xlm_train.model.translation import translate
from xlm_train.model.translator import open_translator
from xlm_train.runtime import console
from xlm_train.runtime.files import ResumableLines

EOS = 1


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path], golden_text: tuple[str, str]
) -> Path:
    torch.manual_seed(6)
    model = Seq2Seq(ModelShape(n_words=6142, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=80))
    model.decoder.output_bias.data[:EOS] = model.decoder.output_bias.data[EOS + 1 : 14] = -1e4
    return make_checkpoint(tmp_path_factory.mktemp("translate") / "mt.pt", model, *golden_text, bptt=80)


LINES = ["The king was dead.", "", "   ", 'She said: "No!"', "a " * 10_000, "\x00\x07 \u2028 \ufffd", "It's", "1"]


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["xlm-translate", *overrides])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_every_line_is_answered_in_its_place(checkpoint: Path) -> None:
    translator = open_translator(checkpoint, "cpu")
    found = translator.translate(LINES, "en", "de")
    assert len(found) == len(LINES)
    assert found[1] == found[2] == ""
    assert all("\n" not in text for text in found)
    alone = [translator.translate([line], "en", "de")[0] for line in LINES if len(line) < 100]
    assert [text for line, text in zip(LINES, found, strict=True) if len(line) < 100] == alone
    ids = [EOS, *translator.text.encode([LINES[0]], "en").ids.tolist()]
    (expected,) = translate(translator.model, [ids], 1, 0, min(int(1.5 * len(ids) + 10), 80))
    assert found[0] == translator.text.decode(expected[1:-1], "de") != ""
    assert translator.translate([], "en", "de") == []


def test_a_long_line_is_cut_behind_sentences_and_between_words(checkpoint: Path) -> None:
    translator = open_translator(checkpoint, "cpu")
    words = translator.text.vocabulary.words

    def parts(line: str) -> list[str]:
        ids = translator.text.encode([line], "en").ids[:-1].tolist()
        found = list(translator._parts(ids, 10))
        assert [word for part in found for word in part] == ids
        assert all(len(part) <= 10 for part in found)
        return [" ".join(words[word] for word in part) for part in found]

    assert parts("one two three. one two three. one two three. one.")[0].endswith(".")
    assert not any(part.endswith("@@") for part in parts("Extraordinary circumstances notwithstanding " * 4)[:-1])
    assert len(parts("x" * 200)) > 3


def test_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "text.en", tmp_path / "text.de"
    source.write_bytes("\n".join(LINES).encode() + b"\n\xff\xfe broken\nlast without newline")
    arguments = (f"checkpoint={checkpoint}", "src=en", "tgt=de", "device=cpu")
    monkeypatch.setattr(console, "EVERY_PLAIN", 0.0)
    assert run(monkeypatch, *arguments, f"file={source}", f"out={out}", "block_lines=3") == 0
    written = out.read_text(encoding="utf-8").split("\n")
    assert len(written) == len(LINES) + 3
    assert written[-1] == ""
    told = capfd.readouterr().err
    assert "warning: line 9: is not UTF-8" in told
    assert re.search(r"^translate +0%  \d+:\d\d left +3 lines", told, re.MULTILINE)  # the long line comes after them
    assert {path.name for path in tmp_path.iterdir()} == {"text.en", "text.de"}
    assert run(monkeypatch, *arguments, f"file={source}") == 0
    assert capfd.readouterr().out == out.read_text(encoding="utf-8")
    assert run(monkeypatch, *arguments, f"text={LINES[3]}") == 0
    assert capfd.readouterr().out == f"{written[3]}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{LINES[0]}\n\n".encode())))
    assert run(monkeypatch, *arguments) == 0
    assert capfd.readouterr().out == f"{written[0]}\n\n"


def test_a_stopped_translation_goes_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "text.en", tmp_path / "text.de"
    source.write_text("The king.\nThe queen.\nIt was good.\n" * 4, encoding="utf-8")
    arguments = (
        f"checkpoint={checkpoint}",
        "src=en",
        "tgt=de",
        "device=cpu",
        f"file={source}",
        f"out={out}",
        "block_lines=4",
    )
    assert run(monkeypatch, *arguments) == 0
    whole = out.read_text(encoding="utf-8")
    out.unlink()

    made: list[int] = []
    write = ResumableLines.write

    def stopped(self: ResumableLines, lines: list[str]) -> None:
        made.append(len(lines))
        write(self, lines)
        if len(made) == 2:
            self.file.write(b"half a li")  # as a killed process may leave it
            self.file.flush()
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableLines, "write", stopped)
    assert run(monkeypatch, *arguments) == 130
    assert not out.exists()
    assert run(monkeypatch, *arguments) == 0
    assert out.read_text(encoding="utf-8") == whole
    assert made == [4, 4, 4]  # the third block alone was left
    assert not list(tmp_path.glob("*.part*"))


def test_other_text_of_the_same_size_is_translated_anew(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "text.en", tmp_path / "text.de"
    arguments = (f"checkpoint={checkpoint}", "src=en", "tgt=de", "device=cpu", f"file={source}", f"out={out}")
    source.write_text("The king was dead.\n" * 2, encoding="utf-8")
    write, lines = ResumableLines.write, []

    def stopped(self: ResumableLines, found: list[str]) -> None:
        lines.extend(found)
        write(self, found)
        if len(lines) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableLines, "write", stopped)
    assert run(monkeypatch, *arguments, "block_lines=1") == 130
    source.write_text("The lion was back.\n" * 2, encoding="utf-8")
    assert run(monkeypatch, *arguments, "block_lines=1") == 0
    assert len(lines) == 3
    assert out.read_text(encoding="utf-8").splitlines() == lines[1:]


@pytest.mark.parametrize(("source", "out"), [("text.en", "text.en"), ("text.part", "text"), ("link", "text.en")])
def test_the_input_is_not_written_over(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    source: str, out: str,
) -> None:  # fmt: skip
    for name in ("text.en", "text.part"):
        (tmp_path / name).write_text("The king.\n")
    (tmp_path / "link").symlink_to("text.en")
    given = (f"checkpoint={checkpoint}", "src=en", "tgt=de", f"file={tmp_path / source}", f"out={tmp_path / out}")
    assert run(monkeypatch, *given) == 2
    assert f"would overwrite file={tmp_path / source}" in capsys.readouterr().err
    assert (tmp_path / source).read_text() == "The king.\n"


def test_lines_of_another_maker_are_thrown_away(tmp_path: Path) -> None:
    with ResumableLines(tmp_path / "out", "a") as first:
        first.write(["1", "2"])
    with ResumableLines(tmp_path / "out", "a") as same:
        assert same.done == 2
    with ResumableLines(tmp_path / "out", "b") as other:
        assert other.done == 0
        other.write(["3"])
        other.finish()
    assert (tmp_path / "out").read_text() == "3\n"


def test_mistakes_are_said_together(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("checkpoint=none.pt", "src=en", "tgt=en", "text=a", "file=none", "beam=2", "temperature=1")
    assert run(monkeypatch, *given) == 2
    message = capsys.readouterr().err
    for part in ("not both", "beam=2 searches", "src=en tgt=en", "file=none: there is no such file"):
        assert part in message
    assert run(monkeypatch, f"checkpoint={checkpoint}", "src=en", "tgt=fr", "text=a", "device=cpu") == 2
    assert "tgt=fr: " in capsys.readouterr().err


def test_a_language_model_is_told_apart(
    tmp_path: Path, make_checkpoint: Callable[..., Path], golden_text: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from xlm_train.model.transformer import XLM

    model = XLM(ModelShape(n_words=6142, dim=8, n_layers=1, n_heads=1, ffn_dim=8, max_positions=8))
    file = make_checkpoint(tmp_path / "lm.pt", model, *golden_text, bptt=8)
    assert run(monkeypatch, f"checkpoint={file}", "src=en", "tgt=de", "text=a") == 2
    assert "is a language model, where a translation model is needed" in capsys.readouterr().err
