"""Who takes part: devices shared, software that differs, slow processes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment

from xlm_train.data.order import Stream
from xlm_train.runtime.control_group import RankInfo, differences, problems_of, table
from xlm_train.runtime.errors import UserError
from xlm_train.training.callbacks.stragglers import are_alike, slow_ones
from xlm_train.training.strategy import HandshakeDDPStrategy

GPUS = [RankInfo(rank, f"node{rank // 4}", "V100", f"uuid{rank}", "2.13.0", "abc") for rank in range(8)]


def test_a_healthy_run_is_one_line_a_host() -> None:
    assert problems_of(GPUS) == []
    assert table(GPUS) == ["node0: ranks 0-3 on 4 x V100", "node1: ranks 4-7 on 4 x V100"]


def test_two_ranks_on_one_device() -> None:
    members = [*GPUS[:5], replace(GPUS[5], device_id="uuid4"), *GPUS[6:]]
    (problem,) = problems_of(members)
    assert "ranks 4-5 share one device on node1" in problem
    same_number_elsewhere = [replace(m, device_id=str(m.rank % 4)) for m in GPUS]
    assert problems_of(same_number_elsewhere) == []


def test_processes_that_run_something_else() -> None:
    members = [replace(m, torch_version="2.8.0") if m.rank in (2, 3, 7) else m for m in GPUS]
    (problem,) = problems_of(members)
    assert "the same torch (ranks 0-1, 4-6: 2.13.0; ranks 2-3, 7: 2.8.0)" in problem
    assert differences([*GPUS[:7], replace(GPUS[7], run="xyz")], "run") == "ranks 0-6: abc; ranks 7: xyz"


def test_slow_processes() -> None:
    assert slow_ones([1.0, 1.1, 0.9, 1.2]) == {}
    assert slow_ones([1.0, 1.1, 3.0, 1.2]) == {2: 3.0 / 1.1}
    assert slow_ones([2.0, 1.0]) == {0: 2.0}  # of two the faster is the measure
    assert slow_ones([0.0, 0.0]) == {}


def test_no_process_group_is_left_when_the_processes_do_not_fit() -> None:
    def refuse(rank: int, device: torch.device) -> None:
        assert dist.is_initialized()
        raise UserError(problems_of([GPUS[0], replace(GPUS[1], device_id="uuid0")]))

    strategy = HandshakeDDPStrategy(refuse, start_timeout=30)
    strategy.cluster_environment = LightningEnvironment()
    strategy.parallel_devices = [torch.device("cpu")]
    with pytest.raises(UserError, match="share one device"):
        strategy.setup_distributed()
    assert not dist.is_initialized()


def test_processes_are_compared_by_slots_of_like_sizes_only() -> None:
    def stream(name: str, tokens: float) -> Stream:
        return Stream(name, 10, 1, tokens, Fraction(1))

    assert are_alike([stream("de", 4096), stream("en", 4096), stream("de-en", 3991.5)])
    assert not are_alike([stream("de", 4096), stream("de-en", 1995.3)])  # a rank that gets pairs only would look fast
