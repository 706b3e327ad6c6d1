"""What happens around the training step, in this order: metrics, stragglers, validation,
checkpoint, interruption."""

from xlm_train.training.callbacks.checkpointing import Checkpointing
from xlm_train.training.callbacks.metrics import Metrics
from xlm_train.training.callbacks.preemption import Interruption
from xlm_train.training.callbacks.stragglers import Stragglers
from xlm_train.training.callbacks.validation import Validation

__all__ = ["Checkpointing", "Interruption", "Metrics", "Stragglers", "Validation"]
