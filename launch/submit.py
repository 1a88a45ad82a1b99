"""Render the job that trains an experiment on a cluster; nothing is sent anywhere.

    python -m launch.submit cm3leon_7b --cluster slurm --nodes 64 --out train.sbatch
    python -m launch.submit cm3leon_7b --cluster gke-tpu --bucket gs://mine --nodes 64 \\
        --accelerator tpu-v5p-slice --topology 8x8x4

A job runs one commit: its files are shipped as an archive that is named by the commit's hash, which
the run keeps in `lives.jsonl`. It asks to be told before it is stopped, saves, and starts again
until the last step is done. None of this was tried on a real cluster: manifests are checked against
JobSet's schema, scripts by a shell.
"""

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Any, Literal

import yaml

from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.files import write_atomic
from launch.cli import parse_experiment_and
from launch.env import main
from launch.names import load_experiment

_DESCRIPTION = "Render a SLURM script, a GKE JobSet or TPU VM commands that train an experiment."
_ROOT = Path(__file__).resolve().parent.parent
_PORT = 8476
_GRACE = 300
"""Seconds between the notice and the end of a job: time for one step and one save."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the job runs."""

    cluster: Literal["slurm", "gke-tpu", "gke-gpu", "tpu-vm"] = "slurm"
    """SLURM with GPUs, Google Kubernetes Engine with TPUs or GPUs, or a TPU VM of its own."""
    nodes: int = 1
    """Machines."""
    devices: int = 8
    """GPUs, or TPU chips, of one machine; most TPU machines have 4."""
    bucket: str = ""
    """`gs://` folder for checkouts, runs and compiled programs; SLURM can do with a shared disk."""
    accelerator: str = ""
    """GKE's name of the accelerator (`nvidia-h100-80gb`, `tpu-v5p-slice`), or the type of a TPU VM
    (`v5p-512`)."""
    topology: str = ""
    """Of a TPU slice on GKE, such as 8x8x4."""
    zone: str = ""
    """Of a TPU VM."""
    hours: int = 24
    """Longest time of one SLURM allocation; the job is queued again after it."""
    image: str = "python:3.12"
    """Container image on GKE; all that it needs is Python."""
    restarts: int = 100
    """How often GKE starts the job again after a failure or a preemption."""
    out: str = ""
    """File to write; empty prints."""

    def __post_init__(self):
        wanted = {
            "slurm": (),
            "gke-tpu": ("bucket", "accelerator", "topology"),
            "gke-gpu": ("bucket", "accelerator"),
            "tpu-vm": ("bucket", "accelerator", "zone"),
        }[self.cluster]
        missing = [f"--{name}" for name in wanted if not getattr(self, name)]
        if missing:
            raise UserError(f"--cluster {self.cluster} also needs {', '.join(missing)}.")
        if self.bucket and not self.bucket.startswith("gs://"):
            raise UserError(f"--bucket {self.bucket} is no bucket; give gs://NAME/FOLDER.")
        if min(self.nodes, self.devices, self.hours) < 1 or self.restarts < 0:
            raise UserError("--nodes, --devices and --hours must be at least 1.")


def run(argv: list[str]) -> None:
    """Render the job to standard output or to a file."""
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION)
    text = render(experiment, options, commit())
    if options.out:
        write_atomic(options.out, text)
        print(f"written to {options.out}; its first lines say how to submit it.")
    else:
        print(text, end="")


def commit() -> str:
    """Hash of the checkout's commit; `UserError` if there is none, or if files differ from it."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        head = _git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "this is no git checkout, so there is no commit to ship; clone the repository."
        ) from None
    if changed:
        raise UserError(
            f"{changed.split()[-1]} differs from the last commit, and only commits are shipped; "
            "commit or stash it."
        )
    return head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def render(experiment: Experiment, options: Options, revision: str) -> str:
    """The job's text: a SLURM script, a YAML manifest or shell commands."""
    if options.bucket and not experiment.workdir:
        workdir = f"{options.bucket}/{experiment.run_dir}"
        experiment = dataclasses.replace(experiment, workdir=workdir)
    job = _Job(experiment, options, revision)
    match options.cluster:
        case "slurm":
            return _slurm(job)
        case "tpu-vm":
            return _tpu_vm(job)
        case _:
            return _jobset(job)


