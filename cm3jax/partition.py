"""Where arrays live: the one file that names mesh axes.

Modules name the *logical* axes of their parameters (`"embed"`, `"heads"`, ...); `RULES` says which
mesh axis each one is cut along. `data` holds copies of the parameters, `fsdp` cuts parameters and
batch alike, `tensor` cuts heads, feed-forward width and vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cm3jax.config import MeshConfig
from cm3jax.errors import UserError
from cm3jax.shapes import Array, Float

BATCH = ("data", "fsdp")
"""The mesh axes that cut a batch."""

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "copies": "data",
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "rank": None,
    "vocab": "tensor",
    "positions": None,
    "shifted": None,
    "codes": "fsdp",
    "code_width": None,
    "conv_in": None,
    "conv_out": "fsdp",
    "patch": None,
}

LARGE = 1 << 20
"""Elements from which a parameter must be sharded on a mesh that shards parameters."""


AXES = ("data", "fsdp", "tensor")
# jax.make_mesh defaults to Explicit axes, under which Linen's logical partitioning fails.
_AUTO = (AxisType.Auto,) * len(AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh `data x fsdp x tensor`; a size of -1 takes the devices that are left.

    Its devices are the run's, or those given, which may be a target's. Neighbours along `tensor`
    and then `fsdp` are joined by the fastest links there are; several slices of TPUs are copies
    (`data`) of each other. A single process may use fewer devices than it has. Raises `UserError`
    when the sizes do not fit the devices or their slices, or these are not those of
    `config.platform`.
    """
    devices = find_devices(config.platform) if devices is None else devices
    sizes = _sizes(config, len(devices))
    fixed = math.prod(size for size in (config.data, config.fsdp, config.tensor) if size != -1)
    used = math.prod(sizes)
    hosts = len({device.process_index for device in devices})
    if used > len(devices) or (used < len(devices) and (hosts > 1 or used != fixed)):
        raise UserError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not fit "
            f"{len(devices)} devices; choose sizes whose product is {len(devices)}."
        )
    if used < len(devices):  # of one process, and a part of a torus is none
        placed = np.asarray(devices[:used]).reshape(sizes)
    else:
        placed = _placed(sizes, devices)
    return Mesh(placed, AXES, axis_types=_AUTO)


def _placed(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the mesh's shape, each axis along links of its own where there are such."""
    # jax may call every host of GPUs a slice; only their order keeps those of a host together.
    tpus = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpus else 1
    split: dict[str, Any] = {"devices": devices, "allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, **split)
    _require_copies(sizes, slices, len(devices))
    data, fsdp, tensor = sizes
    inside_sizes = (data // slices, fsdp, tensor)
    return mesh_utils.create_hybrid_device_mesh(inside_sizes, (slices, 1, 1), **split)


def _require_copies(sizes: tuple[int, ...], slices: int, devices: int) -> None:
    """Raise `UserError` unless each slice holds whole copies of the parameters."""
    data, fsdp, tensor = sizes
    if data % slices:
        inside = devices // slices
        rest = inside // math.gcd(tensor, inside)
        raise UserError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} would cut parameters across the network "
            f"between {slices} slices, which is too slow for it; make mesh.data a multiple of "
            f"{slices}, as in --mesh.data {slices} --mesh.fsdp {rest}."
        )


def sized(config: MeshConfig, devices: int, slices: int = 1) -> MeshConfig:
    """The config with the size that the others leave of `devices`, of all slices, in place of -1.

    Raises `UserError` where it would cut parameters across slices.
    """
    data, fsdp, tensor = sizes = _sizes(config, devices)
    _require_copies(sizes, slices, devices)
    return dataclasses.replace(config, data=data, fsdp=fsdp, tensor=tensor)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """A mesh of devices that need not exist; a size of -1 takes this machine's."""
    return AbstractMesh(_sizes(config, jax.device_count()), AXES, axis_types=_AUTO)


def _sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """The sizes, a -1 replaced by what the others leave of the devices, at least 1."""
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, devices // fixed)
    return tuple(sizes)


def find_devices(platform: str) -> list[jax.Device]:
    """All devices of the run; `UserError` if `platform` names others than jax found."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError):  # the second is jax's answer to a missing plugin
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]  # added at run time
        raise UserError(
            f"jax cannot start JAX_PLATFORMS={wanted}; install the extra for the "
            "hardware (tpu or cuda) and check its driver, or unset JAX_PLATFORMS."
        ) from None
    if platform not in ("", devices[0].platform):
        raise UserError(
            f"mesh.platform={platform}, but jax found only {devices[0].platform}; install the "
            "extra for the hardware (tpu or cuda), check its driver and JAX_PLATFORMS, or change "
            "mesh.platform."
        )
    return devices


def _rule(name: str | None) -> str | tuple[str, ...] | None:
    """What a logical axis is cut along; an axis without a name stays whole."""
    return RULES[name] if name else None


def batch_shards(mesh: Any) -> int:
    """Into how many pieces the mesh cuts a batch."""
    return _pieces(mesh, RULES["batch"])


def require_shares(batch: int, mesh: Any) -> None:
    """Raise `UserError` if the mesh cannot cut `batch` rows into equal shares."""
    shards = batch_shards(mesh)
    if batch % shards:
        raise UserError(
            f"data.batch={batch} cannot be cut into {shards} equal shares; make it "
            f"a multiple of {shards}, or choose other mesh sizes."
        )


def _pieces(mesh: Any, cut: str | tuple[str, ...] | None) -> int:
    """Into how many pieces the mesh cuts an axis."""
    axes = (cut,) if isinstance(cut, str) else cut or ()
    return math.prod(mesh.shape[axis] for axis in axes if axis in mesh.shape)


def constrain(x: Array, *names: str | None) -> Array:
    """`x`, its axes cut as these logical ones are, the others whole, on the mesh that is set.

    An axis that the mesh does not divide stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _cuts(mesh, x.shape, names))


