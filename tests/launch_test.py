"""The scripts in launch/, by what checks shell and Kubernetes, and by running them."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

# Generated from the OpenAPI descriptions of Kubernetes and JobSet.
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    assert os.access(script, os.X_OK) == (script.suffix == ".sh")
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    result = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def strict(schema: dict) -> dict:
    """The schema of a class, in which unknown fields are mistakes."""
    for name, definition in [("", schema), *schema["$defs"].items()]:
        if name.endswith(("_Quantity", "ResourceQuantity", "IntOrString")):
            definition.clear()
            definition["type"] = ["string", "number"]
        elif "properties" in definition:
            definition["additionalProperties"] = False
    return schema


@pytest.fixture(scope="module")
def job_set() -> dict:
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def test_job_set_fits_the_schema(job_set):
    validator = jsonschema.Draft202012Validator(strict(JobsetV1alpha2JobSet.model_json_schema()))
    validator.validate(job_set)
    for mistake in ({"parallelism": "four"}, {"paralelism": 4}):
        changed = json.loads(json.dumps(job_set))
        changed["spec"]["replicatedJobs"][0]["template"]["spec"] |= mistake
        assert not validator.is_valid(changed)
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_job_set_agrees_with_itself(job_set):
    """Numbers and names that stand in several places."""
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert int(environment["JAX_NUM_PROCESSES"]) == job["parallelism"] == job["completions"]
    name, subdomain = job_set["metadata"]["name"], job_set["spec"]["network"]["subdomain"]
    host, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{subdomain}"
    assert int(port) in [port["containerPort"] for port in container["ports"]]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert int(rows) * int(columns) == chips * job["parallelism"]
    (codes,) = (
        rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    )
    assert codes["containerName"] == container["name"]
    assert f"--stopped_exit_code={codes['values'][0]}" in container["command"]
    assert job["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    assert job_set["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == [
        "PodFailurePolicy"
    ]


def local(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LAUNCH / "local.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


_TELL = """
echo "$JAX_PROCESS_ID|$JAX_NUM_PROCESSES|$JAX_PLATFORMS|$XLA_FLAGS|$JAX_LOCAL_DEVICE_IDS"
echo "$JAX_COORDINATOR_ADDRESS" >&2
printf 'without end of line'
"""


def test_local_tells_processes_of_each_other(tmp_path):
    environment = {"PATH": os.environ["PATH"], "XLA_FLAGS": "--xla_x=1"}
    result = local("-n", "3", "-c", "2", "bash", "-c", _TELL, env=environment)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    flags = "--xla_x=1 --xla_force_host_platform_device_count=2"
    for index in range(3):
        assert f"[{index}] {index}|3|cpu|{flags}|" in lines
        assert f"[{index}] without end of line" in lines
    assert len(set(re.findall(r"localhost:\d+", result.stdout))) == 1

    logs = tmp_path / "logs"
    options = ["-n", "2", "-g", "2", "-p", "12345", "-l", str(logs)]
    result = local(*options, "bash", "-c", _TELL, env={"PATH": os.environ["PATH"]})
    assert (result.returncode, result.stdout) == (0, "")
    for index, gpus in enumerate(("0,1", "2,3")):
        content = (logs / f"{index}.log").read_text()
        assert f"{index}|2|||{gpus}\n" in content and "localhost:12345\n" in content


def test_local_ends_all_when_one_fails():
    script = '[ "$JAX_PROCESS_ID" = 1 ] && exit 7; exec sleep 50'
    started = time.monotonic()
    result = local("-n", "3", "-t", "1", "bash", "-c", script)
    assert result.returncode == 7 and time.monotonic() - started < 20
    assert "process 1 has ended with exit code 7" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(heeding_sigint, number):
    script = (
        'trap "echo saved; exit $JAX_PROCESS_ID" TERM; echo ready; while :; do sleep 0.05; done'
    )
    with subprocess.Popen(
        [LAUNCH / "local.sh", "-n", "2", "bash", "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        output = ""
        while output.count("ready") < 2:
            output += process.stdout.readline()
        os.kill(process.pid, number)
        output += process.stdout.read()
    assert "[0] saved" in output and "[1] saved" in output
    assert process.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["-n", "2"], ["-n", "0", "true"], ["-n", "x", "true"], ["-c", "1", "-g", "1", "true"]],
)
def test_local_refuses_mistakes(arguments):
    result = local(*arguments)
    assert result.returncode == 2 and result.stderr


def stand_in(directory: pathlib.Path, name: str, script: str) -> dict[str, str]:
    """An environment in which a command of the outside world is a script that writes a log."""
    path = directory / name
    path.write_text(
        f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >>"{directory}/log"\n{script}'
    )
    path.chmod(0o755)
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (85, 0), (1, 1)])
def test_slurm_queues_again_what_was_stopped(tmp_path, code, expected):
    stand_in(tmp_path, "srun", f"sleep 0.5; exit {code}")
    environment = stand_in(tmp_path, "scontrol", "")
    environment |= {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "12"}
    with subprocess.Popen(
        ["bash", LAUNCH / "gpu_slurm.sbatch", "--workdir=/runs/a b"], env=environment, cwd=tmp_path
    ) as process:
        while not (tmp_path / "log").exists():
            time.sleep(0.02)
        process.terminate()  # As preemption does; it waits for srun all the same.
    assert process.returncode == expected
    srun, *rest = (tmp_path / "log").read_text().splitlines()
    assert srun.endswith(" --stopped_exit_code=85 --config.data.num_workers=10 --workdir=/runs/a b")
    assert rest == (["scontrol requeue 42"] if code == 85 else [])


# A worker's shell stands in for the whole slice.
_GCLOUD = """
state="$(dirname "$0")/state"
case "$*" in
  *" describe "*) cat "$state"; echo ACTIVE >"$state" ;;
  *" ssh "*)
    for argument in "$@"; do
      [[ $argument == --command=* ]] && command=${argument#--command=}
      [[ $argument == --output-directory=* ]] && exec >"${argument#*=}/0.log"
    done
    cd "$HOME" && bash -c "$command"
    ;;
esac
"""


def test_tpu_pod_from_creation_to_deletion(tmp_path):
    environment = stand_in(tmp_path, "gcloud", _GCLOUD)
    environment["HOME"] = str(tmp_path / "home")
    (tmp_path / "home" / "nvg_jax").mkdir(parents=True)
    (tmp_path / "state").write_text("ACTIVE")

    def pod(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [LAUNCH / "tpu_pod.sh", "-z", "us-west4-a", "slice", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert pod("create", "v5litepod-16", "--spot").returncode == 0
    script = """
        trap 'echo "saved $1"; exit 3' TERM
        echo ready
        for ((i = 0; i < 400; i++)); do sleep 0.05; done"""
    assert pod("run", "bash", "-c", script, "x", 'it\'s "here"').returncode == 0
    assert "running; ready" in pod("status").stdout
    again = pod("run", "true")
    assert again.returncode == 1 and "a command runs already" in again.stderr
    assert pod("stop").returncode == 0
    assert pod("wait").returncode == 3
    assert "ended with exit code 3" in pod("status").stdout
    assert pod("logs", str(tmp_path / "logs")).returncode == 0
    assert (tmp_path / "logs" / "0.log").read_text() == 'ready\nsaved it\'s "here"\n'
    assert pod("delete").returncode == 0

    calls = (tmp_path / "log").read_text().splitlines()
    queued = "gcloud compute tpus queued-resources"
    assert calls[0] == (
        f"{queued} create slice --zone=us-west4-a --node-id=slice --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert calls[-1] == f"{queued} delete slice --zone=us-west4-a --force --quiet"

    (tmp_path / "state").write_text("FAILED")
    failed = pod("create", "v5litepod-16")
    assert failed.returncode == 1 and "the request is FAILED" in failed.stderr
    assert pod("run").returncode == pod("paint").returncode == 2
