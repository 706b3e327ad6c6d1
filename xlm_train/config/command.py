"""The entry of every console command: Hydra, with mistakes in overrides found at once and said plainly.

Hydra stops at the first bad override. Here every override is checked before Hydra runs, so that three typing
mistakes cost one attempt, and each message names the override and the nearest name that exists.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, ConfigError, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm_train.runtime.processes import StopFlag

HYDRA_PLUGINS = {"optuna": "optuna", "joblib": "sweep", "submitit": "sweep"}  # what messages call them -> our extra


def config_folder() -> Path:
    """Folder of the shipped configs: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).resolve().parent.parent / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def command(
    config_name: str, description: str, examples: Sequence[str], flag: StopFlag | None = None
) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Turn `main(config) -> exit status or None` into a console command composed from `configs/<config_name>.yaml`.

    `--help` prints `description`, the `examples`, the config groups and the defaults. A UserError raised by `main`
    is printed without a traceback and exits with status 2. flag: takes the signals over before anything else; `-m` of
    such a command is a sweep of runs (xlm_train/commands/sweep.py).
    """

    def wrap(main: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        name = f"xlm-{config_name}"
        status = [0]

        def task(config: DictConfig) -> float | None:
            if flag is not None and in_sweep():
                from xlm_train.commands.sweep import run_job

                return run_job(main, config, flag)
            try:
                status[0] = max(status[0], main(config) or 0)  # the worst of a sweep's jobs
            except UserError as error:
                if in_sweep():
                    raise
                print(f"{name}: error: {error}", file=sys.stderr, flush=True)
                sys.exit(EXIT_USER_ERROR)
            return None

        def run() -> None:
            if flag is not None:
                flag.install()
            import hydra

            arguments = sys.argv[1:]
            if "--help" in arguments or "-h" in arguments:
                with contextlib.suppress(BrokenPipeError):  # `--help | head` is no mistake
                    print(_help(name, config_name, description, examples), flush=True)
                os._exit(0)  # without a second attempt to write what the reader did not want
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            arguments = quote_text(arguments)
            try:
                free = check_overrides(config_name, arguments)
            except UserError as error:
                print(f"{name}: error: {error}", file=sys.stderr, flush=True)
                sys.exit(EXIT_USER_ERROR)
            sys.argv[1:] = [f"++{word}" if word in free else word for word in arguments]
            start = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(task)
            try:
                if flag is not None and asks_for_sweep(arguments):
                    from xlm_train.commands.sweep import sweep_of

                    sweep = sweep_of(config_name, arguments)
                    sys.argv[1:] += sweep.hydra_overrides
                    sys.exit(sweep.carry_out(start, flag))
                start()  # Hydra drops what the task returns
            except UserError as error:
                print(f"{name}: error: {error}", file=sys.stderr, flush=True)
                sys.exit(EXIT_USER_ERROR)
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr, flush=True)
                sys.exit(EXIT_INTERRUPTED)
            sys.exit(status[0])

        run.__doc__ = description
        return run

    return wrap


def _help(name: str, config_name: str, description: str, examples: Sequence[str]) -> str:
    """What --help prints: purpose, examples, config groups with their options, every key with its default and comment."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = compose(config_name)
    source, entries = _defaults(config_name)
    groups = [str(key) for entry in entries for key in entry if " " not in str(key)]
    groups += {"prep": ["corpus"]}.get(config_name, [])
    options = {group: sorted(file.stem for file in (config_folder() / group).glob("*.yaml")) for group in groups}
    lines = [
        description,
        "",
        f"Usage: {name} [key=value ...]   (Hydra overrides; quote text: \"key='a, b'\")",
        "",
        "Examples:",
    ]
    lines += [f"  {example}" for example in examples]
    if options:
        lines += [
            "",
            "Groups (group=option):",
            *(f"  {group}: {', '.join(found)}" for group, found in options.items() if found),
        ]
    lines += ["", "Keys and defaults (key=value, nested keys with dots; ??? must be given):", ""]
    for line in OmegaConf.to_yaml(config).splitlines():
        if not line.startswith(" "):
            section = line.partition(":")[0]
        if line.startswith("  ") and section in groups:  # a group's keys stand in the file of its default option
            option = next(entry[section] for entry in entries if section in entry)
            file = config_folder() / section / f"{option}.yaml"
            lines.append(line + (_comment(source, line) or _comment(file.read_text(encoding="utf-8"), line[2:])))
        else:
            lines.append(line + _comment(source, line))
    lines.append("")
    lines += [
        "Also: --cfg job --resolve prints the composed config; -m runs a sweep; --config-dir DIR adds your own configs."
    ]
    return "\n".join(lines)


def _defaults(config_name: str) -> tuple[str, list[Mapping[str, str | None]]]:
    """Text of a config file and of those it includes whole, and the groups that all of them choose from."""
    from omegaconf import OmegaConf

    source = (config_folder() / f"{config_name}.yaml").read_text(encoding="utf-8")
    parsed: Any = OmegaConf.to_container(OmegaConf.create(source))
    entries = [entry for entry in parsed.get("defaults", []) if isinstance(entry, Mapping)]
    for included in parsed.get("defaults", []):
        if isinstance(included, str) and included != "_self_":
            text, more = _defaults(included)
            source, entries = f"{source}\n{text}", [*entries, *more]
    return source, entries


def _comment(source: str, line: str) -> str:
    """What a config file says behind the `key:` of a line, or nothing."""
    key = line.partition(":")[0]
    found = re.search(rf"^{re.escape(key)}:[^#\n]*(#.*)$", source, re.MULTILINE)
    return f"  {found[1]}" if found else ""


