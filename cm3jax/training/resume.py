"""Where a run begins, and what may differ from its earlier lives.

A run that goes on is the run that was never interrupted if all that decides its batches, its draws
and its updates is what it was. Whatever differs is said; what would break that promise is refused,
unless it is asked for.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from etils import epath

from cm3jax import checkpoint
from cm3jax.checkpoint import Checkpoints, Restored
from cm3jax.config import DecoderConfig, Experiment
from cm3jax.data.pipeline import PART, Position, Stream
from cm3jax.errors import UserError
from cm3jax.io.checksums import MANIFEST
from cm3jax.io.experiment_json import to_dict
from cm3jax.io.files import sweep_scratch
from cm3jax.model import lora
from cm3jax.training import ema
from cm3jax.training.exported_run import PARAMS_FILE, is_run_config
from cm3jax.training.state import Layout, TrainState

# Fields by their dotted names or sections; a field that is in no list decides what is trained.
_FREE = {
    "name",
    "workdir",
    "init_from",  # the first life has read it
    "train",  # train.steps moves the end of the learning rate's schedule, which is said
    "checkpoint",
    "mesh",
    "decode",
    "data.threads",
    "data.shard",
    "model.remat",
    "model.unroll",
    "model.attention",
    "model.weights",
    "model.cache",
}
"""What changes no batch, draw or update (except for rounding)."""

_READ_ONCE = {
    "tokenizers",
    "retrieval",
    "data.source",
    "data.records",
    "data.emblems",
    "data.raw",
    "data.splits",
    "data.hold_back",
    "data.licences",
    "data.min_side",
    "data.max_aspect",
    "data.min_words",
    "data.max_words",
    "data.max_watermark",
    "data.max_unsafe",
    "data.image_size",
    "data.corpus",
    "data.bank",
    "data.mixture.paths",
    "data.tasks",
    "data.image_first",
}
"""What decides the data, whose fingerprints say more, wherever they are; where a checkpoint of an
earlier version has none, these fields must be what they were."""

_VALIDATION = "validation "
"""In front of the names of fingerprints of what the run is validated with: it decides no step, but
measures another loss."""

_EACH_STEP = {
    "decoder": {"retrieval.documents", "retrieval.queries"},
    "clip": {"retrieval.query_dropout"},
    "text_tokenizer": {"tokenizers.algorithm"},
}
"""What of those decides more than a learner's data."""

_KEEPS_PLACE = {
    *("optim", "curriculum.rate", "loss", "model"),
    *("vqgan", "vqgan_loss", "clip", "data.batch"),
}
"""What must not differ, but leaves the order of the data as it is."""


_OF_ROWS = {
    "data.bank",
    "data.mixture.paths",
    "data.mixture.weights",
    "data.resample",
    "data.online",
    "data.tasks",
    "data.image_first",
    "data.rows",
}
"""What only a decoder's rows are made by."""

_OF_CORPORA = {"model", "parti", "loss", "cm3", "retrieval", "data.corpus"} | _OF_ROWS
"""What those who learn from raw records do not read."""

_UNREAD = {
    "decoder": {"vqgan", "vqgan_loss", "clip", "parti", "tokenizers.algorithm"},
    "parti": _OF_ROWS | {"vqgan", "vqgan_loss", "clip", "cm3", "retrieval", "tokenizers.algorithm"},
    "vqgan": _OF_CORPORA | {"clip", "tokenizers", "vocab"},
    "clip": _OF_CORPORA
    | {"vqgan", "vqgan_loss", "vocab", "tokenizers.image", "tokenizers.algorithm"},
    "text_tokenizer": _OF_CORPORA
    | {"vqgan", "vqgan_loss", "clip", "optim", "curriculum", "tokenizers.text", "tokenizers.image"}
    | {"vocab.specials", "vocab.image_codes", "vocab.sentinels", "vocab.grid"}
    | {"data.raw", "data.batch", "data.image_size"},
}
"""What a learner does not read, so that it may differ: experiments of one family share it."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins."""

    state: TrainState
    position: Position
    seconds: float
    """Time spent in the training loop by earlier lives."""
    source: str
    """The same in words."""
    changes: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    """Options that differ from those of the life before, by name: what they were and are."""


