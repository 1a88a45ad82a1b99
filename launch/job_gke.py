"""A JobSet for Google Kubernetes Engine, with TPUs or GPUs."""

import re
from typing import Any

import yaml

from launch.jobs import GRACE, PORT, Job


def jobset(job: Job) -> str:
    """The manifest; comments at its head give the commands that submit it."""
    options = job.options
    tpu = options.cluster == "gke-tpu"
    resource = {"google.com/tpu" if tpu else "nvidia.com/gpu": options.devices}
    kind = "cloud.google.com/gke-tpu-accelerator" if tpu else "cloud.google.com/gke-accelerator"
    selector = {kind: options.accelerator}
    if tpu:
        selector["cloud.google.com/gke-tpu-topology"] = options.topology
    first, machines = f"{job.name}-worker-0-0.{job.name}", options.nodes // options.slices
    variables = {
        **job.environment,
        "JAX_COORDINATOR_ADDRESS": f"{first}:{PORT}",
        "JAX_NUM_PROCESSES": str(options.nodes),
    }
    environment: list[dict[str, Any]] = [
        {"name": name, "value": literal(value)} for name, value in variables.items()
    ]
    process = "$JOB_COMPLETION_INDEX"
    if options.slices > 1:
        environment += _of_slice(first, options.slices)
        process = f"$((MEGASCALE_SLICE_ID * {machines} + JOB_COMPLETION_INDEX))"
    command = [
        "set -euo pipefail",
        "cd /checkout",
        f'export JAX_PROCESS_ID="{process}"',
        job.install,
        job.supervised,
    ]
    mount = [{"name": "checkout", "mountPath": "/checkout"}]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "volumes": [{"name": "checkout", "emptyDir": {}}],
        "initContainers": [
            {
                "name": "checkout",
                "image": "google/cloud-sdk:slim",
                "command": ["bash", "-c"],
                "args": [literal(f"gcloud storage cat {job.archive} | tar -xz -C /checkout")],
                "volumeMounts": mount,
            }
        ],
        "containers": [
            {
                "name": "train",
                "image": options.image,
                "command": ["bash", "-c"],
                "args": [literal("\n".join(command) + "\n")],
                "env": environment,
                "ports": [{"containerPort": PORT}],
                "resources": {"limits": resource},
                "volumeMounts": mount,
            }
        ],
    }
    workers = {
        "name": "worker",
        "replicas": options.slices,
        "template": {
            "spec": {
                "parallelism": machines,
                "completions": machines,
                "completionMode": "Indexed",
                "backoffLimit": 0,  # one lost machine ends the job, and the JobSet restarts it
                "template": {"spec": pod},
            }
        },
    }
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            # All machines of a slice are in one node pool, whose links connect them.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {"failurePolicy": {"maxRestarts": options.restarts}, "replicatedJobs": [workers]},
    }
    head = f"# From the root of the checkout:\n#   {job.ship}\n#   kubectl apply -f THIS_FILE\n"
    return head + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=1000)


def _of_slice(first: str, slices: int) -> list[dict[str, Any]]:
    """The variables by which libtpu finds the other slices; `first` is the first one's first
    machine."""
    place = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}}
    return [
        {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": first},
        {"name": "MEGASCALE_NUM_SLICES", "value": str(slices)},
        {"name": "MEGASCALE_SLICE_ID", "valueFrom": place},
    ]


def literal(text: str) -> str:
    """`text` for a field in which Kubernetes would replace `$(NAME)` by a variable."""
    return re.sub(r"\$(?=[$(])", "$$", text)


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks of lines, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _lines)
