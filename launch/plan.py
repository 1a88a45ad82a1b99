"""Say what training an experiment needs: parameters, bytes on each device, operations.

    python -m launch.plan cm3leon_7b --mesh.fsdp 256

By formula: nothing is allocated, and the devices of the mesh need not exist; a mesh size of -1
takes this machine's. It says which accelerators have the memory, or how many devices it takes.
`--compile` also compiles the step for this machine's devices and prints what XLA allocates.

    python -m launch.plan cm3leon_7b --target v5p-256
    python -m launch.plan cm3leon_760m --data.batch 64 --target h200-8 --search

`--target` compiles it for devices that are not here, in minutes on any x86-64 Linux machine with
the extra `tpu` or `cuda`: memory, collectives and whether they hide behind arithmetic, the shortest
step and the highest utilisation, and what to change.

    python -m launch.plan cm3leon_7b --target v6e-1 --decode --mesh.fsdp 1 --model.weights int8 \\
        --model.cache int8 --decode.speculate 8 --tokens-per-pass 2.2

`--decode` compiles a chunk of guided drawing instead: bytes that a pass and a token read, and the
seconds of an image that follow from the memory's rate.
"""

import dataclasses
import json
from typing import Any

from cm3jax import partition
from cm3jax.compiled_decoding import Decoding
from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.memory import abstract_batch, compiled_bytes, footprint, planned
from cm3jax.targets import ACCELERATORS, Target
from cm3jax.training.hardware import a100_hours
from cm3jax.training.state import plan_layout
from launch.cli import parse_experiment_and
from launch.env import main
from launch.plan_target import as_text as target_text
from launch.plan_target import (
    decoding_for_target,
    decoding_text,
    for_target,
    prepare_jax,
    search,
)

_DESCRIPTION = (
    "What training an experiment needs: parameters, bytes on each device, operations; by formula."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compute, and in which form to print it."""

    json: bool = False
    """Print one JSON object, without the table of shardings."""
    compile: bool = False
    """Compile the step too, for this machine's devices, and print what XLA allocates."""
    target: str = ""
    """Compile the step for a number of devices of one kind, such as v5e-8, v5p-256, v6e-256,
    ironwood-64, h100-8, h200-64 or b200-16; a device is what jax counts, half a chip of Ironwood.
    Needs the extra `tpu` or `cuda`, but no accelerator."""
    slices: int = 1
    """With --target: slices of TPUs, each of the target's devices, joined by a slower network."""
    search: bool = False
    """With --target: try a few meshes and remat policies instead of the one that is given."""
    decode: bool = False
    """With --target: compile a chunk of guided drawing, not the training step."""
    prompts: int = 1
    """With --decode: prompts that are drawn together."""
    documents: int = 0
    """With --decode: retrieved documents of each prompt."""
    samples: int = 1
    """With --decode: images of each prompt."""
    tokens_per_pass: float = 1.0
    """With --decode and --decode.speculate: ids that a pass emits of each image, as
    `launch.bench speculate` measured it for a model."""

    def __post_init__(self):
        if not self.target and (self.slices != 1 or self.search or self.decode):
            raise UserError(
                "--slices, --search and --decode need a --target, such as --target v6e-256."
            )
        if self.target and self.compile:
            raise UserError("--compile is for the devices that are here; leave it or --target out.")
        if self.search and self.decode:
            raise UserError("--search tries training steps; leave it or --decode out.")
        if not self.decode and (self.prompts, self.documents, self.samples) != (1, 0, 1):
            raise UserError("--prompts, --documents and --samples go with --decode.")
        if self.tokens_per_pass != 1 and not self.decode:
            raise UserError("--tokens-per-pass goes with --decode.")
        if min(self.prompts, self.documents + 1, self.samples) < 1:
            raise UserError("--prompts and --samples must be at least 1, --documents 0.")


def run(argv: list[str]) -> None:
    """Print the plan."""
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION)
    if options.target:
        _run_target(experiment, options)
        return
    answer, table = plan(experiment, options.compile)
    print(json.dumps(answer, indent=2) if options.json else f"{table}\n\n{as_text(answer)}")


def _run_target(experiment: Experiment, options: Options) -> None:
    """Print what compiling for the target tells."""
    target = Target.parse(options.target, options.slices)
    prepare_jax()
    if options.search:
        found = []
        for answer in search(experiment, target):
            found.append(answer)
            if not options.json:
                print(f"{answer['options']}\n{target_text(answer)}\n", flush=True)
        if options.json:
            print(json.dumps({"experiment": experiment.name, "targets": found}, indent=2))
        return
    if options.decode:
        wanted = _wanted(experiment, options)
        answer, in_words = decoding_for_target(experiment, target, wanted), decoding_text
    else:
        answer, in_words = for_target(experiment, target), target_text
    if options.json:
        print(json.dumps({"experiment": experiment.name, "target": answer}, indent=2))
    else:
        print(in_words(answer))


def _wanted(experiment: Experiment, options: Options) -> Decoding:
    """What is drawn; `UserError` for more ids from a pass than its window has."""
    window, emitted = max(1, experiment.decode.speculate), options.tokens_per_pass
    if not 1 <= emitted <= window:
        raise UserError(
            f"--tokens-per-pass {emitted:g} must be from 1 to the ids that a pass reads: "
            f"--decode.speculate {window}."
        )
    return Decoding(options.prompts, options.documents, options.samples, emitted)


def plan(experiment: Experiment, compiles: bool = False) -> tuple[dict[str, Any], str]:
    """The figures, and the table of shardings; `UserError` where the mesh does not fit."""
    mesh = partition.abstract_mesh(experiment.mesh)
    learner = planned(experiment)
    layout, batch = plan_layout(learner, mesh), abstract_batch(learner, mesh)
    needs = footprint(learner, layout, batch)
    work = learner.work
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
        arguments, temporaries = compiled_bytes(learner, partition.make_mesh(experiment.mesh))
        answer["compiled_bytes_per_device"] = {"arguments": arguments, "temporaries": temporaries}
    return answer, layout.table


_COMMON = 80e9
"""Memory of the device that advice is for: an A100 or H100 with 80 GB."""


def _fsdp_that_fits(experiment: Experiment) -> int | None:
    """The least power of two for `--mesh.fsdp`, without other cuts, by which a step fits 80 GB.

    None where no number of devices helps, since each must take one row at least.
    """
    batch, size = experiment.data.batch // experiment.optim.accumulate, 2
    while batch % size == 0:
        mesh = dataclasses.replace(experiment.mesh, data=1, fsdp=size, tensor=1)
        tried = planned(dataclasses.replace(experiment, mesh=mesh))
        devices = partition.abstract_mesh(mesh)
        layout, rows = plan_layout(tried, devices), abstract_batch(tried, devices)
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
