"""What real runs show: xlm-train in processes of its own at the real shape, and xlm-eval, xlm-export and xlm-plan after it."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_machine import Failed, goal_of, peak_tflops, runs
from benchmarks.gpu_work import REPORT_EVERY, REPOSITORY, Work, call, environment
from xlm_train.config.overrides import config_folder
from xlm_train.model.flops import Row, training_flops_per_token
from xlm_train.model.transformer import ModelShape
from xlm_train.plan.memory import CONTEXT
from xlm_train.runtime import checkpoint_file
from xlm_train.training.loggers import read_metrics


def figures(run: Path, precision: str) -> dict[str, Any]:
    """Speed, memory, loss and loss scale of a finished run, as xlm-train reported them."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
    steady = lines[len(lines) // 3 :]  # after kernels are chosen and memory is laid out
    tokens_per_second = statistics.median(line["speed/tokens_per_second"] for line in steady)
    content = checkpoint_file.newest(run / "checkpoints").content
    assert content is not None
    shape, config = ModelShape(**content["shape"]), content["config"]
    bptt = config["data"]["bptt"]
    tflops = (
        tokens_per_second * training_flops_per_token(shape, Row(bptt, bptt - 1), config["model"]["recompute"]) / 1e12
    )
    peak = peak_tflops(precision)
    stalls = [
        line["speed/checkpoint_stall"]
        / (1 - line["speed/checkpoint_stall"])
        * line["speed/seconds_per_step"]
        * REPORT_EVERY
        for line in lines
        if line["speed/checkpoint_stall"] > 0
    ]
    seconds = statistics.median(line["speed/seconds_per_step"] for line in steady)
    return {
        "tokens_per_second": tokens_per_second,
        "seconds_per_step": seconds,
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak,
        "peak_memory_gb": max(line["memory/peak_gb"] for line in lines),
        "data_wait": statistics.median(line["speed/data_wait"] for line in steady),
        "loss": [line["train/loss"] for line in (lines[0], lines[len(lines) // 2], lines[-1])],
        "loss_scale": [line["optim/loss_scale"] for line in lines[::4] if "optim/loss_scale" in line],
        "skipped_steps": lines[-1].get("optim/skipped_steps", 0),
        "seconds_per_save": stalls,
        "stall_at_every_521_steps": statistics.median(stalls) / (521 * seconds) if stalls else None,
    }


def long_step(work: Work) -> dict[str, Any]:
    """Real steps in float16 (on a GPU): the main trial."""
    return {"trial": str(work.scale.trial), **figures(work.long_run(), work.scale.trial.precision)}


def other_steps(work: Work) -> dict[str, Any]:
    """The other settings of the step."""
    found: dict[str, Any] = {}
    for number, trial in enumerate(work.scale.others):
        words = [*trial.words, "trainer.max_steps=60", "callbacks.checkpointing.every_n_steps=60"]
        if runs(trial.precision):
            found[str(trial)] = figures(work.train(f"other{number}", *words), trial.precision)
        else:
            status = work.start("refused", *words).wait()
            found[str(trial)] = {"refused": status == 2 and "compute capability 8.0" in work.log("refused").read_text()}
    return found


def variants(work: Work) -> dict[str, Any]:
    """Twice the window; activation checkpointing."""
    scale = work.scale
    wide = replace(scale.trial, streams=scale.trial.streams // 2)
    short = ["trainer.max_steps=40", "callbacks.checkpointing.every_n_steps=40"]
    longer = work.train("window", *wide.words, f"data.bptt={2 * scale.bptt}", *short)
    again = work.train("recompute", *scale.trial.words, "model.recompute=true", *short)
    return {
        f"data.bptt={2 * scale.bptt}": figures(longer, scale.trial.precision),
        "model.recompute=true": figures(again, scale.trial.precision),
    }


def resume(work: Work) -> dict[str, Any]:
    """Whether a run that was killed and started again ends with the undisturbed run's weights and moments, bit for bit."""
    half, every = work.scale.long // 2, work.scale.long // 4
    words = [*work.scale.trial.words, f"trainer.max_steps={half}", f"callbacks.checkpointing.every_n_steps={every}"]
    long = work.long_run() / "checkpoints" / f"step-{half:08}.pt"
    process = work.start("killed", *words)
    killed_at = 0
    while killed_at < every + 10:
        if process.poll() is not None:
            raise Failed(f"xlm-train ended before it could be killed:\n{work.log('killed').read_text()[-3000:]}")
        with contextlib.suppress(OSError, ValueError):
            killed_at = max((line["step"] for line in read_metrics(work.folder / "killed/metrics.jsonl")), default=0)
        time.sleep(0.01)
    process.kill()
    process.wait()
    began = time.perf_counter()
    killed = work.train("killed", *words) / "checkpoints" / f"step-{half:08}.pt"
    seconds = time.perf_counter() - began
    again = work.train("again", *words) / "checkpoints" / f"step-{half:08}.pt"
    difference = largest_difference(weights(long), weights(killed))
    return {
        "killed_at_step": killed_at,
        "steps": half,
        "seconds_of_the_second_start": seconds,
        "largest_difference": difference,
        "largest_difference_of_two_undisturbed_runs": largest_difference(weights(long), weights(again)),
        "bit_identical": difference == 0.0,
    }


def weights(file: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of a checkpoint."""
    view = checkpoint_file.load(file)
    moments = {
        f"{number}.{name}": value
        for number, state in view["optimizer"]["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return {**view["model"], **moments}


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of tensors; 0 means equal bit for bit (but for the sign of zero)."""
    if a.keys() != b.keys():
        raise Failed(f"the checkpoints hold different tensors: {sorted(a.keys() ^ b.keys())}")
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def waits(work: Work) -> dict[str, Any]:
    """How often the host waits for the device in a step, with a loss scale and without."""
    found = {}
    for name, trial in (("scaled", work.scale.trial), ("unscaled", work.unscaled)):
        out = work.folder / f"waits-{name}.json"
        work.train(
            f"waits-{name}", *trial.words, "trainer.max_steps=25", "callbacks.checkpointing.every_n_steps=25",
            "callbacks.metrics.every_n_steps=25", "callbacks.preemption.every_n_steps=25",
            "+callbacks.waits._target_=benchmarks.gpu_syncs.CountSyncs", f"+callbacks.waits.out={out}",
        )  # fmt: skip
        found[trial.precision] = json.loads(out.read_text())
    return found


def rollback(work: Work) -> dict[str, Any]:
    """A NaN in the loss: named, rolled back, its step left out."""
    run = work.train(
        "rollback", *work.unscaled.words, "callbacks.guard.policy=rollback", "debug.nan_steps=[12]", "trainer.max_steps=30",
        "callbacks.checkpointing.every_n_steps=10",
    )  # fmt: skip
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "memory/peak_gb" in line]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {
        "steps": lines[-1]["step"],
        "skipped_steps": lines[-1]["optim/skipped_steps"],
        "peak_memory_gb_before_and_after": [lines[0]["memory/peak_gb"], lines[-1]["memory/peak_gb"]],
        "events": [event for event in events if event.get("event", event.get("kind")) not in ("start", "finished")],
    }


def two_on_one(work: Work) -> dict[str, Any]:
    """Two processes where there is one GPU: asked for in one node, and as two nodes that are the same machine."""
    words = [*work.scale.trial.words, "data.slots=2", "trainer.max_steps=20"]
    asked = work.start("asked", *words, "trainer.devices=2", "trainer.max_restarts=0").wait()
    found: dict[str, Any] = {"trainer.devices=2": {"status": asked, "said": _last(work.log("asked"))}}
    agents = []
    for number in range(2):
        command = [
            sys.executable, "-m", "xlm_train.runtime.launcher", "--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1",
            "--master-addr=127.0.0.1", "--master-port=29577", "--module", "xlm_train.commands.train",
            *work.scale.overrides, f"data.path={work.corpus()}", f"paths.runs={work.folder}", "run_name=shared", *words,
            "trainer.nodes=2", "trainer.devices=1", "trainer.start_timeout_seconds=60",
        ]  # fmt: skip
        with open(work.log(f"shared{number}"), "a") as log:
            agents.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log))
    for number, agent in enumerate(agents):
        found[f"two nodes on one machine, node {number}"] = {
            "status": agent.wait(),
            "said": _last(work.log(f"shared{number}")),
        }
    return found


def _last(log: Path) -> list[str]:
    return log.read_text().splitlines()[-8:]


def scores(work: Work) -> dict[str, Any]:
    """xlm-eval of the long run's last checkpoint on the GPU and on the CPU."""
    checkpoint = work.long_run() / "checkpoints" / f"step-{work.scale.long:08}.pt"
    found: dict[str, Any] = {}
    for device in ("cuda", "cpu") if work.gpu else ("cpu",):
        out = work.folder / f"{device}.json"
        words = [
            f"checkpoint={checkpoint}",
            f"data.path={work.corpus()}",
            "split=valid",
            f"device={device}",
            f"out={out}",
        ]
        call("xlm_train.commands.evaluate", *words)
        result = json.loads(out.read_text())
        found[device] = {**result["mean"], "tokens_per_second": result["tokens_per_second"]}
    if work.gpu:
        a, b = found["cuda"]["perplexity"], found["cpu"]["perplexity"]
        found["relative_difference"] = abs(a - b) / b
        found["within_1e-4"] = found["relative_difference"] <= 1e-4
    return found


def export(work: Work) -> dict[str, Any]:
    """The long run's last checkpoint as a folder for transformers, which its own check loads and compares."""
    checkpoint = work.long_run() / "checkpoints" / f"step-{work.scale.long:08}.pt"
    out = work.folder / "exported"
    said = call("xlm_train.commands.export", f"checkpoint={checkpoint}", f"out={out}", "format=hf")
    record = json.loads((out / "export.json").read_text())
    return {"largest_score_difference": record.get("largest_score_difference", "transformers is missing"), "said": said}


def plans(work: Work) -> dict[str, Any]:
    """What xlm-plan says of the runs of the parts before, beside what they took."""
    measured = {str(work.scale.trial): (work.scale.trial.words, work.seen.get("step"))}
    for trial in work.scale.others:
        measured[str(trial)] = (trial.words, work.seen.get("others", {}).get(str(trial)))
    again = "model.recompute=true"
    measured[again] = ([*work.scale.trial.words, again], work.seen.get("variants", {}).get(again))
    cluster = goal_of(torch.cuda.get_device_name()) if work.gpu else None
    if work.gpu and cluster is None:
        raise Failed(f"no file of configs/cluster for {torch.cuda.get_device_name()}")
    chosen = "v100_1" if cluster is None else cluster.cluster
    found: dict[str, Any] = {}
    for name, (words, took) in measured.items():
        if took and "peak_memory_gb" in took:
            plan = _plan([*work.scale.overrides, f"data.path={work.corpus()}", *words, f"cluster={chosen}"])
            memory = allocated_gb(plan["memory_gb"])
            found[name] = {
                "memory_gb": [memory, took["peak_memory_gb"]],
                "memory_planned_by_measured": memory / took["peak_memory_gb"],
                "seconds_per_step": [plan["speed"]["seconds_per_step"], took["seconds_per_step"]],
                "seconds_planned_by_measured": plan["speed"]["seconds_per_step"] / took["seconds_per_step"],
                "efficiency_stated": plan["speed"]["efficiency"],
            }
    if not found:
        raise Failed("no run to compare with: --only step,others,variants,plan")
    return found


def allocated_gb(parts: Mapping[str, float]) -> float:
    """A plan's memory as torch's allocator counts it, which CUDA's context is not part of."""
    return sum(gb for part, gb in parts.items() if part != CONTEXT)


def _plan(words: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    from xlm_train.config.train import resolved_config
    from xlm_train.data.corpus import Corpus
    from xlm_train.plan.estimate import make_plan

    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        config = resolved_config(compose("plan", overrides=words))
    return make_plan(config, Corpus(config["data"]["path"]))


def objective(work: Work, name: str) -> dict[str, Any]:
    """Steps of another objective, where this checkout has it."""
    if not (REPOSITORY / "configs/objective" / f"{name}.yaml").is_file():
        return {"left out": f"there is no objective={name} here"}
    trial = work.unscaled
    words = [f"objective={name}", *trial.words, "trainer.max_steps=60", "callbacks.checkpointing.every_n_steps=60"]
    found = figures(work.train(name, *words), trial.precision)
    del found["tflops"], found["mfu"]  # counted for a prediction at every position
    return {"trial": str(trial), **found}