@dataclasses.dataclass(frozen=True)
class _Job:
    experiment: Experiment
    options: Options
    revision: str

    @property
    def name(self) -> str:
        """Fit for a host name."""
        return self.experiment.name.replace("/", "-").replace("_", "-")

    @property
    def archive(self) -> str:
        return f"{self.options.bucket}/checkouts/{self.revision}.tar.gz"

    @property
    def ship(self) -> str:
        return f"git archive --format=tar.gz {self.revision} | gcloud storage cp - {self.archive}"

    @property
    def install(self) -> str:
        """Installs the checkout with what the hardware and the paths need."""
        extras = ["cuda" if self.options.cluster in ("slurm", "gke-gpu") else "tpu"]
        extras += ["store"] if self.options.bucket else []
        return f"pip install --quiet --constraint requirements.lock '.[{','.join(extras)}]'"

    @property
    def environment(self) -> dict[str, str]:
        variables = {"CM3JAX_REVISION": self.revision}
        if self.options.bucket:  # else `launch.env` keeps compiled programs in the home
            variables["JAX_COMPILATION_CACHE_DIR"] = f"{self.options.bucket}/compiled"
        return variables

    @property
    def exports(self) -> str:
        return "\n".join(f'export {name}="{value}"' for name, value in self.environment.items())

    @property
    def train(self) -> str:
        options = shlex.join(overrides(self.experiment, load_experiment(self.experiment.name)))
        return f"python -m launch.train {self.experiment.name} {options}".strip()

    @property
    def finished(self) -> str:
        """Succeeds when the last step is done: a run that was told to stop also ends with 0."""
        program = (
            "import sys; from cm3jax.metrics import read; lines = read(sys.argv[1]); "
            "sys.exit(not lines or lines[-1]['step'] < int(sys.argv[2]))"
        )
        run_dir, steps = self.experiment.run_dir, self.experiment.train.steps
        return f'python -c "{program}" {shlex.quote(run_dir)} {steps}'

    @property
    def supervised(self) -> str:
        """Trains, passing the request to stop on, and fails unless the last step is done."""
        return "\n".join(
            [
                f"{self.train} &",
                "child=$!",
                """trap 'kill -TERM "$child"' TERM""",
                "# The first wait ends early when the request to stop comes.",
                'wait "$child" || wait "$child" || exit',
                self.finished,
            ]
        )


def overrides(experiment: Any, default: Any, prefix: str = "") -> list[str]:
    """The options that turn the config `default` into `experiment`."""
    words: list[str] = []
    for field in dataclasses.fields(experiment):
        value, before = getattr(experiment, field.name), getattr(default, field.name)
        name = f"{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += overrides(value, before, f"{name}.")
        elif value == before:
            continue
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--{prefix}no-{field.name.replace('_', '-')}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def _slurm(job: _Job) -> str:
    options = job.options
    checkout = f"checkouts/{job.revision}"
    return f"""\
#!/usr/bin/env bash
# From the root of the checkout, on a disk that all machines share:  sbatch THIS_FILE
#SBATCH --job-name={job.name}
#SBATCH --nodes={options.nodes}
#SBATCH --ntasks-per-node={options.devices}
#SBATCH --gpus-per-node={options.devices}
#SBATCH --exclusive
#SBATCH --time={options.hours}:00:00
#SBATCH --signal=TERM@{_GRACE}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={job.name}-%j.log

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

# One folder for each commit, made by the first job that needs it.
if [ ! -e {checkout}/ready ]; then
  mkdir -p {checkout}
  git archive {job.revision} | tar -x -C {checkout}
  python3 -m venv {checkout}/.venv
  (cd {checkout} && PATH="$PWD/.venv/bin:$PATH" {job.install})
  touch {checkout}/ready
fi
# Runs and data stay where they are, whatever commit works on them.
mkdir -p runs data
ln -sfn "$PWD/runs" "$PWD/data" {checkout}/
cd {checkout}
export PATH="$PWD/.venv/bin:$PATH"

{job.exports}
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export JAX_COORDINATOR_ADDRESS="$first:{_PORT}"
export JAX_NUM_PROCESSES="$SLURM_NTASKS"

# One process for each GPU.
worker="$(cat <<'WORKER'
export JAX_PROCESS_ID="$SLURM_PROCID" JAX_LOCAL_DEVICE_IDS="$SLURM_LOCALID"
exec {job.train}
WORKER
)"
srun --kill-on-bad-exit=1 bash -c "$worker"
{job.finished} || scontrol requeue "$SLURM_JOB_ID"
"""