def sharding_of(mesh: Mesh, shape: Sequence[int], *names: str | None) -> NamedSharding:
    """The sharding that `constrain` gives an array of this shape."""
    return NamedSharding(mesh, _cuts(mesh, shape, names))


def _cuts(mesh: Any, shape: Sequence[int], names: Sequence[str | None]) -> PartitionSpec:
    cuts = list(map(_rule, names))
    return PartitionSpec(
        *(
            cut if size % _pieces(mesh, cut) == 0 else None
            for cut, size in zip(cuts, shape, strict=False)
        )
    )


def shard_rows(x: Array) -> Array:
    """`x`, its first axis cut like a batch and the others whole, on the mesh that is set.

    Without this, parameters that are cut along `fsdp` draw activations into the same cut: every
    device would hold part of the width of all rows, and whole logits.
    """
    return constrain(x, "batch")


def shard_looked_up(x: Array) -> Array:
    """Entries [B L D] of a table that is cut along its width, cut like a batch instead.

    They are cut like the table first. In one step, where both `data` and `fsdp` cut the batch, XLA
    knows no way back except a whole copy: the table's gradient would be summed from all rows.
    """
    return shard_rows(constrain(x, "copies", None, "embed"))


def copies_of_table(table: Float[Array, "V D"], shards: int) -> Float[Array, "shards V D"]:
    """A table that is cut along its width, whole for each of the shards of a batch; 1 copies none.

    Partial sums that differ by device are no array under jit: on the axis of shards a gradient
    stays on its device until all of it is there. Then it is summed and cut along `fsdp` at once,
    and only the parts are summed over `data`.
    """
    cut = constrain(table, "vocab", "embed")
    if shards == 1:
        return cut[None]
    mesh = jax.sharding.get_abstract_mesh()
    data = _pieces(mesh, RULES["copies"])
    by_data = jnp.broadcast_to(cut, (data, *cut.shape))
    by_data = constrain(by_data, "copies", "vocab", "embed")
    every = jnp.broadcast_to(by_data[:, None], (data, shards // data, *cut.shape))
    return constrain(every.reshape(shards, *cut.shape), "batch", "vocab", None)


def mesh_of(arrays: Any) -> Mesh | None:
    """The mesh that a tree of arrays is on; None where that is a single device."""
    sharding = jax.tree.leaves(arrays)[0].sharding
    one = not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1
    return None if one else sharding.mesh


def processes(mesh: Mesh | None) -> int:
    """How many processes the devices of a mesh belong to; 1 without one."""
    return 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})


