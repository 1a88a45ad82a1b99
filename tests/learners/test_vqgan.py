"""Image tokenizer: the loss, the learning, the data, and loading what was trained."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cm3jax.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    VQGANLossConfig,
)
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.io import files
from cm3jax.learners import vqgan
from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.report.samples.vqgan_samples import vqgan_illustrator
from cm3jax.testing import experiment, random_variables
from cm3jax.tokenizers.discriminator import discriminator_loss
from cm3jax.tokenizers.image_tokenizer import to_pixels
from cm3jax.tokenizers.lpips import LPIPS
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from cm3jax.training.optim import optimizer

PATTERNS, SIZE = 12, 16
"""Distinct 8x8 patches; an image has four of them."""


def patches():
    return np.random.default_rng(0).integers(0, 256, (PATTERNS, 1, 1, 3), np.uint8) * np.ones(
        (1, 8, 8, 1), np.uint8
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 images of four plain patches each."""
    path = tmp_path_factory.mktemp("pictures")
    choice = np.random.default_rng(1).integers(0, PATTERNS, (100, 2, 2))
    lines = []
    for number, cells in enumerate(choice):
        image = patches()[cells].transpose(0, 2, 1, 3, 4).reshape(SIZE, SIZE, 3)
        PIL.Image.fromarray(image).save(path / f"{number}.png")
        lines.append(f'{{"file": "{number}.png", "caption": "picture {number}"}}\n')
    files.write_atomic(path / "captions.jsonl", "".join(lines))
    return path


@pytest.fixture
def config(folder, tmp_path):
    tiny = experiment()
    return dataclasses.replace(
        tiny,
        learner="vqgan",
        vqgan=dataclasses.replace(tiny.vqgan, channels=32, commitment=5.0, ema_decay=0.9),
        workdir=str(tmp_path / "run"),
        data=DataConfig(source=str(folder), image_size=SIZE, batch=16),
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=10, weight_decay=0.0),
        train=TrainConfig(steps=200, log_every=100, validate_every=0),
    )


@pytest.mark.slow
def test_training_makes_a_tokenizer_that_sees_every_patch(config):
    train(VQGANLearner(config))
    tokenizer = vqgan.load(config.run_dir)
    assert tokenizer.fingerprint == vqgan.load(config.run_dir).fingerprint
    pictures = np.tile(patches(), (1, 2, 2, 1))
    codes = tokenizer.encode(pictures)
    assert (codes == codes[:, :1]).all()
    assert len(np.unique(codes[:, 0])) == PATTERNS
    error = np.abs(tokenizer.decode(codes).astype(int) - pictures)
    assert error.mean() < 16


def test_loss_and_metrics(config):
    learner = VQGANLearner(config)
    variables = nn.unbox(jax.jit(learner.init)(jax.random.key(0)))
    batch = next(learner.stream("train").batches(Position())).data
    params, extra = variables["params"], {"codebook": variables["codebook"]}
    output = jax.jit(learner.loss)(params, extra, batch, jax.random.key(1), 0)
    pixels = to_pixels(jnp.asarray(batch["images"]))
    seen = jax.jit(learner.model.apply)(variables, pixels)
    mse = np.square(np.asarray(seen.reconstruction - pixels)).mean()
    expected = mse + config.vqgan.commitment * seen.commitment
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    assert {name: mean.compute() for name, mean in output.metrics.items()}.keys() == {
        "loss",
        "mse",
        "commitment",
        "code_usage",
        "code_perplexity",
    }
    assert jax.tree.structure(output.extra) == jax.tree.structure(extra)
    assert not np.array_equal(
        output.extra["codebook"]["quantiser"]["entries"], extra["codebook"]["quantiser"]["entries"]
    )


