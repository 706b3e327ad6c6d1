"""What this machine's GPUs do with the model: the wheel, every device and link, the step, its kernels, a resume, and more.

    launch/bench_gpu.sh [--json gpu.json] [--only step,compare] [--seconds 400]

Real runs are xlm-train's own, at the real shape on one GPU, on random words with the frequencies of words. Each part runs
in a process of its own, within its time; one that fails is written down with its error, and the next begins. The file
is written after every part. Without a GPU everything runs at a small shape on the CPU: that shows that the tool works,
and nothing of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import gpu_links, gpu_machine, gpu_runs, gpu_step
from benchmarks.gpu_machine import Failed
from benchmarks.gpu_work import Work


@dataclass(frozen=True)
class Part:
    """do: what it measures. seconds: within which it must be done."""

    do: Callable[[Work], Any]
    seconds: float


def _devices(work: Work) -> dict[str, Any]:
    import torch

    return gpu_links.measure_devices(torch.cuda.device_count() if work.gpu else 2, "cuda" if work.gpu else "cpu")


def _kernels(work: Work) -> dict[str, Any]:
    return gpu_step.kernels(work.gpu, ("16-mixed", "bf16-mixed") if work.gpu else ("32-true",))


# by importance: where time is short, the last ones are left out
PARTS = {
    "devices": Part(_devices, 90),
    "step": Part(gpu_runs.long_step, 150),
    "compare": Part(lambda work: gpu_step.compare(work.gpu, "bf16-mixed" if work.gpu else "32-true"), 90),
    "kernels": Part(_kernels, 60),
    "others": Part(gpu_runs.other_steps, 120),
    "resume": Part(gpu_runs.resume, 180),
    "repeats": Part(lambda work: gpu_step.repeats(work.gpu, "16-mixed" if work.gpu else "32-true"), 60),
    "waits": Part(gpu_runs.waits, 100),
    "variants": Part(gpu_runs.variants, 120),
    "plan": Part(gpu_runs.plans, 60),
    "eval": Part(gpu_runs.scores, 120),
    "two_on_one": Part(gpu_runs.two_on_one, 90),
    "rollback": Part(gpu_runs.rollback, 90),
    "export": Part(gpu_runs.export, 120),
    "mlm": Part(lambda work: gpu_runs.objective(work, "mlm"), 90),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the results go: send this file back")
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=540.0, help="no part runs after so many seconds (540)")
    parser.add_argument("--folder", type=Path, help="for corpus and runs, kept; else a temporary one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    end = time.monotonic() + arguments.seconds
    results: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        machine = in_child(lambda work: _machine(), Work(False, folder, {}), 120)
        results |= machine.get("result", machine)
        gpu = bool(results.get("gpus"))
        results["shape"] = (
            "the real one" if gpu else "a small one, on the CPU: nothing of this says anything about a GPU"
        )
        show("machine", results)
        if "failed" in machine:
            write(arguments.json, results)
            print(f"bench_gpu: {machine['failed']}", file=sys.stderr)
            return 2
        for name in arguments.only:
            left = end - time.monotonic()
            if left <= 0:
                results[name] = {"left out": f"after --seconds {arguments.seconds:g}"}
            else:
                found = in_child(PARTS[name].do, Work(gpu, folder.resolve(), results), min(PARTS[name].seconds, left))
                results[name] = found.pop("result", {}) | found
            show(name, results[name])
            write(arguments.json, results)
    failed = [name for name in arguments.only if "failed" in results[name]]
    print(f"\nwritten to {arguments.json}: please send it back" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    return names


def _machine() -> dict[str, Any]:
    gpu_machine.check_wheel()
    return gpu_machine.versions()


def in_child(work: Callable[[Work], Any], given: Work, seconds: float) -> dict[str, Any]:
    """Do a part in a process of its own, which is ended with all that it started when its time is up.

    This process itself never touches a GPU: a child made by fork could not use it then.

    Returns:
        {"seconds"} and "result", or "failed" with what went wrong.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, given, send))
    began = time.monotonic()
    process.start()
    send.close()
    answer: dict[str, Any] = {"failed": f"not done after {seconds:.0f} s"}
    try:
        if receive.poll(seconds):
            answer = receive.recv()
    except EOFError:
        process.join()
        answer = {"failed": f"its process ended with status {process.exitcode}"}
    finally:  # where this process is told to leave, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # its group: what it has started too
        process.join()
    return {"seconds": round(time.monotonic() - began, 1), **answer}


def _child(work: Callable[[Work], Any], given: Work, send: Any) -> None:
    os.setsid()
    try:
        answer = {"result": work(given)}
    except Failed as error:
        answer = {"failed": str(error)}
    except BaseException:
        answer = {"failed": traceback.format_exc()[-4000:]}
    send.send(answer)
    send.close()
    os._exit(0)  # without waiting for whatever a library left running


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Write all results so far, whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
    part.replace(file)


def show(title: str, values: Mapping[str, Any], indent: str = "  ") -> None:
    """Print results, one a line."""
    if indent == "  ":
        print(f"\n{title}", flush=True)
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}", flush=True)
            show(name, value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], str) and len(value) > 1:
            print("\n".join([f"{indent}{name}", *(f"{indent}  {line}" for line in value)]), flush=True)
        else:
            print(
                f"{indent}{name:24} {value:.4g}" if isinstance(value, float) else f"{indent}{name:24} {value}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
