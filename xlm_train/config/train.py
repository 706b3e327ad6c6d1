"""What a training config may say, and every mistake in it found at once.

Defaults live in configs/; here are the types, and the combinations that cannot work. Each problem names the override
that mends it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.config.schema import field_problems, fits
from xlm_train.runtime.energy import GRAMS_CO2_PER_KWH, METERS
from xlm_train.runtime.run_folder import flatten
from xlm_train.training.anomaly import LEAST, POLICIES
from xlm_train.training.compression import COMPRESSIONS
from xlm_train.training.strategy import SHARDINGS

if TYPE_CHECKING:
    from omegaconf import DictConfig

LOGGER_PACKAGES = {"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard"}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


@dataclass
class DataConfig:
    path: str
    bptt: int
    slot_streams: int
    slots: int
    lang_alpha: float


@dataclass
class ModelConfig:
    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    max_positions: int
    dropout: float
    attention_dropout: float
    sinusoidal_positions: bool
    language_embeddings: bool
    vocab_multiple: int
    recompute: bool


@dataclass
class MetricsConfig:
    every_n_steps: int


@dataclass
class ValidationConfig:
    every_n_steps: int
    patience: int | None
    batch_windows: int


@dataclass
class CheckpointingConfig:
    every_n_steps: int
    keep_last: int


@dataclass
class InterruptionConfig:
    every_n_steps: int


@dataclass
class GuardConfig:
    policy: str
    spike_z: float | None
    window: int
    max_in_a_row: int


@dataclass
class EnergyConfig:
    meter: str
    region: str


@dataclass
class CallbacksConfig:
    metrics: MetricsConfig
    validation: ValidationConfig
    checkpointing: CheckpointingConfig
    interruption: InterruptionConfig
    guard: GuardConfig
    energy: EnergyConfig


@dataclass
class DebugConfig:
    cpu_fp16: bool
    nan_steps: list[int]


@dataclass
class TrainerConfig:
    accelerator: str
    devices: int
    nodes: int
    precision: str
    max_steps: int | None
    max_tokens: int | None
    max_hours: float | None
    clip_norm: float
    threads: int | None
    gradient_compression: str | None
    sharding: str | None
    start_timeout_seconds: float
    timeout_seconds: float
    max_restarts: int


SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "trainer": TrainerConfig,
    "callbacks": CallbacksConfig,
    "debug": DebugConfig,
}


def type_problems(config: dict[str, Any]) -> list[str]:
    """Values that are missing or of the wrong type."""
    problems = []
    for section, schema in SECTIONS.items():
        problems += field_problems(schema, config[section], f"{section}.")
    for section in ("optimizer", "schedule"):
        for key, value in config[section].items():
            if isinstance(value, str) and (section, key) != ("schedule", "peak") and key != "_target_":
                problems.append(f"{section}.{key}={value}: must be a number")
    if not fits(config["seed"], int) or not 0 <= config["seed"] < 2**63:
        problems.append(f"seed={config['seed']}: must be a whole number from 0 to 2^63 - 1")
    if not all(fits(step, int) for step in config["debug"].get("nan_steps") or []):
        problems.append(f"debug.nan_steps={config['debug']['nan_steps']}: must be a list of step numbers")
    if config["init_optimizer"] and config["init_from"] is None:
        problems.append("init_optimizer=true: there is no checkpoint to take it from: give init_from=FILE")
    if not fits(config["run_name"], str):
        problems.append(f"run_name={config['run_name']}: must be text; quote it: run_name='\"{config['run_name']}\"'")
    return problems


def problems_of(config: DictConfig) -> list[str]:
    """Everything wrong with a training config that can be known before any file is opened."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    missing = [key for key, value in flatten(given).items() if value == "???"]
    if missing:
        return [f"{key} has no value: give {key}=..." for key in missing]
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return [str(error).splitlines()[0]]
    if not isinstance(values, dict):
        return ["the config is not a mapping"]
    named = {str(key): value for key, value in values.items()}
    problems = type_problems(named)
    if problems:
        return problems
    return [*_data_problems(named), *_model_problems(named), *_trainer_problems(named), *_rule_problems(named)]


