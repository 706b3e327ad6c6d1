"""The documents: what they name exists, their commands take what they are given, they are short and plain."""

from __future__ import annotations

import functools
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from xlm_train.config.overrides import check_overrides, compose, config_folder
from xlm_train.runtime.errors import ConfigError

FOLDERS = ["xlm_train", "data_prep", "configs", "tests", "launch", "docs", "benchmarks"]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "benchmarks/NOTES.md", "launch/README.md", "launch/GPU_CHECKLIST.md"),
    *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
]
WITH_CHANGES = [*DOCUMENTS, "CHANGELOG.md"]
COMMANDS = ["prep", "train", "eval", "generate", "translate", "export", "import", "report", "plan"]
# Names of files that users or commands make, in passing.
MADE = {
    *("my_callbacks.py", "reversed_lm.py", "mine/optimizer/nadam.yaml", "mine/logger/csv.yaml"),
    *("mine/callbacks/mine.yaml", "mine/objective/reversed.yaml", "config.yaml"),
    *("lowercase_and_remove_accent.py",),  # the original's
}
# Arguments and attributes in Python.
NOT_SETTINGS = {
    *("weights_only", "labels", "ops", "trainer.callback_metrics", "trainer.data", "trainer.global_step"),
    *("trainer.run", "trainer.should_stop"),
}
OLD_WORDS = r"mend(?:s|ed|ing)?|anew|likeliest|for ever|passed over|astray|foreign|ledger|share_of_peak|keep_memory"


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


@functools.cache
def file_names() -> set[str]:
    """Names of all files of the repository, with each tail of their paths."""
    found: set[str] = set()
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*.*"):
            parts = path.relative_to(REPOSITORY).parts
            found |= {"/".join(parts[start:]) for start in range(len(parts))}
    return found


@functools.cache
def keys_of(config_name: str) -> dict[str, Any]:
    """Every dotted key of a command's default config, of the wandb logger's and of the objective that has most."""
    from omegaconf import OmegaConf

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            yield f"{prefix}{key}", value
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    options = ["logger=wandb", "objective=tlm"] if config_name == "train" else []
    values: Any = OmegaConf.to_container(compose(config_name, options, None), resolve=False)
    return dict(walk(values, ""))


def is_known(key: str) -> bool:
    """Whether some command takes a key: one of its config, one below an empty mapping, or a group."""
    ends = [key[: match.start()] for match in re.finditer(r"\.", key)]
    return (config_folder() / key).is_dir() or any(
        key in keys_of(name) or any(keys_of(name).get(end) == {} for end in ends) for name in COMMANDS
    )


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").split()) <= 1100


@pytest.mark.parametrize("document", WITH_CHANGES)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text_of(document)):
        assert ((REPOSITORY / document).parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_exist(document: str) -> None:
    text = text_of(document)
    named = set(re.findall(r"(?<![\w/.-])(?:\.\./)*(\w[\w.-]*(?:/[\w.-]+)*\.(?:py|yaml|sh|sbatch))\b(?!/)", text))
    assert sorted(named - file_names() - MADE) == []
    folders = set(re.findall(rf"(?<![\w/.:-])((?:{'|'.join(FOLDERS)})(?:/\w+)+)/?(?![\w./*-])", text))
    assert [name for name in sorted(folders) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_and_names_of_them_exist(document: str) -> None:
    for name in sorted(set(re.findall(r"(?<![\w/.])((?:xlm_train|data_prep)(?:\.\w+)+)", text_of(document)))):
        resolve_name(name)
    for module in re.findall(r"python3? -m ((?:xlm_train|data_prep|benchmarks|tests)[\w.]*)", text_of(document)):
        assert find_spec(module.rstrip(".")) is not None, module


def test_todays_names_in_the_changelog_exist() -> None:
    table = text_of("CHANGELOG.md").split("Modules and classes:")[1].split("### ")[0]
    rows = re.findall(r"^\| (`.*) \| (`.*) \|$", table, re.MULTILINE)
    assert len(rows) > 20
    for _, new in rows:
        for listed in new.split("; "):
            last = ""  # the module that the others stand beside, or are in
            for name in re.findall(r"`([\w.]+)`", listed):
                if "." in name:
                    last = name
                    assert find_spec(name) is not None
                else:
                    beside = f"{last.rpartition('.')[0]}.{name}"
                    if find_spec(beside) is None:
                        assert hasattr(import_module(last), name), name
                    else:
                        last = beside


def commands_in(document: str) -> Iterator[tuple[str, list[str]]]:
    """(config name, overrides) of each xlm-* command, in blocks and in passing."""
    text = re.sub(r"\\\n", " ", text_of(document))
    for line in re.split(r"\n|`", text):
        for name, rest in re.findall(rf"(?:^|[\s$=.])xlm-({'|'.join(COMMANDS)})\s+(\S.*)", line.split("   # ")[0]):
            words = shlex.split(re.split(r"   |\s[|;]|, then|\$ONE", rest)[0].replace(" ...", ""))
            overrides = [word for word in words if re.match(r"[+~]*[a-z_.]+=(?!\.\.\.)", word)]
            if overrides:
                yield name, [*(["-m"] if "-m" in words else []), *overrides]


@pytest.mark.parametrize("document", ["README.md", *(name for name in DOCUMENTS if name.startswith("docs/"))])
def test_commands_take_what_they_are_given(document: str) -> None:
    shown = {name.removesuffix(".yaml").removeprefix("mine/").replace("/", "=") for name in MADE}
    for name, overrides in commands_in(document):
        shipped = [word for word in overrides if word not in shown and word != "model.norm=rms"]
        try:
            check_overrides(name, shipped)
        except ConfigError as error:
            pytest.fail(f"xlm-{name} {' '.join(overrides)}: {error}")


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "benchmarks/NOTES.md"])
def test_settings_named_in_passing_exist(document: str) -> None:
    text = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)=[^`]*`", text))
    sections = "trainer|data|model|optimizer|schedule|callbacks|cluster|plan|bpe|paths|debug|card|holdout"
    named |= set(re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)`", text))
    files = {key for key in named if key.endswith((".json", ".md", ".safetensors"))}
    unknown = {key for key in named - files - NOT_SETTINGS if not is_known(key)}
    assert unknown - ({"model.norm"} if document == "docs/extending.md" else set()) == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_words_are_plain(document: str) -> None:
    assert re.findall(rf"\b(?:{OLD_WORDS})\b", text_of(document)) == []


def test_commits_are_checked_as_ci_checks_them() -> None:
    makefile = text_of("Makefile").split("\nlint:")[1].split("\n\n")[0]
    lint = re.findall(r"^\t(.*)$", makefile.replace("$(BIN)", ".venv/bin"), re.MULTILINE)
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == lint
    job = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]["check"]
    assert job["steps"][-1]["run"] == ".ci/run"


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version
    newest = re.search(r"^## ([\d.]+)", text_of("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
