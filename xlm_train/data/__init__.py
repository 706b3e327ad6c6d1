"""Token ids to batches: the binarised corpus, and the order in which a run reads it."""

from xlm_train.data.corpus import Corpus

__all__ = ["Corpus"]
