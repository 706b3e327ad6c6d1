"""A command's config as a typed dataclass, with every mistake in it found at once.

A schema is a dataclass whose fields may be dataclasses themselves. A field's type may carry checks of its value:
`slots: Annotated[int, at_least(1)]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from xlm_train.runtime.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = typing.TypeVar("T")

# What users of Lightning and Hugging Face type, and what it is here.
_RESUME = "the same run_name resumes; init_from=FILE starts a new run from a checkpoint"
_LENGTH = "trainer.max_steps or trainer.max_tokens"
_BATCH = "data.slots x data.slot_streams windows, over all devices"
HABITS = {
    "gradient_clip_val": "trainer.clip_norm",
    "max_grad_norm": "trainer.clip_norm",
    "epochs": _LENGTH,
    "max_epochs": _LENGTH,
    "num_train_epochs": _LENGTH,
    "max_time": "trainer.max_hours",
    "num_nodes": "trainer.nodes",
    "gpus": "trainer.devices",
    "strategy": "trainer.sharding divides a model's state; without, processes exchange gradients as DDP",
    "fp16": "trainer.precision=16-mixed",
    "bf16": "trainer.precision=bf16-mixed",
    "batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "accumulate_grad_batches": "data.slots is the accumulation",
    "gradient_accumulation_steps": "data.slots is the accumulation",
    "learning_rate": "optimizer.lr",
    "warmup_steps": "schedule.warmup_updates",
    "val_check_interval": "callbacks.validation.every_n_steps",
    "output_dir": "paths.runs/run_name is the run's folder",
    "wandb": "logger=wandb",
    "ckpt_path": _RESUME,
    "resume": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "resume_from": _RESUME,
}


class _Unknown:
    """Stands for a value that cannot be computed because of another one, which is told."""

    def __repr__(self) -> str:
        return "???"


UNKNOWN = _Unknown()
MOST = 1 << 63  # whole numbers beyond are more than any library takes


@dataclasses.dataclass(frozen=True)
class Rule:
    """A check of several values together.

    Args:
        needs: Dotted keys of the values that `check` is called with; it is not, where one of them is wrong already.
        check: Yields problems.
    """

    needs: tuple[str, ...]
    check: Callable[..., Iterable[str]]


def at_least(least: float) -> Callable[[Any], str | None]:
    """Check of a field: not below `least`."""
    return lambda value: None if value >= least else f"must be at least {least}"


def between(least: float, most: float) -> Callable[[Any], str | None]:
    """Check of a field: not below `least` nor above `most`."""

    def problem(value: Any) -> str | None:
        if value < least:
            return f"must be at least {least}"
        return None if value <= most else f"must be at most {most}"

    return problem


def positive(value: float) -> str | None:
    """Check of a field: above 0."""
    return None if value > 0 else "must be positive"


def one_of(*options: str, null: bool = False) -> Callable[[Any], str | None]:
    """Check of a field: one of some words; null: the message names null too."""
    words = ("null or " if null else "") + f"one of {', '.join(options)}"
    return lambda value: None if value in options else f"must be {words}"


def free_text(value: str) -> None:
    """Mark a field whose text may be empty; that of all others names something."""


Count = Annotated[int, between(1, 10**9)]
Slots = Annotated[int, between(1, 10**6)]
Beams = Annotated[int, between(1, 1000)]
Threads = Annotated[int | None, at_least(1)]
Device = Annotated[str, one_of("auto", "cpu", "cuda")]


def read_config(schema: type[T], config: DictConfig) -> T:
    """Read a composed config as an instance of `schema`.

    Args:
        schema: A dataclass; what its method `problems()` lists, where it has one, is found too.
        config: Composed, not yet resolved.

    Returns:
        The instance.

    Raises:
        ConfigError: With everything that is wrong: keys that do not exist, values missing or of the wrong type.
    """
    from omegaconf import OmegaConf

    values, problems = resolve(typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)))
    problems += check_fields(schema, values)[1]
    built = build(schema, values) if _is_typed(schema, values) else None
    problems += getattr(built, "problems", list)()
    if problems or built is None:
        raise ConfigError(problems)
    return built


def _is_typed(schema: Any, values: Any) -> bool:
    """Whether a mapping has every field of a dataclass with the right type."""
    hints, checked = typing.get_type_hints(schema), typing.get_type_hints(schema, include_extras=True)
    return isinstance(values, Mapping) and all(
        _is_typed(hints[field.name], values.get(field.name))
        if dataclasses.is_dataclass(hints[field.name])
        else _is_given(values.get(field.name), checked[field.name]) and fits(values.get(field.name), hints[field.name])
        for field in dataclasses.fields(schema)
    )


def _is_given(value: Any, wanted: Any) -> bool:
    """Whether a field has a value; an empty text is none."""
    return value != "???" and (value != "" or free_text in getattr(wanted, "__metadata__", ()))


def resolve(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace `${...}` in a nested mapping.

    Returns:
        The mapping, with UNKNOWN for what cannot be resolved and for numbers that are not finite, which no setting takes;
        and the reasons. A value that only lacks another one, which has none (`???`), is no problem of its own.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    failed: dict[str, list[str]] = {}  # keys by reason
    wrong: list[str] = []

    def plain(node: DictConfig, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in node:
            name = prefix + str(key)
            try:
                value = "???" if OmegaConf.is_missing(node, key) else node[key]
                if isinstance(value, DictConfig):
                    value = plain(value, f"{name}.")
                elif OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True)
                if not _is_finite(value):
                    if not OmegaConf.is_interpolation(node, str(key)):  # else it is told where it is said
                        wrong.append(f"{name}={value}: must be finite")
                    value = UNKNOWN
            except InterpolationToMissingValueError:
                value = UNKNOWN
            except OmegaConfBaseException as error:
                failed.setdefault(str(error).splitlines()[0], []).append(name)
                value = UNKNOWN
            found[str(key)] = value
        return found

    resolved = plain(OmegaConf.create(values), "")
    # what names a key that fails fails as well, for the same reason: the shallowest is told
    return resolved, [
        *wrong,
        *(f"{min(names, key=lambda name: name.count('.'))}: {why}" for why, names in failed.items()),
    ]


def _is_finite(value: Any) -> bool:
    """Whether a value holds no NaN and no infinity."""
    items = value if isinstance(value, list) else [value]
    return all(math.isfinite(item) for item in items if isinstance(item, float))


def check_fields(schema: Any, values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Compare a mapping with a dataclass: keys, types and each field's own checks.

    Args:
        schema: The dataclass.
        values: Resolved.
        prefix: Stands before the keys in messages: "data.".

    Returns:
        The values that are right, by dotted key; and the problems.
    """
    good: dict[str, Any] = {}
    hints = typing.get_type_hints(schema, include_extras=True)
    names = [field.name for field in dataclasses.fields(schema) if field.init]
    known = [f"{prefix}{name}" for name in names]
    problems = [
        f"{prefix}{key}{'' if isinstance(value, dict) else f'={value}'}: {no_such_key(f'{prefix}{key}', known)}"
        for key, value in values.items()
        if key not in names
    ]
    for name in names:
        key, value, wanted = f"{prefix}{name}", values.get(name), hints[name]
        given = _is_given(value, wanted)
        checks: Sequence[Callable[[Any], str | None]] = getattr(wanted, "__metadata__", ())
        wanted = typing.get_args(wanted)[0] if checks else wanted
        if value is UNKNOWN:
            continue
        if not given or (value is None and not fits(None, wanted)):
            problems.append(f"{key} has no value: give {key}=...")
        elif dataclasses.is_dataclass(wanted):
            if isinstance(value, dict):
                inner_good, inner_problems = check_fields(wanted, value, f"{key}.")
                good |= inner_good
                problems += inner_problems
            else:
                problems.append(f"{key}={value}: has fields: {key}.NAME=...")
        elif typing.get_origin(wanted) is dict and isinstance(value, dict) and not fits(value, wanted):
            inner = typing.get_args(wanted)[1]
            problems += [
                f"{key}.{name}={item}: must be {words_of(inner)}"
                for name, item in value.items()
                if item is not UNKNOWN and not fits(item, inner)
            ]
        elif not fits(value, wanted):
            hint = f"; quote it: {key}='\"{value}\"'" if wanted is str and not isinstance(value, dict | list) else ""
            if isinstance(value, str) and "," in value:
                hint = "; several values are a sweep, which -m starts"
            bound = ", below 2^63" if type(value) is int and abs(value) >= MOST else ""
            problems.append(f"{key}={value}: must be {words_of(wanted)}{bound}{hint}")
        elif value is not None and (wrong := [why for check in checks if (why := check(value))]):
            problems += [f"{key}={value}: {why}" for why in wrong]
        else:
            good[key] = value
    return good, problems


