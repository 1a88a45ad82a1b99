"""Checkpoints of a run, loading a run for use, and exporting its weights.

A checkpoint `RUN/checkpoints/STEP` holds the train state (orbax, one array per leaf, restorable on
any mesh), one JSON for all processes (data position, resolved config, fingerprints, licence shares,
timers) and the checksums of both. Process 0 takes the checksums when all processes have written and
before the directory gets its final name, so that a checkpoint either is there with its checksums or
is not; on resuming it compares them and tells the others which checkpoint is sound.
"""

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath

from cm3jax.config import CheckpointConfig, Experiment
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.io import checksums
from cm3jax.io.experiment_json import build, from_dict, to_dict
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, read_model
from cm3jax.training import distributed, ema
from cm3jax.training.companions import run_folder
from cm3jax.training.exported_run import (
    LoadedRun,
    Onto,
    is_exported,
    read_export,
    require_shapes,
    write_run,
)
from cm3jax.training.state import TrainState

_log = logging.getLogger(__name__)

_ORBAX_NOTES = "_CHECKPOINT_METADATA"
"""Times of writing, which orbax changes last and nothing here reads."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint holds besides the train state."""

    position: Position
    """The next batch's place in the data."""
    experiment: Experiment
    fingerprints: Mapping[str, str]
    """Fingerprints of the vocabulary and the tokenizers, by name."""
    seconds: float
    """Time spent in the training loop so far, over all lives of the run."""
    licences: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The share of each licence among the training rows; empty where no corpus says so."""
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fingerprints of the data by name (`Stream.fingerprints`); empty in earlier versions."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "position": dataclasses.asdict(self.position),
            "experiment": to_dict(self.experiment),
            "fingerprints": dict(self.fingerprints),
            "licences": dict(self.licences),
            "data": dict(self.data),
            "timers": {"seconds": self.seconds},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], what: str) -> "Meta":
        """The inverse of `to_json`; `UserError` for other values."""
        try:
            return cls(
                position=Position.from_json(values["position"]),
                experiment=from_dict(values["experiment"], what),
                fingerprints=build(dict[str, str], values["fingerprints"], what, "fingerprints"),
                licences=build(dict[str, float], values.get("licences", {}), what, "licences"),
                data=build(dict[str, str], values.get("data", {}), what, "data"),
                **values["timers"],
            )
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{what} is not a checkpoint of this project, or is of a later version; give "
                "another run directory."
            ) from None


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read back."""

    state: TrainState
    meta: Meta


