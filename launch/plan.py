"""Say what training an experiment needs: parameters, bytes on each device, operations.

    python -m launch.plan cm3leon_7b --mesh.fsdp 256

By formula: nothing is allocated, and the devices of the mesh need not exist; a mesh size of -1
takes this machine's. It says which accelerators have the memory, or how many devices it takes.
`--compile` compiles the step for devices that do exist and prints what XLA allots beside.
"""

import dataclasses
import json
from typing import Any

from cm3jax import partition
from cm3jax.config import Experiment
from cm3jax.memory import abstract_batch, compiled_bytes, footprint, lay_out, planned
from cm3jax.targets import ACCELERATORS
from cm3jax.training.hardware import a100_hours
from launch.cli import parse_experiment_and
from launch.env import main

_DESCRIPTION = (
    "What training an experiment needs: parameters, bytes on each device, operations; by formula."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to say it."""

    json: bool = False
    """Print one JSON object, without the table of shardings."""
    compile: bool = False
    """Compile the step too, for this machine's devices, and print what XLA allots."""


def run(argv: list[str]) -> None:
    """Print the plan."""
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION)
    answer, table = plan(experiment, options.compile)
    print(json.dumps(answer, indent=2) if options.json else f"{table}\n\n{as_text(answer)}")


def plan(experiment: Experiment, compiles: bool = False) -> tuple[dict[str, Any], str]:
    """The figures, and the table of shardings; `UserError` where the mesh does not fit."""
    mesh = partition.abstract_mesh(experiment.mesh)
    layout, batch = lay_out(experiment, mesh), abstract_batch(experiment, mesh)
    needs = footprint(experiment, layout, batch)
    work = planned(experiment).work
    steps = experiment.train.steps
    answer = {
        "experiment": experiment.name,
        "parameters": layout.parameters,
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "bytes_per_device": {**dataclasses.asdict(needs), "total": needs.total},
        "fits": [kind.kind for kind in ACCELERATORS if needs.total <= kind.memory],
        "tokens_per_step": work.tokens,
        "flops_per_step": work.flops,
        "steps": steps,
        "tokens": work.tokens * steps,
        "flops": work.flops * steps,
        "a100_hours": a100_hours(work.flops * steps),
    }
    if not answer["fits"]:
        answer["fsdp_that_fits"] = _fsdp_that_fits(experiment)
    if compiles:
        arguments, temporaries = compiled_bytes(experiment, partition.make_mesh(experiment.mesh))
        answer["compiled_bytes_per_device"] = {"arguments": arguments, "temporaries": temporaries}
    return answer, layout.table


_COMMON = 80e9
"""Memory of the device that advice is for: an A100 or H100 with 80 GB."""


def _fsdp_that_fits(experiment: Experiment) -> int | None:
    """The least power of two for `--mesh.fsdp` alone by which a step fits devices of 80 GB.

    None where no number of devices helps, since each must take one row at least.
    """
    batch, size = experiment.data.batch // experiment.optim.accumulate, 2
    while batch % size == 0:
        mesh = dataclasses.replace(experiment.mesh, data=1, fsdp=size, tensor=1)
        tried = dataclasses.replace(experiment, mesh=mesh)
        devices = partition.abstract_mesh(mesh)
        layout, rows = lay_out(tried, devices), abstract_batch(tried, devices)
        if footprint(tried, layout, rows).total <= _COMMON:
            return size
        size *= 2
    return None


def verdict(answer: dict[str, Any]) -> str:
    """Which devices have the memory for a plan, in a sentence."""
    total = answer["bytes_per_device"]["total"]
    if answer["fits"]:
        return f"fits the memory of {', '.join(answer['fits'])}"
    largest = ACCELERATORS[-1]
    said = f"does not fit: {total / 1e9:,.0f} GB, and the largest device ({largest.kind}) has "
    said += f"{largest.memory / 1e9:.0f} GB; "
    if answer["fsdp_that_fits"] is None:
        return said + "cut a row's work with --mesh.tensor, or take smaller rows or a smaller model"
    return said + f"with --mesh.fsdp {answer['fsdp_that_fits']} a step fits devices of 80 GB"


def as_text(answer: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{answer['experiment']}: {answer['parameters']:,} parameters, mesh {answer['mesh']}"]
    lines += ["", "bytes on each of the devices (temporaries are an estimate)"]
    lines += [
        f"  {name:<12}{size:>20,}  {size / 2**30:>9.3f} GiB"
        for name, size in answer["bytes_per_device"].items()
    ]
    lines.append(verdict(answer))
    if "compiled_bytes_per_device" in answer:
        lines.append("as compiled here (temporaries include the gradients)")
        lines += [
            f"  {name:<12}{size:>20,}  {size / 2**30:>9.3f} GiB"
            for name, size in answer["compiled_bytes_per_device"].items()
        ]
    return "\n".join(
        [
            *lines,
            "",
            f"a step    {answer['tokens_per_step']:,} tokens, {answer['flops_per_step']:.4g} FLOP",
            f"the run   {answer['steps']:,} steps, {answer['tokens']:.4g} tokens, "
            f"{answer['flops']:.4g} FLOP",
            f"          {answer['a100_hours']:,.0f} A100 hours at full rate (312 TFLOP/s, bf16)",
        ]
    )


if __name__ == "__main__":
    main(run)
