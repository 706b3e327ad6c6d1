"""All benchmarks of training, one after the other: tables on the console, figures in benchmarks/results.json.

    python -m benchmarks

About an hour on two quiet cores. Those of text preparation need text: see prep.py, bpe.py and tokenise.py;
the network's only runs as root, and gpu.py is for GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import agreement, busy, framework, loss, miniature, options, start, step, translate

RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    found = {}
    for benchmark in (start, framework, busy, agreement, loss, step, miniature, options, translate):
        name = benchmark.__name__.rpartition(".")[2]
        found[name] = benchmark.main([])
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")  # each is kept as soon as it is there
    if os.geteuid() == 0:
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "network.json"
            status = subprocess.run([sys.executable, "-m", "benchmarks.network", "--json", figures]).returncode
            found["network"] = json.loads(figures.read_text()) if figures.exists() else None
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        sys.exit(status)  # it fails where its model is off
    else:
        print("\nnetwork: left out, it needs root (it makes network namespaces)")


if __name__ == "__main__":
    main()
