"""The limits of control groups, as both versions of the kernel's interface state them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from xlm_train.runtime import memory


def group(folder: Path, limit: str, used: int, reclaimable: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {reclaimable}\n")


@pytest.mark.parametrize(
    ("line", "root", "names"),
    [("0::/job/step", "", memory.V2), ("4:memory:/job/step", "memory", memory.V1)],
    ids=["version 2", "version 1"],
)
def test_limits_of_a_process_and_of_what_is_above_it(
    line: str, root: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = "max" if names is memory.V2 else str(2**63 - 4096)
    group(tmp_path / root / "job", "5000", 1500, 500, names)
    group(tmp_path / root / "job/step", unlimited, 900, 0, names)
    (tmp_path / "own").write_text(f"9:pids:/elsewhere\n{line}\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    found = list(memory._control_groups(tmp_path / "own"))
    assert found == [(math.inf if unlimited == "max" else int(unlimited), 900), (5000, 1000)]


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert list(memory._control_groups(tmp_path / "nothing")) == []
