"""What `--version` says, and the list of the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import xlm_train
from tests.conftest import command, process_environment
from xlm_train.runtime import version

LINE = re.compile(r"(?P<name>[\w-]+) (?P<own>[\d.]+)( \(commit [0-9a-f]{12}(-dirty)?\))?, torch (?P<torch>\S+)\n")


@pytest.mark.parametrize(
    ("module", "name"), [("xlm_train.commands.train", "xlm-train"), ("data_prep.prepare", "xlm-prep")]
)
def test_each_command_says_its_version(module: str, name: str, tmp_path: Path) -> None:
    found = LINE.fullmatch(command(module, "--version", cwd=tmp_path).stdout)
    assert found
    assert (found["name"], found["own"], found["torch"]) == (name, xlm_train.__version__, torch.__version__)
    assert not list(tmp_path.iterdir())


def test_neither_version_nor_list_loads_torch() -> None:
    program = "import sys; from xlm_train.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=process_environment(), capture_output=True)


def test_the_package_lists_its_commands() -> None:
    listed = command("xlm_train").stdout
    names = {entry.name for entry in entry_points(group="console_scripts") if entry.name.startswith("xlm-")}
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("  xlm-")} == names
    assert "Perplexity and accuracy of a checkpoint" in listed
    assert "error: train: choose a command" in command("xlm_train", "train", status=2).stderr


def test_the_commit_is_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's would lead to another repository
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ("git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path))
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=first"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(version, "ROOT", tmp_path)
    assert version.commit() == head[:12]
