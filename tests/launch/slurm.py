"""A scheduler of one machine, for the scripts in launch/: sbatch, srun and scontrol by the name it is called under.

It starts real processes with the environment that SLURM 22.05 was seen to give them, delivers real signals where SLURM
delivers them, and starts a job again where the job asked for it. `nodes` are addresses of the loopback interface. What
sbatch, srun and scontrol were asked is kept in $FAKE_SLURM/calls, one JSON list a line. A test writes a file into
$FAKE_SLURM to make something happen: `time-up` (the job's time ends: its --signal goes out), `scancel`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
CPUS_ON_NODE = 8
SBATCH_OPTIONS = {
    "job-name", "nodes", "gpus-per-node", "cpus-per-task", "exclusive", "mem", "time", "signal", "requeue", "open-mode", "output",
    "array",
}  # fmt: skip
SRUN_OPTIONS = {"ntasks-per-node", "cpus-per-task", "kill-on-bad-exit"}


def log(*words: str) -> None:
    with open(STATE / "calls", "a", encoding="utf-8") as file:
        file.write(json.dumps(words) + "\n")


def options_of(words: list[str], known: set[str], command: str) -> dict[str, str]:
    found = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name not in known:
            sys.exit(f"{command}: unrecognized option '{word}'")
        found[name] = value
    return found


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Leading --options and the rest."""
    count = next((i for i, word in enumerate(words) if not word.startswith("--")), len(words))
    return words[:count], words[count:]


def free_job_id() -> int:
    """A job id from which Lightning derives a free port: 15000 + its last four digits."""
    for number in range(os.getpid() % 9000, 10_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", 15_000 + number))
                return 1_000_000 + number
            except OSError:
                continue
    raise RuntimeError("no free port")


def sbatch(words: list[str]) -> int:
    """Run the job to its end, as `sbatch --wait` would, one array task after the other."""
    given, (script, *arguments) = split(words)
    header = re.findall(r"^#SBATCH (--.*?)(?:[ \t]+#.*)?$", Path(script).read_text(encoding="utf-8"), re.MULTILINE)
    options = options_of([*header, *given], SBATCH_OPTIONS, "sbatch")
    if "array" not in options:
        return run_job(script, arguments, options, {})
    first, _, last = options["array"].partition("-")
    return max(
        run_job(script, arguments, options, {"SLURM_ARRAY_TASK_ID": str(task)})
        for task in range(int(first), int(last or first) + 1)
    )


def run_job(script: str, arguments: list[str], options: dict[str, str], more: dict[str, str]) -> int:
    nodes, gpus = int(options["nodes"]), options["gpus-per-node"]
    hosts = "127.0.0.1" if nodes == 1 else f"127.0.0.[1-{nodes}]"
    job = str(free_job_id())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {
        "SLURM_JOB_ID": job, "SLURM_JOBID": job, "SLURM_JOB_NAME": options["job-name"],
        "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": hosts, "SLURM_NODELIST": hosts,
        "SLURM_GPUS_ON_NODE": gpus, "SLURM_CPUS_ON_NODE": str(CPUS_ON_NODE), "SLURM_SUBMIT_DIR": str(Path.cwd()),
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", **more,
    }  # fmt: skip
    spooled = STATE / "slurm_script"  # a job's script is copied: it must not look for files beside itself
    spooled.write_text(Path(script).read_text(encoding="utf-8"), encoding="utf-8")
    name = options["output"].replace("%x", options["job-name"]).replace("%j", job)
    name = name.replace("%A", job).replace("%a", more.get("SLURM_ARRAY_TASK_ID", ""))
    mode = "ab" if options.get("open-mode") == "append" else "wb"
    for restart in range(5):
        (STATE / "requeue").unlink(missing_ok=True)
        if restart:
            environment["SLURM_RESTART_COUNT"] = str(restart)
        log("start", job)
        with open(STATE / name, mode) as output:
            batch = subprocess.Popen(
                ["bash", str(spooled), *arguments],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            while batch.poll() is None:
                deliver(options["signal"], batch)
                time.sleep(0.05)
        if not (STATE / "requeue").exists():
            return batch.returncode
    raise RuntimeError("queued again and again")


def deliver(wanted: str, batch: subprocess.Popen[bytes]) -> None:
    """Signals that are due: --signal=[B:]NAME@SECONDS goes to the tasks, with B: to the script alone; scancel to both."""
    if (STATE / "time-up").exists():
        (STATE / "time-up").unlink()
        name = wanted.split("@")[0]
        number = getattr(signal, f"SIG{name.removeprefix('B:')}")
        for pid in [batch.pid] if name.startswith("B:") else tasks():
            os.kill(pid, number)
    if (STATE / "scancel").exists():
        (STATE / "scancel").unlink()
        for pid in [batch.pid, *tasks()]:
            os.kill(pid, signal.SIGTERM)


def tasks() -> list[int]:
    return json.loads((STATE / "tasks").read_text())


def srun(words: list[str]) -> int:
    given, command = split(words)
    options = options_of(given, SRUN_OPTIONS, "srun")
    nodes, per_node = int(os.environ["SLURM_JOB_NUM_NODES"]), int(options["ntasks-per-node"])
    if per_node * int(options["cpus-per-task"]) > CPUS_ON_NODE:
        sys.exit("srun: error: Unable to create step for job: More processors requested than permitted")
    world = nodes * per_node
    processes = []
    for rank in range(world):
        environment = {
            **os.environ,
            "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank // per_node), "SLURM_LOCALID": str(rank % per_node),
            "SLURM_NTASKS": str(world), "SLURM_NPROCS": str(world), "SLURM_STEP_NUM_TASKS": str(world),
            "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(per_node), "SLURM_STEP_ID": "0",
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        }  # fmt: skip
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    (STATE / "tasks.new").write_text(json.dumps([process.pid for process in processes]))
    os.replace(STATE / "tasks.new", STATE / "tasks")

    killed_at = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.02)
        if (
            killed_at is None
            and any(process.returncode for process in processes)
            and options.get("kill-on-bad-exit") == "1"
        ):
            killed_at = time.monotonic()
            for process in processes:
                process.terminate()
        elif killed_at is not None and time.monotonic() > killed_at + 30:
            for process in processes:
                process.kill()
    return max(128 - code if code < 0 else code for code in (process.returncode for process in processes))


def scontrol(words: list[str]) -> int:
    if words != ["requeue", os.environ["SLURM_JOB_ID"]]:
        sys.exit(f"scontrol: invalid keyword: {' '.join(words)}")
    (STATE / "requeue").touch()
    return 0


if __name__ == "__main__":
    called = Path(sys.argv[0]).name
    log(called, *sys.argv[1:])
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[called](sys.argv[1:]))
