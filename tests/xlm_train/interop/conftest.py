"""Exports that several tests look at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here may reach for a network


@pytest.fixture(scope="session")
def run_command() -> Callable[..., tuple[int, str, str]]:
    """run("export", "key=value", ...) -> (exit status, stdout, stderr) of xlm-export, in this process."""
    import contextlib
    import importlib
    import io
    import sys
    from unittest import mock

    modules = {"export": "xlm_train.commands.export", "import": "xlm_train.commands.import_"}

    def run(name: str, *overrides: Any) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", [f"xlm-{name}", *map(str, overrides)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as stopped,
        ):
            importlib.import_module(modules[name]).main()
        return stopped.value.code or 0, out.getvalue(), err.getvalue()  # type: ignore[return-value]

    return run


@pytest.fixture(scope="session")
def imported(
    run_command: Callable[..., tuple[int, str, str]], shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The goldens' trained model as a checkpoint of ours, with codes and moments."""
    out = tmp_path_factory.mktemp("imported") / "model"
    goldens = shared / "goldens"
    status, _, err = run_command(
        "import", f"file={goldens / 'train/checkpoint.pth'}", f"out={out}", f"codes={goldens / 'bpe/codes'}"
    )
    assert (status, err) == (0, "")
    return out / "step-00000200.pt"


@pytest.fixture(scope="session")
def exported(
    run_command: Callable[..., tuple[int, str, str]],
    imported: Path,
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same as a folder for transformers, its card with everything the user can say."""
    out = tmp_path_factory.mktemp("exported") / "hf"
    sample = [f"sample.{code}={shared / f'corpora/novels.valid.{code}.gz'}" for code in ("de", "en")]
    fields = ["card.name=small", "card.license=mit", "card.authors='Ann Example'", "card.region=Ruritania"]
    status, _, err = run_command("export", f"checkpoint={imported}", f"out={out}", *sample, *fields)
    assert (status, err) == (0, "")
    return out


@pytest.fixture(scope="session")
def tokeniser(exported: Path) -> Any:
    """The exported folder's tokenizer, as transformers loads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(exported)
