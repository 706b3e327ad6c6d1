"""xlm-export and xlm-import as a user calls them: what they make, what they refuse, and that they harm nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import train_here
from xlm_train.data.corpus import Corpus
from xlm_train.interop.original import unpickle
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import whole_folder

Run = Callable[..., tuple[int, str, str]]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# -- xlm-import --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_original(imported: Path, shared: Path) -> None:
    content = checkpoint_file.load(imported)
    assert content["progress"]["updates"] == 200
    assert content["optimizer"] is not None
    assert (imported.parent / "codes").read_bytes() == (shared / "goldens/bpe/codes").read_bytes()
    assert (imported.parent / "vocab").read_bytes() == (shared / "goldens/bpe/vocab").read_bytes()


def test_without_codes_it_says_so(run_command: Run, shared: Path, tmp_path: Path) -> None:
    file = shared / "goldens/model/best-valid_clm_ppl.pth"
    status, out, err = run_command("import", f"file={file}", f"out={tmp_path / 'm'}", "vocab_multiple=8", "bptt=32")
    assert status == 0
    assert "codes=FILE" in err
    assert "step-00000000.pt: 2 layers, width 64, 6,142 words, languages de, en" in out
    content = checkpoint_file.load(tmp_path / "m/step-00000000.pt")
    assert content["shape"]["vocab_multiple"] == 8
    assert content["config"]["data"] == {"bptt": 32}
    assert not (tmp_path / "m/codes").exists()


def test_a_folder_of_transformers(run_command: Run, exported: Path, imported: Path, tmp_path: Path) -> None:
    status, _, err = run_command("import", f"file={exported}", f"out={tmp_path / 'm'}")
    assert (status, err) == (0, "")
    before, after = checkpoint_file.load(imported), checkpoint_file.load(tmp_path / "m/step-00000200.pt")
    assert before["text"] == after["text"]
    assert all((before["model"][name] == after["model"][name]).all() for name in before["model"])


def test_binarised_text(run_command: Run, shared: Path, tmp_path: Path) -> None:
    goldens = shared / "goldens/bpe"
    status, out, _ = run_command("import", f"file={goldens}", f"out={tmp_path / 'all'}", f"codes={goldens / 'codes'}")
    assert status == 0
    assert "valid.de: 751 sentences" in out
    corpus = Corpus(tmp_path / "all")
    corpus.verify()
    assert corpus.languages == {"de": 0, "en": 1}

    (tmp_path / "odd.pth").write_bytes((goldens / "valid.en.pth").read_bytes())
    one = ["split=test", "lang=en", "languages=[de,en]"]
    status, _, err = run_command("import", f"file={tmp_path / 'odd.pth'}", f"out={tmp_path / 'one'}", *one)
    assert status == 0
    assert "codes=FILE" in err
    corpus = Corpus(tmp_path / "one")
    assert corpus.languages == {"de": 0, "en": 1}
    assert corpus.has("test", "en")


def test_there_and_back_as_the_original(run_command: Run, imported: Path, shared: Path, tmp_path: Path) -> None:
    status, _, err = run_command("export", f"checkpoint={imported}", f"out={tmp_path / 'xlm'}", "format=xlm")
    assert (status, err) == (0, "")
    before = unpickle.load(shared / "goldens/train/checkpoint.pth")
    after = unpickle.load(tmp_path / "xlm/checkpoint.pth")
    assert list(before) == list(after)
    assert all((before["model"][name] == after["model"][name]).all() for name in before["model"])
    assert sorted(tree(tmp_path / "xlm")) == ["checkpoint.pth", "codes", "export.json", "vocab"]


def test_a_corpus_there_and_back(run_command: Run, golden_corpus: Path, tmp_path: Path) -> None:
    status, _, _ = run_command("export", f"data.path={golden_corpus}", f"out={tmp_path / 'xlm'}", "format=xlm")
    assert status == 0
    codes = golden_corpus / "codes"
    status, _, _ = run_command("import", f"file={tmp_path / 'xlm'}", f"out={tmp_path / 'back'}", f"codes={codes}")
    assert status == 0
    before, after = Corpus(golden_corpus), Corpus(tmp_path / "back")
    after.verify()
    for split in ("train", "valid", "test"):
        for code in ("de", "en"):
            one, other = before.stream(split, code), after.stream(split, code)
            assert np.array_equal(one.read(0, one.n_tokens), other.read(0, other.n_tokens))
            assert one.n_sentences == other.n_sentences


MISTAKES = {
    "import, nothing right": (
        "import", ["file=missing.pth", "out=x", "codes=nocodes", "bptt=1", "vocab_multiple=0"],
        ["codes=nocodes", "file=missing.pth", "bptt=1", "vocab_multiple=0"],
    ),
    "import without a file": ("import", ["out=x"], ["file has no value"]),
    "export, nothing right": (
        "export", ["out=x", "format=onnx", "evaluation=no.json", "sample.en=no.txt"],
        ["checkpoint=FILE", "format=onnx", "evaluation=no.json", "sample.en=no.txt"],
    ),
    "export of a corpus to transformers": ("export", ["data.path=x", "out=x"], ["format=xlm"]),
    "export of nothing": ("export", ["checkpoint=missing.pt", "out=x"], ["missing.pt"]),
    "unknown override": ("export", ["checkpoint=x", "out=x", "formt=xlm"], ["formt", "format"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_said_together(
    run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overrides: list[str], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command(name, *overrides)
    assert status == 2
    assert all(text in err for text in said)
    assert "Traceback" not in err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["import", "export"])
def test_help_is_quick_and_shows_examples(name: str) -> None:
    module = {"import": "commands.import_", "export": "commands.export"}[name]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"xlm_train.{module}", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"xlm-{name} " in done.stdout
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


# -- nothing there before is harmed ------------------------------------------------------------------------------------


def test_an_import_replaces_nothing(run_command: Run, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    status, _, err = run_command("import", f"file={shared / 'goldens/train/checkpoint.pth'}", f"out={tmp_path}")
    assert status == 2
    assert f"out={tmp_path}" in err
    assert tree(tmp_path) == {"mine": b"kept"}


def test_an_export_replaces_an_export_only(run_command: Run, imported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", f"checkpoint={imported}", f"out={out}", "format=xlm"]
    for _ in range(2):
        assert run_command(*arguments)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    (out / "notes").write_text("mine")
    before = tree(out)
    status, _, err = run_command(*arguments)
    assert status == 2
    assert "notes was added or changed" in err
    assert tree(out) == before

    (out / "notes").unlink()
    (out / "vocab").write_text("changed by hand")
    status, _, err = run_command(*arguments)
    assert status == 2
    assert "vocab was added or changed" in err
    (out / "export.json").unlink()
    status, _, err = run_command(*arguments)
    assert status == 2
    assert "no earlier export" in err


def test_a_failed_export_leaves_the_earlier_one(
    run_command: Run, imported: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that transformers computes otherwise: nothing appears, nothing is left over."""
    from xlm_train.interop.transformers import check as transformers_check

    monkeypatch.setattr(transformers_check, "TOLERANCE", -1.0)
    before = tree(exported)
    status, _, err = run_command("export", f"checkpoint={imported}", f"out={exported}")
    assert status == 2
    assert "computes other scores" in err
    assert tree(exported) == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    assert run_command("export", f"checkpoint={imported}", f"out={tmp_path / 'new'}")[0] == 2
    assert not [*tmp_path.iterdir()]


