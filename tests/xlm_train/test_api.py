"""The public Python API: its documented examples run, its mistakes are told, and it loads nothing before it is used."""

from __future__ import annotations

import doctest
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xlm_train
from tests.conftest import REPOSITORY, process_environment
from xlm_train.data import Corpus
from xlm_train.model import XLM, ModelShape
from xlm_train.runtime.errors import ConfigError, TextError, UserError

LINE = "The king was dead."


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Path],
    make_checkpoint: Callable[..., Path],
    golden_text: tuple[str, str],
) -> Path:
    """What the examples read: model.pt, codes, vocab, corpus."""
    folder = tmp_path_factory.mktemp("api")
    torch.manual_seed(0)
    model = XLM(ModelShape(n_words=6142, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=32))
    make_checkpoint(folder / "model.pt", model, *golden_text, bptt=32)
    sentences = [[20, 21, 22, 23]] * 20
    corpus = make_corpus(folder / "corpus", *golden_text, {"train": {"de": sentences, "en": sentences}})
    for name in ("codes", "vocab"):
        (folder / name).write_bytes((corpus / name).read_bytes())
    return folder


@pytest.mark.parametrize("documented", ["docs/api.md", xlm_train.load_pretrained, xlm_train.prepare_text, Corpus, XLM])
def test_documented_examples(documented: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = (REPOSITORY / documented).read_text() if isinstance(documented, str) else documented.__doc__
    names = {"np": np, "torch": torch, "xlm_train": xlm_train}
    text = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, names, str(documented), None, 0)
    assert examples.examples
    told: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=told.append).failed == 0, "".join(told)


def test_scores_are_those_of_the_model(folder: Path) -> None:
    trained = xlm_train.load_pretrained(folder / "model.pt", device="cpu")
    (ids,) = xlm_train.prepare_text(LINE, "en", trained)
    read = torch.tensor([[1, *ids[:-1]]])
    with torch.no_grad():
        expected = trained.model.logits(trained.model(read, langs=1))[0]
    assert torch.equal(trained.logits(LINE, "en"), expected)
    targets = torch.from_numpy(ids)
    nats = torch.nn.functional.cross_entropy(expected, targets, reduction="sum").item()
    assert trained.score(LINE, "en") == pytest.approx(-nats, rel=1e-6)
    assert trained.score(LINE, "en") != trained.score(LINE, "de")
    with pytest.raises(TextError, match="reads 31 at most"):
        trained.score(LINE * 10, "en")
    with pytest.raises(ConfigError, match="knows the languages de, en"):
        trained.logits(LINE, "fr")


def test_text_is_prepared_alike_from_all_sources(folder: Path) -> None:
    files = {"codes": folder / "codes", "vocab": folder / "vocab"}
    trained = xlm_train.load_pretrained(folder / "model.pt", device="cpu")
    for text in ([LINE, "", "No."], f"{LINE}\n\nNo."):
        expected = trained.text.encode([LINE, "", "No."], "en").ids.tolist()
        for source in ({"checkpoint": trained}, {"checkpoint": folder / "model.pt"}, files):
            prepared = xlm_train.prepare_text(text, "en", **source)
            assert len(prepared) == 3
            assert np.concatenate(prepared).tolist() == expected
            assert all(ids[-1] == 1 and ids.dtype == np.int64 for ids in prepared)
    assert xlm_train.prepare_text([], "en", **files) == []
    lower = xlm_train.prepare_text(LINE, "en", **files, lowercase=True)
    assert np.array_equal(lower[0], xlm_train.prepare_text(LINE.lower(), "en", **files)[0])


def test_mistakes_in_preparing_text(folder: Path) -> None:
    codes, vocab = folder / "codes", folder / "vocab"
    for given in ({}, {"codes": codes}, {"vocab": vocab}, {"checkpoint": folder / "model.pt", "codes": codes}):
        with pytest.raises(ConfigError, match="give a checkpoint, or codes=FILE and vocab=FILE"):
            xlm_train.prepare_text(LINE, "en", **given)
    with pytest.raises(ConfigError, match="knows the languages de, en"):
        xlm_train.prepare_text(LINE, "fr", folder / "model.pt")
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        xlm_train.prepare_text(LINE, "en", codes="nowhere", vocab=vocab)


def test_names() -> None:
    assert xlm_train.__version__ == importlib.metadata.version("xlm_train")
    for module in (xlm_train, xlm_train.model):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nothing'"):
            module.nothing  # noqa: B018
    assert all(getattr(xlm_train, name) is not None for name in xlm_train.__all__)


def test_importing_the_package_does_not_load_torch() -> None:
    program = "import sys, xlm_train, xlm_train.data, xlm_train.model; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=process_environment())
