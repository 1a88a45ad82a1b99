"""Training: one step and one loop, for any learner.

A run is a function of its experiment: batches depend on (seed, position), keys on (seed, step), and
a checkpoint holds state and position, so that a run that was killed repeats nothing differently.
"""

import collections
import functools
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from cm3jax import partition
from cm3jax.checkpoint import Checkpoints, Meta
from cm3jax.data.corpus import licence_shares
from cm3jax.data.document_probe import probes_of
from cm3jax.data.pipeline import Described, HostBatch, Position, combine_fingerprints
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import save_experiment, to_dict
from cm3jax.io.files import write_atomic
from cm3jax.io.folders import hold
from cm3jax.model.kernels import IN_WORDS, kernel_for
from cm3jax.report.run_page import Illustration, draw_report, is_reported
from cm3jax.shapes import Array, Key
from cm3jax.training import distributed, ema
from cm3jax.training.best import BestKept
from cm3jax.training.clock import StepClock
from cm3jax.training.gradients import accumulated, gradients
from cm3jax.training.learner import Learner
from cm3jax.training.loss import LossOutput, Mean
from cm3jax.training.mesh_checks import require_attention, require_divisible
from cm3jax.training.metrics import (
    MetricsLog,
    Progress,
    record_life,
    utilisation,
    validation_name,
)
from cm3jax.training.optim import learning_rate
from cm3jax.training.precision import require_quantiser
from cm3jax.training.profile import StepProfile
from cm3jax.training.resume import Start, data_fingerprints, require_run_folder, start_state
from cm3jax.training.state import Layout, TrainState, plan_layout
from cm3jax.training.tracker import Tracker, require_tracker
from cm3jax.training.watchdog import Watchdog

Illustrator = Callable[[TrainState], Sequence[Illustration]]
"""What the parameters make by now, for the run's report.

Every process calls it at each validation, with no mesh set; process 0 writes its answer.
"""


def _nothing(_: TrainState) -> Sequence[Illustration]:
    return ()


def train(
    learner: Learner,
    illustrate: Illustrator = _nothing,
    resume_with_changes: bool = False,
    preemption: distributed.Preemption | None = None,
) -> TrainState:
    """Train until `train.steps`, or until SIGTERM, and return the state, which is saved.

    Starts from the run directory's newest complete checkpoint, else from the parameters of
    `init_from`, else from scratch, and says which. The report is written at validations and at the
    end; a run that was killed between its last checkpoint and its report gets it from its next
    life. `preemption` tells afterwards whether SIGTERM came, even if all was done but the report.
    Raises `UserError` when another process trains in the run directory, when the loss stops being a
    number (the batch is kept beside the checkpoints), when a checkpoint cannot be written, belongs
    to another model or vocabulary or, unless `resume_with_changes`, was made with other options
    that decide what is trained.
    """
    experiment = learner.experiment
    mesh = partition.make_mesh(experiment.mesh)
    parts, shards = experiment.optim.accumulate, partition.batch_shards(mesh)
    require_divisible(experiment.data.batch, parts, shards)
    if experiment.decodes:
        require_attention(experiment.model, mesh)
    require_tracker(experiment.train.tracker)
    require_quantiser(experiment.model.quantised)
    require_run_folder(experiment.run_dir)
    with (
        hold(experiment.run_dir, f"training {experiment.name}"),
        jax.set_mesh(mesh),
        Watchdog(experiment.train.watchdog_seconds) as watchdog,
        Checkpoints(experiment.run_dir, experiment.checkpoint) as checkpoints,
        Progress(experiment.name, experiment.train.steps) as progress,
        preemption or distributed.Preemption() as preemption,
    ):
        layout = plan_layout(learner, mesh)
        data = data_fingerprints(learner.stream, experiment.train.validate_every > 0)
        prints = learner.fingerprints
        begin = start_state(experiment, prints, data, layout, checkpoints, resume_with_changes)
        progress.say(f"{experiment.name}: {begin.source}")
        if int(begin.state.step) >= experiment.train.steps:
            pictures = experiment.train.validate_every > 0
            _report_again(experiment.run_dir, illustrate, begin.state, pictures)
            return begin.state
        if mesh.size > 1:
            progress.say(layout.table)
        if layout.trained_table:
            progress.say(layout.trained_table)
        progress.say(f"{layout.parameters:,} parameters, mesh {dict(mesh.shape)}")
        if experiment.row_length:
            rows = (experiment.row_length, experiment.one_segment)
            progress.say(f"rows attend by {IN_WORDS[kernel_for(experiment.model, *rows)]}")
        run = _Run(learner, illustrate, layout, begin, data, mesh, checkpoints, progress)
        with (
            StepProfile(experiment.run_dir, experiment.train.traced) as profile,
            Tracker(experiment.train.tracker, experiment.run_dir, to_dict(experiment)) as tracker,
        ):
            return run.loop(preemption, watchdog, profile, tracker)


