"""What options of the step cost and save at the real shape: allocator settings, activation checkpointing, accumulation.

    python -m benchmarks.options --streams 8 --rounds 3 --json options.json

Each is the step of benchmarks/step.py with one thing changed, in turn with the step as it is.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.turns import Variant, in_turn, report, spread, table


def variants(streams: int, compiled: bool) -> dict[str, dict[str, Any]]:
    """Changes to the step by name, as arguments of benchmarks.step.ours."""
    found: dict[str, dict[str, Any]] = {
        "as it is": {},
        "glibc's own allocator settings": {"allocator": False},
        "model.recompute=true": {"recompute": True},
        f"{streams} slots of 1 stream": {"slots": streams},
    }
    if compiled:
        found["blocks through torch.compile"] = {"compiled": True}
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true", help="torch.compile too: needs a C++ compiler, and minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    changes = variants(options.streams, options.compiled)
    results = in_turn(
        [
            Variant(name, "benchmarks.step:ours", {"streams": options.streams, **change}, warm_up=3)
            for name, change in changes.items()
        ],
        options.rounds,
        options.threads,
    )
    base = results["as it is"]
    rows, figures = [], {}
    for name, measured in results.items():
        ratio = measured.times_slower_than(base)
        faults = statistics.mean(measured.faults)
        memory = measured.peak / base.peak
        rows.append(
            [
                name,
                f"{measured.median:.2f}",
                spread(ratio),
                f"{measured.peak / 1e9:.2f}",
                f"{memory:.2f}x",
                f"{faults:,.0f}",
            ]
        )
        figures[name] = {
            "seconds": measured.seconds, "cpu_seconds": measured.cpu_seconds, "times_as_long": ratio,
            "peak_memory_gb": measured.peak / 1e9, "times_the_memory": memory, "page_faults": measured.faults,
        }  # fmt: skip
    heads = ["", "s a step", "times as long", "peak memory, GB", "times the memory", "page faults a step"]
    return report(
        f"Options of the step, real shape, {options.streams} streams",
        table(heads, rows),
        {"streams": options.streams, "threads": options.threads, "variants": figures},
        options.json,
    )


if __name__ == "__main__":
    main()