@pytest.mark.slow
def test_a_codebook_by_gradients_learns_and_resumes(config):
    """And stays where `optim.trained` names the decoder alone."""
    small = dataclasses.replace(config.vqgan, codebook="gradient", commitment=0.25)
    config = dataclasses.replace(
        config,
        vqgan=small,
        train=TrainConfig(steps=60, log_every=60, validate_every=0),
        checkpoint=CheckpointConfig(every=30),
    )
    whole = train(VQGANLearner(config))
    shutil.rmtree(f"{config.run_dir}/checkpoints/60")
    again = train(VQGANLearner(config))
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    assert read_metrics(config.run_dir)[-1]["mse"] < 0.2
    pixels = np.tile(patches(), (1, 2, 2, 1))
    codes = vqgan.load(config.run_dir).encode(pixels)
    assert len(np.unique(codes)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_training_can_be_limited_to_the_decoder(config, codebook, tmp_path):
    config = dataclasses.replace(
        config,
        vqgan=dataclasses.replace(config.vqgan, codebook=codebook),
        train=TrainConfig(steps=2, log_every=2, validate_every=0),
    )
    before = train(VQGANLearner(config))
    optim = dataclasses.replace(config.optim, trained="decoder")
    further = {"optim": optim, "init_from": config.run_dir, "workdir": str(tmp_path / "more")}
    after = train(VQGANLearner(dataclasses.replace(config, **further)))
    parts = [dict(state.params, **state.extra) for state in (before, after)]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *parts)
    decoder = same.pop("decoder")
    assert all(jax.tree.leaves(same))
    assert not all(jax.tree.leaves(decoder))


def test_work_counts_every_matrix_product(config):
    learner = VQGANLearner(config)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim == 2)
    batch, cells = config.data.batch, config.vqgan.grid**2
    assert learner.work.tokens == batch * cells
    assert 6 * weights * batch * cells < learner.work.flops < 12 * weights * batch * cells


def test_splits_do_not_share_pictures(config):
    learner = VQGANLearner(config)
    train_pictures = learner.stream("train").arrays["images"]
    held_back = learner.stream("validation").arrays["images"]
    assert (len(train_pictures), len(held_back)) == (98, 2)
    assert train_pictures.dtype == np.uint8


def test_sizes_must_agree(config):
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=32))
    with pytest.raises(UserError, match=r"data\.image_size=32 and vqgan\.image_size=16"):
        VQGANLearner(wrong)


def test_load_refuses_what_is_no_tokenizer(config, tmp_path):
    with pytest.raises(UserError, match="holds no trained run"):
        vqgan.load(tmp_path / "nothing")


def with_loss(config, **fields):
    """The experiment with other losses, and a discriminator small enough for 16 pixels."""
    small = {"discriminator_channels": 8, "discriminator_layers": 1}
    return dataclasses.replace(config, vqgan_loss=VQGANLossConfig(**small | fields))


