"""The parts that a config names by `_target_`: optimizer, schedule, callbacks, loggers; each is tried before a run.

An entry is a mapping {_target_: PACKAGE.MODULE.CLASS, argument: value, ...}.
"""

from __future__ import annotations

import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from xlm_train.config.overrides import config_folder
from xlm_train.config.schema import UNKNOWN, fits, near, words_of
from xlm_train.data.order import Order
from xlm_train.runtime.errors import ConfigError, UserError

if TYPE_CHECKING:
    from xlm_train.data.training_text import TrainingText
    from xlm_train.objectives.objective import Objective

LOGGER_PACKAGES = {"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard"}

# Lightning's callbacks that cannot do here what their users expect, and why. A run is one epoch, whose end is the end.
REFUSED = {
    "StochasticWeightAveraging": "it averages at epoch starts, and a run is one epoch: use"
    " pytorch_lightning.callbacks.EMAWeightAveraging",
    "GradientAccumulationScheduler": "it refuses manual optimization: data.slots is the accumulation",
    "LearningRateFinder": "it trains and tries rates before the run, and our schedule sets the rate of each step:"
    " xlm-train -m optimizer.lr=1e-4,1e-3 compares rates",
    "BatchSizeFinder": "it changes the batch until memory is full, and a run's batch is part of what it is:"
    " xlm-plan tells which data.slot_streams fits",
    "BackboneFinetuning": "it unfreezes at epoch starts, and a run is one epoch; the module has no `backbone`",
    "ModelPruning": "it prunes at epoch ends, and a run is one epoch; it renames the weights in checkpoints",
    "ThroughputMonitor": "it needs Lightning's own validation loop, which a run does not use, and would count validation"
    " as training: callbacks.metrics reports speed/tokens_per_second and speed/mfu",
    "OnExceptionCheckpoint": "a step that fails half-way cannot be saved, least of all by one of several processes:"
    " callbacks.checkpointing keeps whole steps",
    "SpikeDetection": "it reads each step's loss from what the step returns, and ours returns nothing:"
    " callbacks.guard.spike_z finds spikes",
    "BasePredictionWriter": "nothing is predicted during training: xlm-eval and xlm-translate write files",
}
# Their arguments that would never act, as a run is one epoch whose batches are no steps of Lightning's: which values, and what
# the user may want.
IDLE: dict[tuple[str, str], tuple[Callable[[Any], bool], str]] = {
    ("Timer", "interval"): (lambda value: value == "epoch", "interval=step"),
    ("EarlyStopping", "check_on_train_epoch_end"): (bool, "it checks at each validation by itself"),
    ("ModelCheckpoint", "train_time_interval"): (
        lambda value: value is not None,
        "every_n_train_steps=N; callbacks.checkpointing saves by itself",
    ),
    ("ModelCheckpoint", "every_n_epochs"): (lambda value: value not in (None, 0, 1), "every_n_train_steps=N"),
}


def part_problems(entry: Mapping[str, Any], key: str, kind: str | None = None) -> tuple[Any, list[str]]:
    """Find an entry's `_target_` and compare its arguments with the signature.

    Args:
        entry: Resolved.
        key: The entry's own, for messages: "callbacks.metrics".
        kind: Name of the Lightning class that the target must be a subclass of: "Callback" or "Logger".

    Returns:
        The class or function, None where there is none; and the problems.
    """
    path = entry.get("_target_")
    if not isinstance(path, str) or path == "???":
        return None, [f"{key}._target_ has no value: give the class, as {key}._target_=PACKAGE.MODULE.CLASS"]
    try:
        target = pkgutil.resolve_name(path)
    except Exception as error:  # an import runs others' code
        module, _, name = path.rpartition(".")
        if isinstance(error, AttributeError | ModuleNotFoundError | ValueError):
            return None, [f"{key}._target_={path}: there is no such class{_near_in(module, name)}"]
        return None, [f"{key}._target_={path}: cannot be imported: {type(error).__name__}: {error}"]
    if kind is not None:
        import pytorch_lightning as pl
        from pytorch_lightning.loggers import Logger

        wanted = {"Callback": pl.Callback, "Logger": Logger}[kind]
        if not (isinstance(target, type) and issubclass(target, wanted)):
            return None, [f"{key}._target_={path}: is no {kind} of pytorch_lightning"]
    if not callable(target):
        return None, [f"{key}._target_={path}: is neither a class nor a function"]
    return target, _argument_problems(target, entry, key)


