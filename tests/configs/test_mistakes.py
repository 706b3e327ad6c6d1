"""What a user gets wrong is said at once, by name, with a non-zero status and no traceback."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException, OverrideParseException

from tests.conftest import command
from xlm_train.config.command import as_told
from xlm_train.config.files import out_problems
from xlm_train.config.overrides import check_overrides, compose
from xlm_train.config.train import problems_of
from xlm_train.runtime.errors import ConfigError


def config_problems(corpus: Path, *overrides: str) -> list[str]:
    import hydra

    from tests.conftest import REPOSITORY

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(REPOSITORY / "configs")):
        return problems_of(hydra.compose("train", overrides=["experiment=smoke", f"data.path={corpus}", *overrides]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_heads=3", "model.n_heads=3 does not divide model.dim=32; model.n_heads=2 would"),
        ("data.bptt=65", "data.bptt=65 is longer than model.max_positions=64: data.bptt=64 is the longest"),
        ("data.bptt=1", "data.bptt=1: a window needs at least 2 tokens"),
        ("data.slots=0", "data.slots=0: must be at least 1"),
        ("trainer.devices=3", "3 processes, but data.slots=2: a step has only so many slots to divide; at most 2"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed on a CPU"),
        ("trainer.precision=fp16", "trainer.precision=fp16: must be one of 32-true, 16-mixed, bf16-mixed, auto"),
        ("trainer.max_steps=ten", "trainer.max_steps=ten: must be a whole number or null"),
        ("trainer.max_steps=null", "say how long to train"),
        ("optimizer.lr=fast", "optimizer.lr=fast: must be a number"),
        ("model.dropout=1.5", "model.dropout=1.5 must be in [0, 1)"),
        ("callbacks.metrics.every_n_steps=0", "callbacks.metrics.every_n_steps=0: must be at least 1"),
        ("seed='0,1'", "seed=0,1: must be a whole number; several values are a sweep, which -m starts"),
        ("+batch_size=8", "batch_size=8: there is no 'batch_size'; here: data.slots x data.slot_streams windows"),
        ("+ckpt_path=x", "ckpt_path=x: there is no 'ckpt_path'; here: the same run_name resumes"),
        ("paths.runs='ftp://host/runs'", "paths.runs=ftp://host/runs: ftp:// is not supported to write to"),
        ("data.path=nowhere", "data.path=nowhere: there is no such folder"),
        ("seed=abc", "seed=abc: must be a whole number"),
        ("objective._target_=nowhere.X", "objective._target_=nowhere.X: there is no such class"),
        ("+objective.mask=1", "objective.mask=1: xlm_train.objectives.clm.CausalLM takes no 'mask'"),
    ],
)
def test_each_mistake_names_its_override(corpus_folder: Path, override: str, message: str) -> None:
    problems = config_problems(corpus_folder, override)
    assert len(problems) == 1
    assert message in problems[0]


def test_a_good_config_has_none(corpus_folder: Path) -> None:
    assert config_problems(corpus_folder) == []


def test_all_mistakes_are_reported_together(corpus_folder: Path) -> None:
    problems = config_problems(
        corpus_folder, "model.n_heads=3", "data.bptt=65", "trainer.devices=9", "data.path=nowhere"
    )
    assert len(problems) == 4


def test_typing_mistakes_are_found_before_anything_runs() -> None:
    with pytest.raises(ConfigError) as error:
        check_overrides(
            "train", ["experiment=demmo", "optimiser.lr=1", "data.slotz=3", "model=xlm", "trainer.devices=2"]
        )
    problems = {problem.split(":")[0]: problem for problem in error.value.problems}
    assert problems.keys() == {"experiment=demmo", "optimiser.lr=1", "data.slotz=3", "model=xlm"}
    assert "experiment has no option 'demmo' (did you mean demo or umt_demo?)" in problems["experiment=demmo"]
    assert "did you mean optimizer.lr" in problems["optimiser.lr=1"]
    assert "did you mean data.slots" in problems["data.slotz=3"]
    assert "there are demo, mini, tiny, xlm_1024, xlm_2048" in problems["model=xlm"]


@pytest.mark.parametrize(
    ("command_name", "words", "message"),
    [
        ("prep", ["pairs=[a.de,a.en]"], "pairs=[a.de,a.en]: pairs is no list; set its keys, as pairs.NAME=VALUE"),
        ("prep", ["parallel={a: b}"], "parallel={a: b}: parallel must be a list, as [a,b]"),
        (
            "train",
            ["objective=mlm", "objective.replacements={a: 1}"],
            "objective.replacements={a: 1}: objective.replacements must be a list, as [a,b]",
        ),
    ],
)
def test_a_list_for_a_mapping_and_a_mapping_for_a_list(command_name: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_overrides(command_name, words)
    assert error.value.problems == [message]


@pytest.mark.parametrize("module", ["train", "evaluate", "generate", "translate", "export", "import_"])
def test_commands_refuse_unknown_overrides(module: str, tmp_path: Path) -> None:
    result = command(f"xlm_train.commands.{module}", "no_such_key=1", status=2, cwd=tmp_path)
    assert "no_such_key=1: there is no 'no_such_key'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_flags_for_settings_are_answered() -> None:
    with pytest.raises(ConfigError) as error:
        check_overrides("train", ["--seed", "5", "--optimizer.lr=1e-3"])
    assert error.value.problems == [
        "--seed: settings are written key=value, without dashes, as seed=5",
        "--optimizer.lr=1e-3: settings are written key=value, without dashes, as optimizer.lr=1e-3",
    ]
    assert check_overrides("train", ["--config-dir=.", "-m", "seed=1,2"])[-1] == "seed=1,2"


def test_results_that_cannot_be_written_are_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert out_problems(str(tmp_path / "new.json")) == []
    assert out_problems(str(tmp_path)) == [f"out={tmp_path}: is a folder; give a file"]
    assert "is no folder" in out_problems(str(tmp_path / "file/new.json"))[0]
    assert "/proc is not writable" in out_problems("/proc/new.json")[0]  # to nobody, whatever its permissions say
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    "module",
    [
        "xlm_train.commands.train",
        "xlm_train.commands.evaluate",
        "xlm_train.commands.generate",
        "xlm_train.commands.translate",
        "xlm_train.commands.export",
        "data_prep.prepare",
    ],
)
def test_commands_started_with_nothing_say_what_is_missing(module: str, tmp_path: Path) -> None:
    result = command(module, status=2, cwd=tmp_path)
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_help(tmp_path: Path) -> None:
    for module in ("xlm_train.commands.train", "data_prep.prepare"):
        result = command(module, "--help", cwd=tmp_path)
        assert "Examples:" in result.stdout
        assert result.stdout.count("xlm-") >= 3


def test_composed_config_can_be_shown(corpus_folder: Path, tmp_path: Path) -> None:
    result = command(
        "xlm_train.commands.train",
        "--cfg",
        "job",
        "--resolve",
        "experiment=smoke",
        f"data.path={corpus_folder}",
        cwd=tmp_path,
    )
    assert "slot_streams: 4" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_under_one_name(
    compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path
) -> None:
    from xlm_train.runtime.run_folder import RunFolder

    config = compose("train", "experiment=smoke", f"data.path={corpus_folder}")
    first = RunFolder(tmp_path, "same", config, "hash", ())
    first.prepare()
    with pytest.raises(ConfigError, match="another process is training"):
        RunFolder(tmp_path, "same", config, "hash", ()).prepare()


@pytest.mark.parametrize("name", ["../up", "a b", "", "/abs"])
def test_run_names_are_folder_names(name: str, tmp_path: Path) -> None:
    from xlm_train.runtime.run_folder import RunFolder

    with pytest.raises(ConfigError, match="run_name"):
        RunFolder(tmp_path, name, {}, "hash", ())


def test_checkpoints_that_were_deleted_do_not_start_a_run_again(tmp_path: Path) -> None:
    from xlm_train.runtime.run_folder import RunFolder

    def opened(**config: int) -> RunFolder:
        return RunFolder(tmp_path, "lost", config, "hash", ("width",))

    folder = opened(width=1)
    folder.prepare()
    folder.begin({})
    folder.release()
    opened(width=2)  # nothing was trained: nothing is lost
    (folder.checkpoints / "step-00000007.pt").touch()
    folder.write_status("preempted", step=7)
    opened(width=1).write_status("running")  # a start that dies before its first checkpoint
    (folder.checkpoints / "step-00000007.pt").unlink()
    for width in (1, 2):
        with pytest.raises(ConfigError, match=r"run_name=lost: .* step 7, but .* holds no step-.*: bring them back"):
            opened(width=width)
    (folder.path / "status.json").unlink()
    opened(width=2)


def test_an_aborted_run_says_so(tmp_path: Path) -> None:
    from xlm_train.runtime.run_folder import RunFolder

    folder = RunFolder(tmp_path, "aborted", {}, "hash", ())
    with pytest.raises(KeyboardInterrupt), folder.held(lambda error: False):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "aborted/status.json").read_text())["error"] == "aborted"


def test_a_run_that_was_to_save_no_checkpoints_has_lost_none(tmp_path: Path) -> None:
    from xlm_train.runtime.run_folder import RunFolder

    def opened() -> RunFolder:
        return RunFolder(tmp_path, "unsaved", {"callbacks": {"checkpointing": None}}, "hash", ())

    folder = opened()
    folder.prepare()
    folder.begin({})
    folder.release()
    folder.write_status("finished", step=7)
    opened()  # from step 0, as the first time


def test_a_key_may_have_the_name_of_another_commands_group() -> None:
    """Hydra takes `optimizer=...` for a choice wherever configs/optimizer is."""
    words = check_overrides("export", ["out=x", "optimizer=false"])
    assert compose("export", words, None).optimizer is False


def test_what_the_system_says_of_a_file_is_told_in_a_line() -> None:
    missing = as_told(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))
    assert (missing.status, str(missing)) == (2, "x: No such file or directory")
    failing = as_told(OSError(errno.EIO, "Input/output error", "x"))
    assert (failing.status, str(failing)) == (1, "x: Input/output error")  # a launcher may start it again
    assert (
        str(as_told(PermissionError(errno.EACCES, "Permission denied", "a.part", None, "a"))) == "a: Permission denied"
    )
    assert str(as_told(OverrideParseException("a b", "no viable alternative\nat b"))) == "no viable alternative"


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError("without a file"), InstantiationException("of a class")]
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        as_told(error)
