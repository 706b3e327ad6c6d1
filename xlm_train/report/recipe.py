"""The recipe of the published model, how far a run followed it, and where a run should be warned that it does not.

The original's figures stand here and nowhere else in the report, each with where it comes from: no settings were published with
the checkpoint, so the recipe is put together from Lample & Conneau 2019 (sections 3 and 5.1), the README of facebookresearch/XLM,
whose printed pretraining command has `--optimizer adam,lr=0.0001`, and the defaults of its code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xlm_train.data.manifest import languages_of
from xlm_train.report.reading import Run
from xlm_train.runtime.errors import ConfigError

# What settings of ours are in the original's run, by their key in the config.
ORIGINAL: Mapping[str, Any] = {
    "model.n_layers": 6,
    "model.dim": 1024,
    "model.n_heads": 8,
    "model.ffn_dim": 4096,
    "model.max_positions": 512,
    "model.sinusoidal_positions": False,
    "model.language_embeddings": True,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "data.bptt": 256,
    "optimizer.lr": 1e-4,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0,
    "schedule.warmup_updates": 0,
    "trainer.clip_norm": 5.0,
    "callbacks.validation.patience": 10,
}
N_PARAMETERS = 142_422_203
N_WORDS = 64_699
N_CODES = 60_000
LANGUAGES = ("de", "en")
PROCESSES = 64
STREAMS_PER_PROCESS = 64
TOKENS_PER_UPDATE = PROCESSES * STREAMS_PER_PROCESS * ORIGINAL["data.bptt"]
UPDATES_PER_EVALUATION = 3126  # 200,000 streams a process, 64 at a time; updates come in pairs, so 1,563 of these
LEARNING_RATES = (1e-4, 5e-4)  # the paper's range of peaks
MILLION_SENTENCES = {"de": 260, "en": 200}  # said beside the MLM models

# Where a figure of the original's comes from.
PAPER = "paper"
COMMAND = "README, pretraining command"
README = "README"
CODE = "code, default"
CHECKPOINT = "published checkpoint"

Verdict = Literal["same", "differs", "unknown"]
Compared = tuple[str, Verdict]  # what the run has, and whether that is what the original had
NOT_IN_CONFIG: Compared = ("not in the config", "unknown")
NO_CORPUS: Compared = ("not known: the corpus is not where the config says", "unknown")


@dataclass(frozen=True)
class Point:
    """One point of the recipe.

    Args:
        name: What it is about, with the setting that decides it.
        original: What the original had.
        source: Where that is said.
        compare: Says what a run has, and whether that is the same.
    """

    name: str
    original: str
    source: str
    compare: Callable[[Run], Compared]


def text(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "off"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verdict(same: bool) -> Verdict:
    """Same or not."""
    return "same" if same else "differs"


def _setting(name: str, key: str, source: str) -> Point:
    """A point that is one setting's value."""

    def compare(run: Run) -> Compared:
        if key not in run.leaves:
            return NOT_IN_CONFIG
        return text(run.leaves[key]), verdict(run.leaves[key] == ORIGINAL[key])

    return Point(f"{name} ({key})", text(ORIGINAL[key]), source, compare)


def _counted(name: str, original: int, source: str, count: Callable[[Run], int | None]) -> Point:
    def compare(run: Run) -> Compared:
        here = count(run)
        return NO_CORPUS if here is None else (f"{here:,}", verdict(here == original))

    return Point(name, f"{original:,}", source, compare)


def _of_manifest(run: Run, *keys: str) -> int | None:
    found: Any = run.manifest
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int) else None


def n_parameters(run: Run) -> int | None:
    """Parameters of a run's model without the padding rows; None where config or corpus do not tell."""
    n_words, languages, model = (
        _of_manifest(run, "vocabulary", "entries"),
        run.manifest.get("languages"),
        run.config.get("model"),
    )
    if n_words is None or not isinstance(languages, dict) or not isinstance(model, dict):
        return None
    try:
        return _size_of_model(n_words, len(languages), run.translates, tuple(sorted(model.items())))
    except (ConfigError, TypeError, ValueError):  # damaged, or of another version
        return None


@functools.cache
def _size_of_model(n_words: int, n_langs: int, translates: bool, settings: tuple[tuple[str, Any], ...]) -> int:
    import torch

    from xlm_train.config.train import ModelConfig
    from xlm_train.model.transformer import count_parameters

    with torch.device("meta"):  # shapes without memory
        return count_parameters(ModelConfig(**dict(settings)).make(n_words, n_langs, translates))


def _languages(run: Run) -> Compared:
    here = sorted(run.manifest.get("languages", {})) or [name for name in run.languages if languages_of(name) is None]
    return (", ".join(here), verdict(tuple(here) == LANGUAGES)) if here else ("not known", "unknown")


