"""The overrides of a command line: every one checked before Hydra runs, which stops at the first bad one."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from xlm_train.config.renamed import new_key
from xlm_train.config.schema import near, no_such_key
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.files import LONGEST_NAME

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

HYDRA_PLUGINS = {"optuna": "optuna", "joblib": "sweep", "submitit": "sweep"}  # what messages call them -> our extra
# Hydra's flags whose next word is their value.
TAKE_VALUE = {*("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i")}
# All flags that are taken: these, and those that only switch something. Of Hydra's others, a rerun unpickles what it is
# given, another config is another command, and the shell's completion would start this program at each key, for a second.
FLAGS = {*TAKE_VALUE, *("--help", "-h", "--hydra-help", "--version", "--resolve", "--multirun", "-m")}
# What is asked for in another way here.
ELSEWHERE = {
    "hydra.mode": "a sweep is asked for with -m",
    "hydra.callbacks": "a run's callbacks are +callbacks.NAME._target_=CLASS",
    "hydra.job.chdir": "paths are from where a command is typed; cd to another folder before it",
    "hydra.searchpath": "a folder of configs of your own is given as --config-dir=FOLDER",
}
MODES = (("-m", "--multirun"), ("--cfg", "-c"), ("--info", "-i"))  # Hydra does one of them


def config_folder() -> Path:
    """Folder of the shipped configs: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).resolve().parent.parent / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def defaults_of(config_name: str) -> tuple[str, list[Mapping[str, str | None]]]:
    """Text of a config file and of those it includes whole, and the groups that all of them choose from."""
    from omegaconf import OmegaConf

    source = (config_folder() / f"{config_name}.yaml").read_text(encoding="utf-8")
    parsed: Any = OmegaConf.to_container(OmegaConf.create(source))
    entries = [entry for entry in parsed.get("defaults", []) if isinstance(entry, Mapping)]
    for included in parsed.get("defaults", []):
        if isinstance(included, str) and included != "_self_":
            text, more = defaults_of(included)
            source, entries = f"{source}\n{text}", [*entries, *more]
    return source, entries


def compose(config_name: str, words: Sequence[str], config_dir: str | None, whole: bool = False) -> DictConfig:
    """Compose a shipped config as the command line does.

    Args:
        config_name: Name of a file in configs/.
        words: Overrides.
        config_dir: The user's own folder of configs (--config-dir).
        whole: Whether Hydra's own config is in it too.

    Raises:
        ConfigError: Where Hydra cannot, with its reason.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    more = [] if config_dir is None else [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]
    words, apart = set_apart(config_name, words)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            config = hydra.compose(config_name, overrides=[*more, *words], return_hydra_config=whole)
            set_values(config, apart)
            return config
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).splitlines()[0]
        extras = [extra for plugin, extra in HYDRA_PLUGINS.items() if plugin in message]
        raise ConfigError(f"{message}; pip install 'xlm_train[{extras[0]}]'" if extras else message) from error
    except (YAMLError, ValueError, OSError) as error:
        if config_dir is None:
            if isinstance(error, ValueError):  # as Hydra says that a group cannot be what is given for it
                raise ConfigError(str(error)) from error
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config-dir={config_dir}: a config in it cannot be read: {reason}") from error
    finally:
        GlobalHydra.instance().clear()


def set_apart(config_name: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take overrides out of a command line that Hydra would take for choices of a group which this command does not have.

    Hydra knows groups by the folders of configs/: `optimizer=false` of xlm-export would be an optimizer. `set_values`
    does what they say.

    Returns:
        The words for Hydra, and the others.
    """
    groups = _groups(config_name)

    def is_apart(word: str) -> bool:
        key, equals, _ = word.lstrip("+").partition("=")
        return bool(equals) and key.isidentifier() and key not in groups and (config_folder() / key).is_dir()

    return [word for word in words if not is_apart(word)], [word for word in words if is_apart(word)]


def set_values(config: DictConfig, words: Sequence[str]) -> None:
    """Set what overrides say in a composed config."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    for parsed in OverridesParser.create().parse_overrides(list(words)):
        OmegaConf.update(config, parsed.key_or_group, parsed.value())


@functools.cache
def _groups(config_name: str) -> frozenset[str]:
    """The groups that a command's config chooses from."""
    return frozenset(str(key).split()[-1] for entry in defaults_of(config_name)[1] for key in entry)


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """List the words of a command line that are overrides: no flags, no values of flags."""
    return _sorted(arguments)[1]


