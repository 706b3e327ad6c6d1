"""What xlm-plan is asked, and every mistake in it found at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from xlm_train.config.cluster import ClusterConfig, share_of_peak
from xlm_train.config.files import unwritable
from xlm_train.config.precision import settle_precision
from xlm_train.config.schema import Count, Rule, at_least, between, check_fields, check_rules, fits, positive, resolve
from xlm_train.config.train import TrainerConfig, problems_of
from xlm_train.runtime.energy import GRAMS_CO2_PER_KWH

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _pue(value: float) -> str | None:
    return None if value >= 1 else "must be at least 1, which is no loss at all"


@dataclass
class PlanSettings:
    """configs/plan.yaml, below `plan`."""

    tokens: Annotated[int | None, positive]
    epochs: Annotated[float | None, positive]
    n_words: Count
    n_langs: Count
    efficiency: Annotated[float | None, share_of_peak]
    loss: Annotated[float, between(0.01, 100)]
    price_per_gpu_hour: Annotated[float | None, at_least(0)]
    region: str
    grams_co2_per_kwh: Annotated[float | None, at_least(0)]
    pue: Annotated[float, _pue]
    probe: bool | None


@dataclass
class OwnSettings:
    """What configs/plan.yaml adds to a run's config."""

    plan: PlanSettings
    out: str | None


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a section; empty where it is no mapping, which is told elsewhere."""
    found = values.get(name)
    return dict(found) if isinstance(found, dict) else {}


def with_planned_precision(values: dict[str, Any]) -> dict[str, Any]:
    """The values with trainer.precision=auto replaced by what a run on the planned cluster takes."""
    trainer, cluster = _section(values, "trainer"), _section(values, "cluster")
    planned = {**values, "trainer": trainer}
    if cluster.get("accelerator") == "CPU":
        trainer["accelerator"] = "cpu"
        settle_precision(planned)
    elif trainer.get("precision") == "auto":
        trainer["precision"] = "bf16-mixed" if "bf16-mixed" in _section(cluster, "peak_tflops") else "16-mixed"
    return planned


def problems_of_plan(config: DictConfig) -> list[str]:
    """List everything wrong with a plan's config that can be known before a corpus is opened.

    What concerns the run is checked as for one CPU process here: that the planned devices are elsewhere is no mistake.
    """
    from omegaconf import OmegaConf

    elsewhere: dict[str, Any] = {
        "data": {"path": "."},
        "trainer": {"accelerator": "cpu", "devices": 1, "nodes": 1, "precision": "32-true"},
    }
    resolved, reasons = resolve(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)))
    values = with_planned_precision(resolved)
    own: dict[str, Any] = {name: values[name] for name in ("plan", "out") if name in values}
    if any(_section(own, "plan").get(name) is not None for name in ("tokens", "epochs")):
        elsewhere["trainer"]["max_steps"] = 1  # the plan says how long, so the run need not
    run = OmegaConf.merge(
        OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("plan", "out")]), elsewhere
    )
    run.logger = {}
    good, problems = check_fields(OwnSettings, own)
    data, trainer, cluster = (_section(values, name) for name in ("data", "trainer", "cluster"))
    # what the run is not checked with: see `elsewhere`
    unresolved = [reason for reason in reasons if reason.startswith(("plan.", "out", "data.path:"))]
    problems += unresolved
    problems += check_fields(TrainerConfig, trainer, "trainer.")[1]
    if not fits(data.get("path"), str | None) and not any(reason.startswith("data.path:") for reason in unresolved):
        problems.append(f"data.path={data['path']}: must be text")
    wanted = {"data.path": (data.get("path"), str | None), "data.slots": (data.get("slots"), int)}
    wanted["precision"] = (trainer.get("precision"), str)
    good |= {key: value for key, (value, kind) in wanted.items() if fits(value, kind)}
    good["checkpointing"] = _section(values, "callbacks").get("checkpointing", {})
    if not check_fields(ClusterConfig, cluster)[1]:
        good["cluster"] = ClusterConfig(**cluster)
    return list(dict.fromkeys([*problems_of(cast("DictConfig", run)), *problems, *check_rules(RULES, good)]))


def _region(region: str, grams: float | None) -> Iterator[str]:
    if grams is None and region not in GRAMS_CO2_PER_KWH:
        yield (
            f"plan.region={region}: must be one of {', '.join(GRAMS_CO2_PER_KWH)};"
            " for another give plan.grams_co2_per_kwh"
        )


def _length(tokens: int | None, epochs: float | None) -> Iterator[str]:
    if tokens is not None and epochs is not None:
        yield "plan.tokens and plan.epochs both say how long to train: give one"


def _corpus(epochs: float | None, path: str | None) -> Iterator[str]:
    if epochs is not None and path is None:
        yield "plan.epochs needs a corpus to count: give data.path=CORPUS"


def _path(path: str | None) -> Iterator[str]:
    if path is not None and not os.path.isdir(path):
        yield f"data.path={path}: there is no such folder; xlm-prep makes one"


def _out(out: str | None) -> Iterator[str]:
    if out is not None:
        there = next(path for path in (Path(out), *Path(out).absolute().parents) if path.exists())
        if (why := unwritable(there)) is not None:
            yield f"out={out}: {why}"


def _checkpoints(checkpointing: Any) -> Iterator[str]:
    if checkpointing is None:
        yield "callbacks.checkpointing=null: a plan counts what checkpoints cost; leave it in"


def _slots(cluster: ClusterConfig, slots: int) -> Iterator[str]:
    if 0 < slots < cluster.devices:
        yield (
            f"{cluster.name} has {cluster.devices} devices, but data.slots={slots}: a step has only so many slots to divide;"
            f" data.slots={cluster.devices}, or a smaller cluster"
        )


def _speed(cluster: ClusterConfig, precision: str, probe: bool | None) -> Iterator[str]:
    if precision not in cluster.peak_tflops:
        yield (
            f"trainer.precision={precision}: {cluster.name} states no speed for it (cluster.peak_tflops);"
            f" it has {', '.join(cluster.peak_tflops)}"
        )
    elif cluster.peak_tflops[precision] is None and (not cluster.is_cpu or probe is False):
        yield f"{cluster.name} states no speed: plan.probe=true measures this machine's CPU"
    if probe and not cluster.is_cpu:
        yield "plan.probe=true measures this machine's CPU, not the cluster's devices: cluster=local, or plan.probe=false"


def _figures(cluster: ClusterConfig, efficiency: float | None) -> Iterator[str]:
    for name, members in (
        ("intra_node_gbytes_per_s", cluster.devices_per_node),
        ("inter_node_gbytes_per_s", cluster.nodes),
        ("latency_us", cluster.devices),
    ):
        if members > 1 and not getattr(cluster, name):
            yield f"cluster.{name} has no value: the gradients of {cluster.devices} devices go over it"
    if cluster.is_cpu:
        return
    for name in ("memory_gb", "memory_gbytes_per_s"):
        if getattr(cluster, name) is None:
            yield f"cluster.{name} has no value: give cluster.{name}=..."
    if cluster.efficiency is None and efficiency is None:
        yield "cluster.efficiency has no value: give plan.efficiency=..., a share of the peak"


RULES = [
    Rule(("plan.region", "plan.grams_co2_per_kwh"), _region),
    Rule(("plan.tokens", "plan.epochs"), _length),
    Rule(("plan.epochs", "data.path"), _corpus),
    Rule(("data.path",), _path),
    Rule(("out",), _out),
    Rule(("checkpointing",), _checkpoints),
    Rule(("cluster", "data.slots"), _slots),
    Rule(("cluster", "precision", "plan.probe"), _speed),
    Rule(("cluster", "plan.efficiency"), _figures),
]