def on_each_device(
    function: Callable[..., Array],
    inputs: Sequence[tuple[str | None, ...]],
    output: tuple[str | None, ...],
) -> Callable[..., Array]:
    """`function`, run by every device of the mesh that is set on its own parts of the arrays.

    `inputs` and `output` name the arrays' logical axes, which the mesh must divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    specs = [PartitionSpec(*map(_rule, names)) for names in (*inputs, output)]
    # Kernels do not say along which axes what they give is the same.
    return jax.shard_map(function, in_specs=tuple(specs[:-1]), out_specs=specs[-1], check_vma=False)


def platform() -> str:
    """What the program being traced is compiled for, `cpu`, `gpu` or `tpu`: where the devices of
    the mesh that is set are, else jax's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def no_mesh() -> AbstractContextManager:
    """A context without the mesh that is set: programs run wherever their arguments are."""
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of an array whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def boxed_init(init: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """An initialiser of an array with these logical axes: boxed with them only while parameters
    are made, so that `module.param` gives back the array."""
    return nn.with_logical_partitioning(init, axes)


def shardings(mesh: Mesh | AbstractMesh, boxed: Any) -> Any:
    """Shardings of a variable tree as `jax.eval_shape` of a module's `init` gives it.

    The tree's leaves are boxed with logical axis names (`nn.with_logical_partitioning`) or plain;
    the answer has the unboxed structure. Raises `UserError` with the whole table when an axis name
    has no rule, or when a large parameter is left whole on a mesh that shards parameters.
    """
    faults = [fault for path, leaf in _leaves(boxed) if (fault := _fault(mesh, path, leaf))]
    if faults:
        raise UserError(f"sharding: {'; '.join(faults)}\n{array_table(mesh, boxed)}")
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(mesh, leaf)), boxed, is_leaf=_is_box)


def array_table(mesh: Mesh | AbstractMesh, boxed: Any) -> str:
    """One line per array: name, shape, logical axes, mesh axes and bytes on each device."""
    rows: list[tuple[str, ...]] = [("parameter", "shape", "axes", "sharded over", "MB/device")]
    for path, leaf in _leaves(boxed):
        value = nn.unbox(leaf)
        spec = _spec(mesh, leaf)
        local = NamedSharding(mesh, spec).shard_shape(value.shape)
        size = math.prod(local) * value.dtype.itemsize / 1e6
        cells = (" ".join(map(str, items)) or "-" for items in (value.shape, _axes(leaf)))
        over = " ".join(map(str, spec)) if any(spec) else "-"
        rows.append((path, *cells, over, f"{size:.3f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _leaves(boxed: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=_is_box):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _axes(leaf: Any) -> tuple[str | None, ...]:
    return leaf.names if _is_box(leaf) else ()


def _spec(mesh: Mesh | AbstractMesh, leaf: Any) -> PartitionSpec:
    """Mesh axes per dimension; one that the mesh does not divide stays whole, and so does the
    second of two dimensions that ask for one mesh axis."""
    used: set[str] = set()
    spec: list[str | None] = []
    for name, size in zip(_axes(leaf), nn.unbox(leaf).shape, strict=False):
        axis = RULES.get(name) if name else None
        free = isinstance(axis, str) and axis not in used and mesh.shape[axis] > 1
        if isinstance(axis, str) and free and size % mesh.shape[axis] == 0:
            used.add(axis)
            spec.append(axis)
        else:
            spec.append(None)
    return PartitionSpec(*spec)


def _fault(mesh: Mesh | AbstractMesh, path: str, leaf: Any) -> str | None:
    unknown = [name for name in _axes(leaf) if name is not None and name not in RULES]
    if unknown:
        return f"{path} has an axis {unknown[0]!r} without a rule; add one in partition.RULES"
    # Corrections of low rank are a hundredth of what they correct; copies of them do no harm.
    large = math.prod(nn.unbox(leaf).shape) >= LARGE and "rank" not in _axes(leaf)
    # The one table of learned positions has no heads to cut: `tensor` by itself leaves it whole.
    cutting = ("fsdp",) if "positions" in _axes(leaf) else ("fsdp", "tensor")
    sharding_mesh = any(mesh.shape[axis] > 1 for axis in cutting)
    if large and sharding_mesh and not any(_spec(mesh, leaf)):
        return f"{path} is large and would be whole on every device; choose mesh sizes dividing it"
    return None