def _sorted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a command line with their values, and its overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in arguments:
        (flags if takes_value or word.startswith("-") else overrides).append(word)
        takes_value = not takes_value and word in TAKE_VALUE
    return flags, overrides


def config_dir_of(arguments: Sequence[str]) -> str | None:
    """Give the user's own folder of configs that a command line names."""
    for position, word in enumerate(arguments):
        if word in ("--config-dir", "-cd") and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith("--config-dir="):
            return word.partition("=")[2]
    return None


def check_overrides(
    config_name: str,
    arguments: Sequence[str],
    read: Callable[[DictConfig], Any] | None = None,
    texts: Collection[str] = (),
) -> list[str]:
    """Check every override of a command line against the configs, without running anything.

    Args:
        config_name: Name of a file in configs/.
        arguments: The command line's words, flags among them.
        read: Raises ConfigError with what is wrong in a composed config: where keys are unknown, that is told as well.
        texts: Keys whose values are free text.

    Returns:
        The words for Hydra: flags first, as it takes none between overrides; free keys (below an empty mapping) with `++`
        before them, renamed keys with today's name.

    Raises:
        ConfigError: With all problems: text that Hydra's grammar refuses; groups, options and keys that do not exist.
    """
    words, config_dir = overrides_of(arguments), config_dir_of(arguments)
    sweeps = not {"-m", "--multirun"}.isdisjoint(arguments)
    if problems := _flag_problems(arguments):
        raise ConfigError(problems)
    if not words:
        return list(arguments)
    choices, keys, problems = _sort_out(config_name, words, config_dir, texts)
    try:
        nodes = _nodes_of(config_name, tuple(choices), config_dir)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    translated: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for word, key in keys.items():
        new = _find(key, nodes, config_name)
        if word.startswith("+"):  # what is added, the config's reader knows; what is there already, is set
            translated[word] = f"+{word}" if key in nodes and not word.startswith("++") else word
        elif new is None:
            unknown[word] = f"{word}: {no_such_key(key, sorted(nodes))}"
        elif new not in nodes or new != key:
            force = "" if new in nodes or word.startswith("~") else "++"
            translated[word] = force + word.replace(key, new, 1)
        if new not in (None, key) and not word.startswith("+"):
            log(f"warning: {key} is now {new}")
    problems += [problem for word, key in keys.items() if (problem := _shape_problem(word, key, nodes.get(key)))]
    rest = [translated.get(word, word) for word in words if word not in unknown]
    if unknown and not problems and read is not None and not sweeps:
        try:
            read(compose(config_name, rest, config_dir))
        except UserError as error:
            problems = error.problems
    if unknown or problems:
        raise ConfigError([*unknown.values(), *problems])
    if not sweeps and any(word.startswith(("+", "~", "hydra")) or "@" in word.partition("=")[0] for word in rest):
        compose(config_name, rest, config_dir)  # only Hydra knows what is wrong with these
    return [*_sorted(arguments)[0], *rest]


def _flag_problems(arguments: Sequence[str]) -> list[str]:
    """What is wrong with the flags of a command line: Hydra would say it with a traceback."""
    flags = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    problems = []
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="-"):
        if word.startswith("-") and word.partition("=")[0] not in FLAGS:
            name, equals, value = word.lstrip("-").partition("=")
            if not equals and not following.startswith("-") and "=" not in following:
                equals, value = "=", following
            example = f", as {name}{equals}{value}" if equals else ""
            problems.append(f"{word}: settings are written key=value, without dashes{example}")
    modes = [names[0] for names in MODES if not {*names}.isdisjoint(flags)]
    if len(modes) > 1:
        problems.append(f"{' and '.join(modes)}: give one of them")
    for word, value in itertools.zip_longest(arguments, arguments[1:]):
        if word in ("--cfg", "-c") and value not in ("job", "hydra", "all"):
            problems.append(f"{word} {value or ''}: must be one of job, hydra, all")
        elif word in TAKE_VALUE and value is None:
            problems.append(f"{word}: has no value")
    if "--resolve" in flags and "--cfg" not in modes:
        problems.append("--resolve: belongs to --cfg job")
    if (folder := config_dir_of(arguments)) is not None and not os.path.isdir(folder):
        problems.append(f"--config-dir={folder}: there is no such folder")
    return problems


