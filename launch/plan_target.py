"""What `launch.plan --target` says: a step compiled for devices that are not here."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax

from cm3jax import partition
from cm3jax.abstract import learner_without_data
from cm3jax.compiled import Compiled, compile_step
from cm3jax.compiled_decoding import Decoding, compile_chunk
from cm3jax.config import Experiment
from cm3jax.config.decoding import AUTO
from cm3jax.decode.plan import CHUNK
from cm3jax.errors import UserError
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.memory import abstract_batch, footprint, planned
from cm3jax.sequence.vocab import Vocab
from cm3jax.targets import Target
from cm3jax.training.state import plan_layout

TRIED = 4
"""Meshes and remat policies that `--search` compiles, at most."""
_REMATS: tuple[Literal["none", "dots", "full"], ...] = ("none", "dots", "full")
"""Remat policies, the cheapest first."""
_LANES = 128
"""Elements of a parameter's axis that a TPU works on at once: gathers of parts that are smaller
are not hidden behind products."""


def for_target(experiment: Experiment, target: Target) -> dict[str, Any]:
    """The compiled figures of a training step; `UserError` as `compile_step`."""
    experiment = on_target(experiment, target)
    made = compile_step(learner_without_data(experiment), target)
    formula = _formula(experiment)
    bounds = {**dataclasses.asdict(made.bounds), "step": made.bounds.step}
    return {
        "name": target.name,
        "devices": target.size,
        "hosts": target.hosts,
        "mesh": dataclasses.asdict(experiment.mesh),
        "rows": experiment.data.batch,
        "memory": target.memory,
        "peak_bytes": made.peak,
        "fits": made.peak <= target.memory,
        "formula_bytes": formula,
        "formula_over_compiled": formula / made.peak if formula else None,
        "collectives": {k: dataclasses.asdict(t) for k, t in sorted(made.traffic.items())},
        "kernels": made.kernels,
        "flops_per_step": made.flops,
        "seconds_at_least": bounds,
        "mfu_at_most": made.mfu(target),
        "compile_seconds": made.seconds,
        "advice": advice(experiment, target, made),
    }


def on_target(experiment: Experiment, target: Target) -> Experiment:
    """The experiment with the mesh's -1 replaced by what the target has."""
    mesh = partition.sized(experiment.mesh, target.size, target.slices)
    return dataclasses.replace(experiment, mesh=mesh)


def _formula(experiment: Experiment) -> int | None:
    """Bytes of `cm3jax.memory` for the same mesh; None for what it does not know."""
    if _formula_unknown(experiment):
        return None
    mesh, learner = partition.abstract_mesh(experiment.mesh), planned(experiment)
    return footprint(learner, plan_layout(learner, mesh), abstract_batch(learner, mesh)).total


def advice(experiment: Experiment, target: Target, made: Compiled) -> list[str]:
    """What to change where a step does not fit or waits for communication."""
    said, mesh = [], experiment.mesh
    if made.peak > target.memory:
        said.append(f"does not fit: {_more_room(experiment, made)}")
    bounds = made.bounds
    if bounds.hidden > bounds.arithmetic:
        said.append(
            "bound by communication: give each device more rows (--data.batch), or take fewer "
            "devices"
        )
    elif bounds.waiting > 0.1 * bounds.arithmetic:
        said.append(
            f"arithmetic waits for collectives for {bounds.waiting / bounds.step:.0%} of a step"
        )
        said += _wider(experiment, target)
    if bounds.network > 0.1 * bounds.arithmetic:
        said.append(
            "the slices' sum of gradients takes long beside arithmetic: give each device more rows"
        )
    if mesh.tensor > target.accelerator.host and target.accelerator.platform == "gpu":
        said.append(
            f"--mesh.tensor {mesh.tensor} crosses the network between hosts of "
            f"{target.accelerator.host} GPUs at every layer: make it {target.accelerator.host} or "
            "less"
        )
    return said


def _is_narrow(experiment: Experiment, target: Target, fsdp: int) -> bool:
    """Whether `fsdp` pieces of a decoder's width are too small for a TPU to hide their gathers."""
    tpu = target.accelerator.platform == "tpu"
    return experiment.decodes and tpu and experiment.model.width // fsdp < _LANES


