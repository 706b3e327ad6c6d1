"""What the original's README says of unsupervised translation, and its author of supervised translation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xlm_train.report.reading import Run
from xlm_train.report.recipe import CODE, COMMAND, NOT_IN_CONFIG, POINTS, README, Compared, Point, length, text, verdict

UNSUPERVISED = "README, translation command"
SUPERVISED = "its author, issue 2"
NAMES = {True: "the README's unsupervised translation", False: "supervised translation as its author advised"}
PROCESSES = 8
TOKENS_PER_BATCH = 2000
TOKENS_OF_TRANSLATION = PROCESSES * TOKENS_PER_BATCH  # of an update
UPDATES_PER_EVALUATION = {True: 6252, False: 6250}  # 200,000 sentences a process, 32 an update, in whole iterations
# Points of the language model's recipe that the translation command has too.
SHARED = (
    "layers", "width", "attention heads", "feed-forward width", "positions", "sinusoidal positions", "language embeddings",
    "dropout", "attention dropout", "activation, norm, output", "languages", "BPE codes", "letters", "training text",
    "optimizer", "Adam's epsilon", "weight decay", "largest gradient norm", "patience, evaluations", "seed",
)  # fmt: skip


def points_of_translation(runs: Sequence[Run]) -> list[Point]:
    """The points to compare translation runs by: without noise and back-translation where none of them has any."""
    unsupervised = any(_parts(run).keys() & {"Denoising", "BackTranslation"} for run in runs)
    source = UNSUPERVISED if unsupervised else SUPERVISED
    learned = [*UNSUPERVISED_POINTS] if unsupervised else [SUPERVISED_POINT]
    shared = {point.name.partition(" (")[0]: point for point in POINTS}
    evaluation = UPDATES_PER_EVALUATION[unsupervised]
    points = [
        *learned,
        *(shared[name] for name in SHARED),
        *BATCHES,
        *UPDATES,
        _setting("evaluation, steps", "callbacks.validation.every_n_steps", evaluation, COMMAND),
    ]
    return [replace(point, source=source) if point.source == COMMAND else point for point in points]


def name_of_recipe(runs: Sequence[Run]) -> str:
    """What translation runs are compared with."""
    return NAMES[any(_parts(run).keys() & {"Denoising", "BackTranslation"} for run in runs)]


def _parts(run: Run) -> dict[str, Mapping[str, Any]]:
    """The settings of each objective of a run, by its class's name."""
    objective = run.config.get("objective") or {}
    parts = (objective.get("parts") or {"": objective}).values()
    return {str(part.get("_target_")).rpartition(".")[2]: part for part in parts}


def _setting(name: str, key: str, original: Any, source: str, note: str = "") -> Point:
    """A point that is one setting's value."""

    def compare(run: Run) -> Compared:
        if key not in run.leaves:
            return NOT_IN_CONFIG
        return text(run.leaves[key]), verdict(run.leaves[key] == original)

    return Point(f"{name} ({key})", text(original) + note, source, compare)


def _noise(name: str, key: str, original: float) -> Point:
    def compare(run: Run) -> Compared:
        part = _parts(run).get("Denoising")
        if part is None:
            return "no denoising", "differs"
        here = (part.get("noise") or {}).get(key, original)
        return text(here), verdict(here == original)

    return Point(f"{name} (objective.parts.ae.noise.{key})", text(original), COMMAND, compare)


def _learned(wanted: set[str]) -> Callable[[Run], Compared]:
    """Compares the objectives of a run, and whether they take turns."""

    def compare(run: Run) -> Compared:
        found, order = _parts(run), run.setting("objective.order")
        return f"{', '.join(found)}; order={order}", verdict(found.keys() == wanted and order == "turns")

    return compare


