"""A command's config as a typed dataclass, with every mistake in it found at once."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = typing.TypeVar("T")


def read_config(schema: type[T], config: DictConfig) -> T:
    """The composed config as an instance of `schema`, a dataclass whose fields may be dataclasses themselves.

    Raises ConfigError with everything that is wrong: values missing or of the wrong type, or else what the instance's
    own `problems()` lists, where it has that method.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if problems := field_problems(schema, values):
        raise ConfigError(problems)
    built = _build(schema, values)
    if problems := getattr(built, "problems", list)():
        raise ConfigError(problems)
    return built


def field_problems(schema: Any, values: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields of a dataclass that `values` lacks or has with the wrong type; `prefix` stands before their names."""
    problems = []
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, wanted, value = f"{prefix}{field.name}", hints[field.name], values.get(field.name)
        if value == "???" or (value is None and not fits(None, wanted)):
            problems.append(f"{key} has no value: give {key}=...")
        elif dataclasses.is_dataclass(wanted):
            problems += (
                field_problems(wanted, value, f"{key}.")
                if isinstance(value, dict)
                else [f"{key}={value}: has no fields"]
            )
        elif not fits(value, wanted):
            problems.append(f"{key}={value}: must be {_words(wanted)}")
    return problems


def out_problems(out: str | None) -> list[str]:
    """Whether a result can be written to `out`: known before the work that it is the result of."""
    folder = Path("." if out is None else out).parent
    if out is None or os.access(folder, os.W_OK):
        return []
    return [f"out={out}: {folder} is {'not writable' if folder.is_dir() else 'no folder'}"]


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value has a type: true and false are no numbers, whole numbers are numbers."""
    if isinstance(wanted, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(wanted))
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(wanted) or wanted)


def _words(wanted: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list, as [a,b]",
        type(None): "null",
    }
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    return " or ".join(names.get(typing.get_origin(option) or option, "a mapping") for option in options)


def _build(schema: type[T], values: dict[str, Any]) -> T:
    hints = typing.get_type_hints(schema)
    return schema(
        **{
            field.name: _build(hints[field.name], values[field.name])
            if dataclasses.is_dataclass(hints[field.name])
            else values[field.name]
            for field in dataclasses.fields(schema)  # type: ignore[arg-type]
        }
    )