def write_folder(out: Path, text: str, disk: Path | None = None, error: Exception | None = None) -> None:
    with whole_folder(out) as folder:
        if disk is not None:
            (folder / "file").symlink_to(disk)
        with open(folder / "file", "w", encoding="utf-8") as file:
            file.write(text)
        if error is not None:
            raise error


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError):
        write_folder(out, "half", error=RuntimeError())
    assert not [*out.parent.iterdir()]
    for text in ("one", "two"):
        write_folder(out, text)
        assert tree(out) == {"file": text.encode()}
        assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_the_disk_refuses_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out=.*No space left"):
        write_folder(tmp_path / "out", "x", disk=Path("/dev/full"))
    assert not [*tmp_path.iterdir()]
    with pytest.raises(UserError, match="out=/proc/out"):
        write_folder(Path("/proc/out"), "x")


def test_a_killed_export_leaves_the_earlier_one(tmp_path: Path) -> None:
    """Killed at any instant of the exchange: the folder is the old one or the new one, whole."""
    with whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("old")
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom xlm_train.runtime import files as w\n"
        "real = os.fsync\ncalls = 0\n"
        "def fsync(descriptor):\n"
        "    global calls\n    calls += 1\n"
        "    if calls == int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "    real(descriptor)\n"
        "os.fsync = fsync\n"
        "with w.whole_folder(Path(sys.argv[1])) as folder:\n    (folder / 'file').write_text('new')\n"
    )
    found = []
    for moment in (1, 2, 3, 4):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "out"), str(moment)], check=False)
        found.append((tmp_path / "out/file").read_text())
    assert found == ["old", "old", "new", "new"]


