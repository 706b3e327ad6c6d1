"""The manifests: against the published schemas, their commands against the configs, and the pods' command as real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from tests.conftest import PATIENCE, REPOSITORY, free_port
from tests.end_to_end.test_training import assert_same_run, wait_for_step
from tests.launch.conftest import LAUNCH
from xlm_train.config.overrides import check_overrides

VERSIONS = ("1.31", "1.37")  # of Kubernetes: the first in which all that the Job uses is stable, and the newest known
SCHEMA = Path(__file__).with_name("skypilot.schema.json")
IMAGE = "/opt/xlm_train"  # where the container has the project

Compose = Callable[..., dict[str, Any]]


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """Manifests of a file, by kind."""
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all((LAUNCH / "kubernetes" / name).read_text())}


JOB, SERVICE = (manifests("job.yaml")[kind] for kind in ("Job", "Service"))
TRAIN_JOB, RUNTIME = (manifests("trainjob.yaml")[kind] for kind in ("TrainJob", "TrainingRuntime"))
SKYPILOT = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [JOB, SERVICE], ids=["Job", "Service"])
def test_job_and_service_are_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_what_is_misspelt_is_found() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**JOB, "spec": {**JOB["spec"], "backofLimit": 1}}, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(
    ("model", "manifest"),
    [(models.TrainerV1alpha1TrainJob, TRAIN_JOB), (models.TrainerV1alpha1TrainingRuntime, RUNTIME)],
    ids=["TrainJob", "TrainingRuntime"],
)
def test_kubeflows_are_valid(model: Any, manifest: dict[str, Any]) -> None:
    """Kubeflow's own models take them, and lose nothing: they ignore keys that they do not know."""
    assert model.from_dict(manifest).to_dict() == manifest


def test_kubeflows_pods_leave_and_start_again_as_the_jobs_do() -> None:
    ((name, job),) = (
        (entry["name"], entry["template"]) for entry in RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]
    )
    assert name == "node"  # Kubeflow looks for this name, of the container too
    for key in ("backoffLimit", "podReplacementPolicy"):
        assert job["spec"][key] == JOB["spec"][key]
    text = json.dumps(JOB["spec"]["podFailurePolicy"])
    assert job["spec"]["podFailurePolicy"] == json.loads(text.replace('"train"', '"node"'))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod.pop("containers")
    assert pod == {key: value for key, value in POD.items() if key not in ("containers", "subdomain")}
    assert container == {**{key: CONTAINER[key] for key in container}, "name": "node"}
    trainer = TRAIN_JOB["spec"]["trainer"]
    assert (trainer["resourcesPerNode"], trainer["args"]) == (CONTAINER["resources"], CONTAINER["args"])
    assert trainer["command"][-1:] == CONTAINER["command"]
    # what would be sent is a Job's specification too, of which Kubeflow's models check only the types
    job["spec"]["template"]["spec"]["containers"] = [container]
    kubernetes_validate.validate({**JOB, "spec": job["spec"]}, VERSIONS[-1], strict=True)


def test_sizes_and_names_agree() -> None:
    spec = JOB["spec"]
    assert (
        spec["completions"]
        == spec["parallelism"]
        == int(ENVIRONMENT["NODES"])
        == TRAIN_JOB["spec"]["trainer"]["numNodes"]
    )
    devices = int(ENVIRONMENT["DEVICES"])
    assert (
        CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == devices == TRAIN_JOB["spec"]["trainer"]["numProcPerNode"]
    )
    name, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (POD["subdomain"], ENVIRONMENT["HOST"]) == (service, f"{name}-0.{service}")


@pytest.mark.parametrize(
    "arguments", [CONTAINER["args"], TRAIN_JOB["spec"]["trainer"]["args"]], ids=["Job", "TrainJob"]
)
def test_commands_take_what_they_are_given(arguments: list[str], compose: Compose) -> None:
    assert CONTAINER["command"] == [f"{IMAGE}/launch/several_nodes.sh"]
    check_overrides("train", arguments)
    nodes, devices = int(ENVIRONMENT["NODES"]), int(ENVIRONMENT["DEVICES"])
    config = compose("train", *arguments, f"trainer.nodes={nodes}", f"trainer.devices={devices}")
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {config["paths"]["runs"], str(Path(config["data"]["path"]).parent)} <= mounts
    assert config["data"]["slots"] >= nodes * devices


