"""Commands that make a TPU VM, train on it, and delete it, however they end."""

import shlex

from launch.jobs import PORT, Job

_SYSTEMS = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
    "tpu7x": "v2-alpha-tpu7-ubuntu2404",
}
"""Google's image for a machine, by the first word of its type; older types share another one."""


def tpu_vm(job: Job) -> str:
    """The script, which runs on the user's own machine."""
    options = job.options
    system = _SYSTEMS.get(options.accelerator.partition("-")[0], "tpu-ubuntu2204-base")
    where = f"{job.name} --zone={shlex.quote(options.zone)}"
    there = (
        f"error: the TPU VM {job.name} is there already; if no other run of this file uses it, "
        f"delete it: gcloud compute tpus tpu-vm delete {where}"
    )
    return f"""\
#!/usr/bin/env bash
# From the root of the checkout:  bash THIS_FILE
# The VM is deleted when this ends, well or not; run it again, and training goes on from its last
# save.
set -euo pipefail
state="$(gcloud compute tpus tpu-vm describe {where} --format='value(state)' 2>/dev/null || true)"
case "$state" in
  "" | PREEMPTED | TERMINATED) ;;
  *)
    echo {shlex.quote(there)} >&2
    exit 2
    ;;
esac
{job.ship}
delete() {{
  gcloud compute tpus tpu-vm delete {where} --quiet
}}
if [ -n "$state" ]; then
  delete  # what a preemption left
fi
# From here on the VM costs money: it goes whatever happens. A failed creation may leave one, too.
trap 'status=$?; trap - EXIT; delete || true; exit "$status"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
gcloud compute tpus tpu-vm create {where} \
  --accelerator-type={shlex.quote(options.accelerator)} --version={system} \
  --scopes=cloud-platform --spot
gcloud compute tpus tpu-vm ssh {where} --worker=all \
  --command={shlex.quote(_worker(job))}
"""


def _worker(job: Job) -> str:
    """The commands for every machine of the VM."""
    return f"""\
set -euo pipefail
about() {{
  curl -sf -H "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
workers="$(about worker-network-endpoints | tr , "\\n" | cut -d : -f 3)"
export JAX_COORDINATOR_ADDRESS="$(head -n 1 <<<"$workers"):{PORT}"
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