@pytest.fixture(scope="module")
def adversarial(folder):
    """A learner with an adversary, its variables, and a batch whose masks cover the left half."""
    tiny = experiment()
    config = dataclasses.replace(
        tiny, learner="vqgan", data=DataConfig(source=str(folder), image_size=SIZE, batch=4)
    )
    fields = {"pixels": "l1", "region": 3.0, "adversarial": 0.8, "adversarial_start": 3}
    learner = VQGANLearner(with_loss(config, **fields))
    variables = random_variables(learner.init)
    images = np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((4, SIZE, SIZE), np.uint8)
    masks[:, :, : SIZE // 2] = 255
    batch = {"images": jnp.asarray(images), "masks": jnp.asarray(masks)}

    @jax.jit
    def slopes(params, step):
        def scalar(params):
            extra = {"codebook": variables["codebook"]}
            output = learner.loss(params, extra, batch, jax.random.key(1), step)
            return output.loss, output.metrics

        return jax.value_and_grad(scalar, has_aux=True)(params)

    return learner, variables, batch, slopes


def test_losses_are_the_sum_of_their_parts(adversarial):
    learner, variables, batch, slopes = adversarial
    (total, means), _ = slopes(variables["params"], 3)
    metrics = {name: mean.compute() for name, mean in means.items()}
    pixels = to_pixels(batch["images"])
    seen = jax.jit(learner.model.apply)(variables, pixels)
    errors = np.abs(np.asarray(seen.reconstruction) - pixels)
    left, right = errors[:, :, : SIZE // 2].mean(), errors[:, :, SIZE // 2 :].mean()
    assert metrics["mae"] == pytest.approx((4 * left + right) / 5, rel=1e-4)
    error = metrics["mae"] + 0.25 * metrics["commitment"]
    assert metrics["loss"] == pytest.approx(error, rel=1e-4)

    @jax.jit
    def verdicts(x):
        return learner.adversary.apply({"params": variables["params"]["discriminator"]}, x)

    real, drawn = verdicts(pixels), verdicts(seen.reconstruction)
    assert metrics["loss_generator"] == pytest.approx(-float(drawn.mean()), rel=1e-3, abs=1e-5)
    judged = (np.maximum(1 - real, 0).mean() + np.maximum(1 + drawn, 0).mean()) / 2
    assert metrics["loss_discriminator"] == pytest.approx(judged, rel=1e-4)
    more = metrics["adversarial_weight"] * metrics["loss_generator"] + judged
    assert total == pytest.approx(metrics["loss"] + more, rel=1e-4)


def test_each_side_learns_from_its_own_loss(adversarial):
    learner, variables, batch, slopes = adversarial
    params, pixels = variables["params"], to_pixels(batch["images"])
    (_, early), before = slopes(params, 2)
    (_, late), after = slopes(params, 3)
    assert early["adversarial_weight"].compute() == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(before["discriminator"]))
    assert {n: early[n].compute() for n in ("loss", "mae")} == {
        n: late[n].compute() for n in ("loss", "mae")
    }
    remade = jax.jit(learner.model.apply)(variables, pixels).reconstruction

    def judge(own):
        verdicts = [learner.adversary.apply({"params": own}, x) for x in (pixels, remade)]
        return discriminator_loss(*verdicts)

    expected = jax.jit(jax.grad(judge))(params["discriminator"])
    for ours, theirs in zip(*map(jax.tree.leaves, (after["discriminator"], expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    # What the adversary adds at the last layer is a share 0.8 of what the other losses ask there.
    last = [slope["decoder"]["conv_out"]["kernel"] for slope in (before, after)]
    added = np.linalg.norm(last[1] - last[0])
    assert added == pytest.approx(0.8 * np.linalg.norm(last[0]), rel=1e-2)


@pytest.mark.slow  # LPIPS has a test of its own
def test_validation_measures_pictures_without_the_adversary(adversarial):
    every, variables, batch, _ = adversarial
    fields = {"adversarial": 0.8, "perceptual": 0.5, "lpips": "random", "region": 3.0}
    learner = VQGANLearner(with_loss(every.experiment, **fields))
    batch = batch | {"lpips": jax.tree.map(jnp.asarray, learner.lpips)}
    weights = jnp.tile(jnp.repeat(jnp.array([4.0, 1.0]), SIZE // 2), (4, SIZE, 1))

    @jax.jit
    def validate(params, extra):
        output = learner.loss(params, extra, batch, jax.random.key(1), jnp.int32(9), training=False)
        pixels = to_pixels(batch["images"])
        remade = learner.model.apply({"params": params, **extra}, pixels).reconstruction
        return output, LPIPS().apply(batch["lpips"], remade, pixels, weights).mean()

    output, apart = validate(variables["params"], {"codebook": variables["codebook"]})
    metrics = {name: mean.compute() for name, mean in output.metrics.items()}
    assert metrics["random_features"] == pytest.approx(float(apart), rel=1e-5)
    error = metrics["mse"] + 0.5 * metrics["random_features"] + 0.25 * metrics["commitment"]
    assert float(output.loss) == pytest.approx(error, rel=1e-5)
    assert float(output.loss) == metrics["loss"]
    assert not metrics.keys() & {"loss_generator", "adversarial_weight", "lpips"}
    assert {"psnr", "ssim", "code_usage"} <= metrics.keys()
    assert 3 < metrics["psnr"] < 20


def test_a_discriminator_is_clipped_by_itself():
    params = {"encoder": jnp.ones(3), "discriminator": {"conv": jnp.ones(4)}}
    transform = optimizer(OptimConfig(clip_norm=1.0, beta1=0.0, weight_decay=0.0), 10, params)
    slopes = {"encoder": jnp.full(3, 0.1), "discriminator": {"conv": jnp.full(4, 50.0)}}
    _, state = jax.jit(transform.update)(slopes, transform.init(params), params)
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }
    first = {name.split("mu.")[1]: leaf for name, leaf in moments.items() if "mu." in name}
    np.testing.assert_allclose(first["encoder"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(first["discriminator.conv"], 0.5, rtol=1e-5)


@pytest.mark.slow
def test_a_run_with_an_adversary_resumes_bitwise(config):
    """On devices that cut it, with all that the trainer keeps."""
    config = with_loss(config, adversarial=0.5, adversarial_start=1)
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=1),
        train=TrainConfig(steps=4, log_every=1, validate_every=0),
        checkpoint=CheckpointConfig(every=2),
    )
    learner = VQGANLearner(config)
    whole = train(learner)
    shutil.rmtree(f"{config.run_dir}/checkpoints/4")
    again = train(learner)
    for one, other in zip(*map(jax.tree.leaves, (whole, again)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [line["resumed_from"] for line in read_metrics(config.run_dir)] == [0, 0, 2, 2]

    kernel = whole.params["discriminator"]["conv_in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // 2
    moments = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(whole.opt_state)
        if "discriminator" in jax.tree_util.keystr(path) and leaf.shape == kernel.shape
    ]
    assert len(moments) == 2
    assert all(leaf.any() and leaf.sharding == kernel.sharding for leaf in moments)
    tokenizer = vqgan.load(config.run_dir)
    pixels = np.tile(patches()[:2], (1, 2, 2, 1))
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_says_what_the_losses_lack(config, tmp_path):
    with pytest.raises(UserError, match=r"needs weights: give vqgan_loss\.lpips a file"):
        VQGANLearner(with_loss(config, perceptual=1.0))
    with pytest.raises(UserError, match=r"nothing\.npz are missing"):
        VQGANLearner(with_loss(config, perceptual=1.0, lpips=str(tmp_path / "nothing.npz")))
    with pytest.raises(UserError, match=r"vqgan_loss\.region=-1"):
        with_loss(config, region=-1.0)


def test_a_broken_picture_is_left_out_and_said(config, tmp_path, capsys):
    source = tmp_path / "copy"
    shutil.copytree(config.data.source, source)
    for number in (7, 30):
        (source / f"{number}.png").write_bytes((source / f"{number}.png").read_bytes()[:50])
    broken = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(source)))
    whole, rest = (VQGANLearner(c).pictures("train") for c in (config, broken))
    kept = np.delete(whole.images, (7, 30), axis=0)
    np.testing.assert_array_equal(rest.images, kept)
    assert "left out 2 of 98 records: 7.png: " in capsys.readouterr().out
    for number in range(60):
        (source / f"{number}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"of 98 records can't be read, the first one being 0\.png"):
        VQGANLearner(broken).pictures("train")


@pytest.mark.slow
def test_where_nothing_sound_is_held_back_a_run_ends_without_validation(config, tmp_path, capsys):
    source = tmp_path / "copy"
    shutil.copytree(config.data.source, source)
    for number in (49, 99):  # every 50th is for validation
        (source / f"{number}.png").write_bytes(b"x")
    broken = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=str(source)),
        train=TrainConfig(steps=2, log_every=1, validate_every=1, samples=1),
    )
    learner = VQGANLearner(broken)
    train(learner, vqgan_illustrator(learner))
    assert "nothing is validated: 2 of 2 records can't be read" in capsys.readouterr().out
    lines = read_metrics(broken.run_dir)
    assert [line["step"] for line in lines] == [1, 2]
    assert not any("loss_valid" in line for line in lines)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Above images of the training split" in page


def test_a_broken_mask_costs_its_record_and_no_other(config, tmp_path, capsys):
    source = tmp_path / "copy"
    shutil.copytree(config.data.source, source)
    lines = [json.loads(line) for line in (source / "captions.jsonl").read_text().splitlines()]
    lines[3]["mask"] = "none.png"
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    marked = with_loss(config, region=1.0)
    marked = dataclasses.replace(marked, data=dataclasses.replace(marked.data, source=str(source)))
    pictures = VQGANLearner(marked).pictures("train")
    assert len(pictures.images) == len(pictures.masks) == 97
    assert "left out 1 of 98 records: 3.png" in capsys.readouterr().out