def _data_problems(config: dict[str, Any]) -> list[str]:
    data, problems = config["data"], []
    for key in ("slot_streams", "slots"):
        if data[key] < 1:
            problems.append(f"data.{key}={data[key]}: must be at least 1")
    if not 0 <= data["lang_alpha"] <= 1:
        problems.append(f"data.lang_alpha={data['lang_alpha']}: must be from 0 (uniform) to 1 (proportional)")
    if data["bptt"] < 2:
        problems.append(f"data.bptt={data['bptt']}: a window needs at least 2 tokens to predict one")
    if data["bptt"] > config["model"]["max_positions"]:
        problems.append(
            f"data.bptt={data['bptt']} is longer than model.max_positions={config['model']['max_positions']}:"
            f" data.bptt={config['model']['max_positions']} is the longest"
        )
    if not Path(data["path"]).is_dir():
        problems.append(f"data.path={data['path']}: there is no such folder; xlm-prep makes one")
    return problems


def corpus_problems(path: Any) -> list[str]:
    """Whether the corpus can be opened and has training text in each of its languages; reads no text.

    Nothing is said of a path that is no folder: `problems_of` does.
    """
    from xlm_train.data.corpus import Corpus
    from xlm_train.runtime.errors import CorpusError

    if not isinstance(path, str) or not Path(path).is_dir():
        return []
    try:
        corpus = Corpus(path)
    except CorpusError as error:
        return error.problems
    problems = []
    for language in corpus.languages:
        try:
            corpus.stream("train", language)
        except CorpusError as error:
            problems += error.problems
    return problems


def _model_problems(config: dict[str, Any]) -> list[str]:
    from xlm_train.model.transformer import ModelShape
    from xlm_train.runtime.errors import ConfigError

    try:
        ModelShape(n_words=100, n_langs=2, **{k: v for k, v in config["model"].items() if k != "recompute"})
    except ConfigError as error:
        return error.problems
    return []


def _rule_problems(config: dict[str, Any]) -> list[str]:
    """Whether the optimizer and the schedule take the arguments the config gives them: each is tried once."""
    import hydra.utils
    import torch

    problems = []
    trials: list[tuple[str, Any]] = [
        ("optimizer", [torch.nn.Parameter(torch.zeros(1))]),
        ("schedule", 0),
        ("schedule", 10**6),
    ]
    for section, trial in trials:
        try:
            hydra.utils.instantiate(config[section])(trial)
        except Exception as error:  # whatever a swapped-in class raises, it is this section that must change
            problems.append(f"{section}: {config[section].get('_target_')}: {error}")
            break
    for name, package in LOGGER_PACKAGES.items():
        if (
            any(name in str(logger.get("_target_")) for logger in config["logger"].values())
            and find_spec(package) is None
        ):
            problems.append(f"logger={package}: {package} is not installed: pip install 'xlm_train[{package}]'")
    return problems


