"""What a training config may say, as typed values, and every mistake in it found at once.

Defaults live in configs/; here are the types, and the combinations that cannot work. Each problem names the override
that fixes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from xlm_train.config.cluster import ClusterConfig
from xlm_train.config.parts import (
    callback_problems,
    logger_problems,
    objective_problems,
    optimizer_problems,
    parts_of,
    reading_problems,
    with_shipped_callbacks,
)
from xlm_train.config.precision import settle_precision
from xlm_train.config.renamed import renamings, with_new_names
from xlm_train.config.rules import RULES
from xlm_train.config.schema import Count, Slots, at_least, build, check_fields, check_rules, one_of, positive, resolve
from xlm_train.config.storage import StorageConfig, with_local_runs
from xlm_train.model.seq2seq import SHARE, Seq2Seq
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.run_folder import name_problem
from xlm_train.runtime.storage import is_url
from xlm_train.training.strategy import COMPRESSIONS, SHARDINGS

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm_train.data.corpus import Corpus
    from xlm_train.data.training_text import TrainingText


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must be from 0 (uniform) to 1 (proportional)"


def _window(value: int) -> str | None:
    return None if value >= 2 else "a window needs at least 2 tokens to predict one"


def _seed(value: int) -> str | None:
    return None if 0 <= value < 2**63 else "must be a whole number from 0 to 2^63 - 1"


@dataclass(frozen=True)
class DataConfig:
    """The data section: which corpus, and what a step reads of it (tokens, windows, slots)."""

    path: str
    bptt: Annotated[int, _window]
    slot_streams: Slots
    tokens_per_slot: Count
    max_len: Count
    slots: Slots
    lang_alpha: Annotated[float, _share]

    def text(self, corpus: Corpus, seed: int, max_positions: int, float16: bool) -> TrainingText:
        """The training text of a corpus, as the run reads it: what objectives are made from.

        Args:
            corpus: Opened.
            seed: Of the order.
            max_positions: Positions that the model has.
            float16: Whether the model runs in float16.
        """
        from xlm_train.data.training_text import TrainingText

        names = ("bptt", "slot_streams", "tokens_per_slot", "max_len", "lang_alpha")
        values = {name: getattr(self, name) for name in names}
        return TrainingText(corpus, **values, seed=seed, max_positions=max_positions, float16=float16)


@dataclass(frozen=True)
class ModelConfig(ModelShape):
    """The model section: ModelShape without what the corpus decides, and how the model is computed.

    Args:
        recompute: Whether activations are computed again in the backward pass.
        ops: "fast", or "plain": the same arithmetic on plain torch operations.
        share: "embeddings": one table of words for encoder and decoder of a translation model; "none": nothing.
    """

    n_words: int = field(default=1, init=False)
    n_langs: int = field(default=1, init=False)
    recompute: bool = False
    ops: Annotated[str, one_of("fast", "plain")] = "fast"
    share: Annotated[str, one_of(*SHARE)] = "none"

    def shape(self, n_words: int, n_langs: int) -> ModelShape:
        """Complete the shape with a corpus's numbers of words and languages."""
        names = {part.name for part in fields(ModelShape)} - {"n_words", "n_langs"}
        return ModelShape(n_words, n_langs, **{name: getattr(self, name) for name in names})

    def make(self, n_words: int, n_langs: int, translates: bool) -> XLM | Seq2Seq:
        """Make the model with random weights: a language model, or encoder and decoder."""
        shape = self.shape(n_words, n_langs)
        if translates:
            return Seq2Seq(shape, self.recompute, self.ops, self.share)
        return XLM(shape, self.recompute, self.ops)


