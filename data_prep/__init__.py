"""Text in: raw lines -> Moses tokens -> joint BPE -> vocabulary -> binarised corpus."""

from xlm_train.runtime.entry import EntryPoint

xlm_prep = EntryPoint("data_prep.prepare")