def check_rules(rules: Iterable[Rule], good: Mapping[str, Any]) -> list[str]:
    """Problems that rules find, each checked where all its values are among the good ones."""
    return [
        problem
        for rule in rules
        if all(key in good for key in rule.needs)
        for problem in rule.check(*(good[key] for key in rule.needs))
    ]


def build(schema: type[T], values: Mapping[str, Any]) -> T:
    """Make an instance of a dataclass of dataclasses from a mapping that `check_fields` finds right."""
    hints = typing.get_type_hints(schema)
    return schema(
        **{
            field.name: build(hints[field.name], values[field.name])
            if dataclasses.is_dataclass(hints[field.name])
            else values[field.name]
            for field in dataclasses.fields(schema)  # type: ignore[arg-type]
            if field.init
        }
    )


def no_such_key(key: str, known: Sequence[str]) -> str:
    """Say that a key does not exist, and which one is most likely meant."""
    if habit := HABITS.get(key.rpartition(".")[2]):
        return f"there is no '{key}'; here: {habit}"
    return f"there is no '{key}'{near(key, known)}"


def near(word: str, known: Sequence[str]) -> str:
    """Name the known words nearest to one, as ` (did you mean a or b?)`, or nothing.

    A dotted key's neighbours are looked through first; where there are none, all keys; at last the same leaf elsewhere.
    """
    prefix, leaf = word[: word.rfind(".") + 1], word[word.rfind(".") + 1 :]
    siblings = [name[len(prefix) :] for name in known if name.startswith(prefix)]
    siblings = [name for name in siblings if "." not in name and not name.startswith("_")]
    if siblings:
        close = [prefix + name for name in difflib.get_close_matches(leaf, siblings, n=2)]
    else:
        close = difflib.get_close_matches(word, known, n=3)
    if not close:  # `lr` for `optimizer.lr`
        close = [name for name in known if name.rpartition(".")[2] == leaf][:3]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def search_problems(beam: int, length_penalty: float, early_stopping: bool = False) -> list[str]:
    """Tell of settings of a beam search where there is none."""
    given = {"length_penalty": (length_penalty, 1.0), "early_stopping": (early_stopping, False)}
    return [
        f"{key}={value}: has no effect on greedy translation: beam=4"
        for key, (value, default) in given.items()
        if beam == 1 and value != default
    ]


