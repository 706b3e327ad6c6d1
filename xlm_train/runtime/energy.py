"""Energy of a run, measured by codecarbon or estimated from watts and time, and the CO2 that its generation causes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import as_number, read_json, write_json

# Grams of CO2 equivalents per kWh generated, life cycle, 2023: Ember and Energy Institute through Our World in Data,
# "Carbon intensity of electricity generation"; world, Norway, Poland, Sweden: Ember (2024) through Statista.
# United States: CO2 alone, 760 lb/MWh in 2023 (Statista, "Power sector carbon intensity in the United States").
GRAMS_CO2_PER_KWH = {
    "world": 481,
    "australia": 549,
    "belgium": 138,
    "brazil": 98,
    "canada": 170,
    "china": 582,
    "denmark": 152,
    "finland": 79,
    "france": 56,
    "germany": 381,
    "india": 713,
    "ireland": 291,
    "norway": 30,
    "poland": 662,
    "sweden": 41,
    "united_states": 345,
}

METERS = ("estimate", "codecarbon")
WATTS_PER_CORE = 10.0  # assumed where nothing is known of a CPU: a laptop's under load


class EnergyMeter:
    """Counts the energy of all processes over all starts of a run; lives in the first process.

    Args:
        file: RUN/energy.json, with what earlier starts used.
        meter: "estimate" (watts times time), or "codecarbon" (measured on the first host, and counted for each node).
        watts: of one device at load; None: assumed from the number of cores, for a CPU.
        devices: processes of the run.
        nodes: their hosts.
        region: key of GRAMS_CO2_PER_KWH: whose electricity.
    """

    def __init__(self, file: Path, meter: str, watts: float | None, devices: int, nodes: int, region: str) -> None:
        self.file = file
        self.region = region
        before = read_json(file) if os.path.lexists(file) else {}
        used = as_number(before.get("energy_kwh", 0.0)) if isinstance(before, dict) else None
        if used is None:
            raise UserError(f"{file}: is damaged: it must have energy_kwh, a number")
        self.before = used
        self.nodes = nodes
        self.started = time.monotonic()
        self.tracker: Any = None
        if meter == "codecarbon":
            from codecarbon import OfflineEmissionsTracker
            from codecarbon.output import BaseOutput

            self.measured_kwh = 0.0

            class Measured(BaseOutput):
                def out(_, total: Any, delta: Any) -> None:  # noqa: N805 - self is the meter; called by flush and stop
                    self.measured_kwh = total.energy_consumed

            self.tracker = OfflineEmissionsTracker(
                country_iso_code="USA",  # must be given, for its CO2 figure; ours is computed below, from the region
                save_to_file=False,
                output_handlers=[Measured()],
                log_level="critical",
                allow_multiple_runs=True,
            )
            self.tracker.start()
            self.method = "measured by codecarbon" + (f" on one of {nodes} nodes" if nodes > 1 else "")
        elif watts is not None:
            self.watts = watts * devices
            self.method = f"estimated from {watts:g} W a device and time"
        else:
            cores = len(os.sched_getaffinity(0))
            self.watts = WATTS_PER_CORE * cores
            self.method = f"estimated from {WATTS_PER_CORE:g} W a core, assumed, {cores} cores and time"

    def kwh(self) -> float:
        """Return the energy used so far, over all starts, in kWh."""
        if self.tracker is not None:
            self.tracker.flush()
            return self.before + self.measured_kwh * self.nodes
        return self.before + self.watts * (time.monotonic() - self.started) / 3.6e6

    def close(self) -> None:
        """Write the figures and stop measuring."""
        self.write()
        if self.tracker is not None:
            self.tracker.stop()

    def write(self) -> None:
        """Write energy (kWh) and CO2 (kg) to the file; where it cannot be written the run goes on without."""
        kwh = self.kwh()
        values = {"energy_kwh": kwh, "co2_kg": kwh * GRAMS_CO2_PER_KWH[self.region] / 1000}
        with contextlib.suppress(UserError):
            write_json(self.file, {**values, "method": self.method, "region": self.region})
