"""A trained model in memory, and its exported form: a directory of weights and config.

It contains `config.json` and `params.safetensors` only, no optimiser and no data position.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm3jax.config import CacheType, Experiment, WeightType
from cm3jax.errors import UserError
from cm3jax.io import safetensors_file
from cm3jax.io.experiment_json import read_experiment, save_experiment
from cm3jax.io.files import read_json, sweep_scratch, write_atomic
from cm3jax.io.folders import hold
from cm3jax.io.together import Write, read_together, replace_together, settle_together
from cm3jax.io.typed_json import fits
from cm3jax.io.verified import is_verified
from cm3jax.model.quantised import require_qwix
from cm3jax.training import quantised_file
from cm3jax.training.state import TrainState

Onto = Callable[[Experiment], TrainState]
"""Shapes and sharding of an experiment's variables, without values."""

PARAMS_FILE = "params.safetensors"
"""The weights of an exported run."""
EXPORTED = ("config.json", "text.model", PARAMS_FILE)
"""The files of an exported run, which are replaced together."""
_SCRATCH = "|".join(rf"(\.{re.escape(name)}\.new|{re.escape(name)})" for name in EXPORTED)
"""Names of the files of which half an export leaves halves."""


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready for use."""

    experiment: Experiment
    variables: dict[str, Any]
    """{"params": ..., and other collections}, jax arrays."""
    step: int
    fingerprints: Mapping[str, str]
    licences: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The share of each licence among the training rows; empty where no corpus says so."""
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fingerprints of the data that the run read, by name."""

    def kept_as(self, weights: WeightType, cache: CacheType) -> "LoadedRun":
        """The run whose config says so of its generation; an empty type leaves the run's own."""
        model = self.experiment.model
        model = dataclasses.replace(
            model, weights=weights or model.weights, cache=cache or model.cache
        )
        return dataclasses.replace(
            self, experiment=dataclasses.replace(self.experiment, model=model)
        )


def write_run(
    run: LoadedRun,
    out_dir: epath.PathLike,
    dtype: Literal["float32", "bfloat16"] = "float32",
    text_model: bytes | None = None,
) -> None:
    """Write weights as `params.safetensors` (names like `params/layers/...`) and `config.json`,
    without paths of this machine, and a text tokenizer that belongs to them.

    A decoder's layers are written as its `model.weights` says, if it does.
    `cm3jax.checkpoint.load_run` reads the directory. Raises as `write_export` does.
    """
    kind = run.experiment.model.weights if run.experiment.decodes else ""
    if kind:
        require_qwix(f"model.weights={kind}")
    outputs: dict[str, safetensors_file.Output] = {}
    for path, leaf in jax.tree.leaves_with_path(run.variables):
        if kind and path[-1].key == "kernel":
            outputs |= quantised_file.outputs(_name(path), path, leaf, kind)
            continue
        narrow = dtype == "bfloat16" and leaf.dtype == np.float32
        outputs[_name(path)] = safetensors_file.whole(leaf, "BF16" if narrow else None)
    write_export(out_dir, run, outputs, text_model)


def write_export(
    out_dir: epath.PathLike,
    run: LoadedRun,
    outputs: Mapping[str, safetensors_file.Output],
    text_model: bytes | None = None,
) -> None:
    """Write tensors by their names in the form of `write_run`, in place of `run.variables`: they
    need not be in memory.

    An earlier export there is replaced as a whole, whenever this is killed. Raises `UserError`
    where a file in the way is no export's, and for the folder of a training.
    """
    header = {"step": str(run.step), "fingerprints": json.dumps(dict(run.fingerprints))}
    header |= {"licences": json.dumps(dict(run.licences)), "data": json.dumps(dict(run.data))}
    header["sha256"] = safetensors_file.checksum(outputs)
    portable = dataclasses.replace(run.experiment, workdir="", init_from="")
    files: dict[str, Write] = {
        "config.json": lambda path: save_experiment(path, portable),
        PARAMS_FILE: lambda path: safetensors_file.write_file(path, outputs, header),
    }
    if text_model is not None:
        files["text.model"] = lambda path: write_atomic(path, text_model)
    with hold(out_dir, "exporting a run"):
        _require_replaceable(epath.Path(out_dir))
        sweep_scratch(out_dir, _SCRATCH)
        replace_together(out_dir, EXPORTED, files)


def _require_replaceable(out: epath.Path) -> None:
    config, weights = out / "config.json", out / PARAMS_FILE
    for path in (config, weights):
        if os.path.exists(path) and not os.path.isfile(path):  # in a bucket, neither
            raise UserError(f"{path} is a folder or a device; give another folder to export to.")
    if config.exists() and not is_run_config(config):
        raise UserError(
            f"{config} does not belong to a run of this program and stays as it is; give another "
            "folder to export to."
        )
    if weights.exists() and not config.exists() and not _is_export(weights):
        raise UserError(
            f"{weights} is no export of this program and stays as it is; give another folder to "
            "export to."
        )
    if (out / "checkpoints").exists() and config.exists() and not weights.exists():
        raise UserError(f"{out} is the folder of a training; give another folder to export to.")


