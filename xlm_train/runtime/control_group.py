"""The CPU process group of a run: the handshake at the start, and consensus on when to leave.

Uses a gloo group of its own, so that a control message never waits for a GPU.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout  # there is no public way to change a group's timeout

from xlm_train.runtime.errors import UserError


class ProcessesMissing(RuntimeError):
    """Not all processes of the run answered, or they do not see the same files: a restart may help."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error means that a collective failed because another process is gone or does not answer.

    NCCL's errors have a type of their own; gloo's are plain RuntimeErrors whose text names gloo.
    """
    return isinstance(error, ProcessesMissing | dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


@dataclass(frozen=True)
class RankInfo:
    """One process of the run.

    Args:
        rank: global rank.
        host: name of its machine.
        device: name of its device.
        device_id: identifies the device on its host; None for a CPU.
        torch_version: its version of torch.
        run: digest of config, corpus and checkpoint, which must be the same on all processes.
    """

    rank: int
    host: str
    device: str
    device_id: str | None
    torch_version: str
    run: str

    @classmethod
    def of_this_process(cls, rank: int, device: torch.device, run: str) -> RankInfo:
        """Describe the calling process.

        Args:
            rank: its global rank.
            device: the device that it trains on.
            run: digest of what must be the same on all processes.
        """
        name, identity = "CPU", None
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            name, identity = properties.name, str(getattr(properties, "uuid", device.index))
        return cls(rank, socket.gethostname(), name, identity, torch.__version__, run)


class ControlGroup:
    """Consensus among the processes of a run; trivial where there is only one.

    Every method is a collective: all processes must call it, in the same order.

    Args:
        world_size: number of processes.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.members: list[RankInfo] = []
        self._group: dist.ProcessGroup | None = None

    def handshake(self, me: RankInfo, start_timeout: float, timeout: float) -> None:
        """Learn who takes part (`members`) and check that all can train together: the first collective of a run.

        Args:
            me: this process.
            start_timeout: seconds within which all processes must answer.
            timeout: seconds that every later collective may take, on GPUs too.

        Raises:
            ProcessesMissing: ranks are missing, or see different files.
            UserError: ranks share a device, or have different versions of torch.
        """
        if self.world_size == 1:
            self.members = [me]
            return
        if self._group is not None:  # a later attempt of the same processes
            self._compare(me)
            return
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        try:
            dist.monitored_barrier(self._group, timedelta(seconds=start_timeout), wait_all_ranks=True)
        except RuntimeError as error:
            raise ProcessesMissing(
                f"the processes did not all answer within trainer.start_timeout_seconds={start_timeout:g}: {error}"
            ) from error
        self._compare(me)
        _set_pg_timeout(timedelta(seconds=timeout))  # the default group was made with the short one

    def _compare(self, me: RankInfo) -> None:
        self.members = self.gather_objects(me)
        if problems := problems_of(self.members):
            raise UserError(problems)
        if differ := differences(self.members, "run"):  # a network file system may show a rank an old listing
            raise ProcessesMissing(f"the processes do not see the same config, corpus or checkpoint ({differ})")

    def highest(self, number: int) -> int:
        """Return the highest of the processes' numbers, the same on all of them."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, self._group)
        return int(shared)

    def extremes(self, number: float) -> tuple[float, float]:
        """Return the lowest and the highest of the processes' numbers, the same on all of them."""
        if self.world_size == 1:
            return number, number
        shared = torch.tensor([-number, number], dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, self._group)
        return -float(shared[0]), float(shared[1])

    def gather(self, number: float) -> list[float]:
        """Return every process's number, by rank, the same on all of them."""
        if self.world_size == 1:
            return [number]
        shared = torch.zeros(self.world_size, dtype=torch.float64)
        shared[dist.get_rank(self._group)] = number
        dist.all_reduce(shared, group=self._group)
        return shared.tolist()

    def gather_objects(self, mine: Any) -> list[Any]:
        """Return every process's object, by rank, the same on all of them; it travels pickled."""
        if self.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, mine, self._group)
        return found


def problems_of(members: Sequence[RankInfo]) -> list[str]:
    """List the reasons why these processes cannot train together; none where they can."""
    problems = []
    devices: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for one in members:
        if one.device_id is not None:
            devices[one.host, one.device_id].append(one.rank)
    for (host, _), ranks in devices.items():
        if len(ranks) > 1:
            problems.append(
                f"ranks {_list(ranks)} share one device on {host}: give each its own (one task a GPU; srun --gpus-per-node,"
                " or trainer.devices = GPUs of a node)"
            )
    if differ := differences(members, "torch_version"):
        problems.append(f"the processes do not have the same torch ({differ})")
    return problems


def differences(members: Sequence[RankInfo], key: str) -> str:
    """Describe which ranks have which value of an attribute.

    Args:
        members: the processes.
        key: name of the attribute of RankInfo.

    Returns:
        Such as `ranks 0-3: 2.13.0; ranks 4-7: 2.12.1`; empty where the value is the same on all.
    """
    values: defaultdict[str, list[int]] = defaultdict(list)
    for one in members:
        values[getattr(one, key)].append(one.rank)
    return "; ".join(f"ranks {_list(r)}: {value[:12]}" for value, r in values.items()) if len(values) > 1 else ""


def table(members: Sequence[RankInfo]) -> list[str]:
    """Describe each host in a line: its ranks and devices."""
    hosts: defaultdict[str, list[RankInfo]] = defaultdict(list)
    for one in members:
        hosts[one.host].append(one)
    return [
        f"{host}: rank{'s' if len(here) > 1 else ''} {_list([m.rank for m in here])} on "
        + ", ".join(f"{count} x {name}" for name, count in _counts([m.device for m in here]).items())
        for host, here in hosts.items()
    ]


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: list(names).count(name) for name in dict.fromkeys(names)}


def _list(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 3, 7] -> 0-3, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
