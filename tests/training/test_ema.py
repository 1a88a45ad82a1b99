"""Moving averages of the parameters: their values, their life in a run, and who uses them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.checkpoint import export_run, load_run
from cm3jax.config import MeshConfig, OptimConfig, TrainConfig
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.partition import batch_sharding, make_mesh
from cm3jax.report.run_page import Illustration
from cm3jax.train import make_train_step, make_validation, train
from cm3jax.training import ema
from cm3jax.training.metrics import read_metrics
from cm3jax.training.state import plan_layout
from tests.tiny import experiment, learner

OPTIM = OptimConfig(peak_lr=1e-2, warmup_steps=5, weight_decay=0.0, end_lr_ratio=1.0, ema=0.5)
SHORT = TrainConfig(steps=4, log_every=1, validate_every=4, validation_batches=2)


def equal(ours, theirs, rtol=0.0):
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=rtol, atol=0),
        *(ours, theirs),
    )


def mixed(before, now, decay):
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, before, now)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps with averages, and its state."""
    config = experiment(tmp_path_factory.mktemp("averaged"), optim=OPTIM, train=SHORT)
    return config, train(learner(config))


def test_early_updates_count_for_more():
    averages = ema.begin({"a": jnp.zeros(2), "b": jnp.zeros(2)}, {"a": 2, "b": 0})
    seen = []
    for step in range(1, 4):
        averages = ema.update_averages(
            averages, {"a": jnp.ones(2), "b": jnp.ones(2)}, 0.25, jnp.int32(step)
        )
        seen.append(float(averages["a"][0]))
    # Decays 2/11, 3/12 = 0.25, then 0.25 as given.
    np.testing.assert_allclose(seen, [9 / 11, 1 - 2 / 11 / 4, 1 - 2 / 11 / 16], rtol=1e-6)
    assert averages["b"] is None
    merged = ema.over(averages, {"a": "new", "b": "new"})
    assert merged["b"] == "new"
    np.testing.assert_array_equal(merged["a"], averages["a"])


def test_the_state_has_the_mean_of_what_the_steps_made(run):
    """Step by step beside the parameters of the same run without averages, which do not change."""
    config, state = run
    made = learner(dataclasses.replace(config, optim=dataclasses.replace(OPTIM, ema=0.0)))
    mesh = make_mesh(MeshConfig(data=1))
    with jax.set_mesh(mesh):
        layout = plan_layout(made, mesh)
        plain = layout.init(jax.random.fold_in(jax.random.key(0), 0))
        assert plain.ema is None
        means, step = jax.tree.map(np.asarray, plain.params), make_train_step(made, layout)
        for number, batch in zip(
            range(1, 5), made.stream("train").batches(Position()), strict=False
        ):
            plain, _ = step(plain, jax.device_put(batch.data, batch_sharding(mesh)))
            means = mixed(means, plain.params, min(0.5, (1 + number) / (10 + number)))
    equal(state.params, plain.params)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7),
        *(state.ema, means),
    )
    kernel = lambda tree: np.asarray(tree["layers"]["query"]["kernel"])  # noqa: E731
    assert np.abs(kernel(state.ema) - kernel(state.params)).max() > 1e-4


def test_validation_samples_and_exports_use_the_averages(run, tmp_path):
    config, state = run
    equal(load_run(config.workdir).variables["params"], state.ema)
    export_run(config.workdir, tmp_path / "exported")
    equal(load_run(tmp_path / "exported").variables["params"], state.ema)
    made, mesh = learner(config), make_mesh(MeshConfig(data=1))
    with jax.set_mesh(mesh):
        layout = plan_layout(made, mesh)
        pairs = zip(range(2), made.stream("validation").batches(Position()), strict=False)
        batches = [jax.device_put(batch.data, batch_sharding(mesh)) for _, batch in pairs]
        plain = dataclasses.replace(state, params=state.ema, ema=None)
        expected = make_validation(made, layout)(plain, batches)["loss_valid"]
    assert read_metrics(config.workdir)[-1]["loss_valid"] == pytest.approx(expected, rel=1e-6)
    drawn = []
    again = dataclasses.replace(config, workdir=str(tmp_path / "again"))

    def illustrate(state):
        drawn.append(jax.tree.map(np.asarray, state.averaged))
        return (Illustration.absent("of a test."),)

    train(learner(again), illustrate)
    equal(drawn[-1], state.ema)


def test_a_run_that_was_interrupted_is_the_run_that_was_not(run, tmp_path):
    config, state = run
    for steps in (2, 4):
        short = dataclasses.replace(SHORT, steps=steps)
        parts = train(learner(dataclasses.replace(config, workdir=str(tmp_path), train=short)))
    equal(parts, state)


def test_averages_lie_where_their_parameters_lie_on_any_mesh(run):
    config, state = run
    mesh = make_mesh(MeshConfig(2, 2, 2))
    layout = plan_layout(learner(config), mesh)
    assert layout.shardings.ema == layout.shardings.params
    loaded = load_run(config.workdir, lambda _: layout.abstract).variables["params"]
    equal(loaded, state.ema)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == layout.shardings.params
    assert not loaded["embedding"].sharding.is_fully_replicated


def test_frozen_parameters_have_no_average(run, tmp_path):
    config, _ = run
    optim = dataclasses.replace(OPTIM, trained="feed_forward")
    tuned = dataclasses.replace(
        config, workdir=str(tmp_path), optim=optim, init_from=config.workdir
    )
    state = train(learner(tuned))
    assert state.ema["embedding"] is None
    assert state.ema["layers"]["feed_forward"]["up"]["kernel"] is not None
    loaded = load_run(tmp_path).variables["params"]
    equal(loaded, state.averaged)
    equal(loaded["embedding"], load_run(config.workdir).variables["params"]["embedding"])


def test_averages_begin_with_the_parameters_that_a_run_starts_from(run, tmp_path):
    config, _ = run
    first = load_run(config.workdir).variables["params"]
    one = dataclasses.replace(SHORT, steps=1)
    tuned = dataclasses.replace(config, workdir=str(tmp_path), init_from=config.workdir, train=one)
    state = train(learner(tuned))
    expected = mixed(first, state.params, 2 / 11)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7),
        *(state.ema, expected),
    )


@pytest.mark.parametrize(
    ("before", "after"), [(0.0, 0.5), pytest.param(0.5, 0.0, marks=pytest.mark.slow)]
)
def test_averages_begin_and_end_with_a_later_life_if_asked_for(run, tmp_path, before, after):
    """A checkpoint of a run that kept none goes on with them from its parameters, and the reverse;
    unasked it is refused."""
    config, _ = run
    folder = str(tmp_path / "run")

    def life(decay, steps, **options):
        optim = dataclasses.replace(OPTIM, ema=decay)
        short = dataclasses.replace(SHORT, steps=steps)
        fields = {"workdir": folder, "optim": optim, "train": short}
        return train(learner(dataclasses.replace(config, **fields)), **options)

    first = jax.tree.map(np.asarray, life(before, 2).params)
    with pytest.raises(UserError, match=f"optim.ema {before} → {after}; give those again"):
        life(after, 3)
    state = life(after, 3, resume_with_changes=True)
    if after:
        expected = mixed(first, state.params, 4 / 13)
        jax.tree.map(
            lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7),
            *(state.ema, expected),
        )
    else:
        assert state.ema is None
        equal(load_run(folder).variables["params"], state.params)