def require_run_folder(run_dir: epath.PathLike) -> None:
    """Raise `UserError` if training in a folder would replace what is not a run's, before any
    work: a file, exported weights, or another program's `config.json`."""
    folder = epath.Path(run_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{run_dir} is a file; give a folder as --workdir.")
    if (folder / PARAMS_FILE).exists():
        raise UserError(
            f"{run_dir} holds exported weights, which stay as they are; give another --workdir, "
            "with --init-from to start from them."
        )
    config = folder / "config.json"
    if _has_checkpoint(folder) or (config.exists() and is_run_config(config)):
        return
    for name in ("config.json", "metrics.jsonl", "lives.jsonl", "report.html"):
        if (folder / name).exists():
            raise UserError(
                f"{folder / name} does not belong to a run of this program and stays as it is; "
                "give another --workdir."
            )


_WRITTEN = (
    r"(config|tracker|data)\.json|(damaged-)?(metrics|lives)\.jsonl|report\.html|text\.model|"
    r"bad-batch-\d+-process-\d+\.npz"
)
"""Names of the files that training writes beside its checkpoints."""


def _sweep(run_dir: epath.PathLike) -> None:
    """Delete the halves of files that earlier lives left when they were killed: reports, images
    of samples, traces. For the run's only writer; checkpoints are swept when they are opened."""
    if jax.process_index() != 0:
        return
    folder = epath.Path(run_dir)
    sweep_scratch(folder, _WRITTEN)
    for step in folder.glob("samples/*"):
        if step.name.isdecimal():
            sweep_scratch(step, r".+\.png")
    sweep_scratch(folder / "profile", r"operations\.json")
    for traces in folder.glob("profile/plugins/profile/steps-*"):
        sweep_scratch(traces, r"process-\d+\.(xplane\.pb|trace\.json\.gz)")


def _has_checkpoint(folder: epath.Path) -> bool:
    """Whether a checkpoint of ours is there, sound or not: other programs, too, keep theirs in a
    folder of that name."""
    checkpoints = folder / "checkpoints"
    steps = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return any((step / MANIFEST).exists() for step in steps)


def data_fingerprints(
    stream: Callable[[Literal["train", "validation"]], Stream], validates: bool
) -> dict[str, str]:
    """Fingerprints of what a learner's stream is trained on and, if it `validates`, of what it
    validates with."""
    marks = dict(stream("train").fingerprints)
    if validates:
        held_back = stream("validation").fingerprints
        marks |= {f"{_VALIDATION}{name}": mark for name, mark in held_back.items()}
    return marks


def start_state(
    experiment: Experiment,
    fingerprints: Mapping[str, str],
    data: Mapping[str, str],
    layout: Layout,
    checkpoints: Checkpoints,
    with_changes: bool,
) -> Start:
    """By precedence: the newest complete checkpoint, then `init_from`, then scratch.

    `fingerprints` are those of vocabulary and tokenizers, `data` those of what is read. Raises
    `UserError` for a checkpoint that was made with others, or with other options that decide what
    is trained, unless `with_changes` is given. For the run's only writer.
    """
    _sweep(experiment.run_dir)
    restored = checkpoints.restore(layout.abstract, fingerprints)
    if restored is not None:
        return _resume(experiment, data, restored, with_changes)
    state = layout.init(jax.random.fold_in(jax.random.key(experiment.seed), 0))
    if not experiment.init_from:
        return Start(state, Position(), 0.0, "starting from scratch.")
    run = checkpoint.load_run(
        experiment.init_from, lambda other: _filled_by(other.model, layout.abstract)
    )
    checkpoint.require_same(run.fingerprints, fingerprints, experiment.init_from)
    extra = dict(run.variables)
    params = lora.load_into(state.params, extra.pop("params"))
    source = f"starting from the parameters of {experiment.init_from} at step {run.step}."
    averages = None if state.ema is None else ema.begin(params, layout.trained)
    state = dataclasses.replace(state, params=params, extra=extra, ema=averages)
    return Start(state, Position(), 0.0, source)


def _filled_by(model: DecoderConfig, state: TrainState) -> TrainState:
    """The part of a state that another run's model has: without corrections if it has none."""
    if model.lora_rank:
        return state
    return dataclasses.replace(state, params=lora.strip(state.params))


def _resume(
    experiment: Experiment, data: Mapping[str, str], restored: Restored, with_changes: bool
) -> Start:
    step, meta, goal = int(restored.state.step), restored.meta, experiment.train.steps
    changes = differences(meta.experiment, experiment)
    decisive = decisive_changes(experiment.learner, changes, meta.data, data)
    if decisive and not with_changes:
        raise UserError(
            f"{experiment.run_dir} was trained to step {step} with other options: "
            f"{describe(decisive)}; give those again, or another --workdir, or go on with the "
            "changes by --resume-with-changes."
        )
    changes |= _data_changes(meta.data, data, validation=True)
    position = meta.position
    word = "resuming" if step < goal else "finished already, nothing to train"
    lines = [f"{word}: {experiment.run_dir} is at step {step} of {goal}."]
    if changes or decisive:
        lines.append(f"options that differ from before: {describe({**changes, **decisive})}.")
    if "train.steps" in changes and experiment.optim.end_lr_ratio != 1 and step < goal:
        lines.append(f"the learning rate follows the new train.steps from step {step + 1} on.")
    if with_changes and (not meta.data or any(map(_moves_data, decisive))):
        given = step if experiment.curriculum.changes_rows else None
        position = _epoch_again(position, len(experiment.data.mixture), given)
        lines.append("the data's order may be another one: its epoch begins again.")
    return Start(restored.state, position, meta.seconds, "\n".join(lines), {**changes, **decisive})


def differences(before: Experiment, now: Experiment) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, by dotted name: what they were and are."""
    ours, theirs = (_flat(to_dict(experiment)) for experiment in (now, before))
    return {name: (theirs[name], ours[name]) for name in ours if theirs[name] != ours[name]}


def decisive_changes(
    learner: str,
    changes: Mapping[str, tuple[Any, Any]],
    before: Mapping[str, str],
    now: Mapping[str, str],
) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, and the data's fingerprints, as far as they decide the rest of a
    learner's run.

    `before` is empty where a checkpoint of an earlier version has none.
    """
    free = _FREE | _UNREAD[learner] | (_READ_ONCE if before else set())
    steps = _EACH_STEP.get(learner, set())
    found = {
        name: pair for name, pair in changes.items() if name in steps or not _is_in(name, free)
    }
    return found | _data_changes(before, now, validation=False)


def _data_changes(
    before: Mapping[str, str], now: Mapping[str, str], validation: bool
) -> dict[str, tuple[str, str]]:
    """What differs of the data of validation, or of training, where both lives say it."""
    before, now = (
        {name: mark for name, mark in marks.items() if name.startswith(_VALIDATION) == validation}
        for marks in (before, now)
    )
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(before.keys() | now.keys() if before and (now or not validation) else ()):
        if PART not in name and before.get(name) != now.get(name):
            whole = {name: (before.get(name, "none"), now.get(name, "none"))}
            parts = _parts(name, before, now) or whole
            found |= {f"the data's {part}": pair for part, pair in parts.items()}
    return found


def _parts(
    name: str, before: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """What differs of data with a name, as far as both say it; earlier versions did not."""
    both = sorted(before.keys() & now.keys())
    own = [part for part in both if part.startswith(name + PART)]
    return {part: (before[part], now[part]) for part in own if before[part] != now[part]}


def describe(changes: Mapping[str, tuple[Any, Any]], most: int = 8) -> str:
    """Changes in words; the first few where there are many."""
    words = [f"{name} {_shown(before)} → {_shown(now)}" for name, (before, now) in changes.items()]
    return ", ".join(words[:most] + ([f"{len(words) - most} more"] if words[most:] else []))


def _shown(value: Any) -> str:
    text = str(value) if value != "" else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names; a mixture's place is one, its weights another."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        elif prefix + name == "data.mixture":
            out["data.mixture.paths"] = [path for path, _ in value]
            out["data.mixture.weights"] = [weight for _, weight in value]
        else:
            out[prefix + name] = value
    return out


def _is_in(name: str, names: set[str]) -> bool:
    return name in names or name.partition(".")[0] in names


def _moves_data(name: str) -> bool:
    return name == "model.context" or not _is_in(name, _KEEPS_PLACE)


def _epoch_again(position: Position, corpora: int, given: int | None = None) -> Position:
    """The beginning of the epoch that a position is in, of a mixture for each corpus; the very
    beginning where the number of corpora changed. For a curriculum (`data.stages`) after `given`
    batches."""
    place = position.parts[0] if len(position.parts) == 1 else position
    if len(place.parts) != (corpora if corpora > 1 else 0):
        again = Position()
    elif place.parts:
        again = Position(row=place.row, parts=tuple(Position(part.epoch) for part in place.parts))
    else:
        again = Position(place.epoch)
    return again if given is None else Position(row=given, parts=(again,))