def _near_in(module: str, name: str) -> str:
    try:
        return near(name, dir(pkgutil.resolve_name(module)))
    except Exception:
        return ""


def _parameters(target: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a class or function by name; None where it is written in C: only a call can tell."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None


def _argument_problems(target: Any, entry: Mapping[str, Any], key: str) -> list[str]:
    parameters = _parameters(target)
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [
        f"{key}.{name}={value}: {entry['_target_']} takes no '{name}'{near(name, list(parameters))}"
        for name, value in entry.items()
        if not name.startswith("_") and name not in parameters
    ]


def optimizer_problems(good: Mapping[str, Any], unresolved: Mapping[str, Any], others: bool = False) -> list[str]:
    """Tell whether optimizer and schedule take the arguments the config gives them: each is tried once.

    Args:
        good: What is right so far, by dotted key.
        unresolved: The config before `${...}` were replaced: a wrong value is told where it is said.
        others: Whether other values are wrong already: then one that comes from elsewhere may be one of them.
    """
    import hydra.utils
    import torch

    problems: list[str] = []
    weight = [torch.nn.Parameter(torch.zeros(1))]
    trials: list[tuple[str, list[Any]]] = [("optimizer", [weight]), ("schedule", [0, 10**6])]
    for section, arguments in trials:
        entry = good.get(section)
        if entry is None:
            continue
        words = {key: value for key, value in entry.items() if isinstance(value, str) and not key.startswith("_")}
        said = [key for key in words if not str(unresolved[section].get(key)).startswith("${")]
        wrong = [f"{section}.{key}={words[key]}: must be a number" for key in said]
        target, more = part_problems(entry, section)
        if target is not None:
            own = {
                name: value for name, value in entry.items() if not str(unresolved[section].get(name)).startswith("${")
            }
            more += [*_default_problems(target, own, section), *_range_problems(target, own, section)]
            more += _null_problems(target, entry, unresolved[section], section)
        problems += wrong + more
        if target is None or problems or UNKNOWN in entry.values() or (words and others):
            continue
        try:
            for argument in arguments:
                hydra.utils.instantiate(entry, _convert_="all")(argument)
        except Exception as error:  # whatever a swapped-in class raises, it is this section that must change
            problems.append(f"{section}: {entry['_target_']}: {error}")
    return problems


def _default_problems(target: Any, entry: Mapping[str, Any], key: str) -> list[str]:
    """Compare values with the signature's defaults: numbers where one is, lists where a tuple is (betas=(0.9, 0.999))."""
    parameters = _parameters(target) or {}
    hints = _hints(target)
    given = [name for name, value in entry.items() if name in parameters and value is not UNKNOWN]
    defaults = {name: parameters[name].default for name in given}
    problems = [
        f"{key}.{name}={entry[name]}: must be a number"
        for name, default in defaults.items()
        if ((isinstance(default, int | float) and not isinstance(default, bool)) or hints.get(name) in (int, float))
        and isinstance(entry[name], bool | list | dict)
    ]
    return problems + [
        f"{key}.{name}={entry[name]}: must be a list of {len(default)} numbers, as [{','.join(map(str, default))}]"
        for name, default in defaults.items()
        if isinstance(default, tuple)
        and not (
            isinstance(entry[name], list)
            and len(entry[name]) == len(default)
            and all(fits(item, float) for item in entry[name])
        )
    ]


def _hints(target: Any) -> Mapping[str, Any]:
    """The types of a function's arguments, of ours; others' may name what only type checkers import."""
    return typing.get_type_hints(target) if inspect.isfunction(target) and _is_ours(target) else {}


def _is_ours(target: Any) -> bool:
    return bool(target.__module__.startswith("xlm_train."))


def _null_problems(target: Any, entry: Mapping[str, Any], unresolved: Mapping[str, Any], key: str) -> list[str]:
    """Tell of arguments that must have a value and are null, or are what another key says that is null."""
    hints = _hints(target)
    needed = {
        name
        for name, parameter in (_parameters(target) or {}).items()
        if parameter.default is parameter.empty or hints.get(name) in (int, float)
    }
    return [
        f"{key}.{name}={said if (said := unresolved.get(name)) else 'null'}: must have a value: {key}.{name}=N"
        for name in entry
        if name in needed and entry[name] is None
    ]


def _range_problems(target: Any, entry: Mapping[str, Any], key: str) -> list[str]:
    """Tell whether a learning rate is one, and whether numbers that ours take are in range."""
    numbers = {name: value for name, value in entry.items() if fits(value, float)}
    ours = _is_ours(target)
    problems = [f"{key}.{name}={value}: must not be negative" for name, value in numbers.items() if ours and value < 0]
    rate = entry.get("lr", 1.0)
    if numbers.get("lr") == 0 or (not ours and numbers.get("lr", 0) < 0):
        problems.append(f"{key}.lr={rate}: must be positive: with 0 nothing is learned")
    if numbers.get("eps") == 0:
        problems.append(f"{key}.eps={entry['eps']}: must be positive: gradients of 0 would be divided by 0")
    return problems


def objective_problems(entry: Mapping[str, Any], key: str = "objective") -> list[str]:
    """Tell whether an objective and the parts that it may have exist and take their arguments."""
    target, problems = part_problems(entry, key)
    if target is not None:
        problems += _type_problems(target, entry, key)
    parts = entry.get("parts")
    for name, part in parts.items() if isinstance(parts, dict) else ():
        if isinstance(part, dict):
            problems += objective_problems(part, f"{key}.parts.{name}")
        else:
            problems.append(f"{key}.parts.{name}={part}: must be an objective, as in configs/objective")
    return problems


def parts_of(objective: Mapping[str, Any]) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """The class and the settings of each part of an objective, of a single one of itself; None where no class is named.

    Raises:
        ImportError, AttributeError, ValueError: A class is not there.
    """
    parts = (objective.get("parts") or {"": objective}).items()
    paths = {name: part.get("_target_") for name, part in parts}
    return {name: (paths[name] and pkgutil.resolve_name(paths[name]), part) for name, part in parts}


def translates(objective: Mapping[str, Any]) -> bool:
    """Whether an objective trains a model of an encoder and a decoder."""
    return any(getattr(kind, "evaluation", "") == "translation" for kind, _ in parts_of(objective).values())


def reading_problems(entry: Mapping[str, Any], text: TrainingText) -> tuple[Objective | None, list[str]]:
    """Tell whether an objective can be made and finds its text in the corpus; nothing is read.

    Returns:
        The objective, None where it cannot be used, and the problems.
    """
    import hydra.utils

    try:
        make = hydra.utils.instantiate(entry, _convert_="all")
        made = make(text)
    except Exception as error:  # whatever a user's class raises, it is this entry that must change
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):
            return None, [
                problem if problem.startswith("data.") else f"objective.{problem}" for problem in cause.problems
            ]
        return None, cause.problems if isinstance(cause, UserError) else [f"objective: {entry['_target_']}: {cause}"]
    try:
        Order(made.streams, slots=1, seed=0)
    except UserError as error:
        return None, error.problems
    return made, []


