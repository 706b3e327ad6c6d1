"""A wheel built from the project works from any folder, configs included."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY


def test_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(REPOSITORY)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    shipped = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert "xlm_train/py.typed" in names
    assert shipped <= {name.removeprefix("xlm_train/") for name in names}
    assert not any(name.startswith(("tests/", "configs/", "benchmarks/")) for name in names)
    entry_points = (tmp_path / "site/xlm_train-0.2.0.dist-info/entry_points.txt").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    commands = dict(line.split(" = ") for line in entry_points.splitlines() if " = " in line)
    assert set(commands) >= {"xlm-prep", "xlm-train", "xlm-eval", "xlm-generate", "xlm-export", "xlm-import"}
    for name, target in commands.items():
        module, function = target.split(":")
        code = f"import sys; sys.argv = [{name!r}, '--help']; import {module} as m; print(m.__file__); m.{function}()"
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        assert str(tmp_path / "site") in result.stdout.splitlines()[0]  # not the checkout
        assert "Usage: " + name in result.stdout
