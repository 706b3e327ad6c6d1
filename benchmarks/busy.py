"""A training run beside other programs: the demo's shape alone, beside a busy loop, and beside a second run, in turn.

    python -m benchmarks.busy --rounds 15 --json busy.json

OpenMP's threads wait for each other at the end of every operation. Where another program has one thread's core, the
others wait until the system gives it back, which it does the sooner the less time the run has spent with spinning. The
company of a run is stopped outside of its turns. --spins compares settings of GOMP_SPINCOUNT, --threads numbers of
threads; the first of each is what the others are compared with.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.framework import STEPS, framework, make_text
from benchmarks.turns import Turns, Variant, in_turn, report, spread, table
from xlm_train.runtime.device import SPINS, SPINS_IN_COMPANY

TOKENS_PER_STEP = 2 * 8 * 64
LOOP = "from xlm_train.runtime.processes import end_with_parent; end_with_parent()\nwhile True: pass"
SECOND_RUN = """
import sys
from xlm_train.runtime.processes import StopFlag, end_with_parent
end_with_parent()
from benchmarks.framework import compose
from xlm_train.train import train
train(compose(sys.argv[1], sys.argv[2]), StopFlag())
"""
COMPANY = {"alone": None, "beside a busy loop": LOOP, "beside a second run": SECOND_RUN}


@dataclass
class Accompanied:
    """Turns during which another process runs too."""

    turns: Turns
    company: subprocess.Popen[bytes]

    def next(self, result: Any = None) -> None:
        self.company.send_signal(signal.SIGSTOP)
        self.turns.next(result)
        self.company.send_signal(signal.SIGCONT)


def run(turns: Turns, corpus: str, company: str, threads: int) -> None:
    """A real run at the demo's shape in such company."""
    import torch

    torch.set_num_threads(threads)
    program = COMPANY[company]
    if program is None:
        framework(turns, corpus)
        return
    with tempfile.TemporaryDirectory() as folder:
        other = subprocess.Popen([sys.executable, "-c", program, corpus, folder], stderr=subprocess.DEVNULL)
        framework(Accompanied(turns, other), corpus)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help=f"of {STEPS} steps of each")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--spins", nargs="+", default=[SPINS, SPINS_IN_COMPANY])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    settings = [(threads, spins) for threads in options.threads for spins in options.spins]
    with tempfile.TemporaryDirectory() as temporary:
        corpus = make_text(Path(temporary) / "corpus")
        variants = [
            Variant(
                f"{threads} {spins} {company}",
                "benchmarks.busy:run",
                {"corpus": str(corpus), "company": company, "threads": threads},
                environment={"GOMP_SPINCOUNT": spins, "OMP_NUM_THREADS": str(threads)},
                warm_up=5,
                takes_turns=True,
            )
            for threads, spins in settings
            for company in COMPANY
        ]
        results = in_turn(variants, options.rounds)
    rows, figures = [], {}
    for threads, spins in settings:
        for company in COMPANY:
            measured, first = (results[f"{t} {s} {company}"] for t, s in ((threads, spins), settings[0]))
            speed = STEPS * TOKENS_PER_STEP / measured.median
            ratio = first.times_slower_than(measured)
            rows.append([threads, spins, company, f"{speed:,.0f}", spread(ratio)])
            figures[f"{threads} threads, {spins} spins, {company}"] = {
                "tokens_per_second": speed,
                "times_the_first_setting": ratio,
                "cpu_seconds_per_step": statistics.median(measured.cpu_seconds) / STEPS,
            }
    text = table(["threads", "spins", "company", "tokens/s", "times the first setting"], rows)
    return report("Beside other programs, demo's shape", text, figures, options.json)


if __name__ == "__main__":
    main()