def _wider(experiment: Experiment, target: Target) -> Iterator[str]:
    """A mesh of as many devices that leaves a TPU enough of each parameter, if there is one: with
    copies of the parameters, whose gradients are little to sum, or where these do not fit with
    `tensor`, for which arithmetic waits in each layer."""
    width, mesh = experiment.model.width, experiment.mesh
    fsdp, times = mesh.fsdp, 1
    while fsdp % 2 == 0 and _is_narrow(experiment, target, fsdp):
        fsdp, times = fsdp // 2, times * 2
    if fsdp == mesh.fsdp or _is_narrow(experiment, target, fsdp):
        return
    copies = dataclasses.replace(mesh, data=mesh.data * times, fsdp=fsdp)
    formula = _formula(dataclasses.replace(experiment, mesh=copies))
    if formula is not None and formula <= target.memory:
        better = f"--mesh.data {copies.data} --mesh.fsdp {fsdp}"
    elif experiment.model.groups % (mesh.tensor * times) == 0:
        better = f"--mesh.fsdp {fsdp} --mesh.tensor {mesh.tensor * times}"
    else:
        return
    yield (
        f"--mesh.fsdp {mesh.fsdp} leaves {width // mesh.fsdp} of {width} elements to a device, "
        f"fewer than a TPU's {_LANES} lanes: try {better}"
    )


def _more_room(experiment: Experiment, made: Compiled) -> str:
    rows = experiment.data.batch // (
        experiment.mesh.data * experiment.mesh.fsdp * experiment.optim.accumulate
    )
    if experiment.decodes and experiment.model.remat != "full":
        return "try --model.remat full"
    if experiment.learner == "decoder" and rows > 1:
        return (
            f"a device has {rows} rows at once: try --optim.accumulate "
            f"{2 * experiment.optim.accumulate} or more"
        )
    if rows > 1:
        return f"a device has {rows} rows at once: try a smaller --data.batch"
    return "cut parameters over more devices (--mesh.fsdp, --mesh.tensor)"


def search(experiment: Experiment, target: Target) -> Iterator[dict[str, Any]]:
    """`for_target` of the most promising meshes and remat policies, as they are compiled.

    Those that do not fit by formula are left out; of the rest come first those that compute least
    again, then those that cut products least. One that cannot be compiled for want of memory is
    passed over; `UserError` if none is left.
    """
    tried = [each for _, each in sorted(_candidates(experiment, target), key=lambda pair: pair[0])]
    if not tried:
        raise UserError(
            f"no mesh and remat policy of {experiment.name} fits {target.name} by formula; take "
            "more devices, a smaller --data.batch or a larger --optim.accumulate."
        )
    refused, answers = None, 0
    for candidate in tried[:TRIED]:
        try:
            answer = for_target(candidate, target)
        except UserError as error:
            refused = error
            continue
        answers += 1
        yield {**answer, "options": options_of(candidate)}
    if refused and not answers:
        raise refused


def options_of(experiment: Experiment) -> str:
    """The options that say mesh and remat policy."""
    mesh = experiment.mesh
    sizes = f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor}"
    return f"{sizes} --model.remat {experiment.model.remat}"


def _candidates(experiment: Experiment, target: Target) -> Iterator[tuple[tuple, Experiment]]:
    if _formula_unknown(experiment):
        online = " online" if experiment.data.online else ""
        raise UserError(
            f"--search goes by the formula for decoders and parti; {experiment.name} trains a "
            f"{experiment.learner}{online}."
        )
    inside = target.devices
    for tensor in (1, 2, 4, 8):
        for fsdp in (1 << power for power in range(inside.bit_length())):
            if inside % (tensor * fsdp) or experiment.model.groups % tensor:
                continue
            data = target.size // (tensor * fsdp)
            if experiment.data.batch % (data * fsdp * experiment.optim.accumulate):
                continue
            mesh = dataclasses.replace(experiment.mesh, data=data, fsdp=fsdp, tensor=tensor)
            for cost, remat in enumerate(_REMATS):
                model = dataclasses.replace(experiment.model, remat=remat)
                tried = dataclasses.replace(experiment, mesh=mesh, model=model)
                narrow = _is_narrow(experiment, target, fsdp)
                try:
                    total = _formula(tried)
                except UserError:  # parameters that it would leave whole
                    continue
                if total is not None and total <= target.memory:
                    yield (narrow, cost, tensor, fsdp), tried
                    break


def _formula_unknown(experiment: Experiment) -> bool:
    return not experiment.decodes or experiment.data.online


