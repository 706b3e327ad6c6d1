"""An exported folder tried out with transformers itself, offline: the same scores, and for how many lines encode() differs."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xlm_train.interop.transformers.folder import open_text
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.errors import CheckpointError
from xlm_train.text.reader import read_lines

TOLERANCE = 1e-5
SAMPLE_LINES = 2000  # of each language


def installed() -> bool:
    """Tell whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def compare_scores(folder: Path, content: Mapping[str, Any]) -> dict[str, float]:
    """Compare the scores of the folder's model and ours, on random tokens.

    In double precision, so that only what the two compute differs, not how they round.

    Args:
        folder: The export.
        content: Of the checkpoint.

    Returns:
        Language -> largest difference of a score.

    Raises:
        CheckpointError: If a score differs by more than `TOLERANCE`, or transformers does not load the folder.
    """
    shape = ModelShape(**content["shape"])
    with torch.device("meta"):
        ours = XLM(shape)
    ours.load_state_dict(content["model"], assign=True)
    causal = content.get("evaluation") != "masked"
    loader = _transformers().AutoModelForCausalLM if causal else _transformers().AutoModelForMaskedLM
    try:
        theirs = loader.from_pretrained(folder, local_files_only=True).eval().double()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder}: transformers does not load it: {error}") from error
    ours = ours.eval().double()
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.n_words, (2, min(64, shape.max_positions)), generator=noise)
    tokens[tokens == ours.embeddings.padding_idx] = 0  # transformers counts padding anywhere as a shorter text
    differences = {}
    with torch.no_grad():
        for code, number in content["text"]["languages"].items():
            found = theirs(tokens, langs=torch.full_like(tokens, number)).logits
            differences[code] = float((found - ours.logits(ours(tokens, number, causal=causal))).abs().max())
    if wrong := {code: value for code, value in differences.items() if not value <= TOLERANCE}:
        raise CheckpointError(f"{folder}: transformers computes other scores than this program: {wrong}")
    return differences


def stock_differences(folder: Path, samples: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Count the lines that transformers' encode() turns into other ids than the training's preparation.

    Begin and end of text are not compared, only what lies between.

    Args:
        folder: The export.
        samples: Language -> lines of raw text.

    Returns:
        Language -> {"lines": how many were tried, "differ": how many of them differ}.
    """
    tokeniser = _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    reader = open_text(folder)
    counts = {}
    for code, lines in samples.items():
        encoded = reader.encode(lines, code)
        ends = [*encoded.starts[1:].tolist(), len(encoded.ids)]
        exact = [
            encoded.ids[start : end - 1].tolist() for start, end in zip(encoded.starts.tolist(), ends, strict=True)
        ]
        stock = [tokeniser.encode(line, add_special_tokens=False) for line in lines]
        counts[code] = {"lines": len(lines), "differ": sum(a != b for a, b in zip(exact, stock, strict=True))}
    return counts


def sample_lines(path: str | Path) -> list[str]:
    """Read the first `SAMPLE_LINES` lines of a text file that are not empty.

    Raises:
        TextError: If it cannot be read.
    """
    lines = (line for block in read_lines(path) for line in block if line.strip())
    return list(itertools.islice(lines, SAMPLE_LINES))