def _text_problem(word: str, texts: Collection[str]) -> str | None:
    """Say why a word can be no override, whatever its key is; None where it can."""
    key, equals, value = word.partition("=")
    if not equals and not key.startswith("~"):
        return f"{word}: settings are written key=value"
    border = r"""[][{}/,:'"]""" if value.startswith(("[", "{")) else "/"
    try:
        longest = max(len(part.encode()) for part in [key, *re.split(border, value)])
    except UnicodeEncodeError:
        return f"{word}: is not UTF-8"
    if longest > LONGEST_NAME and key not in texts:
        return f"{word[:60]}...: has a name of {longest} bytes; files and folders have at most {LONGEST_NAME}"
    return None


def _shape_problem(word: str, key: str, node: Any) -> str | None:
    """Say that a list is given for a mapping or the other way round, which Hydra cannot merge."""
    value = word.partition("=")[2]
    if isinstance(node, Mapping) and value.startswith("["):
        return f"{word}: {key} is no list; set its keys, as {key}.NAME=VALUE"
    if isinstance(node, list) and value.startswith("{"):
        return f"{word}: {key} must be a list, as [a,b]"
    return None


def group_options(group: str, config_dir: str | None, shipped: bool = True) -> list[str]:
    """List the options of a config group; none where there is no such group.

    Args:
        group: As `model`.
        config_dir: The user's own folder, whose options are among them.
        shipped: Whether those of configs/ are.
    """
    folders = [*([config_folder()] if shipped else []), *([] if config_dir is None else [Path(config_dir)])]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _sort_out(
    config_name: str, words: Sequence[str], config_dir: str | None, texts: Collection[str]
) -> tuple[list[str], dict[str, str], list[str]]:
    """Take overrides apart: choices of groups (the last of each), keys that must exist by their words, problems."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: dict[str, str] = {}
    keys: dict[str, str] = {}
    problems: list[str] = []
    parser = OverridesParser.create()
    for word in words:
        if (why := _text_problem(word, texts)) is not None:
            problems.append(why)
            continue
        try:
            parsed = parser.parse_override(word)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{word}: not a valid override ({reason}); quote paths, prompts and text: \"key='...'\"")
            continue
        key = parsed.key_or_group
        options = group_options(key, config_dir, shipped=key in _groups(config_name))
        if key.startswith("hydra.sweeper.params"):  # which Hydra cannot set where there are none
            problems.append(
                f"{word}: what varies stands in a config's hydra.sweeper.params, here it is KEY=VALUE,VALUE"
            )
        found = next((name for name in ELSEWHERE if f"{key}.".startswith(f"{name}.")), None)
        if found is not None and parsed.value() is not False:  # hydra.job.chdir=false
            problems.append(f"{word}: {ELSEWHERE[found]}")
        if key.startswith("hydra"):
            continue
        if not options:
            keys[word] = key
            continue
        for option in _chosen(parsed):
            if option not in options:
                problems.append(
                    f"{word}: {key} has no option '{option}'{near(option, options)}; there are {', '.join(options)}"
                )
            elif not parsed.is_delete():
                choices[key] = f"{'+' if parsed.is_add() else ''}{key}={option}"
    return list(choices.values()), keys, problems


def _chosen(parsed: Override) -> list[str]:
    """Names of the options that an override of a group chooses, one after the other where it is a sweep."""
    from hydra.core.override_parser.types import Glob

    value = parsed.value()
    if isinstance(value, Glob) or (parsed.is_delete() and not value):  # of those that there are; ~GROUP names none
        return []
    if parsed.is_sweep_override():
        return list(parsed.sweep_string_iterator())
    options = value if isinstance(value, list) else [value]
    return ["null" if option is None else str(option) for option in options]


def _find(key: str, nodes: Mapping[str, Any], config_name: str) -> str | None:
    """Today's name of a key that the config has or may have, or None."""
    parts = key.split(".")
    if key in nodes or any(nodes.get(".".join(parts[:end])) == {} for end in range(1, len(parts))):
        return key
    new = new_key(key)
    # What the options have that were not chosen: their reader fills it in, or tells that it is not taken.
    return new if new in nodes or new in _nodes_of(config_name, (), None) else None


@functools.cache
def _nodes_of(config_name: str, choices: tuple[str, ...], config_dir: str | None) -> dict[str, Any]:
    """Every dotted key of a config composed of some choices, with its value; mappings among them, `${...}` as it stands."""
    from omegaconf import OmegaConf

    config = compose(config_name, choices, config_dir)

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            yield f"{prefix}{key}", value
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return dict(walk(cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False)), ""))
