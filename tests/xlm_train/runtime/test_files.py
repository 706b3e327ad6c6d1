"""Locks, and results that lie beside each other."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path
from typing import IO, Any

import pytest

from xlm_train.runtime import files
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import ResumableLines, append_line, as_number, beside, lock, locked, remove_leftovers


def test_a_lock_makes_its_folder_or_names_it(tmp_path: Path) -> None:
    with locked(tmp_path / "a/b/.lock"):
        assert (tmp_path / "a/b/.lock").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/b: cannot be made: Not a directory"), locked(tmp_path / "file/b/.lock"):
        pass


def test_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"), open(tmp_path / ".lock") as other, pytest.raises(BlockingIOError):
        lock(other)
    with open(tmp_path / ".lock") as other:
        lock(other)


def test_where_the_file_system_has_no_locks_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock"):
        pass
    assert f"warning: {tmp_path} cannot be locked (No locks available)" in capsys.readouterr().err


def test_lines_of_another_maker_go_before_the_note_says_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ResumableLines(tmp_path / "out", "a") as first:
        first.write(["of a"])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            ResumableLines(tmp_path / "out", "b")
    assert ResumableLines(tmp_path / "out", "a").done == 0


def test_two_do_not_write_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ResumableLines(tmp_path / "out", "a")
    for maker in "ab":
        with pytest.raises(UserError, match="another process is writing it"):
            ResumableLines(tmp_path / "out", maker)
    first.write(["1"])

    def lock_after_the_end(file: IO[Any]) -> None:
        with first:
            first.finish()
        lock(file)

    monkeypatch.setattr(files, "lock", lock_after_the_end)
    with pytest.raises(UserError, match="another process is writing it"):
        ResumableLines(tmp_path / "out", "a")
    assert (tmp_path / "out").read_text() == "1\n"


def test_what_lies_beside_a_result_keeps_its_name() -> None:
    assert beside(Path("a/scores.json"), "en.jsonl") == Path("a/scores.en.jsonl")
    assert beside(Path("a/result.v1"), "en.jsonl") == Path("a/result.v1.en.jsonl")


def test_what_others_are_writing_is_no_leftover(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as alive:
        writing = tmp_path / f".scores.json.{alive.pid}-0123abcd.tmp"
        gone = [tmp_path / f".scores.json.{process}-0123abcd.tmp" for process in (os.getpid(), 2**22)]
        for path in (writing, *gone):
            path.touch()
        remove_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == [writing]
        alive.kill()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_users_file_is_no_leftover(tmp_path: Path) -> None:
    names = [".notes.tmp", ".notes.2026.tmp", ".notes.2026.txt.tmp", ".123.tmp", "a.4194304-0123abcd.tmp"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".drafts.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, ".drafts.tmp"}


def test_only_finite_numbers_are_numbers() -> None:
    found = [as_number(value) for value in (1, 0.5, True, None, "1", float("inf"), float("nan"), 10**400)]
    assert found == [1.0, 0.5, *[None] * 6]


def test_a_line_after_one_that_was_cut_off_is_its_own(tmp_path: Path) -> None:
    append_line(tmp_path / "a.jsonl", "one")
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("tw")  # a full disk
    append_line(tmp_path / "a.jsonl", "three")
    assert (tmp_path / "a.jsonl").read_text() == "one\ntw\nthree\n"


def test_a_folder_that_an_export_left_is_removed_too(tmp_path: Path) -> None:
    (tmp_path / ".exported.4194304-0123abcd.tmp/inside").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
