"""What xlm-train costs around its arithmetic: a real run at the demo's shape against a bare loop, in turn.

    python -m benchmarks.framework --rounds 50 --json framework.json

The run is `xlm_train.train.train` itself with experiment=demo: Lightning's loop, reading the corpus, reports to the log file and
the console every 10 steps, schedule, checks, signals. Validation and checkpoints are left out: they are work of their
own. The bare loop does the same model, loss, clipping and optimizer on batches read beforehand. All take turns of 2
steps, so that what disturbs the machine for half a second disturbs both; ratios are taken over rounds of 10 steps, one
report of the run among them. There are several processes of each, and each round counts them together: where a process's
buffers happen to lie decides a percent or two of its speed for all its life.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.start import LANGUAGES, N_WORDS, make_corpus
from benchmarks.turns import Measured, Turns, Variant, in_turn, report, table

if TYPE_CHECKING:
    from xlm_train.config.train import TrainConfig

STEPS = 2  # of a turn
TURNS = 5  # of a round
REPORT_EVERY = STEPS * TURNS  # steps: one report of the run falls into each round
ENDLESS = 1_000_000  # steps
REST = "Lightning's loop and the rest"


def compose(corpus: str, folder: str) -> TrainConfig:
    """The demo's config with nothing to validate on, and no checkpoint before the end."""
    import hydra
    from omegaconf import OmegaConf

    from xlm_train.config.overrides import config_folder
    from xlm_train.config.train import from_resolved

    overrides = [
        "experiment=demo", f"data.path={corpus}", f"paths.runs={folder}", "run_name=framework",
        f"trainer.max_steps={ENDLESS}", f"callbacks.checkpointing.every_n_steps={ENDLESS}",
        f"callbacks.metrics.every_n_steps={REPORT_EVERY}",
    ]  # fmt: skip
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = OmegaConf.to_container(hydra.compose("train", overrides=overrides), resolve=True)
    return from_resolved({str(key): value for key, value in config.items()})  # type: ignore[union-attr]


def framework(turns: Turns, corpus: str) -> None:
    """A real run that waits for its next turn before every second step; each turn yields the seconds of a step's parts."""
    from xlm_train.data.datamodule import StepBatches
    from xlm_train.runtime.processes import StopFlag
    from xlm_train.train import train
    from xlm_train.training.module import LanguageModel

    spent: dict[str, float] = {}
    read = StepBatches.read

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

        return wrapper

    timed_read = timed("reading", read)

    def gated(self: StepBatches, step: int) -> Any:
        if step % STEPS == 0:
            turns.next({name: seconds / STEPS for name, seconds in spent.items()})
            spent.clear()
        return timed_read(self, step)

    StepBatches.read = gated  # type: ignore[method-assign]
    LanguageModel.training_step = timed("training step", LanguageModel.training_step)  # type: ignore[method-assign]
    LanguageModel.on_train_batch_end = timed("callbacks", LanguageModel.on_train_batch_end)  # type: ignore[method-assign]

    train(compose(corpus, tempfile.mkdtemp(dir=Path(corpus).parent)), StopFlag())


def by_round(processes: Sequence[Measured], cpu: bool = False) -> list[float]:
    """Seconds a step of each round, the mean over processes."""
    every = [measured.cpu_seconds if cpu else measured.seconds for measured in processes]
    turns = [sum(seconds) for seconds in zip(*every, strict=True)]
    steps = REPORT_EVERY * len(processes)
    return [sum(turns[start : start + TURNS]) / steps for start in range(0, len(turns), TURNS)]


def share_of(loop: Sequence[Measured], run: Sequence[Measured], cpu: bool = False) -> tuple[float, float, float]:
    """The loop's seconds by the run's: median over rounds, lower and upper quartile."""
    shares = [b / a for a, b in zip(by_round(run, cpu), by_round(loop, cpu), strict=True)]
    low, middle, high = statistics.quantiles(shares, n=4)
    return middle, low, high


