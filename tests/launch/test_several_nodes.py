"""Two machines, rehearsed as two network namespaces with names of their own and a cable between them; two processes on each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, REPOSITORY, command
from tests.end_to_end.test_training import assert_same_run
from tests.launch.conftest import LAUNCH, STEPS, ci_must_not_skip
from xlm_train.training.loggers import read_metrics

TIMEOUT = 20  # trainer.timeout_seconds: what a lost machine may cost
SLACK = 60  # for the processes to end after it
NOTICE = 60  # of several_nodes.sh with a torchrun that has no workers any more


class Machines:
    """Namespaces joined by a pair of virtual network cards."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.names = [f"xlm{os.getpid()}{letter}" for letter in "ab"]
        addresses = ["10.213.7.1", "10.213.7.2"]
        self.environment = {
            **environment,
            "NODES": "2",
            "DEVICES": "2",
            "HOST": self.names[0],
            "GLOO_SOCKET_IFNAME": "cable",
        }
        hosts = "".join(f"{address} {name}\n" for address, name in zip(addresses, self.names, strict=True))
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            folder = Path("/etc/netns") / name  # `ip netns exec` lays its files over those of /etc
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("127.0.0.1 localhost\n" + hosts)
        ip("-n", self.names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.names[1])
        for name, address in zip(self.names, addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")

    def start(self, words: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
        """The same line on both; their output goes to LOG.0 and LOG.1."""
        processes = []
        for number, name in enumerate(self.names):
            on = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
            with open(f"{log}.{number}", "wb") as output:
                processes.append(
                    subprocess.Popen(
                        [*on, str(LAUNCH / "several_nodes.sh"), *words],
                        env=self.environment, cwd=REPOSITORY, stdout=output, stderr=output,
                    )
                )  # fmt: skip
        return processes

    def cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", "cable", state)

    def remove(self) -> None:
        for name in self.names:
            for pid in ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns") / name)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def machines(environment: dict[str, str]) -> Iterator[Machines]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    probe = f"xlm{os.getpid()}probe"
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        ci_must_not_skip("`ip netns add` does not work here: network namespaces (iproute2) are needed")
    ip("netns", "del", probe)
    machines = Machines(environment)
    yield machines
    machines.remove()


@pytest.mark.slow
def test_a_machine_cut_off_ends_the_run_and_the_same_line_goes_on(
    machines: Machines, words: list[str], tmp_path: Path
) -> None:
    words = [*words, "data.slots=4", "callbacks.checkpointing.every_n_steps=10", f"trainer.timeout_seconds={TIMEOUT}"]
    command("xlm_train.commands.train", *words, f"paths.runs={tmp_path}", "run_name=undisturbed", "trainer.devices=4")
    words += [f"paths.runs={tmp_path}", "run_name=cut"]
    run, log = tmp_path / "cut", tmp_path / "log"

    processes = machines.start(words, log)
    deadline = time.monotonic() + PATIENCE
    while not any(line["step"] >= 20 for line in read_metrics(run / "metrics.jsonl")):
        assert all(process.poll() is None for process in processes), texts(log)
        assert time.monotonic() < deadline, texts(log)
        time.sleep(0.01)
    machines.cable("down")
    cut = time.monotonic()
    seconds = []
    for process, longest in zip(processes, (TIMEOUT + SLACK, TIMEOUT + SLACK + NOTICE), strict=True):
        assert process.wait(longest) != 0
        seconds.append(time.monotonic() - cut)
    print("the machines had left {:.0f} and {:.0f} s after the cut".format(*seconds))
    for text in texts(log):
        assert "has ended or does not answer" in text
        assert "Traceback" not in text
        assert "finished after" not in text

    machines.cable("up")
    processes = machines.start(words, log)
    assert [process.wait(PATIENCE) for process in processes] == [0, 0], texts(log)
    assert any(f"finished after {STEPS} steps" in text for text in texts(log))
    assert "from step" in "".join(texts(log))
    assert_same_run(tmp_path / "undisturbed", run)


def texts(log: Path) -> list[str]:
    return [Path(f"{log}.{number}").read_text() for number in (0, 1)]
