"""The files for SLURM and Kubernetes: their syntax, and that what they start is what `mrcnn train` understands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from mrcnn_tf.config import load_config
from mrcnn_tf.training.cluster import cluster_from

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "deploy" / "slurm" / "train.sbatch"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "train.yaml"
# In place of what would train: says how it was called.
CALLED = '#!/bin/bash\nprintf "%s\\n" "$TF_CONFIG" "$@"\n'


@pytest.fixture(scope="module")
def manifest():
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    return service, job, job["spec"]["template"]["spec"]


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def run_in(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TF_CONFIG": "", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=20)


def test_slurm_script(tmp_path):
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    lines = [line.removeprefix("#SBATCH --") for line in SLURM.read_text().splitlines()]
    for option in ("nodes=2", "ntasks-per-node=1", "signal=TERM@300", "requeue"):
        assert option in lines
    # SLURM stops reading options at the first command.
    text = SLURM.read_text()
    assert text.rindex("#SBATCH") < text.index("\nset -euo")
    fake(tmp_path, "srun", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
    command = [str(SLURM), "--config", "c d.yaml", "train.steps=3"]
    called = run_in(tmp_path, command, MRCNN_PYTHON="python")
    assert called.returncode == 0, called.stderr
    _, *options = called.stdout.split("python\n")[0].splitlines()
    assert "--distribution=block" in options  # the order in which `cluster_from` takes the tasks to be
    assert called.stdout.split("python\n")[1].splitlines() == ["train.py", *command[1:]]
    # Put back into the queue.
    called = run_in(tmp_path, command, MRCNN_PYTHON="python", SLURM_RESTART_COUNT="1")
    assert called.stdout.split("python\n")[1].splitlines() == ["train.py", "--resume", *command[1:]]


def test_kubernetes_manifest(manifest):
    service, job, pod = manifest
    name = job["metadata"]["name"]
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == (
        "v1",
        "Service",
        "batch/v1",
        "Job",
    )
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert service["metadata"]["name"] == pod["subdomain"]
    # A pod that is not there cannot be found by those that wait for it; one that waits is not ready.
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert job["spec"]["completionMode"] == "Indexed"
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["WORKERS"])
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {v["name"] for v in pod["volumes"]}
    assert variables["RUN"].startswith(mounts["runs"])
    assert pod["restartPolicy"] in ("OnFailure", "Never")


@pytest.mark.parametrize("index", [0, 1])
def test_kubernetes_command(manifest, tmp_path, index):
    """The pod's own script, run with a `python` that prints how it was called."""
    service, _, pod = manifest
    container = pod["containers"][0]
    fake(tmp_path, "python", CALLED)
    variables = {v["name"]: v["value"] for v in container["env"]} | {"JOB_COMPLETION_INDEX": str(index)}
    called = run_in(tmp_path, [*container["command"], *container["args"]], **variables)
    assert called.returncode == 0, called.stderr
    lines = called.stdout.splitlines()
    at = lines.index("train.py")
    cluster = cluster_from({"TF_CONFIG": "\n".join(lines[:at])})
    assert cluster.number == index and len(cluster.addresses) == 2
    port = service["spec"]["ports"][0]["port"]
    assert cluster.addresses == [f"mrcnn-train-{i}.{pod['subdomain']}:{port}" for i in (0, 1)]
    assert container["ports"] == [{"containerPort": port}]
    assert lines[-1] == "--resume"
    config = load_config(ROOT / lines[lines.index("--config") + 1], [a for a in lines[at:] if "=" in a])
    assert str(config.run_folder) == variables["RUN"] and config.data.val.images == "/data/coco/val2017"
