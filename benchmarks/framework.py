"""What xlm-train costs around its arithmetic: a real run at the demo's shape against a bare loop, in turn.

    python -m benchmarks.framework --rounds 50 --json framework.json

The run is `train(config)` itself with experiment=demo: Lightning's loop, reading the corpus, reports to the log file and
the console every 10 steps, schedule, checks, signals. Validation and checkpoints are left out: they are work of their
own. The bare loop does the same model, loss, clipping and optimizer on batches read beforehand. Each in its own
process, they take turns every 2 steps, so that what disturbs the machine for half a second disturbs both; ratios are
taken over 10 steps, one report of the run among them. Where a process's buffers happen to lie decides up to 2 % of its
speed for all its life, so the pair of processes is made anew several times.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.start import LANGUAGES, N_WORDS, make_corpus
from benchmarks.turns import Measured, Variant, in_turn, report, table

STEPS = 2  # of a turn
TURNS = 5  # of a round
REPORT_EVERY = STEPS * TURNS  # steps: one report of the run falls into each round
FOREVER = 1_000_000


def compose(corpus: str, folder: str) -> dict[str, Any]:
    """The demo's config with nothing to validate on, and no checkpoint before the end."""
    import hydra
    from omegaconf import OmegaConf

    from xlm_train.command import config_folder

    overrides = [
        "experiment=demo", f"data.path={corpus}", f"paths.runs={folder}", "run_name=framework",
        f"trainer.max_steps={FOREVER}", f"callbacks.checkpointing.every_n_steps={FOREVER}",
        f"callbacks.metrics.every_n_steps={REPORT_EVERY}",
    ]  # fmt: skip
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = OmegaConf.to_container(hydra.compose("train", overrides=overrides), resolve=True)
    return {str(key): value for key, value in config.items()}  # type: ignore[union-attr]


def framework(corpus: str) -> Callable[[], dict[str, float]]:
    """A real run in a thread that stops before every second step until it is asked to go on.

    A call returns the seconds a step spent in its parts.
    """
    from xlm_train import callbacks
    from xlm_train.batches import StepBatches
    from xlm_train.module import CausalLanguageModel
    from xlm_train.signals import StopFlag
    from xlm_train.train import train

    go, there = threading.Semaphore(0), threading.Semaphore(0)
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
            there.release()
            go.acquire()
        return timed_read(self, step)

    StepBatches.read = gated  # type: ignore[method-assign]
    CausalLanguageModel.training_step = timed("training step", CausalLanguageModel.training_step)  # type: ignore[method-assign]
    for kind in (callbacks.Metrics, callbacks.Validation, callbacks.Checkpointing, callbacks.Interruption):
        kind.on_train_batch_end = timed("callbacks", kind.on_train_batch_end)  # type: ignore[method-assign]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(compose(corpus, folder), StopFlag())

    threading.Thread(target=run, daemon=True).start()
    there.acquire()

    def steps() -> dict[str, float]:
        spent.clear()
        go.release()
        there.acquire()
        return {name: seconds / STEPS for name, seconds in spent.items()}

    return steps


def rounds(measured: Measured) -> Measured:
    """Turns put together to rounds: seconds and CPU seconds, and means of the parts, of each."""

    def groups(values: list[Any]) -> list[list[Any]]:
        return [values[start : start + TURNS] for start in range(0, len(values), TURNS)]

    return Measured(
        [sum(group) for group in groups(measured.seconds)],
        [sum(group) for group in groups(measured.cpu_seconds)],
        returned=[
            {name: statistics.mean(turn[name] for turn in group) for name in group[0]}
            for group in groups(measured.returned)
            if group[0]
        ],
    )


def bare(corpus: str) -> Callable[[], None]:
    """The same arithmetic in a loop as short as it can be."""
    import torch

    from benchmarks.start import loader
    from benchmarks.step import update
    from xlm_train.memory import keep_memory
    from xlm_train.model import XLM, ModelShape

    keep_memory()
    config = compose(corpus, "unused")
    arguments = {name: value for name, value in config["model"].items() if name != "recompute"}
    torch.manual_seed(config["seed"])
    model = XLM(ModelShape(n_words=N_WORDS, n_langs=len(LANGUAGES), **arguments))
    settings = {name: value for name, value in config["optimizer"].items() if not name.startswith("_")}
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, **settings)
    reader = loader(Path(corpus))
    batches = [reader.read(step).slots for step in range(200)]
    clip_norm = config["trainer"]["clip_norm"]
    count = 0

    def steps() -> None:
        nonlocal count
        for _ in range(STEPS):
            slots = batches[count % len(batches)]
            for slot in slots:
                (model.next_token_loss(slot.tokens_BT, slot.language) / len(slots)).backward()
            update(parameters, optimizer, clip_norm)
            count += 1

    return steps


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="of processes")
    parser.add_argument("--rounds", type=int, default=10, help=f"of {REPORT_EVERY} steps, of each pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = make_corpus(Path(temporary) / "corpus", 10**6)
        noise = np.random.default_rng(0)
        for language in LANGUAGES:
            tokens = np.load(corpus / f"train.{language}.npy", mmap_mode="r+")
            tokens[:] = noise.integers(14, N_WORDS, len(tokens))
            tokens.flush()
        # the run lives in a thread here: it shall allocate as the main thread does
        one_arena = {"MALLOC_ARENA_MAX": "1"}
        variants = [
            Variant(name, f"benchmarks.framework:{function}", {"corpus": str(corpus)}, (), one_arena, warm_up=10)
            for name, function in (("xlm-train", "framework"), ("bare loop", "bare"))
        ]
        pairs = []
        for _ in range(options.pairs):
            results = in_turn(variants, options.rounds * TURNS, options.threads)
            pairs.append((rounds(results["xlm-train"]), rounds(results["bare loop"])))
    shares = [loop.times_slower_than(run)[0] for run, loop in pairs]
    cpu_shares = [loop.times_slower_than(run, cpu=True)[0] for run, loop in pairs]
    turns = [turn for run, _ in pairs for turn in run.returned]
    parts = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    per_step = {
        name: statistics.median(pair[side].median for pair in pairs) / REPORT_EVERY
        for side, name in enumerate(("xlm-train", "bare loop"))
    }
    parts["Lightning's loop and the rest"] = per_step["xlm-train"] - sum(parts.values())
    tokens_per_step = 2 * 8 * 64
    rows = [[name, f"{1000 * seconds:.1f}", f"{tokens_per_step / seconds:,.0f}"] for name, seconds in per_step.items()]
    rows += [[f"  of the run: {name}", f"{1000 * seconds:.2f}", ""] for name, seconds in parts.items()]
    text = table(["", "ms a step", "tokens/s"], rows)
    text += (
        f"\nxlm-train reaches {100 * statistics.median(shares):.1f} % of the bare loop"
        f" ({100 * min(shares):.1f} to {100 * max(shares):.1f} in {len(pairs)} pairs of processes),"
        f" {100 * statistics.median(cpu_shares):.1f} % in CPU seconds"
    )
    figures = {
        "pairs": options.pairs,
        "rounds": options.rounds,
        "seconds_per_step": per_step,
        "parts_of_the_run": parts,
        "share_of_bare_loop": statistics.median(shares),
        "share_of_bare_loop_in_cpu_seconds": statistics.median(cpu_shares),
        "share_of_each_pair": shares,
        "share_of_each_pair_in_cpu_seconds": cpu_shares,
    }
    return report("A whole run against a bare loop, demo's shape", text, figures, options.json)


if __name__ == "__main__":
    main()