def fits(value: Any, wanted: Any) -> bool:
    """Tell whether a value has a type: true and false are no numbers, whole numbers of 64 bits are numbers."""
    if wanted is Any:
        return True
    if type(value) is int and abs(value) >= MOST:
        return False
    if isinstance(wanted, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(wanted))
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, inner = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    if not isinstance(value, origin) or (origin is Sequence and isinstance(value, str)):
        return False
    # a mapping of anything else, as of a mixture's parts, is the reader's to check
    if inner and (origin in (list, dict, Sequence) or (origin is Mapping and inner[1:] == (float,))):
        return all(fits(item, inner[-1]) for item in (value.values() if isinstance(value, Mapping) else value))
    return True


def words_of(wanted: Any) -> str:
    """Say what a type is to a user: `a whole number or null`."""
    if isinstance(wanted, types.UnionType):
        return " or ".join(map(words_of, typing.get_args(wanted)))
    if typing.get_origin(wanted) in (dict, Mapping):
        return "a mapping of names to numbers" if typing.get_args(wanted)[1:] == (float,) else "a mapping"
    if typing.get_origin(wanted) is list and typing.get_args(wanted) == (int,):
        return "a list of whole numbers, as [1,2]"
    if typing.get_args(wanted) == (float,):
        return "a list of numbers, as [1,2]"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list, as [a,b]",
        Sequence: "a list, as [a,b]",
        type(None): "null",
    }
    return names.get(typing.get_origin(wanted) or wanted, "a mapping")