def test_skypilots_task_is_valid() -> None:
    schemas = json.loads(SCHEMA.read_text())
    jsonschema.validate(SKYPILOT, schemas["task"])
    jsonschema.validate(SKYPILOT["resources"], schemas["resources"])
    known, *_ = (
        kind for kind in schemas["resources"]["properties"]["job_recovery"]["anyOf"] if kind["type"] == "object"
    )
    assert SKYPILOT["resources"]["job_recovery"].keys() <= known["properties"].keys()  # a client lets others pass
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SKYPILOT, "node": 1}, schemas["task"])


def test_skypilots_commands_take_what_they_are_given(tmp_path: Path, compose: Compose) -> None:
    """Its `run`, by bash, with the variables that SkyPilot sets and a stand-in for the script that shows what it is given."""
    (tmp_path / "launch").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    script = tmp_path / "launch/several_nodes.sh"
    script.write_text('#!/bin/sh\necho "$NODES $DEVICES $HOST"\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    given = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", SKYPILOT["run"]],
        env={**os.environ, **SKYPILOT["envs"], **given}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    sizes, *words = result.stdout.splitlines()
    assert sizes == "2 8 10.0.0.1"
    check_overrides("train", words)
    assert compose("train", *words)["paths"]["runs"] == "s3://NAME/runs"
    installed = re.search(r"pip install -c (\S+) '\.\[(\w+)\]'", SKYPILOT["setup"])
    assert installed
    assert (REPOSITORY / installed[1]).is_file()


def action(status: int, disrupted: bool = False) -> str:
    """What the Job does about a container that ended with a status: the first rule that matches, as Kubernetes has it."""
    for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is None:
            assert [pattern["type"] for pattern in rule["onPodConditions"]] == ["DisruptionTarget"]
        if disrupted if codes is None else status in codes["values"]:
            return str(rule["action"])
    return "Count"


def test_what_the_job_does_about_exit_statuses() -> None:
    assert [action(status) for status in (1, 2, 71, 75, 137)] == ["Count", "FailJob", "FailJob", "Ignore", "Count"]
    assert action(143, disrupted=True) == "Ignore"


def start_pods(words: list[str], environment: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """The pods' processes as the manifest has them, but of one device each, with names of this machine."""
    command = [word.replace(IMAGE, str(REPOSITORY)) for word in CONTAINER["command"]]
    here = {"NODES": "2", "DEVICES": "1", "HOST": "localhost", "PORT": str(free_port()), "WAIT": "60"}
    assert set(here) >= set(ENVIRONMENT)
    return [subprocess.Popen([*command, *words], env={**environment, **here}, cwd=REPOSITORY) for _ in range(2)]


@pytest.mark.slow
def test_one_pod_is_told_to_leave_and_all_are_started_again(
    words: list[str], undisturbed: Callable[[int], Path], environment: dict[str, str], tmp_path: Path
) -> None:
    words = [*words, f"paths.runs={tmp_path}", "run_name=x"]
    pods = start_pods(words, environment)
    wait_for_step(tmp_path / "x", 20, pods[0])
    pods[1].send_signal(signal.SIGTERM)
    assert [process.wait(POD["terminationGracePeriodSeconds"]) for process in pods] == [75, 75]
    assert action(75) == "Ignore"
    pods = start_pods(words, environment)
    assert [process.wait(PATIENCE) for process in pods] == [0, 0]
    assert_same_run(undisturbed(2), tmp_path / "x")


@pytest.mark.slow
def test_a_mistake_ends_the_job(words: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    words = [*words, f"paths.runs={tmp_path}", "run_name=x", "data.slots=1"]
    assert "FailJob" in {action(process.wait(PATIENCE)) for process in start_pods(words, environment)}


def test_commands_of_the_document_take_what_they_are_given() -> None:
    text = (REPOSITORY / "docs/clusters.md").read_text()
    found = []
    for line in "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines():
        for path in re.findall(r"launch/[\w./]+", line):
            assert (REPOSITORY / path).is_file(), path
        if match := re.match(r"xlm-(\w+) (.*)", line):
            found.append(match[1])
            check_overrides(match[1], match[2].split())
        given = dict(word.split("=") for word in re.findall(r"--env (\S+)", line))
        assert given.keys() <= SKYPILOT["envs"].keys()
    assert found == ["plan", "prep", "export"]
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / "docs" / path).is_file(), path