class Checkpoints:
    """The checkpoints of one run directory; a context manager that ends with all of them written.

    Saving is asynchronous: the state is copied before `save` returns, so its buffers may be
    donated, and written in the background under a name that only a complete checkpoint loses.
    """

    def __init__(self, run_dir: epath.PathLike, config: CheckpointConfig):
        self._directory = epath.Path(run_dir).resolve() / "checkpoints"
        for half in _half_written(self._directory):
            _log.warning("passing over %s: the run ended while it was being written.", half)
        self._saving, self._pending = "", False
        self._kept = _NewestAndBest(config.keep)
        self._manager = _manager(
            self._directory,
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            with self._writing():
                self._manager.close()
        except UserError:
            if kind is None:  # else the run ends for another reason, which is said
                raise

    def restore(self, abstract: TrainState, fingerprints: Mapping[str, str]) -> Restored | None:
        """The newest sound checkpoint, laid out as `abstract` says; None if there is none.

        A damaged one is set aside as `damaged-STEP` with a warning. Raises `UserError` when all are
        damaged, or when the checkpoint belongs to another model or vocabulary: nothing is cast.
        """
        step = self._newest_sound()
        if step is None:
            return None
        path = str(self._directory / str(step))
        meta = _read_meta(self._manager, step, path)
        require_same(meta.fingerprints, fingerprints, path)
        saved = dict(self._manager.item_metadata(step)["state"].tree)
        # Whether averages are kept may change between two lives, if asked for (`training.resume`).
        keeps, kept = abstract.ema is not None, saved.get("ema") is not None
        if not keeps:
            saved.pop("ema", None)
        target = abstract if kept else dataclasses.replace(abstract, ema=None)
        require_shapes(saved, target, path)
        state = _read_state(self._manager, step, target)
        if keeps and not kept:
            state = dataclasses.replace(state, ema=ema.begin(state.params, _there(abstract.ema)))
        return Restored(state, meta)

    def save(self, step: int, state: TrainState, meta: Meta) -> None:
        """Begin to write a checkpoint; waits first for one that is still being written.

        Raises `UserError` if either cannot be written.
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta.to_json())
        )
        with self._writing():
            self._manager.wait_until_finished()
            self._saving = str(step)
            self._manager.save(step, args=items)
        self._pending = True

    def keep_best(self, step: int) -> None:
        """Keep the checkpoint of a step, which is saved or about to be, until another is named."""
        self._kept.best = step

    def check(self) -> None:
        """Raise `UserError` if the checkpoint that is being written has failed. Waits for nothing:
        called after every step, it tells while there is still little to lose."""
        if self._pending and not self._manager.is_saving_in_progress():
            self._pending = False
            with self._writing():
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise UserError(
                f"the checkpoint of step {self._saving} cannot be written to {self._directory} "
                f"({_brief(error)}); make room there and start again: the run goes on from its "
                "newest complete checkpoint."
            ) from error

    def _seal(self) -> None:
        """Add the checksums to the checkpoint that was just written and has no final name yet."""
        scratch = [
            path
            for path in _half_written(self._directory)
            if path.name.startswith(f"{self._saving}.")
        ]
        # Where renaming is not atomic (buckets), the name is final and a file commits it.
        path = scratch[0] if scratch else self._directory / self._saving
        checksums.seal(path, without=(_ORBAX_NOTES,))

    def _newest_sound(self) -> int | None:
        """The step of the newest sound checkpoint, the same in every process."""
        answer: dict[str, Any] = {"step": None, "error": ""}
        if jax.process_index() == 0:
            try:
                step, damaged = _newest_sound(self._manager, self._directory)
            except UserError as error:
                answer["error"] = str(error)
            else:
                answer["step"] = step
                for path in damaged:
                    _set_aside(path)
        answer = json.loads(distributed.from_first(json.dumps(answer)))
        if answer["error"]:
            raise UserError(answer["error"])
        self._manager.reload()
        return answer["step"]


@dataclasses.dataclass
class _NewestAndBest:
    """Which checkpoints orbax keeps: the newest ones, and that of the best validation."""

    count: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each checkpoint, oldest first, is kept."""
        newest = {checkpoint.step for checkpoint in checkpoints[-self.count :]}
        return [checkpoint.step in {*newest, self.best} for checkpoint in checkpoints]


def _newest_sound(
    manager: ocp.CheckpointManager, directory: epath.Path
) -> tuple[int | None, list[epath.Path]]:
    """The step of the newest sound checkpoint, if there is any, and the damaged newer ones.

    Warns of each damaged one; `UserError` if there are no others.
    """
    damaged: list[epath.Path] = []
    for step in sorted(manager.all_steps(), reverse=True):
        path = directory / str(step)
        fault = checksums.fault(path)
        if fault is None:
            return step, damaged
        _log.warning("passing over %s, which is damaged: %s.", path, fault)
        damaged.append(path)
    if damaged:
        raise UserError(
            f"all checkpoints in {directory} are damaged ({', '.join(p.name for p in damaged)}); "
            "restore them from a copy, or remove the directory to start again."
        )
    return None, []


def _set_aside(path: epath.Path) -> None:
    aside, number = path.parent / f"damaged-{path.name}", 1
    while aside.exists():  # an earlier life's; it may be all that is left of something
        number += 1
        aside = path.parent / f"damaged-{path.name}.{number}"
    path.rename(aside)


def load_run(run_dir: epath.PathLike, onto: Onto | None = None) -> LoadedRun:
    """Parameters and other collections of a run directory, of an exported run or of a run on the
    hub (`hf:OWNER/NAME`), float32.

    A run is read at its newest sound checkpoint, or at the one that `RUN/checkpoints/STEP` names,
    without the optimiser's state; where it keeps moving averages of its parameters (`optim.ema`),
    these are read instead. Weights exported as bfloat16 are widened. `onto` says for the run's
    experiment what they are and where they belong, and every device reads its own part; without it
    all are read onto the first device. Raises `UserError` if nothing there can be read, naming the
    first array that `onto` does not know, or knows otherwise.
    """
    path, named = run_folder(run_dir)
    if is_exported(path):
        return read_export(path, onto)
    if not (path / "checkpoints").exists():
        raise UserError(
            f"{run_dir} holds no trained run (neither checkpoints nor params.safetensors); "
            "train it first, or give another directory."
        )
    with _manager(path / "checkpoints", create=False) as manager:
        if named is not None:
            _require_sound(manager, named, path)
        step = named
        if step is None:
            step, _ = _newest_sound(manager, path / "checkpoints")
        if step is None:
            raise UserError(f"{run_dir} holds no complete checkpoint yet; train it first.")
        return _load_checkpoint(manager, step, f"{run_dir} at step {step}", onto)


def _require_sound(manager: ocp.CheckpointManager, step: int, run_dir: epath.Path) -> None:
    steps = sorted(manager.all_steps())
    if step not in steps:
        raise UserError(
            f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}."
        )
    if fault := checksums.fault(run_dir / "checkpoints" / str(step)):
        raise UserError(f"the checkpoint of step {step} in {run_dir} is damaged: {fault}.")


