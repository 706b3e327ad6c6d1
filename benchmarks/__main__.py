"""All benchmarks of training, one after the other: tables on the console, figures in benchmarks/results.json.

    python -m benchmarks

About twenty minutes on two quiet cores. Those of text preparation need text: see prep.py, bpe.py and tokenise.py;
network.py needs to be root and gpu.py a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import agreement, framework, loss, options, start, step

RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    found = {}
    for benchmark in (start, framework, agreement, loss, step, options):
        name = benchmark.__name__.rpartition(".")[2]
        found[name] = benchmark.main([])
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")  # each is kept as soon as it is there


if __name__ == "__main__":
    main()