def bare(corpus: str) -> Callable[[], None]:
    """The same arithmetic in a loop as short as it can be."""
    import torch
    from hydra.utils import instantiate

    from benchmarks.start import loader
    from benchmarks.step import update
    from xlm_train.model.transformer import XLM
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    config = compose(corpus, "unused")
    torch.manual_seed(config.seed)
    model = XLM(config.model.shape(N_WORDS, len(LANGUAGES)))
    parameters = list(model.parameters())
    optimizer = instantiate(config.optimizer, _convert_="all")(parameters)
    reader = loader(Path(corpus))
    batches = [reader.read(step).slots for step in range(200)]
    count = 0

    def steps() -> None:
        nonlocal count
        for _ in range(STEPS):
            slots = batches[count % len(batches)]
            for slot in slots:
                (model.next_token_loss(slot.inputs.tokens_BT, slot.inputs.language) / len(slots)).backward()
            update(parameters, optimizer, config.trainer.clip_norm)
            count += 1

    return steps


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3, help="of each kind")
    parser.add_argument("--rounds", type=int, default=20, help=f"of {REPORT_EVERY} steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds must be 2 at least")
    with tempfile.TemporaryDirectory() as temporary:
        corpus = make_corpus(Path(temporary) / "corpus", 10**6)
        noise = np.random.default_rng(0)
        for language in LANGUAGES:
            tokens = np.load(corpus / f"train.{language}.npy", mmap_mode="r+")
            tokens[:] = noise.integers(14, N_WORDS, len(tokens))
            tokens.flush()
        at = {"corpus": str(corpus)}
        kinds = {
            "xlm-train": Variant("xlm-train", "benchmarks.framework:framework", at, warm_up=10, takes_turns=True),
            "bare loop": Variant("bare loop", "benchmarks.framework:bare", at, warm_up=10),
        }
        numbers = range(options.processes)
        variants = [replace(kind, name=f"{name} {number}") for number in numbers for name, kind in kinds.items()]
        results = in_turn(variants, options.rounds * TURNS, options.threads)
    run, loop = ([results[f"{name} {number}"] for number in numbers] for name in kinds)
    share, cpu_share = share_of(loop, run), share_of(loop, run, cpu=True)
    pairs = [share_of([b], [a])[0] for a in run for b in loop]
    per_step = {"xlm-train": statistics.median(by_round(run)), "bare loop": statistics.median(by_round(loop))}
    turns = [turn for measured in run for turn in measured.returned]
    rounds = [turns[start : start + TURNS] for start in range(0, len(turns), TURNS)]
    parts = {
        name: statistics.median(statistics.mean(turn[name] for turn in round_) for round_ in rounds)
        for name in turns[0]
    }
    steps = [seconds / STEPS for measured in run for seconds in measured.seconds]
    parts[REST] = statistics.median(step - sum(turn.values()) for step, turn in zip(steps, turns, strict=True))
    tokens_per_step = 2 * 8 * 64
    rows = [[name, f"{1000 * seconds:.1f}", f"{tokens_per_step / seconds:,.0f}"] for name, seconds in per_step.items()]
    rows += [[f"  of the run: {name}", f"{1000 * seconds:.2f}", ""] for name, seconds in parts.items()]
    text = table(["", "ms a step", "tokens/s"], rows)
    text += (
        f"\nThe parts are medians, each for itself: they need not add up.\nxlm-train reaches {100 * share[0]:.1f} % of the"
        f" bare loop (half of the rounds: {100 * share[1]:.1f} to {100 * share[2]:.1f}; single processes of each against"
        f" one another: {100 * min(pairs):.1f} to {100 * max(pairs):.1f}), {100 * cpu_share[0]:.1f} % in CPU seconds"
    )
    figures = {
        "processes": options.processes,
        "rounds": options.rounds,
        "seconds_per_step": per_step,
        "parts_of_the_run": parts,
        "share_of_bare_loop_median_and_quartiles": share,
        "share_of_bare_loop_in_cpu_seconds_median_and_quartiles": cpu_share,
        "share_of_bare_loop_single_processes": pairs,
    }
    return report("A whole run against a bare loop, demo's shape", text, figures, options.json)


if __name__ == "__main__":
    main()
