"""The parts that jobs of all clusters share: what to ship, install and run, quoted for a shell."""

import dataclasses
import shlex
from typing import Any, Literal

from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.presets import load_experiment
from cm3jax.targets import GPU_SHARE, Target
from launch.cli import overruled_columns

PORT = 8476
GRACE = 300
"""Seconds between the notice and the end of a job: enough for one step and one save."""


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
    """`gs://` folder for checkouts, runs and compiled programs; SLURM can use a shared disk."""
    accelerator: str = ""
    """GKE's name of the accelerator (`nvidia-h100-80gb`, `tpu-v5p-slice`), or the type of a TPU VM
    (`v5p-512`)."""
    topology: str = ""
    """Topology of a TPU slice on GKE, such as 8x8x4."""
    zone: str = ""
    """The zone of a TPU VM."""
    hours: int = 24
    """Longest time of one SLURM allocation; the job is queued again after it."""
    image: str = "python:3.12"
    """Container image on GKE; all that it needs is Python."""
    restarts: int = 100
    """How often GKE starts the job again after a failure or a preemption."""
    cpus: int = 8
    """CPU cores for each GPU's process on SLURM; they read and pack the rows."""
    partition: str = ""
    """SLURM's partition; empty leaves the cluster's default."""
    account: str = ""
    """The account that SLURM charges; empty leaves yours."""
    out: str = ""
    """File to write; empty prints."""
    target: str = ""
    """The devices that `launch.plan --target` compiled for, such as v5p-256 or h200-64, instead of
    --nodes, --devices, --accelerator and --topology; mesh and compiler flags are then the same."""
    slices: int = 1
    """With gke-tpu: slices of TPUs, each of the target's devices, joined by a slower network;
    --nodes counts the machines of all of them."""

    def __post_init__(self):
        if self.slices < 1:
            raise UserError(f"--slices {self.slices} must be at least 1.")
        if self.slices > 1 and self.cluster != "gke-tpu":
            raise UserError(
                f"--cluster {self.cluster} has no slices; give --cluster gke-tpu, or leave "
                "--slices out."
            )
        if self.target:
            self._take_target(Target.parse(self.target, self.slices))
        if self.slices > 1 and (self.nodes % self.slices or self.nodes == self.slices):
            raise UserError(
                f"--nodes {self.nodes} makes no {self.slices} slices; each has as many machines, "
                "and GKE joins slices of two or more."
            )
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
        if min(self.nodes, self.devices, self.cpus, self.hours) < 1 or self.restarts < 0:
            raise UserError("--nodes, --devices, --cpus and --hours must be at least 1.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # Comments and directives in a job are single lines, which quotes cannot join.
            if isinstance(value, str) and not value.isprintable():
                raise UserError(f"--{field.name} {value!r} has a line break or control character.")
        for name in ("partition", "account"):
            if set(getattr(self, name)) & set(" \t#\"'\\"):
                raise UserError(f"--{name} {getattr(self, name)!r} is no name that SLURM can have.")

    def _take_target(self, target: Target) -> None:
        """Take the kind and the number of machines from the target."""
        kind, tpu = target.accelerator, target.accelerator.platform == "tpu"
        if tpu != (self.cluster in ("gke-tpu", "tpu-vm")):
            raise UserError(
                f"--target {self.target} is no machine of --cluster {self.cluster}; give "
                f"{'gke-tpu or tpu-vm' if tpu else 'slurm or gke-gpu'}."
            )
        chips = target.devices // kind.per_chip
        shared = chips * target.slices // target.hosts
        said: dict[str, int | str] = {"nodes": target.hosts, "devices": shared}
        if self.cluster == "gke-tpu":
            said |= {"accelerator": _GKE[kind.name], "topology": target.topology}
        elif self.cluster == "gke-gpu":
            said |= {"accelerator": _GKE[kind.name]}
        elif self.cluster == "tpu-vm":  # its names count the cores of v5p, not the chips
            said |= {"accelerator": _TPU_VM[kind.name].format(chips, 2 * chips)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in said.items():
            given = getattr(self, name)
            if given not in (defaults[name], value):
                raise UserError(
                    f"--{name} {given} is not that of --target {self.target}, {value}; leave it "
                    "out."
                )
            object.__setattr__(self, name, value)


_GKE = {
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "ironwood": "tpu7x",
    "a100-40gb": "nvidia-tesla-a100",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h100-pcie": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
"""Names of accelerators in Google Kubernetes Engine."""
_TPU_VM = {"v5e": "v5litepod-{0}", "v5p": "v5p-{1}", "v6e": "v6e-{0}", "ironwood": "tpu7x-{1}"}
"""Types of TPU VMs; {0} is the number of chips, {1} of cores."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A training on a cluster; its properties are quoted for a shell."""

    experiment: Experiment
    options: Options
    revision: str
    """Hash of the commit that runs."""

    @property
    def name(self) -> str:
        """The name of the job, fit for a host name."""
        return self.experiment.name.replace("/", "-").replace("_", "-")

    @property
    def archive(self) -> str:
        """The archive of the commit's files in the bucket."""
        return shlex.quote(f"{self.options.bucket}/checkouts/{self.revision}.tar.gz")

    @property
    def ship(self) -> str:
        """The command that uploads the commit's files."""
        return f"git archive --format=tar.gz {self.revision} | gcloud storage cp - {self.archive}"

    @property
    def install(self) -> str:
        """The command that installs the checkout with the extras that hardware and paths need."""
        extras = ["cuda" if self.options.cluster in ("slurm", "gke-gpu") else "tpu"]
        extras += ["store"] if self.options.bucket else []
        return f"pip install --quiet --constraint requirements.lock '.[{','.join(extras)}]'"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the training."""
        variables = {"CM3JAX_REVISION": self.revision}
        if self.options.bucket:  # else `launch.env` keeps compiled programs in the home
            variables["JAX_COMPILATION_CACHE_DIR"] = f"{self.options.bucket}/compiled"
        if self.options.cluster in ("slurm", "gke-gpu"):
            variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(GPU_SHARE)
        return variables

    @property
    def exports(self) -> str:
        """The command that sets these variables."""
        pairs = self.environment.items()
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in pairs)

    @property
    def train(self) -> str:
        """The command that trains."""
        options = command_options(self.experiment, load_experiment(self.experiment.name))
        return shlex.join(["python", "-m", "launch.train", self.experiment.name, *options])

    @property
    def finished(self) -> str:
        """A command that fails unless the last step is done: a run that is stopped also exits 0."""
        program = (
            "import sys; from cm3jax.training.metrics import read_metrics; "
            "lines = read_metrics(sys.argv[1]); "
            "sys.exit(not lines or lines[-1]['step'] < int(sys.argv[2]))"
        )
        run_dir, steps = self.experiment.run_dir, self.experiment.train.steps
        return shlex.join(["python", "-c", program, run_dir, str(steps)])

    @property
    def supervised(self) -> str:
        """A command that trains, forwards a request to stop, and fails as `finished` does."""
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


def command_options(experiment: Experiment, default: Experiment) -> list[str]:
    """The options by which a command makes `experiment` of the preset `default`."""
    words = overrides(experiment, default)
    for column in overruled_columns(words):  # else these options would take the column out
        if values := getattr(experiment.curriculum, column):
            words += [f"--curriculum.{column.replace('_', '-')}", *_flat(values)]
    return words


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
            words += [f"--{name}", *_flat(value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def _flat(values: tuple) -> list[str]:
    """The values of a tuple as words, nested tuples flattened."""
    parts = ([*_flat(value)] if isinstance(value, tuple) else [str(value)] for value in values)
    return [word for part in parts for word in part]