def as_text(answer: dict[str, Any]) -> str:
    """The figures for people."""
    gib, bounds = 2**30, answer["seconds_at_least"]
    lines = [
        f"compiled for {answer['name']}: {answer['devices']} devices on {answer['hosts']} hosts, "
        f"mesh {answer['mesh']['data']} x {answer['mesh']['fsdp']} x {answer['mesh']['tensor']}",
        f"  peak memory {answer['peak_bytes'] / gib:.2f} GiB of {answer['memory'] / gib:.2f}: "
        + ("fits" if answer["fits"] else "does not fit"),
    ]
    if answer["formula_bytes"]:
        lines.append(
            f"  formula     {answer['formula_bytes'] / gib:.2f} GiB, "
            f"{answer['formula_over_compiled']:.2f} of the compiled"
        )
    lines.append("  collectives (hidden behind work / waited for, GB that a device sends)")
    for kind, each in answer["collectives"].items():
        lines.append(
            f"    {kind:<20}{each['hidden']:>6} /{each['waiting']:>5}"
            f"{each['hidden_bytes'] / 1e9:>10.2f} /{each['waiting_bytes'] / 1e9:>8.2f}"
        )
    lines += [f"  kernels     {', '.join(answer['kernels'])}"] if answer["kernels"] else []
    said = ", ".join(f"{name} {1e3 * bounds[name]:,.0f}" for name in bounds if bounds[name])
    lines.append(f"  a step takes at least, in ms: {said}")
    lines.append(f"  MFU at most {answer['mfu_at_most']:.0%}")
    return "\n".join([*lines, *(f"  {sentence}" for sentence in answer["advice"])])


def decoding_for_target(experiment: Experiment, target: Target, wanted: Decoding) -> dict[str, Any]:
    """The compiled figures of a chunk of drawing; `UserError` as `compile_chunk`."""
    if experiment.decode.speculate == AUTO:
        raise UserError(
            "decode.speculate=-1 times passes on the machine that is here; give --decode a window, "
            "such as --decode.speculate 8."
        )
    experiment = on_target(experiment, target)
    if experiment.learner != "decoder":
        raise UserError(
            f"{experiment.name} trains a {experiment.learner}; --decode is a decoder's."
        )
    learner = DecoderLearner(experiment, Vocab(experiment.vocab), {})
    made = compile_chunk(learner, target, wanted)
    rate = made.tokens_per_second(target)
    tokens = wanted.prompts * wanted.samples * learner.vocab.image_tokens
    return {
        "name": target.name,
        "devices": target.size,
        "mesh": dataclasses.asdict(experiment.mesh),
        **dataclasses.asdict(wanted),
        "weights": experiment.model.weights or experiment.model.dtype,
        "cache": experiment.model.cache or experiment.model.dtype,
        "window": max(1, experiment.decode.speculate),
        "memory": target.memory,
        "peak_bytes": made.peak,
        "fits": made.peak <= target.memory,
        "bytes_read_per_step": made.read,
        "bytes_read_compiled": made.compiled_read,
        "bytes_read_per_token": made.read / made.emitted,
        "copies": made.copies,
        "collectives": {k: dataclasses.asdict(t) for k, t in sorted(made.traffic.items())},
        "tokens_per_second_at_most": rate,
        "seconds_at_least": tokens / rate,
        "compile_seconds": made.seconds,
    }


def decoding_text(answer: dict[str, Any]) -> str:
    """The figures for people."""
    gib = 2**30
    waits = sum(each["waiting"] for each in answer["collectives"].values())
    hidden = sum(each["hidden"] for each in answer["collectives"].values())
    return "\n".join(
        [
            f"a chunk of {CHUNK} steps compiled for {answer['name']}: {answer['prompts']} prompts "
            f"with {answer['documents']} documents, {answer['samples']} samples each, guided; "
            f"matrices {answer['weights']}, cache {answer['cache']}",
            f"  peak memory {answer['peak_bytes'] / gib:.2f} GiB of {answer['memory'] / gib:.2f}: "
            + ("fits" if answer["fits"] else "does not fit"),
            f"  a step reads {answer['bytes_read_per_step'] / 1e9:.2f} GB on each device and emits "
            f"{answer['tokens_per_pass']:g} of a window of {answer['window']} for each image, "
            f"{answer['bytes_read_per_token'] / 1e9:.2f} GB a token: at most "
            f"{answer['tokens_per_second_at_most']:,.0f} tokens a second in all, "
            f"{answer['seconds_at_least']:.2f} s for the images",
            f"  large copies {answer['copies']}, collectives {hidden} hidden, {waits} waited for",
        ]
    )


def prepare_jax() -> None:
    """Keep jax from looking for hardware, and from keeping programs that cannot run here."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