@dataclass(frozen=True)
class TrainerConfig:
    """The trainer section: devices, precision and length of a run."""

    accelerator: Annotated[str, one_of("auto", "cpu", "gpu")]
    devices: Count
    nodes: Count
    precision: Annotated[str, one_of("32-true", "16-mixed", "bf16-mixed", "auto")]
    max_steps: Annotated[int | None, positive]
    max_tokens: Annotated[int | None, positive]
    max_hours: Annotated[float | None, positive]
    clip_norm: Annotated[float, positive]
    threads: Annotated[int | None, positive]
    gradient_compression: Annotated[str | None, one_of(*COMPRESSIONS, null=True)]
    sharding: Annotated[str | None, one_of(*SHARDINGS, null=True)]
    start_timeout_seconds: Annotated[float, positive]
    timeout_seconds: Annotated[float, positive]
    max_restarts: Annotated[int, at_least(0)]

    @property
    def world_size(self) -> int:
        """Processes of the run, one a device."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class DebugConfig:
    """The debug section: what only tests and rehearsals want."""

    cpu_fp16: bool
    nan_steps: list[int]


@dataclass(frozen=True)
class PathsConfig:
    """The paths section: the folder below which each run has its own."""

    runs: str


@dataclass
class TrainConfig:
    """What configs/train.yaml says, checked.

    Args:
        optimizer: A `_target_` entry, as schedule.
        callbacks: `_target_` entries by name; null leaves one out.
        logger: `_target_` entries by name.
        resolved: The same as nested mappings, as config.yaml and checkpoints hold it.
    """

    data: DataConfig
    model: ModelConfig
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    trainer: TrainerConfig
    callbacks: dict[str, dict[str, Any] | None]
    logger: dict[str, dict[str, Any]]
    cluster: ClusterConfig
    debug: DebugConfig
    paths: PathsConfig
    storage: StorageConfig
    run_name: Annotated[str, name_problem]
    seed: Annotated[int, _seed]
    init_from: str | None
    init_optimizer: bool
    init_encoder: str | None
    init_decoder: str | None
    verify: str | None
    resolved: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def given_weights(self) -> dict[str, str]:
        """Checkpoints to start from, by key."""
        keys = {"init_from": self.init_from, "init_encoder": self.init_encoder, "init_decoder": self.init_decoder}
        return {key: path for key, path in keys.items() if path is not None}


def read_train_config(config: DictConfig) -> TrainConfig:
    """Check a composed config and the corpus it names.

    Returns:
        The typed values.

    Raises:
        ConfigError: With everything that is wrong.
    """
    values, problems = _checked(config, tell=True)
    if problems := problems + _corpus_problems(values, readable=not problems):
        raise ConfigError(problems)
    return _build(values)


def from_resolved(values: dict[str, Any]) -> TrainConfig:
    """Read a config that was checked, resolved and written by another process, or by an earlier version.

    Raises:
        ConfigError: Where keys or types are not those of this version.
    """
    values = with_new_names(values)
    settle_precision(values)
    if problems := check_fields(TrainConfig, values)[1]:
        raise ConfigError(problems)
    return _build(values)


def problems_of(config: DictConfig, of_corpus: bool = False) -> list[str]:
    """List everything wrong with a training config that can be known before any file is opened.

    Args:
        config: Composed.
        of_corpus: Whether the corpus is opened too, as `read_train_config` does.
    """
    values, problems = _checked(config)
    return problems + (_corpus_problems(values, readable=not problems) if of_corpus else [])


def steps_of(settings: Mapping[str, Any], tokens_per_step: int) -> int:
    """Count the steps of a run: trainer.max_steps, or trainer.max_tokens in whole steps (rounded up); the lesser.

    Args:
        settings: The config's `trainer` section.
        tokens_per_step: Tokens that a step reads, over all processes.
    """
    limits = [] if settings["max_steps"] is None else [settings["max_steps"]]
    if settings["max_tokens"] is not None:
        limits.append(-(-settings["max_tokens"] // tokens_per_step))
    return int(min(limits))


def window_tokens(config: Mapping[str, Any]) -> int | None:
    """Count the tokens of a step by a run's config alone.

    Args:
        config: Of any version, or as much of it as an imported checkpoint has.

    Returns:
        The tokens; None where the config does not tell: batches of sentences differ, and their mean is the corpus's, as
        do objectives that are not installed here.
    """
    data = config.get("data") or {}
    try:
        kinds = [kind for kind, _ in parts_of(config.get("objective") or {}).values()]
    except (ImportError, AttributeError, ValueError):
        return None
    if any(getattr(kind, "reads", "windows") != "windows" for kind in kinds):
        return None
    sizes = [size for key in ("slots", "slot_streams", "bptt") if isinstance(size := data.get(key), int)]
    return math.prod(sizes) if len(sizes) == 3 else None


def _corpus_problems(values: dict[str, Any], readable: bool) -> list[str]:
    """Tell whether the corpus can be opened, has what the objective reads, and what is monitored; reads no text.

    Nothing is said of a path that is no folder: `problems_of` does.

    Args:
        values: The resolved config.
        readable: Nothing else is wrong with it, so that the objective can be made.
    """
    from xlm_train.data.corpus import Corpus

    path = values.get("data", {}).get("path")
    if not isinstance(path, str) or not path or not (readable if is_url(path) else Path(path).is_dir()):
        return []  # a corpus is fetched when nothing else is wrong
    try:
        corpus = Corpus(path)
    except UserError as error:
        return error.problems
    from xlm_train.data.training_text import TrainingText
    from xlm_train.training.callbacks.validation import metrics_of

    text = TrainingText(corpus)  # the metrics' names do not depend on what else is wrong
    if readable:
        config = _build(values)
        text = config.data.text(corpus, config.seed, config.model.max_positions, float16=False)
    objective, problems = reading_problems(_section(values, "objective"), text)
    if objective is None:
        return problems if readable else []
    if objective.evaluation != "translation":
        given = {key: values.get(key) for key in ("init_encoder", "init_decoder")}
        given["model.share"] = None if (share := _section(values, "model").get("share")) == "none" else share
        problems += [
            f"{key}={value}: only a translation model has two sides, as under objective=umt"
            for key, value in given.items()
            if value is not None
        ]
        if (beam := (_entries(values, "callbacks").get("validation") or {}).get("beam", 1)) != 1:
            problems.append(f"callbacks.validation.beam={beam}: a language model translates nothing")
    elif _section(values, "trainer").get("sharding") == "fsdp":
        problems.append("trainer.sharding=fsdp: divides language models only; trainer.sharding=zero for translation")
    monitor = (_entries(values, "callbacks").get("validation") or {}).get("monitor")
    try:
        names = metrics_of(corpus, objective) if monitor is not None else []
    except ConfigError as error:
        return [*problems, *error.problems]
    if names and monitor not in names:
        problems.append(f"callbacks.validation.monitor={monitor}: must be one of {', '.join(names)}")
    return problems


def _build(values: dict[str, Any]) -> TrainConfig:
    config = build(TrainConfig, values)
    config.resolved = values
    return config


def resolved_config(config: DictConfig) -> dict[str, Any]:
    """Resolve a config that is checked: in today's names, with the shipped callbacks."""
    return resolve(_complete(config)[0])[0]