# -- the record --------------------------------------------------------------------------------------------------------


def test_the_record_names_what_was_done(exported: Path, imported: Path) -> None:
    record = json.loads((exported / "export.json").read_text())
    assert record["kind"] == "hf"
    assert record["lineage"]["parents"][-1] == checkpoint_file.load(imported)["sha256"]
    assert record["progress"] == {"step": 200, "updates": 200}
    assert {*record["files"], "export.json"} == {*tree(exported)}
    assert all(value < 1e-5 for value in record["largest_score_difference"].values())
    assert record["largest_score_difference"].keys() == {"de", "en"}


def test_where_there_is_no_text_nothing_is_claimed(run_command: Run, imported: Path, tmp_path: Path) -> None:
    status, out, _ = run_command("export", f"checkpoint={imported}", f"out={tmp_path / 'hf'}", "verify=false")
    assert status == 0
    assert "not tried out" in out
    assert "sample.LANGUAGE=FILE" in out
    assert "- de: not measured" in (tmp_path / "hf/README.md").read_text()


# -- the numbers at the next stop --------------------------------------------------------------------------------------


def test_imported_files_evaluate_to_the_originals_numbers(
    run_command: Run, imported: Path, exported: Path, shared: Path, tmp_path: Path
) -> None:
    """The original's checkpoint on its own binarised text, straight and through transformers: the numbers it logged."""
    from xlm_train.evaluation.corpus import evaluate
    from xlm_train.model.pretrained import open_checkpoint

    (golden,) = json.loads((shared / "goldens/train/log.json").read_text())["evals"][-1:]
    assert run_command("import", f"file={shared / 'goldens/bpe'}", f"out={tmp_path / 'corpus'}")[0] == 0
    assert run_command("import", f"file={exported}", f"out={tmp_path / 'hf'}")[0] == 0
    corpus = Corpus(tmp_path / "corpus")
    for file in (imported, tmp_path / "hf/step-00000200.pt"):
        result = evaluate(open_checkpoint(file, "cpu"), corpus, "valid")
        for code, measured in result["languages"].items():
            assert measured["perplexity"] == pytest.approx(golden[f"valid_{code}_clm_ppl"], rel=1e-4)
            assert measured["accuracy"] == pytest.approx(golden[f"valid_{code}_clm_acc"], rel=1e-4)
            assert measured["bits_per_character"] is None
        assert result["mean"]["perplexity"] == pytest.approx(golden["valid_clm_ppl"], rel=1e-4)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_training_goes_on_from_an_import(
    imported: Path, golden_corpus: Path, tmp_path: Path, with_optimizer: bool
) -> None:
    """`init_from` an imported checkpoint, by the real trainer.

    With the optimizer the new run starts with the moments and at the update count of the file; its settings are its
    own config's.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from xlm_train.config.overrides import config_folder

    shape = {"dim": 64, "ffn_dim": 256, "n_heads": 4, "max_positions": 512, "dropout": 0.0, "attention_dropout": 0.0}
    overrides = [
        "experiment=smoke",
        "optimizer=adamw",
        "optimizer.eps=1e-7",
        "logger=local",
        f"data.path={golden_corpus}",
        "run_name=more",
        f"paths.runs={tmp_path}",
        f"init_from={imported}",
        f"init_optimizer={str(with_optimizer).lower()}",
        "trainer.max_steps=2",
        "callbacks.validation.every_n_steps=1000",
        *(f"model.{name}={value}" for name, value in shape.items()),
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = OmegaConf.to_container(compose("train", overrides), resolve=True)
    before = checkpoint_file.load(imported)
    assert train_here(config) == 0  # type: ignore[arg-type]
    after = checkpoint_file.load(tmp_path / "more/checkpoints/step-00000002.pt")
    assert after["lineage"]["parents"] == [*before["lineage"]["parents"], before["sha256"]]
    (group,) = after["optimizer"]["param_groups"]
    assert (group["eps"], group["weight_decay"], group["fused"]) == (1e-7, 0.0, True)
    assert after["progress"]["updates"] == (202 if with_optimizer else 2)
    moments = [content["optimizer"]["state"][0]["exp_avg_sq"] for content in (before, after)]
    decayed = bool((moments[1] >= 0.96 * moments[0]).all())  # beta2 is 0.98: they cannot have fallen faster
    assert decayed is with_optimizer
    change = sum((before["model"][name] - after["model"][name]).square().sum() for name in before["model"]).sqrt()
    norm = sum(tensor.square().sum() for tensor in before["model"].values()).sqrt()
    assert 0 < change / norm < 0.02