def _tpu_vm(job: _Job) -> str:
    options = job.options
    where = f"{job.name} --zone={shlex.quote(options.zone)}"
    worker = f"""\
set -euo pipefail
about() {{
  curl -sf -H "Metadata-Flavor: Google" \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
workers="$(about worker-network-endpoints | tr , "\\n" | cut -d : -f 3)"
export JAX_COORDINATOR_ADDRESS="$(head -n 1 <<<"$workers"):{_PORT}"
export JAX_NUM_PROCESSES="$(wc -l <<<"$workers")"
export JAX_PROCESS_ID="$(about agent-worker-number)"
{job.exports}
mkdir -p cm3jax && cd cm3jax
gcloud storage cat {job.archive} | tar -xz
python3 -m pip install --quiet --user uv  # the machine's own Python is too old
python3 -m uv venv --quiet --seed --python 3.12 .venv
export PATH="$PWD/.venv/bin:$PATH"
{job.install}
{job.supervised}
"""
    return f"""\
#!/usr/bin/env bash
# From the root of the checkout:  bash THIS_FILE
# A TPU VM that was preempted is gone: run this again, and training goes on from its last save.
set -euo pipefail
{job.ship}
gcloud compute tpus tpu-vm create {where} \\
  --accelerator-type={shlex.quote(options.accelerator)} --version=tpu-ubuntu2204-base \\
  --scopes=cloud-platform --spot
gcloud compute tpus tpu-vm ssh {where} --worker=all --command="$(cat <<'ON_EVERY_WORKER'
{worker}ON_EVERY_WORKER
)"
gcloud compute tpus tpu-vm delete {where} --quiet
"""


def _jobset(job: _Job) -> str:
    options = job.options
    tpu = options.cluster == "gke-tpu"
    resource = {"google.com/tpu" if tpu else "nvidia.com/gpu": options.devices}
    kind = "cloud.google.com/gke-tpu-accelerator" if tpu else "cloud.google.com/gke-accelerator"
    selector = {kind: options.accelerator}
    if tpu:
        selector["cloud.google.com/gke-tpu-topology"] = options.topology
    coordinator = f"{job.name}-worker-0-0.{job.name}:{_PORT}"
    variables = {
        **job.environment,
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(options.nodes),
    }
    command = [
        "set -euo pipefail",
        "cd /checkout",
        'export JAX_PROCESS_ID="$JOB_COMPLETION_INDEX"',
        job.install,
        job.supervised,
    ]
    mount = [{"name": "checkout", "mountPath": "/checkout"}]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE,
        "nodeSelector": selector,
        "volumes": [{"name": "checkout", "emptyDir": {}}],
        "initContainers": [
            {
                "name": "checkout",
                "image": "google/cloud-sdk:slim",
                "command": ["bash", "-c"],
                "args": [f"gcloud storage cat {job.archive} | tar -xz -C /checkout"],
                "volumeMounts": mount,
            }
        ],
        "containers": [
            {
                "name": "train",
                "image": options.image,
                "command": ["bash", "-c"],
                "args": ["\n".join(command) + "\n"],
                "env": [{"name": name, "value": value} for name, value in variables.items()],
                "ports": [{"containerPort": _PORT}],
                "resources": {"limits": resource},
                "volumeMounts": mount,
            }
        ],
    }
    workers = {
        "name": "worker",
        "replicas": 1,
        "template": {
            "spec": {
                "parallelism": options.nodes,
                "completions": options.nodes,
                "completionMode": "Indexed",
                "backoffLimit": 0,  # one lost machine ends the job, and the set starts it anew
                "template": {"spec": pod},
            }
        },
    }
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            # All machines of a job in one pool of nodes, whose network joins them.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {"failurePolicy": {"maxRestarts": options.restarts}, "replicatedJobs": [workers]},
    }
    head = f"# From the root of the checkout:\n#   {job.ship}\n#   kubectl apply -f THIS_FILE\n"
    return head + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks of lines, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _lines)


if __name__ == "__main__":
    main(run)
