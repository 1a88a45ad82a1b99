"""A training step compiled for devices that need not be here, and what limits it there.

Bytes are XLA's own allotment. Times are lower bounds by arithmetic: operations by the device's peak
rate, and bytes that collectives send by that of its links. What a real step takes beyond them,
kernels and latencies, no compiler tells.
"""

import dataclasses
import time

import jax

from cm3jax import hlo, partition
from cm3jax.abstract import batch_without_data
from cm3jax.errors import UserError
from cm3jax.memory import local_bytes
from cm3jax.targets import Target
from cm3jax.train import make_train_step
from cm3jax.training.learner import Learner
from cm3jax.training.mesh_checks import require_attention
from cm3jax.training.state import plan_layout


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds of one step, at least."""

    arithmetic: float
    """The model's operations, and those of `model.remat` again, at the peak rate."""
    hidden: float
    """Collectives that run at the same time as arithmetic."""
    waiting: float
    """Collectives that arithmetic waits for."""
    network: float
    """The sum of gradients over several slices."""

    @property
    def step(self) -> float:
        """The whole step."""
        return max(self.arithmetic, self.hidden) + self.waiting + self.network


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step as one device has it."""

    peak: int
    """Bytes of memory at once, arguments included."""
    arguments: int
    """Bytes of state and batch."""
    seconds: float
    """What tracing and compiling took."""
    traffic: dict[str, hlo.Traffic]
    """Collectives by kind."""
    kernels: list[str]
    """Kernels by hand in it."""
    flops: float
    """The model's operations of one step, on all devices (`StepCost`)."""
    bounds: Bounds

    def mfu(self, target: Target) -> float:
        """Utilisation at most: the model's operations in the shortest step, over the peak."""
        return self.flops / (self.bounds.step * target.size * target.accelerator.peak)


def compile_step(learner: Learner, target: Target) -> Compiled:
    """Compile the training step of a learner, on its experiment's mesh, for the target.

    Nothing is allocated. Raises `UserError` where the compiler is not installed, the mesh does not
    fit, or the program cannot be compiled for want of memory.
    """
    experiment = learner.experiment
    mesh = partition.make_mesh(experiment.mesh, target.build())
    require_attention(experiment.model, mesh)
    begin, layout = time.monotonic(), plan_layout(learner, mesh)
    batch = batch_without_data(learner, mesh)
    try:
        with jax.set_mesh(mesh):
            made = make_train_step(learner, layout).lower(layout.abstract, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{experiment.name} does not fit {target.name}: {_first_sentence(str(error))}; take "
            "--model.remat full, --optim.accumulate, or more devices (--mesh.fsdp, --mesh.tensor)."
        ) from None
    flops = learner.work.flops
    memory, text = hlo.analysed(made)
    traffic = hlo.traffic(text)
    again = _AGAIN[experiment.model.remat] if experiment.decodes else 1.0
    return Compiled(
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        seconds=time.monotonic() - begin,
        traffic=traffic,
        kernels=hlo.kernels(text),
        flops=flops,
        bounds=_bounds(target, traffic, again * flops, local_bytes(layout.trained_params)),
    )


def _first_sentence(text: str) -> str:
    return text.split("RESOURCE_EXHAUSTED:")[-1].strip().splitlines()[0].rstrip(". ")


_AGAIN = {"none": 1.0, "dots": 1.0, "full": 4 / 3}
"""All operations over the model's own, by `model.remat`: a third of them is the forward pass."""


def _bounds(
    target: Target, traffic: dict[str, hlo.Traffic], flops: float, gradients: int
) -> Bounds:
    kind, rate = target.accelerator, target.rate
    share = (target.slices - 1) / target.slices
    return Bounds(
        arithmetic=flops / (target.size * kind.peak),
        hidden=sum(each.hidden_bytes for each in traffic.values()) / rate,
        waiting=sum(each.waiting_bytes for each in traffic.values()) / rate,
        # They go there and back.
        network=2 * share * gradients / kind.network,
    )