def in_sweep() -> bool:
    """Whether this is one job of a sweep (-m)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_suffix() -> str:
    """In a sweep (-m), what tells this job's run from the others'; else nothing."""
    if not in_sweep():
        return ""
    from xlm_train.commands.sweep import job_suffix

    return job_suffix()


def asks_for_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line starts a sweep, and does not only ask to see its config."""
    shows = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version")
    return ("-m" in arguments or "--multirun" in arguments) and not any(
        word.partition("=")[0] in shows for word in arguments
    )


def quote_text(arguments: Sequence[str]) -> list[str]:
    """A command line whose overrides Hydra takes as what they plainly say: paths and prompts are quoted for the user.

    That is where Hydra's grammar refuses a value (an umlaut, an apostrophe, `=`), and where a comma would make a sweep
    of it though none was asked for. What begins as a list or a mapping stays as it is: there a mistake is a mistake.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, overrides = OverridesParser.create(), set(overrides_of(arguments))
    sweep = "-m" in arguments or "--multirun" in arguments
    words = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if word in overrides and equals and value and value[0] not in "[{":
            try:
                is_sweep = parser.parse_override(word).is_sweep_override()
                plain = sweep or not is_sweep
            except HydraException:
                plain = False
            if not plain:
                # a backslash escapes only before a quote or at the end
                word = f"{key}='" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), value) + "'"
        words.append(word)
    return words


def check_overrides(config_name: str, arguments: Sequence[str]) -> set[str]:
    """Check every override of a command line against the shipped configs, without running anything.

    Returns the overrides of free keys (below an empty mapping), which Hydra takes only with `++` before them.
    Raises ConfigError with all problems: text that Hydra's grammar refuses, groups and options that do not exist,
    keys that do not exist; each with near misses.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    overrides = overrides_of(arguments)
    if not overrides:
        return set()
    problems: list[str] = []
    parser = OverridesParser.create()
    groups: list[str] = []
    values: list[tuple[str, Any]] = []
    extra = _config_dir_of(arguments)
    searchpath = [] if extra is None else [f"hydra.searchpath=[file://{Path(extra).resolve()}]"]
    folders = [config_folder()] + ([] if extra is None else [Path(extra)])
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{text}: not a valid override ({reason}); quote paths, prompts and text: \"key='...'\"")
            continue
        key = parsed.key_or_group
        if key.startswith("hydra"):
            continue
        options = sorted({file.stem for folder in folders for file in (folder / key).glob("*.yaml")})
        if options:
            chosen = parsed.value()
            names = (
                parsed.sweep_string_iterator()
                if parsed.is_sweep_override()
                else [chosen]
                if not isinstance(chosen, list)
                else chosen
            )
            for option in names:
                if option is not None and str(option) not in options:
                    problems.append(
                        f"{text}: {key} has no option '{option}'{_near(str(option), options)}; there are {', '.join(options)}"
                    )
                elif not parsed.is_delete():
                    groups.append(f"{key}={option}" if not parsed.is_add() else f"+{key}={option}")
        elif not parsed.is_add():
            values.append((text, parsed))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            config = compose(config_name, overrides=[*searchpath, *_last_of_each(groups)])
            OmegaConf.set_struct(config, True)
    except HydraException as error:
        raise ConfigError([*problems, with_extra(str(error).splitlines()[0])]) from error
    finally:
        GlobalHydra.instance().clear()
    known = sorted(_keys(config))
    free: set[str] = set()
    for text, parsed in values:
        key = parsed.key_or_group
        if key not in known:
            if any(_open_below(config, key)):
                free.add(text)
            else:
                problems.append(f"{text}: there is no '{key}'{_near(key, known)}")
    if problems:
        raise ConfigError(problems)
    return free


def with_extra(message: str) -> str:
    """Hydra's message about a plugin that it does not find, and how to install it; other messages as they are."""
    extras = [extra for name, extra in HYDRA_PLUGINS.items() if name in message]
    return f"{message}; pip install 'xlm_train[{extras[0]}]'" if extras else message


def _last_of_each(groups: Sequence[str]) -> list[str]:
    return list({group.split("=")[0]: group for group in groups}.values())


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The words of a command line that are overrides: no flags, no values of flags."""
    found, skip = [], False
    takes_value = {
        "--config-name",
        "-cn",
        "--config-path",
        "-cp",
        "--config-dir",
        "-cd",
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--info",
        "-i",
        "--experimental-rerun",
    }
    for word in arguments:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in takes_value and "=" not in word
        else:
            found.append(word)
    return found


def _config_dir_of(arguments: Sequence[str]) -> str | None:
    for position, word in enumerate(arguments):
        if word in ("--config-dir", "-cd") and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith("--config-dir="):
            return word.partition("=")[2]
    return None


def _keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a composed config, inner nodes included."""
    from omegaconf import DictConfig, OmegaConf

    keys: list[str] = []
    for key in config:
        name = f"{prefix}{key}"
        keys.append(name)
        value = (
            None
            if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key)
            else config._get_node(key)
        )
        if isinstance(value, DictConfig) and value._content is not None and not isinstance(value._content, str):
            keys += _keys(value, f"{name}.")
    return keys


def _open_below(config: Any, key: str) -> list[bool]:
    """Whether some ancestor of `key` is an empty mapping, which means: free keys (`train: {}` takes train.en=...)."""
    from omegaconf import DictConfig, OmegaConf

    parts = key.split(".")
    found = []
    for end in range(1, len(parts)):
        node = OmegaConf.select(config, ".".join(parts[:end]), throw_on_missing=False)
        if isinstance(node, DictConfig) and len(node) == 0:
            found.append(True)
    return found


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if not close:  # the right leaf under another parent: `lr` for `optimizer.lr`
        close = [name for name in known if name.split(".")[-1] == word.split(".")[-1]][:3]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