def make_train_step(learner: Learner, layout: Layout) -> jax.stages.Wrapped:
    """One update, compiled: from state and batch to state and metrics; the state that goes in is
    donated.

    Its metrics are the learner's, `gradient_norm` before clipping and `parameter_norm` after the
    update.
    """
    parts, decay = learner.experiment.optim.accumulate, learner.experiment.optim.ema
    differentiate = gradients
    if parts > 1:
        differentiate = functools.partial(accumulated, parts, layout.shardings.params)

    def loss(params: Any, *rest: Any) -> LossOutput:
        return learner.loss(layout.hold(params), *rest)

    def step(state: TrainState, batch: Any):
        key = _key(learner.experiment.seed, state.step + 1)
        slopes, output = differentiate(loss, state, batch, key)
        updates, opt_state = layout.optimizer.update(slopes, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = {
            "gradient_norm": (optax.tree.norm(slopes), 1.0),
            "parameter_norm": (optax.tree.norm(params), 1.0),
        }
        metrics = {**output.metrics, **norms}
        averages = state.ema
        if averages is not None:
            averages = ema.update_averages(averages, params, decay, state.step + 1)
        return TrainState(state.step + 1, params, opt_state, output.extra, averages), metrics

    # The gradients of cut parameters do not come back cut by themselves; the outputs must.
    whole = layout.shardings.step
    return jax.jit(step, donate_argnums=0, out_shardings=(layout.shardings, whole))


def make_validation(
    learner: Learner, layout: Layout
) -> Callable[[TrainState, Iterable[Any]], dict[str, float]]:
    """Mean metrics over batches, under the names `loss_valid`, `loss_valid_text`, ..., of
    `TrainState.averaged`."""

    def measure(params, extra, batch, index):
        key = _key(learner.experiment.seed, np.uint32(2**32 - 1), index)
        return learner.loss(params, extra, batch, key, index, training=False).metrics

    compiled = jax.jit(measure, out_shardings=layout.shardings.step)

    def validate(state: TrainState, batches: Iterable[Any]) -> dict[str, float]:
        sums: dict[str, Any] = {}
        params = state.averaged
        for index, batch in enumerate(batches):
            for name, (total, weight) in compiled(params, state.extra, batch, index).items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + float(total), before[1] + float(weight))
        return {validation_name(name): Mean(*pair).compute() for name, pair in sums.items()}

    return validate


def _key(seed: int, *numbers: Any) -> Key[Array, ""]:
    key = jax.random.key(seed)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def _report_again(run_dir: str, illustrate: Illustrator, state: TrainState, pictures: bool) -> None:
    """Report a finished run that was killed before it did."""
    step, written = int(state.step), ""
    if jax.process_index() == 0 and is_reported(run_dir, step):
        written = "yes"
    if not distributed.from_first(written):
        _draw(run_dir, illustrate, state, step, pictures)


def _draw(
    run_dir: str, illustrate: Illustrator, state: TrainState, step: int, pictures: bool
) -> None:
    """Write the run's report: after a validation with images, else with the curves only."""
    drawn: Sequence[Illustration] = ()
    if pictures:
        with partition.no_mesh():
            drawn = illustrate(state)
    if jax.process_index() == 0:
        draw_report(run_dir, step, drawn)


