"""SIGKILL at random moments of real training; see harness.py, which also runs a thousand of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import campaign, compare, kill_many, summary, table


def test_three_kills(corpus_folder: Path, tmp_path: Path) -> None:
    undisturbed = campaign(corpus_folder, tmp_path / "undisturbed", 1, 0, "", steps=60)
    killed = campaign(corpus_folder, tmp_path / "killed", 1, 3, "three", steps=60)
    assert len(killed.kills) == 3
    compare(undisturbed.run, killed.run)


@pytest.mark.slow
def test_fifty_kills(corpus_folder: Path, tmp_path: Path) -> None:
    figures = summary(kill_many(corpus_folder, tmp_path, kills=50, seed=0))
    print(table(figures))
    assert figures["kills"] >= 50
    assert figures["moment"]["checkpoint write"] >= figures["kills"] / 3
    assert {"checkpoint write", "training"} <= figures["moment"].keys()
    assert {"rank 0", "rank 1"} < figures["victim"].keys()
