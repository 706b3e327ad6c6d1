"""What is told of errors that are not ours."""

from __future__ import annotations

from xlm_train.runtime.errors import said


def test_the_kind_and_the_first_line_if_there_is_one() -> None:
    assert said(ValueError("one\ntwo")) == "ValueError: one"
    assert said(TimeoutError()) == "TimeoutError"