def _letters(run: Run) -> Compared:
    settings = run.manifest.get("text")
    if not isinstance(settings, dict):
        return NO_CORPUS
    changes = {"lowercase": "lower-cased", "remove_accents": "accents removed"}
    changed = [words for key, words in changes.items() if settings.get(key)]
    return ", ".join(changed) or "cased, accents kept", verdict(not changed)


def _training_text(run: Run) -> Compared:
    try:
        sizes = {code: int(entry["sentences"]) for code, entry in run.manifest["splits"]["train"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return NO_CORPUS
    pairs = run.manifest.get("pairs", {}).get("train", {})
    parts = [", ".join(f"{n:,} {code}" for code, n in sizes.items()) + " sentences"] if sizes else []
    here = ", ".join([*parts, *(f"{entry['sentences']:,} pairs of {name}" for name, entry in pairs.items())])
    alike = all(math.isclose(sizes.get(code, 0), n * 1e6, rel_tol=0.1) for code, n in MILLION_SENTENCES.items())
    return (f"{here}; whether of the same source is not recorded", "unknown") if alike else (here, "differs")


def _batch(run: Run) -> Compared:
    tokens = run.tokens_per_step
    if tokens is None:
        return NOT_IN_CONFIG
    slots, *window = (run.setting(f"data.{key}") for key in ("slots", "slot_streams", "bptt"))
    ratio = tokens / TOKENS_PER_UPDATE
    share = "" if ratio == 1 else f", {ratio:,.4g} times as many" if ratio > 1 else f", 1/{1 / ratio:,.4g} of that"
    if all(isinstance(size, int) for size in (slots, *window)) and math.prod((slots, *window)) == tokens:
        made_of = f"{slots} slots x {window[0]} streams x {window[1]} ="
    else:
        made_of = f"{slots} slots with batches of sentences, on average"
    return f"{made_of} {tokens:,}{share}", verdict(ratio == 1)


def _processes(run: Run) -> Compared:
    if run.processes is None:
        return NOT_IN_CONFIG
    if not run.environment:
        return f"{run.processes}, on a machine that was not recorded", "unknown"
    devices = run.environment.get("devices")
    kind = str(devices[0]) if isinstance(devices, list) and devices else "CPU"
    return f"{run.processes} x {kind}", verdict(run.processes == PROCESSES and "V100" in kind)


def _language_choice(run: Run) -> Compared:
    alpha = run.setting("data.lang_alpha")
    if not isinstance(alpha, int | float):
        return NOT_IN_CONFIG
    return f"one a slot, by quota, {'equal shares' if alpha == 0 else f'shares p^{alpha:g}'}", "differs"


OPTIMIZERS: Mapping[str, Compared] = {
    "xlm_train.training.optim.OriginalAdam": ("optimizer=original_adam", "same"),
    "torch.optim.AdamW": ("torch's AdamW: epsilon added after it", "differs"),
}
SCHEDULES: Mapping[str, Compared] = {
    "xlm_train.training.schedule.constant": ("schedule=constant", "same"),
    "xlm_train.training.schedule.inverse_sqrt": (
        "schedule=inverse_sqrt: the warm-up of the paper, the decay of the README's translation command",
        "differs",
    ),
}
PRECISIONS: Mapping[str, Compared] = {
    "16-mixed": ("float16 with dynamic loss scaling (autocast, float32 weights)", "same"),
    "bf16-mixed": ("bfloat16 autocast, float32 weights, no loss scaling", "differs"),
    "32-true": ("float32", "differs"),
}


def _choice(name: str, original: str, source: str, key: str, known: Mapping[str, Compared]) -> Point:
    """A point whose setting names one of several ways."""

    def compare(run: Run) -> Compared:
        value = run.setting(key)
        return NOT_IN_CONFIG if value is None else known.get(str(value), (str(value), "differs"))

    return Point(name, original, source, compare)


def _learning_rate(run: Run) -> Compared:
    here = run.setting("optimizer.lr")
    if not isinstance(here, int | float):
        return NOT_IN_CONFIG
    low, high = LEARNING_RATES
    same = here == ORIGINAL["optimizer.lr"]
    note = "" if same else ", in the paper's range" if low <= here <= high else ", outside the paper's range"
    return f"{here:g}{note}", verdict(same)


def _warm_up(run: Run) -> Compared:
    here = run.setting("schedule.warmup_updates")
    return NOT_IN_CONFIG if here is None else (text(here), verdict(here == ORIGINAL["schedule.warmup_updates"]))


def _evaluation(run: Run) -> Compared:
    steps = run.setting("callbacks.validation.every_n_steps")
    if not isinstance(steps, int) or run.tokens_per_step is None:
        return NOT_IN_CONFIG
    here, original = steps * run.tokens_per_step, UPDATES_PER_EVALUATION * TOKENS_PER_UPDATE
    same = math.isclose(here, original, rel_tol=1e-3)  # an epoch is a whole number of updates
    return f"every {steps:,} steps = {here / 1e6:,.4g} M tokens", verdict(same)


def _start(run: Run) -> Compared:
    if "init_from" not in run.config:
        return NOT_IN_CONFIG
    parent = run.config["init_from"]
    return ("random weights", "same") if parent is None else (f"from {parent}", "differs")


def _seed(run: Run) -> Compared:
    seed = run.config.get("seed")
    return NOT_IN_CONFIG if seed is None else (f"{seed}: can be repeated", "differs")


def length(run: Run) -> Compared:
    """How many steps are planned."""
    steps = run.last("progress/steps")
    return "not known" if steps is None else f"{steps:,.0f} steps planned", "unknown"


POINTS: Sequence[Point] = (
    _setting("layers", "model.n_layers", COMMAND),
    _setting("width", "model.dim", COMMAND),
    _setting("attention heads", "model.n_heads", COMMAND),
    _setting("feed-forward width", "model.ffn_dim", CODE),
    _setting("positions", "model.max_positions", CODE),
    _setting("sinusoidal positions", "model.sinusoidal_positions", CODE),
    _setting("language embeddings", "model.language_embeddings", CODE),
    _setting("dropout", "model.dropout", COMMAND),
    _setting("attention dropout", "model.attention_dropout", COMMAND),
    Point(
        "activation, norm, output",
        "GELU (erf), LayerNorm after each sum (eps 1e-12), tied output with a bias",
        CODE,
        lambda run: ("not settable", "same"),
    ),
    _counted("parameters", N_PARAMETERS, CHECKPOINT, n_parameters),
    Point("languages", ", ".join(LANGUAGES), CHECKPOINT, _languages),
    _counted("vocabulary, entries", N_WORDS, CHECKPOINT, lambda run: _of_manifest(run, "vocabulary", "entries")),
    _counted("BPE codes", N_CODES, README, lambda run: _of_manifest(run, "codes", "merges")),
    Point("letters", "cased, accents kept", CHECKPOINT, _letters),
    Point(
        "training text",
        f"WMT News Crawl, about {' and '.join(f'{n} M {code}' for code, n in MILLION_SENTENCES.items())} sentences",
        README,
        _training_text,
    ),
    _setting("window, tokens", "data.bptt", COMMAND),
    Point(
        "tokens an update (data.slots)",
        f"{PROCESSES} GPUs x {STREAMS_PER_PROCESS} streams x {ORIGINAL['data.bptt']} = {TOKENS_PER_UPDATE:,}",
        PAPER,
        _batch,
    ),
    Point("processes (trainer.devices, trainer.nodes)", f"{PROCESSES} Volta GPUs", PAPER, _processes),
    Point(
        "choice of language (data.lang_alpha)",
        "one a batch, drawn at random, each equally likely",
        CODE,
        _language_choice,
    ),
    _choice("optimizer", "Adam, epsilon added before bias correction", COMMAND, "optimizer._target_", OPTIMIZERS),
    _setting("Adam's betas", "optimizer.betas", CODE),
    _setting("Adam's epsilon", "optimizer.eps", CODE),
    _setting("weight decay", "optimizer.weight_decay", CODE),
    Point(
        "learning rate (optimizer.lr)",
        f"{ORIGINAL['optimizer.lr']:g} in the command, peaks of {LEARNING_RATES[0]:g} to {LEARNING_RATES[1]:g} in the paper",
        COMMAND,
        _learning_rate,
    ),
    _choice(
        "schedule", "constant in the command, linear warm-up in the paper", COMMAND, "schedule._target_", SCHEDULES
    ),
    Point(
        "warm-up, updates (schedule.warmup_updates)",
        "0 in the command, 4,000 in the README's translation command, of unknown length in the paper",
        COMMAND,
        _warm_up,
    ),
    _setting("largest gradient norm", "trainer.clip_norm", CODE),
    _choice(
        "precision (trainer.precision)", "float16 with dynamic loss scaling", PAPER, "trainer.precision", PRECISIONS
    ),
    Point(
        "evaluation (callbacks.validation.every_n_steps)",
        f"every {UPDATES_PER_EVALUATION:,} updates = {UPDATES_PER_EVALUATION * TOKENS_PER_UPDATE / 1e6:,.4g} M tokens",
        COMMAND,
        _evaluation,
    ),
    _setting("patience, evaluations", "callbacks.validation.patience", COMMAND),
    Point("start (init_from)", "random weights", PAPER, _start),
    Point("seed", "none: cannot be repeated", CODE, _seed),
    Point("length (trainer.max_steps)", "not published", "nowhere", length),
)


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ.

    Args:
        runs: Two or more.

    Returns:
        Of each such setting its dotted key and each run's value, "-" where it has none.
    """
    places = ("run_name", "paths.", "storage.", "logger.", "hydra.")  # where a run is, not what it is
    keys = sorted({key for run in runs for key in run.leaves if not key.startswith(places)})
    rows = [(key, [text(run.leaves[key]) if key in run.leaves else "-" for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
