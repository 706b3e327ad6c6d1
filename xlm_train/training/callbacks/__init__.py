"""What happens around the training step: entries of configs/callbacks, instantiated like any Lightning callback."""

from xlm_train.training.callbacks.checkpointing import Checkpointing
from xlm_train.training.callbacks.energy import Energy
from xlm_train.training.callbacks.metrics import Metrics
from xlm_train.training.callbacks.preemption import Preemption
from xlm_train.training.callbacks.stragglers import Stragglers
from xlm_train.training.callbacks.validation import Validation

__all__ = ["Checkpointing", "Energy", "Metrics", "Preemption", "Stragglers", "Validation"]