def _trainer_problems(config: dict[str, Any]) -> list[str]:
    import torch

    trainer, problems = config["trainer"], []
    gpus = torch.cuda.device_count() if trainer["accelerator"] != "cpu" else 0
    if trainer["precision"] not in PRECISIONS:
        problems.append(f"trainer.precision={trainer['precision']}: must be one of {', '.join(PRECISIONS)}")
    if trainer["accelerator"] not in ("auto", "cpu", "gpu"):
        problems.append(f"trainer.accelerator={trainer['accelerator']}: must be auto, cpu or gpu")
    if trainer["max_steps"] is None and trainer["max_tokens"] is None:
        problems.append("trainer.max_steps and trainer.max_tokens are both null: say how long to train")
    for key in (
        "max_steps", "max_tokens", "max_hours", "threads", "clip_norm", "start_timeout_seconds", "timeout_seconds",
    ):  # fmt: skip
        if trainer[key] is not None and trainer[key] <= 0:
            problems.append(f"trainer.{key}={trainer[key]}: must be positive")
    for name, settings in config["callbacks"].items():
        for key, value in settings.items():
            least = {"patience": 0, "spike_z": 0}.get(key, 1)
            if isinstance(value, int | float) and value < least:
                problems.append(f"callbacks.{name}.{key}={value}: must be at least {least}")
    policy = config["callbacks"]["guard"]["policy"]
    if policy not in POLICIES:
        problems.append(f"callbacks.guard.policy={policy}: must be one of {', '.join(POLICIES)}")
    energy = config["callbacks"]["energy"]
    if energy["meter"] not in METERS:
        problems.append(f"callbacks.energy.meter={energy['meter']}: must be one of {', '.join(METERS)}")
    elif energy["meter"] == "codecarbon" and find_spec("codecarbon") is None:
        problems.append("callbacks.energy.meter=codecarbon: it is not installed: pip install 'xlm_train[energy]'")
    if energy["region"] not in GRAMS_CO2_PER_KWH:
        problems.append(f"callbacks.energy.region={energy['region']}: must be one of {', '.join(GRAMS_CO2_PER_KWH)}")
    for key, options in (("gradient_compression", COMPRESSIONS), ("sharding", SHARDINGS)):
        if trainer[key] is not None and trainer[key] not in options:
            problems.append(f"trainer.{key}={trainer[key]}: must be null or one of {', '.join(options)}")
        elif trainer[key] is not None and trainer["devices"] * trainer["nodes"] == 1:
            problems.append(f"trainer.{key}={trainer[key]}: there is one process: nothing is exchanged or divided")
    guard = config["callbacks"]["guard"]
    if guard["spike_z"] is not None and guard["window"] < LEAST:
        problems.append(
            f"callbacks.guard.window={guard['window']}: a spike is told from at least {LEAST} good steps; callbacks.guard.window={LEAST}"
        )
    if trainer["gradient_compression"] == "fp16" and trainer["precision"] != "16-mixed":
        problems.append(
            "trainer.gradient_compression=fp16: without the loss scale of trainer.precision=16-mixed small gradients would become 0"
        )
    if trainer["gradient_compression"] == "powersgd" and (
        trainer["precision"] == "16-mixed" or guard["policy"] == "skip"
    ):
        problems.append(
            "trainer.gradient_compression=powersgd: a gradient that overflows stays in its error feedback and spoils all that"
            " follow: use trainer.precision=bf16-mixed or 32-true, and callbacks.guard.policy=stop or rollback"
        )
    if trainer["gradient_compression"] == "powersgd" and gpus == 0:
        problems.append(
            "trainer.gradient_compression=powersgd: on CPUs (gloo) its reductions start in another order on each process"
            " and fail; trainer.gradient_compression=fp16 works"
        )
    if trainer["max_restarts"] < 0:
        problems.append(f"trainer.max_restarts={trainer['max_restarts']}: must be at least 0")
    world = trainer["devices"] * trainer["nodes"]
    if trainer["devices"] < 1 or trainer["nodes"] < 1:
        problems.append(f"trainer.devices={trainer['devices']} and trainer.nodes={trainer['nodes']} must be at least 1")
    elif world > config["data"]["slots"] >= 1:
        problems.append(
            f"trainer.devices x trainer.nodes = {world} processes, but data.slots={config['data']['slots']}: a step has only so many"
            f" slots to divide; at most {config['data']['slots']} processes work"
        )
    if trainer["accelerator"] == "gpu" and gpus == 0:
        problems.append("trainer.accelerator=gpu: this PyTorch sees no GPU; trainer.accelerator=cpu works everywhere")
    elif gpus and trainer["devices"] > gpus and "WORLD_SIZE" not in os.environ:
        problems.append(f"trainer.devices={trainer['devices']}: this machine has {gpus} GPUs; trainer.devices={gpus}")
    if trainer["precision"] == "16-mixed" and gpus == 0 and not config["debug"]["cpu_fp16"]:
        problems.append(
            "trainer.precision=16-mixed on a CPU would be slow and is for tests only:"
            " trainer.precision=32-true, or debug.cpu_fp16=true to insist"
        )
    if trainer["precision"] == "bf16-mixed" and gpus and torch.cuda.get_device_capability() < (8, 0):
        problems.append(
            f"trainer.precision=bf16-mixed: {torch.cuda.get_device_name()} only emulates bfloat16 (it needs compute capability 8.0);"
            " trainer.precision=16-mixed"
        )
    return problems


def steps_of(settings: dict[str, Any], tokens_per_step: int) -> int:
    """Steps of the whole run: trainer.max_steps, or trainer.max_tokens in whole steps (rounded up); the lesser of both.

    Args:
        settings: The config's `trainer` section.
        tokens_per_step: Tokens that a step reads, over all processes.

    Returns:
        The number of steps.
    """
    limits = [] if settings["max_steps"] is None else [settings["max_steps"]]
    if settings["max_tokens"] is not None:
        limits.append(-(-settings["max_tokens"] // tokens_per_step))
    return int(min(limits))