def _weight(run: Run) -> Compared:
    name = next(
        (
            n
            for n, p in (run.config["objective"].get("parts") or {}).items()
            if str(p.get("_target_")).endswith(".Denoising")
        ),
        None,
    )
    if name is None:
        return "no denoising", "differs"
    here = (run.config["objective"].get("weights") or {}).get(name, 1)
    return str(here), verdict(str(here) == WEIGHT)


def _batch(run: Run) -> Compared:
    slots, tokens = run.setting("data.slots"), run.setting("data.tokens_per_slot")
    if not isinstance(slots, int) or not isinstance(tokens, int):
        return NOT_IN_CONFIG
    same = (slots, tokens) == (PROCESSES, TOKENS_PER_BATCH)
    return f"{slots} slots x {tokens:,} = {slots * tokens:,}", verdict(same)


def _start(run: Run) -> Compared:
    if run.config.get("init_from") is not None:
        return f"both from {run.config['init_from']}", "unknown"
    sides = [run.config.get(key) for key in ("init_encoder", "init_decoder")]
    here = ", ".join(
        f"{side} from {path or 'random weights'}" for side, path in zip(("encoder", "decoder"), sides, strict=True)
    )
    return (f"{here}; whether masked is not recorded here", "unknown") if all(sides) else (here, "differs")


def _monitor(run: Run) -> Compared:
    here = run.setting("callbacks.validation.monitor")
    return NOT_IN_CONFIG if here is None else (str(here), verdict(str(here).startswith("val/bleu_")))


def _precision(run: Run) -> Compared:
    here = run.setting("trainer.precision")
    return NOT_IN_CONFIG if here is None else (str(here), verdict(here == "32-true"))


def _schedule(run: Run) -> Compared:
    here = run.setting("schedule._target_")
    if here is None:
        return NOT_IN_CONFIG
    name = str(here).rpartition(".")[2]
    return f"schedule={name}", verdict(name == "inverse_sqrt")


WEIGHT = "0:1,100000:0.1,300000:0"
UNSUPERVISED_POINTS: Sequence[Point] = (
    Point(
        "what is learned (objective)",
        "denoising and back-translation of both languages, an update each in turn: ae_steps, bt_steps",
        COMMAND,
        _learned({"Denoising", "BackTranslation"}),
    ),
    Point("weight of denoising by iteration (objective.weights)", WEIGHT, COMMAND, _weight),
    _noise("words move by fewer places than", "shuffle", 3.0),
    _noise("words left out", "drop", 0.1),
    _noise("words blanked", "blank", 0.1),
)
SUPERVISED_POINT = Point(
    "what is learned (objective)", "both directions, an update each: mt_steps", COMMAND, _learned({"Translation"})
)
BATCHES: Sequence[Point] = (
    Point(
        "tokens an update (data.slots, data.tokens_per_slot)",
        f"{PROCESSES} GPUs x {TOKENS_PER_BATCH:,} = {TOKENS_OF_TRANSLATION:,}; GPUs as in its printed result",
        COMMAND,
        _batch,
    ),
    _setting("longest sentence, tokens", "data.max_len", 100, CODE),
)
UPDATES: Sequence[Point] = (
    _setting("what the two sides share", "model.share", "none", CODE),
    _setting("Adam's betas", "optimizer.betas", [0.9, 0.98], COMMAND),
    _setting("learning rate", "optimizer.lr", 1e-4, COMMAND),
    Point(
        "schedule", "linear warm-up, then falling with the root of the update: adam_inverse_sqrt", COMMAND, _schedule
    ),
    _setting("warm-up, updates", "schedule.warmup_updates", 4000, CODE),
    Point("precision (trainer.precision)", "float32: no fp16 option", COMMAND, _precision),
    Point("what decides (callbacks.validation.monitor)", "BLEU of one direction, greedy", COMMAND, _monitor),
    Point("start (init_encoder, init_decoder)", "both sides from one masked model", COMMAND, _start),
    Point(
        "length (trainer.max_steps)",
        "not published; its printed result is after 8 epochs, 50,016 updates",
        README,
        length,
    ),
)
