"""Steps of every learner, traced from shapes alone."""

import dataclasses

import jax
import pytest

from cm3jax import partition, testing
from cm3jax.abstract import batch_without_data, learner_without_data
from cm3jax.config import DataConfig, MeshConfig
from cm3jax.errors import UserError
from cm3jax.presets import load_experiment
from cm3jax.train import make_train_step
from cm3jax.training.state import plan_layout

MESH = MeshConfig(data=2, fsdp=4)


def changed(name, part, **fields):
    experiment = load_experiment(name)
    return dataclasses.replace(
        experiment, **{part: dataclasses.replace(getattr(experiment, part), **fields)}
    )


EXPERIMENTS = {
    "vqgan": changed("miniature/vqgan", "data", batch=8),
    "vqgan with its losses": changed(
        "miniature/vqgan", "vqgan_loss", perceptual=1.0, adversarial=0.5
    ),
    "clip": changed("miniature/clip", "data", batch=8),
    "online": dataclasses.replace(
        testing.experiment(), data=DataConfig(batch=8, online=True, records=100)
    ),
    "lora": changed("miniature/decoder", "model", lora_rank=4),
    "parti": changed("parti", "model", layers=2, width=64, heads=2, head_width=32, ffn=128),
}


SLOW = {"vqgan with its losses"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in EXPERIMENTS]
)
def test_the_step_of_every_learner_is_lowered_without_data(name):
    experiment = EXPERIMENTS[name]
    learner, mesh = learner_without_data(experiment), partition.make_mesh(MESH)
    layout = plan_layout(learner, mesh)
    batch = batch_without_data(learner, mesh)
    assert jax.tree.leaves(batch)[0].sharding.mesh == mesh
    with jax.set_mesh(mesh):
        lowered = make_train_step(learner, layout).lower(layout.abstract, batch)
    state, metrics = lowered.out_info
    assert jax.tree.structure(state) == jax.tree.structure(layout.abstract)
    assert "loss" in metrics
    assert learner.work.flops > 0


def test_a_batch_of_any_learner_must_be_shared():
    experiment = changed("miniature/clip", "data", batch=6)
    with pytest.raises(UserError, match=r"data\.batch=6 cannot be cut into 8 equal shares"):
        batch_without_data(learner_without_data(experiment), partition.make_mesh(MESH))


def test_text_tokenizers_have_no_step():
    with pytest.raises(UserError, match="miniature/text trains a text tokenizer"):
        learner_without_data(load_experiment("miniature/text"))
