"""A SLURM script: `bash` prepares its checkout on the login node, `sbatch` submits it."""

import shlex

from launch.jobs import GRACE, PORT, Job


def slurm(job: Job) -> str:
    """The script. It installs nothing on the nodes of the job."""
    options, checkout = job.options, f"checkouts/{job.revision}"
    chosen = {"partition": options.partition, "account": options.account}
    directives = "".join(f"#SBATCH --{name}={value}\n" for name, value in chosen.items() if value)
    worker = (
        'export JAX_PROCESS_ID="$SLURM_PROCID" JAX_LOCAL_DEVICE_IDS="$SLURM_LOCALID"\n'
        f"exec {job.train}"
    )
    return f"""\
#!/usr/bin/env bash
# From the root of the checkout, on a disk that all machines share:
#   bash THIS_FILE     on the login node: makes {checkout} with its environment
#   sbatch THIS_FILE   submits the job
#SBATCH --job-name={job.name}
#SBATCH --nodes={options.nodes}
#SBATCH --ntasks-per-node={options.devices}
#SBATCH --gpus-per-node={options.devices}
#SBATCH --cpus-per-task={options.cpus}
{directives}#SBATCH --exclusive
#SBATCH --time={options.hours}:00:00
#SBATCH --signal=TERM@{GRACE}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={job.name}-%j.log

set -euo pipefail

if [ -z "${{SLURM_JOB_ID:-}}" ]; then
  if [ ! -e {checkout}/ready ]; then
    mkdir -p {checkout}
    git archive {job.revision} | tar -x -C {checkout}
    python3 -m venv {checkout}/.venv
    (cd {checkout} && PATH="$PWD/.venv/bin:$PATH" {job.install})
    # Runs and data stay where they are, whatever commit works on them.
    mkdir -p runs data
    ln -sfn "$PWD/runs" "$PWD/data" {checkout}/
    touch {checkout}/ready
  fi
  echo "{checkout} is ready; submit with: sbatch $0"
  exit
fi

cd "$SLURM_SUBMIT_DIR"
if [ ! -e {checkout}/ready ]; then
  echo "error: {checkout} is not ready; run this file with bash on the login node first." >&2
  exit 2
fi
cd {checkout}
export PATH="$PWD/.venv/bin:$PATH"

{job.exports}
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export JAX_COORDINATOR_ADDRESS="$first:{PORT}"
export JAX_NUM_PROCESSES="$SLURM_NTASKS"

# One process for each GPU.
srun --kill-on-bad-exit=1 --cpus-per-task={options.cpus} bash -c {shlex.quote(worker)}
{job.finished} || scontrol requeue "$SLURM_JOB_ID"
"""