def is_run_config(path: epath.Path) -> bool:
    """Whether a file is the config of a run, of whatever version, and not another program's."""
    try:
        values = read_json(path, "the run's config")
    except UserError:
        return False
    return isinstance(values, dict) and {"learner", "train", "data"} <= values.keys()


def _is_export(weights: epath.Path) -> bool:
    try:
        return _notes(safetensors_file.read_metadata(weights)) is not None
    except UserError:
        return False


def read_export(path: epath.Path, onto: Onto | None = None) -> LoadedRun:
    """Read what `write_run` or `write_export` wrote, as `cm3jax.checkpoint.load_run` says.

    Where it is replaced meanwhile it is read again. Earlier versions wrote no checksum.
    """
    return read_together(path, EXPORTED, lambda: _read_export(path, onto))


def is_exported(path: epath.Path) -> bool:
    """Whether a folder holds an exported run; one whose writing was interrupted is finished."""
    settle_together(path, EXPORTED)
    return (path / PARAMS_FILE).exists()


def _read_export(path: epath.Path, onto: Onto | None) -> LoadedRun:
    file = path / PARAMS_FILE
    found = safetensors_file.read_file(file)
    header = safetensors_file.read_metadata(file)
    notes = _notes(header)
    if notes is None:
        raise UserError(f"{file} is damaged or not an exported run; export it again.")
    wanted = header.get("sha256")
    if wanted is not None and not is_verified(file, wanted, safetensors_file.stored_checksum):
        raise UserError(f"{file} is damaged (its checksum differs); export the run again.")
    experiment = read_experiment(path / "config.json")
    found = quantised_file.widened(found, experiment.model.weights, file)
    variables: dict[str, Any] = {}
    for name, tensor in found.items():
        *parents, leaf = name.split("/")
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{file} has {name} below another tensor; export the run again.")
        node[leaf] = tensor
    if onto is None:
        variables = jax.tree.map(lambda tensor: jnp.asarray(_widened(tensor, ...)), variables)
    else:
        variables = _read_onto(variables, onto(experiment), str(path))
    return LoadedRun(experiment, variables, *notes)


def _notes(
    header: Mapping[str, str],
) -> tuple[int, dict[str, str], dict[str, float], dict[str, str]] | None:
    """Step, fingerprints, licences and data in a file's header; None where they make no sense."""
    kinds = {"fingerprints": dict[str, str], "licences": dict[str, float], "data": dict[str, str]}
    try:
        found: dict[str, Any] = {"licences": {}, "data": {}}  # earlier versions wrote neither
        found |= {name: json.loads(header[name]) for name in kinds if name in header}
        step = int(header["step"])
    except (ValueError, KeyError, RecursionError):
        return None
    if not all(fits(found.get(name), kind) for name, kind in kinds.items()):
        return None
    return step, found["fingerprints"], found["licences"], found["data"]


def _read_onto(found: dict[str, Any], onto: TrainState, what: str) -> dict[str, Any]:
    """Tensors of a file as arrays on a mesh: what a device holds is all that is read for it."""
    wanted = {"params": onto.params, **onto.extra}
    described = jax.tree.map(
        lambda tensor: jax.ShapeDtypeStruct(tensor.shape, _read_type(tensor)), found
    )
    require_shapes(described, wanted, what)

    def read(tensor: safetensors_file.Tensor, leaf: jax.ShapeDtypeStruct):
        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: _widened(tensor, index)
        )

    return jax.tree.map(read, found, wanted)


def _read_type(tensor: safetensors_file.Tensor) -> np.dtype:
    """The type in memory: parameters are float32, however they were exported."""
    narrow = tensor.type in ("BF16", "F16")
    return np.dtype(np.float32) if narrow else safetensors_file.TYPES[tensor.type]


def _widened(tensor: safetensors_file.Tensor, index: Any) -> np.ndarray:
    return tensor.read(index).astype(_read_type(tensor), copy=False)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shapes(tree: Any) -> dict[str, str]:
    """Type and shape of every array by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def require_shapes(found_arrays: Any, wanted_arrays: Any, what: str) -> None:
    """Raise `UserError` naming the first array that two trees do not have alike."""
    found, wanted = _shapes(found_arrays), _shapes(wanted_arrays)
    names = found.keys() | wanted.keys()
    for name in sorted(names, key=lambda name: (not name.startswith("params"), name)):
        ours, theirs = wanted.get(name, "nothing"), found.get(name, "nothing")
        if ours != theirs:
            raise UserError(
                f"{what} is of another model: {name} is {theirs} there and {ours} in this "
                "experiment; give the experiment that made it, or another run directory."
            )
