"""The entry of every console command: Hydra, with mistakes in overrides found at once and said plainly.

Hydra stops at the first bad override. Here every override is checked before Hydra runs, so that three typing
mistakes cost one attempt, and each message names the override and the nearest name that exists.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from xlm_train.config.overrides import (
    check_overrides,
    compose,
    config_folder,
    defaults_of,
    set_apart,
    set_values,
)
from xlm_train.config.quoting import quote_text
from xlm_train.runtime.console import show
from xlm_train.runtime.entry import begin_work
from xlm_train.runtime.errors import EXIT_INTERRUPTED, SystemFailure, UserError
from xlm_train.runtime.streams import settle_streams
from xlm_train.runtime.version import version_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")
USERS = {  # what only the user can mend; the rest may pass
    *(errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
}
SHOW = {"--cfg", "-c", "--info", "-i", "--hydra-help"}  # Hydra's flags that only show something


@dataclass(frozen=True)
class Multirun:
    """What `-m` does in a command whose jobs are more than calls of its main.

    Args:
        start: Called once with the words of the command line and a function that lets Hydra start the jobs of such
            words; returns the exit status.
        job: Called by Hydra for each job, with what main does with a composed config and that config; returns the
            value that a search minimises.
    """

    start: Callable[[list[str], Callable[[list[str]], None]], int]
    job: Callable[[Callable[[Any], int | None], Any], float]


def command(
    config_name: str,
    description: str,
    examples: Sequence[str],
    read: Callable[[DictConfig], T] | None = None,
    before: Callable[[], None] | None = None,
    multirun: Multirun | None = None,
    texts: Collection[str] = (),
) -> Callable[[Callable[[T], int | None]], Callable[[], None]]:
    """Turn `main(settings) -> exit status or None` into a console command composed from `configs/<config_name>.yaml`.

    `--help` prints `description`, the `examples`, the config groups and the defaults; `--version` our version, the
    commit if it is known, and torch's. A UserError is printed without a
    traceback and exits with its own status.

    Args:
        config_name: The command is called xlm-<config_name>.
        description: What it does, for --help.
        examples: Command lines, for --help.
        read: Makes of the composed config what main takes, and raises ConfigError with everything wrong in it; None:
            main takes the config.
        before: Called before anything else but --help and --version.
        multirun: What `-m` does; None: Hydra's jobs are calls of main.
        texts: Keys whose values are free text.
    """

    def wrap(main: Callable[[T], int | None]) -> Callable[[], None]:
        name = f"xlm-{config_name}"
        status = [0]
        apart: list[str] = []

        def carry_out(config: Any) -> int | None:
            settings = config if read is None else read(config)
            begin_work()
            return main(settings)

        def task(config: DictConfig) -> float | None:
            set_values(config, apart)
            if multirun is not None and is_multirun_job():
                return multirun.job(carry_out, config)
            try:
                status[0] = max(status[0], carry_out(config) or 0)  # the worst of several jobs
            except (UserError, OSError) as error:
                if is_multirun_job():
                    raise
                fail(error)
            return None

        def start(words: list[str]) -> None:
            import hydra

            sys.argv[1:], apart[:] = set_apart(config_name, words)
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(task)()

        def fail(error: Exception) -> NoReturn:
            told = as_told(error)
            print(f"{name}: error: {told}", file=sys.stderr, flush=True)
            sys.exit(told.status)

        def answer(arguments: list[str]) -> int:
            if "--version" in arguments:
                show(version_line(name))
                return 0
            if "--help" in arguments or "-h" in arguments:
                show(_help(name, config_name, description, examples))
                return 0
            if before is not None:
                before()
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            words = check_overrides(config_name, quote_text(arguments, texts), read, texts)
            if multirun is not None and asks_for_multirun(words):
                begin_work()
                return multirun.start(words, start)
            start(words)  # Hydra drops what the task returns
            return status[0]

        def run() -> None:
            settle_streams()
            try:
                Path.cwd()
            except FileNotFoundError:
                fail(UserError("the working folder has been removed: cd to another one"))
            try:
                sys.exit(answer(sys.argv[1:]))
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr, flush=True)
                sys.exit(EXIT_INTERRUPTED)
            except Exception as error:
                fail(error)

        run.__doc__ = description
        return run

    return wrap


def as_told(error: Exception) -> UserError:
    """An error as a user is told it: of Hydra's in its own words, of a file the file and the system's reason.

    Raises:
        Exception: The error itself, where it is none of a user's.
    """
    from hydra.errors import HydraException, InstantiationException

    if isinstance(error, UserError):
        return error
    if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
        return UserError(str(error).splitlines()[0])
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename2 or error.filename)}: {error.strerror}"
        return UserError(text) if error.errno in USERS else SystemFailure(text)
    raise error


def is_multirun_job() -> bool:
    """Tell whether this is one job of a `-m`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def typed_overrides() -> list[str]:
    """The overrides of this command, or of this job of its `-m`, as they are written; none before Hydra has begun."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return []
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(words)


def asks_for_multirun(arguments: Sequence[str]) -> bool:
    """Tell whether a command line starts a `-m`, and does not only ask to see its config."""
    return ("-m" in arguments or "--multirun" in arguments) and not any(
        word.partition("=")[0] in SHOW for word in arguments
    )


def _help(name: str, config_name: str, description: str, examples: Sequence[str]) -> str:
    """What --help prints: purpose, examples, config groups with their options, every key with its default and comment."""
    from omegaconf import OmegaConf

    config = compose(config_name, [], None)
    source, entries = defaults_of(config_name)
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
        "Also: --cfg job --resolve prints the composed config; -m runs a sweep; --config-dir DIR adds your own configs; --version."
    ]
    return "\n".join(lines)


def _comment(source: str, line: str) -> str:
    """What a config file says behind the `key:` of a line, or nothing."""
    key = line.partition(":")[0]
    found = re.search(rf"^{re.escape(key)}:[^#\n]*(#.*)$", source, re.MULTILINE)
    return f"  {found[1]}" if found else ""
