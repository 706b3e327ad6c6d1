"""Every command and every setting in the launch documents is one that the commands take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH
from xlm_train.config.overrides import check_overrides

DOCUMENTS = ["README.md", "GPU_CHECKLIST.md", "Dockerfile"]
SCRIPTS = r"launch/(?:one_node\.sh|several_nodes\.sh|slurm\.sbatch|slurm_array\.sbatch)"


def text_of(document: str) -> str:
    text = (LAUNCH / document).read_text(encoding="utf-8")
    one = re.search(r'ONE="([^"]*)"', text)
    return text.replace("$ONE", one[1]) if one else text


def commands(document: str) -> list[tuple[str, list[str]]]:
    """(config name, overrides) of every xlm-* command and every launch script called with overrides."""
    found = []
    for line in re.split(r"\n|`", re.sub(r"\\\n#?", " ", text_of(document))):
        match = re.search(
            rf"(?:^|\s)(?:xlm-(train|prep|plan|eval|export|report)|{SCRIPTS})\s+(\S.*=.*)", line.split("  #")[0]
        )
        if match:
            words = [word for word in shlex.split(match[2]) if re.match(r"[a-z_.]+=", word)]
            found.append((match[1] or "train", words))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_take_what_they_are_given(document: str) -> None:
    found = commands(document)
    assert found
    for config_name, overrides in found:
        assert overrides
        check_overrides(config_name, overrides)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_named_in_passing_exist(document: str) -> None:
    keys = set(re.findall(r"`((?:trainer|data|model|optimizer|schedule|callbacks)\.[a-z_.]+)", text_of(document)))
    check_overrides("train", [f"{key}=1" for key in sorted(keys)])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_exist(document: str) -> None:
    text = text_of(document)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    for path in links:
        assert (LAUNCH / path).exists(), path
    for path in set(re.findall(r"launch/[\w.]+", text)):
        assert (LAUNCH.parent / path).exists(), path
    for path in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((LAUNCH.parent / name).exists() for name in path.split()), path


def test_the_messages_explained_are_those_that_are_printed() -> None:
    """Fragments of the README's table of errors that are our own, in the code."""
    table = (LAUNCH / "README.md").read_text().split("## What the errors mean")[1]
    source = "".join(
        path.read_text()
        for folder in ("xlm_train", "launch", "benchmarks")
        for path in sorted(Path(LAUNCH.parent, folder).rglob("*"))
        if path.suffix in (".py", ".sh", ".sbatch")
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # messages broken over lines of code
    foreign = ("(CUDA)", "(srun)", "(torchrun)", "(NCCL)", "CUDA out of memory")
    fragments = []
    for row in table.splitlines():
        cell = row.split("|")[1] if row.startswith("| `") else ""
        if cell and not any(word in cell for word in foreign):
            quoted = re.findall(r"`([^`]+)`", cell)[0]
            fragments.append(
                max(re.split(r"\.\.\.|\d+|=gpu|bf16-mixed: |runs/paper|trainer\.[a-z_]+=", quoted), key=len).strip()
            )
    assert len(fragments) > 15
    assert [fragment for fragment in fragments if fragment not in source] == []
