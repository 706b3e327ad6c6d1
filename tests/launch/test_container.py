"""The Dockerfile: linted, pinned, not root; its command in a root directory and a process namespace of its own, as its user.

No image can be fetched here, so the base image's part (Python, Debian's programs) is this machine's, and so are the
packages; the project is installed from a wheel as the Dockerfile does it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, REPOSITORY
from tests.end_to_end.test_training import assert_same_run, wait_for_step
from tests.launch.conftest import LAUNCH, ci_must_not_skip

DOCKERFILE = LAUNCH / "Dockerfile"
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)).splitlines()
    if line
]
LAST_STAGE = INSTRUCTIONS[max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]

Undisturbed = Callable[[int], Path]


def last(name: str) -> str:
    """Argument of an instruction that the last stage has once."""
    (found,) = (argument for instruction, argument in LAST_STAGE if instruction == name)
    return found


def test_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([str(program), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_it_is_pinned_and_runs_as_a_user_given_by_number() -> None:
    """hadolint finds images and Debian's packages without a version, but not these."""
    images = {argument.split()[0] for name, argument in INSTRUCTIONS if name == "FROM"}
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", images.pop())
    text = DOCKERFILE.read_text()
    for line in re.findall(r"pip install (.*)", text):
        assert "==" in line or "-c constraints.txt" in line
    (torch,) = re.findall(r"'(torch==.*?)'", text)
    assert torch in (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert int(last("USER")) > 0  # a name would not do for Kubernetes' runAsNonRoot


@pytest.fixture
def root(tmp_path: Path, corpus_folder: Path) -> Path:
    """Root directory as the last stage has it, with the mounts that a person adds: /data and /runs."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        ci_must_not_skip("`unshare --mount --pid` does not work here")
    root = tmp_path / "root"
    for folder in (
        "usr",
        "proc",
        "dev",
        "etc",
        "tmp",
        "runs",
        "data/ende",
        "opt/deps",
        "opt/xlm_train/launch",
        "home/xlm",
    ):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    shutil.copytree("/etc/alternatives", root / "etc/alternatives", symlinks=True)
    shutil.copy("/etc/ld.so.cache", root / "etc")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nxlm:x:1000:1000::/home/xlm:/bin/sh\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
    (root / "tmp").chmod(0o1777)
    for name in ("runs", "home/xlm"):
        os.chown(root / name, 1000, 1000)
    for path in (line.split() for name, line in LAST_STAGE if name == "COPY" and "launch" in line):
        shutil.copytree(REPOSITORY / path[0], root / path[1].removeprefix("/"), dirs_exist_ok=True)
    base = Path(sys.base_prefix)
    (root / base.relative_to("/")).mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(root / "tmp"), str(REPOSITORY)],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "mount.sh").write_text(
        f"set -eu\nmount --make-rprivate /\nmount -t proc proc {root}/proc\nmount --rbind /dev {root}/dev\n"
        + "".join(
            f"mount --bind -o ro {source} {root}/{target}\n"
            for source, target in [
                ("/usr", "usr"), (base, base.relative_to("/")), (corpus_folder, "data/ende"),
                (Path(pytest.__file__).parents[1], "opt/deps"),
            ]
        )
        + 'exec chroot "$@"\n'
    )  # fmt: skip
    install = (
        f"{base}/bin/python3 -m venv --without-pip /opt/venv && echo /opt/deps > /opt/venv/lib/python3.11/site-packages/deps.pth"
        " && /opt/venv/bin/python -m pip install --quiet --no-deps --no-index --ignore-installed /tmp/*.whl"
    )
    subprocess.run(
        inside(root, "0", "bash", "-c", install), check=True, timeout=PATIENCE, env={"PATH": "/usr/sbin:/usr/bin"}
    )
    return root


def inside(root: Path, user: str, *command: str) -> list[str]:
    """A command in that root directory, as a user, as the first process of a namespace."""
    variables = dict(word.split("=") for word in last("ENV").split())
    path = variables["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    start = f'cd {last("WORKDIR")} && exec "$@"'
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", str(root.parent / "mount.sh")),
        *(f"--userspec={user}:{user}", str(root), "/usr/bin/env", "-i", f"PATH={path}", "HOME=/home/xlm"),
        *(f"VIRTUAL_ENV={variables['VIRTUAL_ENV']}", "OMP_NUM_THREADS=1", "sh", "-c", start, "sh", *command),
    ]


@pytest.mark.slow
def test_its_command_and_a_pods_command_run_as_its_user(root: Path, words: list[str], undisturbed: Undisturbed) -> None:
    user = last("USER")
    helped = subprocess.run(
        inside(root, user, *json.loads(last("CMD"))), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert "Usage: xlm-train" in helped.stdout

    words = [word for word in words if not word.startswith("data.path=")]
    sizes = ["NODES=1", "DEVICES=2", "HOST=localhost", "PORT=0"]
    script = "/opt/xlm_train/launch/several_nodes.sh"
    command = inside(
        root, user, "env", *sizes, script, *words, "data.path=/data/ende", "paths.runs=/runs", "run_name=x"
    )
    process = subprocess.Popen(command)
    try:
        wait_for_step(root / "runs/x", 20, process)
        first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(first, signal.SIGTERM)  # what a container's first process gets
        assert process.wait(PATIENCE) == 75
    finally:
        process.kill()
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == 0
    assert {path.stat().st_uid for path in (root / "runs").rglob("*")} == {int(user)}
    assert_same_run(undisturbed(2), root / "runs/x")
