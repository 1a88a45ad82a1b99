"""Render the job that trains an experiment on a cluster; nothing is sent anywhere.

    python -m launch.submit cm3leon_7b --data.corpus data/mine/corpus --nodes 64 --out job.sh
    python -m launch.submit cm3leon_7b --data.corpus gs://mine/corpus --cluster gke-tpu \\
        --bucket gs://mine --target v5p-256
    python -m launch.submit cm3leon_7b --data.corpus gs://mine/corpus --cluster gke-tpu \\
        --bucket gs://mine --target v6e-256 --slices 2 --mesh.data 2

A job runs one commit: an archive named by the commit's hash ships its files, and the run keeps the
hash in `lives.jsonl`. The job asks for a notice before it is stopped, saves, and starts again until
the last step is done. None of this was tried on a real cluster: manifests are checked against
JobSet's schema, scripts by a shell.
"""

import dataclasses
import subprocess
from pathlib import Path

from cm3jax import partition
from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.io.files import require_replaceable, write_atomic
from cm3jax.targets import Target
from cm3jax.training.mesh_checks import require_divisible
from launch.cli import parse_experiment_and
from launch.env import main
from launch.job_gke import jobset
from launch.job_inputs import require_inputs
from launch.job_slurm import slurm
from launch.job_tpu_vm import tpu_vm
from launch.jobs import Job, Options
from launch.parts import require_corpus_read

_DESCRIPTION = "Render a SLURM script, a GKE JobSet or TPU VM commands that train an experiment."
_ROOT = Path(__file__).resolve().parent.parent


def run(argv: list[str]) -> None:
    """Print the job or write it to a file; `UserError` if it could not start."""
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION)
    if options.out:
        require_replaceable(options.out, _is_job, "the job")
    require_corpus_read(experiment)
    require_inputs(experiment, options.cluster != "slurm")
    text = render(experiment, options, commit())
    if options.out:
        write_atomic(options.out, text)
        print(f"written to {options.out}; its first lines say how to submit it.")
    else:
        print(text, end="")


def _is_job(content: bytes) -> bool:
    """Whether a file is a job that this command wrote: its head says how to submit it."""
    return b"# From the root of the checkout" in content[:200]


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
    experiment = _on_devices(experiment, options)
    if options.bucket and not experiment.workdir:
        workdir = f"{options.bucket}/{experiment.run_dir}"
        experiment = dataclasses.replace(experiment, workdir=workdir)
    job = Job(experiment, options, revision)
    match options.cluster:
        case "slurm":
            return slurm(job)
        case "tpu-vm":
            return tpu_vm(job)
        case _:
            return jobset(job)


def _on_devices(experiment: Experiment, options: Options) -> Experiment:
    """The experiment with the mesh that it has on the job's devices.

    Raises `UserError` if its mesh does not fit them, or they cannot share its batch.
    """
    mesh, devices, machine = experiment.mesh, options.nodes * options.devices, "the job's devices"
    if options.target:  # the mesh that was compiled; another machine fails the run at its start
        target = Target.parse(options.target, options.slices)
        devices, machine = target.size, target.name
        mesh = dataclasses.replace(mesh, platform=target.accelerator.platform)
    sized = partition.sized(mesh, devices, options.slices)
    if sized.data * sized.fsdp * sized.tensor != devices:
        raise UserError(
            f"mesh data={sized.data} fsdp={sized.fsdp} tensor={sized.tensor} does not fit "
            f"{machine}; choose sizes whose product is {devices}."
        )
    shards = partition.batch_shards(partition.abstract_mesh(sized))
    require_divisible(experiment.data.batch, experiment.optim.accumulate, shards)
    return dataclasses.replace(experiment, mesh=sized if options.target else mesh)


if __name__ == "__main__":
    main(run)
