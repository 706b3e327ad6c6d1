"""What xlm-plan is asked, and every mistake in it found at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from xlm_train.config.schema import field_problems
from xlm_train.runtime.energy import GRAMS_CO2_PER_KWH

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class PlanSettings:
    """configs/plan.yaml, below `plan`."""

    tokens: int | None
    epochs: float | None
    n_words: int
    n_langs: int
    efficiency: float | None
    price_per_gpu_hour: float | None
    region: str
    grams_co2_per_kwh: float | None
    pue: float
    probe: bool | None


@dataclass
class Cluster:
    """A file of configs/cluster. Bandwidths are in one direction; inter_node is a whole node's."""

    name: str
    accelerator: str
    devices_per_node: int
    nodes: int
    memory_gb: float | None
    peak_tflops: dict[str, float | None]
    efficiency: float | None
    memory_gbytes_per_s: float | None
    intra_node_gbytes_per_s: float | None
    inter_node_gbytes_per_s: float | None
    latency_us: float | None
    disk_gbytes_per_s: float
    watts: float | None
    price_per_device_hour: float | None
    currency: str

    @property
    def devices(self) -> int:
        return self.devices_per_node * self.nodes

    @property
    def is_cpu(self) -> bool:
        return self.accelerator == "CPU"


def problems_of_plan(config: DictConfig) -> list[str]:
    """Everything wrong with a plan's config that can be known before a corpus is opened.

    What concerns the run is checked as for one CPU process here: that the planned devices are elsewhere is no mistake.
    """
    from omegaconf import OmegaConf

    from xlm_train.config.train import problems_of

    elsewhere: dict[str, Any] = {
        "data": {"path": "."},
        "trainer": {"accelerator": "cpu", "devices": 1, "nodes": 1, "precision": "32-true"},
    }
    plan, cluster, trainer = (
        cast(dict[str, Any], OmegaConf.to_container(config[key], resolve=True))
        for key in ("plan", "cluster", "trainer")
    )
    if plan["tokens"] is not None or plan["epochs"] is not None:
        elsewhere["trainer"]["max_steps"] = 1  # the plan says how long, so the run need not
    here = OmegaConf.merge(config, elsewhere)
    here.logger = {}
    problems = problems_of(here)  # type: ignore[arg-type]

    wrong = field_problems(PlanSettings, plan, "plan.") + field_problems(Cluster, cluster, "cluster.")
    if wrong:
        return problems + wrong
    problems += _value_problems(PlanSettings(**plan), config.data.path)
    return problems + _cluster_problems(
        Cluster(**cluster), PlanSettings(**plan), trainer["precision"], config.data.slots, config.out
    )


def _value_problems(plan: PlanSettings, path: str | None) -> list[str]:
    problems = []
    for key in ("tokens", "epochs", "n_words", "n_langs", "efficiency"):
        value = getattr(plan, key)
        if value is not None and value <= 0:
            problems.append(f"plan.{key}={value}: must be positive")
    for key in ("price_per_gpu_hour", "grams_co2_per_kwh"):
        value = getattr(plan, key)
        if value is not None and value < 0:
            problems.append(f"plan.{key}={value}: must not be negative")
    if plan.efficiency is not None and plan.efficiency > 1:
        problems.append(f"plan.efficiency={plan.efficiency}: is a share of the peak, so at most 1")
    if plan.pue < 1:
        problems.append(f"plan.pue={plan.pue}: must be at least 1, which is no loss at all")
    if plan.grams_co2_per_kwh is None and plan.region not in GRAMS_CO2_PER_KWH:
        problems.append(
            f"plan.region={plan.region}: must be one of {', '.join(GRAMS_CO2_PER_KWH)}; for another give plan.grams_co2_per_kwh"
        )
    if plan.tokens is not None and plan.epochs is not None:
        problems.append("plan.tokens and plan.epochs both say how long to train: give one")
    if plan.epochs is not None and path is None:
        problems.append("plan.epochs needs a corpus to count: give data.path=CORPUS")
    if path is not None and not Path(path).is_dir():
        problems.append(f"data.path={path}: there is no such folder; xlm-prep makes one")
    return problems


def _cluster_problems(cluster: Cluster, plan: PlanSettings, precision: str, slots: Any, out: str | None) -> list[str]:
    problems = []
    if cluster.devices_per_node < 1 or cluster.nodes < 1:
        problems.append("cluster.devices_per_node and cluster.nodes must be at least 1")
    elif isinstance(slots, int) and 0 < slots < cluster.devices:
        problems.append(
            f"{cluster.name} has {cluster.devices} devices, but data.slots={slots}: a step has only so many slots to divide;"
            f" data.slots={cluster.devices}, or a smaller cluster"
        )
    for name in ("memory_gb", "efficiency", "memory_gbytes_per_s", "disk_gbytes_per_s", "latency_us", "watts"):
        if (value := getattr(cluster, name)) is not None and value <= 0:
            problems.append(f"cluster.{name}={value}: must be positive")
    if precision not in cluster.peak_tflops:
        problems.append(
            f"trainer.precision={precision}: {cluster.name} states no speed for it (cluster.peak_tflops);"
            f" it has {', '.join(cluster.peak_tflops)}"
        )
    elif cluster.peak_tflops[precision] is None and (not cluster.is_cpu or plan.probe is False):
        problems.append(f"{cluster.name} states no speed: plan.probe=true measures this machine's CPU")
    if plan.probe and not cluster.is_cpu:
        problems.append(
            "plan.probe=true measures this machine's CPU, not the cluster's devices: cluster=local, or plan.probe=false"
        )
    needed = [("intra_node_gbytes_per_s", cluster.devices_per_node), ("inter_node_gbytes_per_s", cluster.nodes)]
    needed.append(("latency_us", cluster.devices))
    for name, members in needed:
        if members > 1 and not getattr(cluster, name):
            problems.append(f"cluster.{name} has no value: the gradients of {cluster.devices} devices go over it")
    if not cluster.is_cpu:
        for name in ("memory_gb", "memory_gbytes_per_s"):
            if getattr(cluster, name) is None:
                problems.append(f"cluster.{name} has no value: give cluster.{name}=...")
        if cluster.efficiency is None and plan.efficiency is None:
            problems.append("cluster.efficiency has no value: give plan.efficiency=..., a share of the peak")
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        problems.append(f"out={out}: is no folder")
    return problems