def with_shipped_callbacks(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fill in what a user's own callbacks lack of the shipped ones: without checkpoints a run loses its work silently.

    An entry of a shipped name that has no `_target_` changes the shipped entry; null leaves one out.

    Args:
        config: With `${...}` not yet replaced. It is not changed.

    Returns:
        The config; and a line to log where entries were filled in.
    """
    shipped, given = shipped_callbacks(), config.get("callbacks") or {}
    if not isinstance(given, dict):
        return dict(config), []
    callbacks = {
        name: {**entry, **given[name]} if isinstance(given.get(name), dict) and "_target_" not in given[name]
        else given.get(name, entry)
        for name, entry in shipped.items()
    }  # fmt: skip
    lacking = [name for name in shipped if name not in given]
    lines = [
        f"callbacks: {', '.join(lacking)}: not given, so as shipped; callbacks.NAME=null leaves one out"
    ] if lacking else []  # fmt: skip
    return {**config, "callbacks": {**callbacks, **{k: v for k, v in given.items() if k not in shipped}}}, lines


def shipped_callbacks() -> dict[str, dict[str, Any]]:
    """Read configs/callbacks/default.yaml, `${...}` not replaced."""
    from omegaconf import OmegaConf

    shipped = OmegaConf.to_container(OmegaConf.load(config_folder() / "callbacks/default.yaml"), resolve=False)
    return cast(dict[str, dict[str, Any]], shipped)


def callback_problems(
    entries: Mapping[str, Mapping[str, Any] | None], unresolved: Mapping[str, Any], told: Sequence[str] = ()
) -> list[str]:
    """Tell whether each callback exists, works here and takes its arguments: each is made once.

    Args:
        entries: Resolved, by name.
        unresolved: The same before `${...}` were replaced.
        told: Problems found before: a wrong value is told where it is said, not again where `${...}` repeats it.
    """
    import hydra.utils
    import pytorch_lightning as pl

    problems: list[str] = []
    states: dict[str, str] = {}  # the name under which a checkpoint holds a callback's state -> the callback's key
    for name, entry in entries.items():
        if entry is None or UNKNOWN in entry.values():
            continue
        key = f"callbacks.{name}"
        target, wrong = part_problems(entry, key, "Callback")
        for base in getattr(target, "__mro__", ()):
            if not base.__module__.startswith("pytorch_lightning."):
                continue
            if why := REFUSED.get(base.__name__):
                wrong = [f"{key}._target_={entry['_target_']}: cannot work here: {why}"]
            for (kind, argument), (is_idle, instead) in IDLE.items():
                if kind == base.__name__ and is_idle(value := entry.get(argument)):
                    wrong.append(f"{key}.{argument}={value}: would never act here: {instead}")
        if target is not None:
            wrong += _type_problems(target, entry, key)
        if target is not None and not wrong:
            try:
                callback = hydra.utils.instantiate(entry, _convert_="all")
                if getattr(callback, "save_on_exception", False):
                    wrong = [f"{key}.save_on_exception=True: cannot work here: {REFUSED['OnExceptionCheckpoint']}"]
                if type(callback).state_dict is not pl.Callback.state_dict:
                    other = states.setdefault(callback.state_key, key)
                    if other != key:
                        wrong += [
                            f"{key}: checkpoints cannot hold its state beside that of {other}, under the same name"
                            f" {callback.state_key}: leave one out, or change its arguments (state_key of its class)"
                        ]
            except Exception as error:  # whatever a user's class raises, it is this entry that must change
                cause = error.__cause__ or error
                wrong = (
                    [f"{key}.{problem}" for problem in cause.problems]
                    if isinstance(cause, UserError)
                    else [f"{key}: {entry['_target_']}: {cause}"]
                )
        sources = {
            f"{key}.{argument}=": f"{value[2:-1]}="
            for argument, value in (unresolved.get(name) or {}).items()
            if isinstance(value, str) and value.startswith("${")
        }
        for problem in wrong:
            source = next((source for said, source in sources.items() if problem.startswith(said)), None)
            if source is None or not any(other.startswith(source) for other in (*told, *problems)):
                problems.append(problem)
    return problems


def _type_problems(target: Any, entry: Mapping[str, Any], key: str) -> list[str]:
    """Compare the values of one of our classes or functions with the types that it names."""
    if not _is_ours(target):
        return []
    hints = typing.get_type_hints(target if inspect.isfunction(target) else target.__init__)
    return [
        f"{key}.{name}={value}: must be {words_of(hints[name])}"
        for name, value in entry.items()
        if name in hints and value is not UNKNOWN and not fits(value, hints[name])
    ]


def logger_problems(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Tell whether each logger exists, is installed and takes its arguments; none is started."""
    problems: list[str] = []
    for name, entry in entries.items():
        target, wrong = part_problems(entry, f"logger.{name}", "Logger")
        package = LOGGER_PACKAGES.get(getattr(target, "__name__", ""))
        if package is not None and find_spec(package) is None:
            wrong.append(f"logger={package}: {package} is not installed: pip install 'xlm_train[{package}]'")
        elif target is not None and not wrong and not (wrong := _type_problems(target, entry, f"logger.{name}")):
            try:
                inspect.signature(target).bind(**{k: v for k, v in entry.items() if not k.startswith("_")})
            except TypeError as error:
                wrong = [f"logger.{name}: {entry['_target_']}: {error}"]
        problems += wrong
    return problems
