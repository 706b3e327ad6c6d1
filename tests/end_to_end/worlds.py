"""Training runs of one or several real processes, started in milliseconds, ended as a test wishes, and compared.

Each process is forked from a server that has imported everything and done nothing. It gets the environment in which
torchrun starts its workers and runs `xlm_train.train.train`: real gloo, real files, real deaths, without seconds of
imports. What torchrun and the command add has tests of its own.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.conftest import PATIENCE
from xlm_train.runtime import checkpoint_file
from xlm_train.training.loggers import read_metrics

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["xlm_train.training.module", "xlm_train.training.callbacks", "xlm_train.train", "xlm_train.report"]
)


@dataclass(frozen=True)
class Death:
    """SIGKILL of the process that has this slot of this step, in the moment in which it begins it.

    decoded: or after so many words of each translation that the slot makes.
    """

    step: int
    slot: int
    decoded: int = 0


@dataclass(frozen=True)
class SlotTrained:
    """One slot as a process trained on it. tokens: digest of the slot's batch. buckets: DDP's gradient buckets then."""

    step: int
    slot: int
    rank: int
    tokens: str
    buckets: int


def start(config: dict[str, Any], processes: int, death: Death | None = None) -> list[int]:
    """Start a run in so many processes and wait; returns their exit statuses (minus the signal for one that died of it).

    A process that ends badly takes the others down, as under torchrun.
    """
    config = {**config, "trainer": {**config["trainer"], "devices": processes}}
    watched = _watch_folder(Path(config["paths"]["runs"]) / config["run_name"])
    watched.mkdir(parents=True, exist_ok=True)
    # the processes meet at a store of ours, as at torchrun's: no port is lost between choosing and using it
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members = [
        SERVER.Process(target=_process, args=(dict(os.environ), config, rank, processes, store.port, watched, death))
        for rank in range(processes)
    ]
    for member in members:
        member.start()
    _wait(members)
    return [member.exitcode for member in members]  # type: ignore[misc]


def train_on(processes: int, config: dict[str, Any]) -> Path:
    """Run to the end in so many processes; returns the run's folder."""
    statuses = start(config, processes)
    folder = Path(config["paths"]["runs"]) / config["run_name"]
    assert statuses == [0] * processes, [path.read_text() for path in _watch_folder(folder).glob("*.log")]
    return folder


def slots_trained(run: Path) -> list[SlotTrained]:
    """All slots that all processes of all starts of a run trained on, by step and slot."""
    lines = [line for path in _watch_folder(run).glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((SlotTrained(**json.loads(line)) for line in lines), key=lambda slot: (slot.step, slot.slot))


def _watch_folder(run: Path) -> Path:
    return run.with_name(f"{run.name}.watched")


def _wait(members: list[BaseProcess]) -> None:
    deadline = time.monotonic() + PATIENCE
    while alive := [member for member in members if member.exitcode is None]:
        wait([member.sentinel for member in alive], timeout=1.0)
        if time.monotonic() > deadline or any(member.exitcode for member in members):
            for member in alive:
                member.kill()
                member.join()


def _process(
    environment: dict[str, str],  # the server began with that of its first user
    config: dict[str, Any],
    rank: int,
    world: int,
    port: int,
    watched: Path,
    death: Death | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(watched / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if world > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
    torch.set_num_threads(1)
    _watch(rank, watched / f"rank-{rank}.jsonl", death)
    from tests.conftest import train_here

    sys.exit(train_here(config))


def _watch(rank: int, record: Path, death: Death | None) -> None:
    """Look on at the start of every slot, and die there if so wished; nothing that is computed changes."""
    from xlm_train.training.module import LanguageModel

    training_step = LanguageModel.training_step
    under_way: list[Any] = []  # the module, the step, and its slots of this process that have not begun

    def watched_step(module: LanguageModel, batch: Any, batch_idx: int) -> None:
        under_way[:] = [module, batch.step, list(batch.slots)]
        if "loss" not in vars(module.objective):
            module.objective.loss = functools.partial(watched_loss, module.objective.loss)  # type: ignore[method-assign]
        training_step(module, batch, batch_idx)
        under_way.clear()

    def watched_loss(loss: Callable[..., torch.Tensor], model: Any, inputs: Any) -> torch.Tensor:
        if under_way:
            module, step, slots = under_way
            slot = slots.pop(0)
            assert slot.inputs is inputs
            if death is not None and (death.step, death.slot) == (step, slot.number):
                _die(model, death.decoded)
            tokens = hashlib.sha256(_content(inputs)).hexdigest()
            entry = SlotTrained(step, slot.number, rank, tokens, _buckets(module.trainer.model))
            with open(record, "a") as file:
                file.write(json.dumps(vars(entry)) + "\n")
        return loss(model, inputs)

    LanguageModel.training_step = watched_step  # type: ignore[method-assign]


def _die(model: Any, decoded: int) -> None:
    """SIGKILL now, or when the decoder has been called so often."""
    calls = itertools.count(1)

    def dies(*_: Any) -> None:
        if next(calls) > decoded:
            os.kill(os.getpid(), signal.SIGKILL)

    if decoded:
        model.decoder.register_forward_pre_hook(dies)
    else:
        dies()


def _content(batch: Any) -> bytes:
    """All that a batch holds: tensors, numbers, and another batch inside it."""
    if isinstance(batch, torch.Tensor):
        return batch.numpy().tobytes()
    if is_dataclass(batch):
        return b"".join(_content(getattr(batch, part.name)) for part in fields(batch))
    return repr(batch).encode()


def _buckets(model: Any) -> int:
    """Gradient buckets of a DistributedDataParallel model; 0 of another."""
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return 0
    sizes = model._get_ddp_logging_data()
    return len(str(sizes.get("rebuilt_bucket_sizes") or sizes["bucket_sizes"]).split(","))


# -- comparing -----------------------------------------------------------------------------------------------------------

STATE = ("model", "optimizer", "progress", "metrics", "callbacks", "global_step")


def last(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run, where none is damaged."""
    found = checkpoint_file.newest(run / "checkpoints")
    assert found.content is not None
    assert not found.skipped
    return {**found.content, **checkpoint_file.to_view(found.content)}


def state(run: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint that training has changed."""
    content = last(run)
    return {part: content[part] for part in STATE}


def copy_as_of(step: int, run: Path, name: str) -> Path:
    """The run as a process left it that died after its checkpoint of `step`: no newer one; metrics ran on."""
    copy = shutil.copytree(run, run.parent / name, symlinks=True)
    for path in (copy / "checkpoints").iterdir():
        if path.is_symlink() or int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    return copy


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, tensors included."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{number}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def reported(run: Path, *starts: str) -> list[tuple[int, str, float]]:
    """(step, name, value) of every reported figure whose name starts with one of `starts`, in the order of the file."""
    return [
        (line["step"], key, value)
        for line in read_metrics(run / "metrics.jsonl")
        for key, value in line.items()
        if key.startswith(starts)
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """Same weights, moments, progress and best metrics; the same reports at the same steps, none missing or repeated."""
    assert_same(state(a), state(b))
    assert reported(a, "train/", "val/", "optim/") == reported(b, "train/", "val/", "optim/")


def largest_difference(a: Path, b: Path) -> float:
    """Largest relative difference between two runs' losses of the same step, training and validation, each language."""
    ours, theirs = reported(a, "train/loss", "val/loss"), reported(b, "train/loss", "val/loss")
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    return max(abs(y / x - 1) for (_, _, x), (_, _, y) in zip(ours, theirs, strict=True))
