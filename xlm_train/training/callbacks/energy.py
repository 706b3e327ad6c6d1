"""Counts the energy of a run, on its first process."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from xlm_train.runtime.energy import GRAMS_CO2_PER_KWH, METERS, EnergyMeter
from xlm_train.runtime.errors import ConfigError
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer


class Energy(StepCallback):
    """Measures or estimates the energy over all starts of a run; `RUN/energy.json` says which.

    Nothing is counted on GPUs whose power nobody told.

    Args:
        meter: "estimate" (from watts and time) or "codecarbon" (measured).
        region: whose electricity, for the CO2.
        watts: of one device at load; None: not known.

    Raises:
        ConfigError: with every value that cannot work.
    """

    phase = Phase.REPORT

    def __init__(self, meter: str = "estimate", region: str = "world", watts: float | None = None) -> None:
        problems = []
        if meter not in METERS:
            problems.append(f"meter={meter}: must be one of {', '.join(METERS)}")
        elif meter == "codecarbon" and find_spec("codecarbon") is None:
            problems.append("meter=codecarbon: it is not installed: pip install 'xlm_train[energy]'")
        if region not in GRAMS_CO2_PER_KWH:
            problems.append(f"region={region}: must be one of {', '.join(GRAMS_CO2_PER_KWH)}")
        if watts is not None and watts <= 0:
            problems.append(f"watts={watts}: must be positive")
        if problems:
            raise ConfigError(problems)
        self.meter = meter
        self.region = region
        self.watts = watts
        self._energy: EnergyMeter | None = None

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:  # type: ignore[override]
        """Begin to count."""
        known = self.watts is not None or self.meter == "codecarbon" or module.device.type == "cpu"
        if trainer.is_global_zero and known:
            self._energy = EnergyMeter(
                trainer.run.folder.path / "energy.json",
                self.meter,
                self.watts,
                trainer.world_size,
                trainer.num_nodes,
                self.region,
            )

    def figures(self) -> Mapping[str, float]:
        """Return the energy so far."""
        return {} if self._energy is None else {"energy/kwh": self._energy.kwh()}

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Leave the figure beside the checkpoint."""
        if self._energy is not None:
            self._energy.write()

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:  # type: ignore[override]
        """Write what was used, and stop."""
        if self._energy is not None:
            self._energy.close()
            self._energy = None

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:  # type: ignore[override]
        """Likewise where the run fails."""
        self.on_fit_end(trainer, module)