class _Run:
    """One life of a run, from its start to its end or its interruption."""

    def __init__(
        self,
        learner: Learner,
        illustrate: Illustrator,
        layout: Layout,
        start: Start,
        data: Mapping[str, str],
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        progress: Progress,
    ):
        self._learner, self._illustrate = learner, illustrate
        self._experiment = experiment = learner.experiment
        self._state, self._position = start.state, start.position
        self._step = self._resumed_from = int(start.state.step)
        self._checkpoints, self._progress = checkpoints, progress
        self._sharding = partition.batch_sharding(mesh)
        self._train_step = make_train_step(learner, layout)
        self._validate = make_validation(learner, layout)
        self._probes = probes_of(learner) if self._experiment.train.validate_every else {}
        self._rate = learning_rate(experiment.optim, experiment.train.steps, experiment.curriculum)
        self._clock = StepClock(start.seconds)
        weights = experiment.curriculum.mean_weights(experiment.train.steps)
        self._licences, self._data = licence_shares(experiment.data, weights), data
        # Virtual CPU devices deadlock when steps are queued; accelerators idle when they are not.
        self._queue = 0 if jax.default_backend() == "cpu" else 1
        self._log = None
        if jax.process_index() == 0:
            run_dir = epath.Path(self._experiment.run_dir)
            save_experiment(run_dir / "config.json", self._experiment)
            record_life(run_dir, self._step, to_dict(self._experiment), start.changes)
            self._log = MetricsLog(run_dir, self._step)
        told = (checkpoints.keep_best, progress.say, experiment.curriculum.last_rows)
        self._best = BestKept(experiment.run_dir, *told)

    def loop(
        self,
        preemption: distributed.Preemption,
        watchdog: Watchdog,
        profile: StepProfile,
        tracker: Tracker,
    ) -> TrainState:
        """Run the steps that are left; the state at the end is saved."""
        settings, steps = self._experiment.train, self._experiment.train.steps
        stream = self._learner.stream("train")
        for note in stream.notes if isinstance(stream, Described) else ():
            self._progress.say(note)
        batches = stream.batches(self._position)
        pending: collections.deque[tuple[int, Any, HostBatch]] = collections.deque()
        while self._step < steps:
            batch = self._clock.wait(batches)
            self._step += 1
            call = (self._train_step, self._state, self._put(batch))
            self._state, metrics = profile.run(self._step, *call)
            self._position = batch.next
            pending.append((self._step, metrics, batch))
            self._checkpoints.check()
            stopping = preemption.requested(self._step)
            saves = stopping or self._due(self._experiment.checkpoint.every)
            validates = self._due(settings.validate_every)
            logs = validates or self._due(settings.log_every)
            reports = validates or self._step == steps
            if saves or reports:
                profile.pause()
            while len(pending) > (0 if saves or logs else self._queue):
                self._require_finite(*pending.popleft())
            watchdog.step_ended()
            if logs:
                values = self._report(metrics, batch, validates)
                tracker.write(self._step, values)
                saves |= validates and self._best.validated(self._step, values)
            if saves:
                self._save()
            if reports:
                run_dir = self._experiment.run_dir
                _draw(run_dir, self._illustrate, self._state, self._step, validates)
            if logs or saves or self._step == self._resumed_from + 1:
                self._clock.mark(self._step)
            if stopping:
                self._progress.say(f"stopped on request at step {self._step}; it is saved.")
                break
        self._best.end(self._step)
        return self._state

    def _due(self, every: int) -> bool:
        ends = self._step == self._experiment.train.steps
        return every > 0 and (self._step % every == 0 or ends)

    def _put(self, batch: HostBatch) -> Any:
        def place(rows):
            if isinstance(rows, jax.Array):
                return rows
            return jax.make_array_from_process_local_data(self._sharding, rows)

        return jax.tree.map(place, batch.data)

    def _report(
        self, metrics: Mapping[str, Any], batch: HostBatch, validates: bool
    ) -> dict[str, Any]:
        per_step, waiting = self._clock.per_step(self._step), self._clock.waiting
        values: dict[str, Any] = {n: Mean(*pair).compute() for n, pair in metrics.items()}
        if validates:
            values |= self._validate(self._state, self._validation_batches())
            for kind, batches in self._probes.items():
                found = self._validate(self._state, map(self._put, batches))
                values[f"documents_{kind}"] = found["loss_valid_image"]
        values |= {
            "learning_rate": float(self._rate(self._step)),
            **utilisation(self._learner.work, self._step, per_step),
            "data_wait": waiting,
            "seconds": self._clock.seconds,
            "resumed_from": self._resumed_from,
            "batch_fingerprint": combine_fingerprints(distributed.gather(batch.fingerprint)),
        }
        if self._log is not None:
            self._log.write({"step": self._step, **values})
        left = per_step * (self._experiment.train.steps - self._step) if per_step else None
        self._progress.show(self._step, values, left)
        return values

    def _validation_batches(self) -> Iterable[Any]:
        batches = self._learner.stream("validation").batches(Position())
        for batch in itertools.islice(batches, self._experiment.train.validation_batches):
            yield self._put(batch)

    def _save(self) -> None:
        seconds, prints = self._clock.seconds, self._learner.fingerprints
        facts = (prints, seconds, self._licences, self._data)
        meta = Meta(self._position, self._experiment, *facts)
        self._checkpoints.save(self._step, self._state, meta)

    def _require_finite(self, step: int, metrics: Mapping[str, Any], batch: HostBatch) -> None:
        """Wait for a step; on NaN or infinity keep its batch and stop, before a state is saved."""
        for name in ("loss", "gradient_norm", "parameter_norm"):
            value = Mean(*metrics[name]).compute()
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} at step {step} (batch {batch.fingerprint}, kept in "
                    f"{self._keep(step, batch)}); lower optim.peak_lr or train in float32, and "
                    "start again from the last checkpoint."
                )

    def _keep(self, step: int, batch: HostBatch) -> epath.Path:
        """Write this process's rows of a batch, one array per field."""
        arrays: dict[str, Any] = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(batch.data)
            if not isinstance(leaf, jax.Array)
        }
        content = io.BytesIO()
        np.savez(content, **arrays)
        name = f"bad-batch-{step}-process-{jax.process_index()}.npz"
        path = epath.Path(self._experiment.run_dir) / name
        write_atomic(path, content.getvalue())
        return path