def _complete(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """A config in today's names, with the shipped callbacks, `${...}` not replaced; and what was changed."""
    from omegaconf import OmegaConf

    given: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    complete, filled = with_shipped_callbacks(with_local_runs(with_new_names(given)))
    return complete, [*renamings(given), *filled]


def _checked(config: DictConfig, tell: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The resolved values and the problems. tell: log what was renamed or filled in."""
    complete, changes = _complete(config)
    for line in changes if tell else []:
        log(f"warning: {line}")
    values, problems = resolve(complete)
    chosen = settle_precision(values)
    if chosen is not None and tell:
        log(chosen)
    good, wrong = check_fields(TrainConfig, values)
    problems += wrong + _model_problems(values.get("model"), good) + check_rules(RULES, good)
    problems += optimizer_problems(good, complete, others=bool(problems))
    if "objective" in good:
        problems += objective_problems(good["objective"])
    problems += callback_problems(_entries(values, "callbacks"), _entries(complete, "callbacks"), problems)
    problems += logger_problems(good.get("logger", {}))
    return values, problems


def _entries(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The entries of a section that are mappings or null; the others have been told."""
    found = _section(config, section)
    return {name: entry for name, entry in found.items() if entry is None or isinstance(entry, dict)}


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section; empty where it is no mapping, which has been told."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _model_problems(section: Any, good: dict[str, Any]) -> list[str]:
    """ModelShape's own rules, over the values of the right type."""
    if not isinstance(section, dict):
        return []
    names = [part.name for part in fields(ModelShape) if part.name not in ("n_words", "n_langs")]
    right = {name: good[f"model.{name}"] for name in names if f"model.{name}" in good}
    try:
        ModelShape(n_words=100, n_langs=2, **right)
    except ConfigError as error:
        unread = [f"model.{name}=" for name in names if name not in right]  # defaults stand in for them
        return [problem for problem in error.problems if not any(key in problem for key in unread)]
    return []


# What makes two starts the same run. Everything else (devices, length, logging, paths) may change between starts; the
# corpus is compared by its lineage hash, as it may have moved.
IDENTITY = (
    *(f"data.{part.name}" for part in fields(DataConfig) if part.name != "path"),
    *(f"model.{part.name}" for part in fields(ModelConfig) if part.name not in ("n_words", "n_langs", "ops")),
    "objective",
    "optimizer",
    "schedule",
    "trainer.precision",
    "trainer.clip_norm",
    "trainer.gradient_compression",
    "seed",
    "init_from",
    "init_optimizer",
    "init_encoder",
    "init_decoder",
)
