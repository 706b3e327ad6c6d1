"""What happens around the training step, in this order: metrics, stragglers, validation,
checkpoint, interruption."""

from xlm_train.callbacks.checkpointing import Checkpointing
from xlm_train.callbacks.interruption import Interruption
from xlm_train.callbacks.metrics import Metrics
from xlm_train.callbacks.stragglers import Stragglers
from xlm_train.callbacks.validation import Validation

__all__ = ["Checkpointing", "Interruption", "Metrics", "Stragglers", "Validation"]