def export_run(
    run_dir: epath.PathLike,
    out_dir: epath.PathLike,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Write a run's weights and config to a directory of its own: see `exported_run.write_run`.

    A text tokenizer that the run keeps beside its checkpoints goes with them.
    """
    run, home = load_run(run_dir), run_folder(run_dir)[0]
    write_run(run, out_dir, dtype, read_model(home) if (home / MODEL_FILE).exists() else None)


def require_same(saved: Mapping[str, str], ours: Mapping[str, str], what: str) -> None:
    """Raise `UserError` if a fingerprint that both name differs."""
    words = {"text": "text tokenizer", "image": "image tokenizer", "vocab": "vocabulary"}
    for name in sorted(name for name in saved.keys() & ours.keys() if saved[name] != ours[name]):
        raise UserError(
            f"{what} was made with the {words.get(name, name)} {saved[name]}, but this run has "
            f"{ours[name]}; use the one that made it, or another run directory."
        )


def _manager(directory: epath.Path, **options) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        directory,
        item_handlers={"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(**options),
    )


def _half_written(directory: epath.Path) -> list[epath.Path]:
    if not directory.exists():
        return []
    return [entry for entry in directory.iterdir() if ".orbax-checkpoint-tmp" in entry.name]


def _read_meta(manager: ocp.CheckpointManager, step: int, what: str) -> Meta:
    items = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    return Meta.from_json(items["meta"], what)


def _read_state(manager: ocp.CheckpointManager, step: int, target: Any) -> Any:
    """What `target` names of a checkpoint, and nothing else."""
    restore = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return manager.restore(step, args=ocp.args.Composite(state=restore))["state"]


def _load_checkpoint(
    manager: ocp.CheckpointManager,
    step: int,
    what: str,
    onto: Onto | None,
) -> LoadedRun:
    meta = _read_meta(manager, step, what)
    saved = manager.item_metadata(step)["state"].tree
    found = {"params": saved["params"], "extra": saved.get("extra") or {}}
    if onto is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found
        )
    else:
        wanted = onto(meta.experiment)
        target = {"params": wanted.params, "extra": wanted.extra}
        require_shapes(found, target, what)
    averages = saved.get("ema")
    if averages is not None:  # of each parameter one is read
        there, params = _there(averages), target["params"]
        target["ema"] = jax.tree.map(lambda mean, leaf: leaf if mean else None, there, params)
        target["params"] = jax.tree.map(lambda mean, leaf: None if mean else leaf, there, params)
    state = _read_state(manager, step, target)
    params = ema.over(state.get("ema"), state["params"])
    variables = {"params": params, **state["extra"]}
    notes = (step, meta.fingerprints, meta.licences, meta.data)
    return LoadedRun(meta.experiment, variables, *notes)


def _there(averages: Any) -> Any:
    """Which parameters have an average."""
    return jax.tree.map(lambda mean: mean is not None, averages, is_leaf=ema.is_none)


def _brief(error: Exception) -> str:
    """What the system says, which tensorstore puts last, or else the first words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = re.search(r"\[OS error \d+: ([^\]]+)\]|([^:\n]+) \[os_error_code=", str(error))
    if said:
        return (said[1] or said[2]).strip()
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
