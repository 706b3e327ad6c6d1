"""A cluster's devices and links, as configs/cluster describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from xlm_train.config.schema import Count, at_least, positive


def share_of_peak(value: float) -> str | None:
    """Check of a field: an efficiency."""
    return None if 0 < value <= 1 else "is a share of the peak: must be positive and at most 1"


def _peaks(value: dict[str, float | None]) -> str | None:
    return None if all(peak is None or peak > 0 for peak in value.values()) else "each must be positive"


@dataclass(frozen=True)
class ClusterConfig:
    """A file of configs/cluster.

    Args:
        memory_gb: Of one device, in 1e9 bytes.
        peak_tflops: By precision, of one device.
        efficiency: Share of the peak that a whole step reaches.
        intra_node_gbytes_per_s: In one direction.
        inter_node_gbytes_per_s: In one direction, of a whole node.
        watts: Of one device at load.
    """

    name: str
    accelerator: str
    devices_per_node: Count
    nodes: Count
    memory_gb: Annotated[float | None, positive]
    peak_tflops: Annotated[dict[str, float | None], _peaks]
    efficiency: Annotated[float | None, share_of_peak]
    memory_gbytes_per_s: Annotated[float | None, positive]
    intra_node_gbytes_per_s: Annotated[float | None, positive]
    inter_node_gbytes_per_s: Annotated[float | None, positive]
    latency_us: Annotated[float | None, positive]
    disk_gbytes_per_s: Annotated[float, positive]
    watts: Annotated[float | None, positive]
    price_per_device_hour: Annotated[float | None, at_least(0)]
    currency: str

    @property
    def devices(self) -> int:
        """Devices of all nodes."""
        return self.devices_per_node * self.nodes

    @property
    def is_cpu(self) -> bool:
        """Whether its devices are CPUs."""
        return self.accelerator == "CPU"
