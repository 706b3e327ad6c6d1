"""The loss over the vocabulary: ours against torch's, time and memory, forward and backward.

    python -m benchmarks.loss --tokens 1020 2040 --words 64699 8000 --json loss.json

Hidden states 1024 wide, float32. `cross_entropy`: torch.nn.functional.cross_entropy on whole logits, as a user runs it:
with glibc's default settings of the allocator. Ours is measured with them too, and with those of xlm-train, which give
nothing back to the system between operations (`ours, as in xlm-train`). `linear_cross_entropy`: torch's own, where the
version has it, as it comes and with its chunking options. Ours takes the library of products that it takes in training
(oneDNN on some processors), the others PyTorch's own choice. Memory: what is resident at most during the calls, beyond
what is after the imports, less the inputs and their gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.turns import Variant, in_turn, report, spread, table

DIM = 1024


def torch_has_its_own() -> bool:
    return hasattr(F, "linear_cross_entropy")


def loss(how: str, tokens: int, words: int) -> Callable[[], float]:
    """A call is forward and backward; gradients of hidden states, weight and bias are formed and dropped."""
    from xlm_train.model.ops.linear_cross_entropy import linear_cross_entropy
    from xlm_train.model.transformer import ModelShape
    from xlm_train.runtime.device import disable_malloc_trim

    if how == "ours, as in xlm-train":
        disable_malloc_trim()
    torch.manual_seed(0)
    hidden = torch.randn(tokens, DIM).requires_grad_()
    rows = ModelShape(n_words=words, vocab_multiple=8).n_rows if how.startswith("ours") else words
    weight = (torch.randn(rows, DIM) * DIM**-0.5).requires_grad_()
    bias = torch.zeros(rows).requires_grad_()
    targets = torch.randint(0, words, (tokens,))

    def value() -> Tensor:
        if how.startswith("ours"):
            return linear_cross_entropy(hidden, weight, bias, targets, n_words=words)
        if how == "cross_entropy":
            return F.cross_entropy(F.linear(hidden, weight, bias), targets)
        options = {} if how == "linear_cross_entropy" else {"options": torch.nn.LinearCrossEntropyOptions()}
        return F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias, **options)

    def call() -> float:
        result = value()
        result.backward()
        hidden.grad = weight.grad = bias.grad = None
        return result.item()

    return call


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[510, 2040])
    parser.add_argument("--words", type=int, nargs="+", default=[8000, 64_699])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    ways = ["ours", "ours, as in xlm-train", "cross_entropy"]
    if torch_has_its_own():
        ways += ["linear_cross_entropy", "linear_cross_entropy, with options"]
    rows: list[list[str]] = []
    sizes: list[dict[str, Any]] = []
    for tokens in options.tokens:
        for words in options.words:
            results = in_turn(
                [
                    Variant(how, "benchmarks.loss:loss", {"how": how, "tokens": tokens, "words": words}, warm_up=2)
                    for how in ways
                ],
                options.rounds,
                threads=options.threads,
            )
            ours = results["ours"]
            fixed = 4 * (2 * DIM * (tokens + words) + 2 * words)  # inputs and their gradients, bytes
            for how, measured in results.items():
                ratio, above = measured.times_slower_than(ours), (measured.peak - fixed) / 1e6
                rows.append(
                    [f"{tokens:,}", f"{words:,}", how, f"{measured.median:.3f}", spread(ratio), f"{above:,.0f}"]
                )
                figures = {"tokens": tokens, "words": words, "how": how, "loss": measured.returned[-1]}
                figures |= {"seconds": measured.seconds, "cpu_seconds": measured.cpu_seconds}
                figures |= {"times_as_long_as_ours": ratio, "megabytes_beyond_inputs_and_gradients": above}
                sizes.append(figures)
    text = table(["tokens", "words", "", "s", "times as long as ours", "MB beyond inputs and gradients"], rows)
    return report("Loss over the vocabulary, forward and backward, float32", text, {"sizes": sizes}, options.json)


if __name__ == "__main__":
    main()
