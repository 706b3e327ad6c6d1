"""The format of a binarised corpus: what its manifest.json is, and the hash lineage from raw text to its shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlm_train.runtime.files import digest

FORMAT = "xlm_train.corpus"
VERSION = 1
FILE = "manifest.json"
SPLITS = ("train", "valid", "test")


def lineage(manifest: Mapping[str, Any]) -> str:
    """One hash over all that determines the corpus's bytes: inputs, settings, tools; and over the bytes it came to.

    No time, path or file name has a part in it, nor has the version of Python, whose effect is in the bytes.

    Args:
        manifest: As it is written, but for the lineage.
    """
    splits = {
        split: {
            language: {
                "inputs": [entry["sha256"] for entry in counts["inputs"]],
                "shards": [[shard["sha256"], shard["index_sha256"]] for shard in counts["shards"]],
            }
            for language, counts in per_language.items()
        }
        for split, per_language in manifest["splits"].items()
    }
    return digest(
        manifest["format"],
        manifest["version"],
        manifest["languages"],
        manifest["vocabulary"]["sha256"],
        manifest["codes"]["sha256"],
        splits,
        manifest["text"],
        manifest["settings"],
        {name: found for name, found in manifest["tools"].items() if name != "python"},
    )
