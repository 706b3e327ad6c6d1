"""Commands whose standard streams are closed, or not read: what they do is done all the same, or refused in a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import process_environment, text_files
from tests.forked import MODULES


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `xlm-NAME` is a command of this checkout."""
    for name, module in MODULES.items():
        line = line.replace(f"{name} ", f"{sys.executable} -m {module} ")
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=process_environment(**environment)
    )


@pytest.mark.parametrize("how", ["2>&-", "2> >(exec true)", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_corpus_is_prepared_whoever_listens(shared: Path, tmp_path: Path, how: str) -> None:
    text_files(shared, tmp_path, 20)
    words = "out=new train.en=text.en train.de=text.de bpe.n_codes=50 holdout.sentences=2 workers=1"
    result = shell(f"xlm-prep {words} {how}", tmp_path)
    assert result.returncode == 0, result
    assert (tmp_path / "new/manifest.json").is_file()


def test_what_the_terminals_encoding_lacks_is_said(tmp_path: Path) -> None:
    script = "from xlm_train.runtime.console import show; show('Z\\u00fcrich')"
    line = f'{sys.executable} -c "{script}"'
    result = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert result.stderr.endswith("its encoding, ascii, has no '\\xfc': set PYTHONIOENCODING=utf-8\n")


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    result = shell("mkdir x; cd x; rmdir ../x; xlm-plan experiment=smoke", tmp_path)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        2,
        "xlm-plan: error: the working folder has been removed: cd to another one",
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "abc"}, "RANK=abc in the environment: must be a whole number"),
        ({"RANK": "1"}, "RANK=1 WORLD_SIZE=1 in the environment without what torchrun or srun set besides"),
        ({"SLURM_STEP_NUM_TASKS": "y"}, "SLURM_STEP_NUM_TASKS=y in the environment: must be a whole number"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x in the environment: must be a whole number"),
    ],
)
def test_a_launchers_variables_that_are_left_over_are_said(
    corpus_folder: Path, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    result = shell(f"xlm-train experiment=smoke data.path={corpus_folder}", tmp_path, **environment)
    assert result.returncode == 2
    assert f"xlm-train: error: {said}" in result.stderr
    assert not (tmp_path / "runs").exists()
