"""What an image tokenizer loses, by kind of record, against the parts that the figures are of."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.config import DataConfig, VQGANLossConfig
from cm3jax.errors import UserError
from cm3jax.evaluate import fid
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.fid import Frechet
from cm3jax.evaluate.inception_weights import from_tensors, shapes
from cm3jax.evaluate.reconstruction import evaluate_reconstruction
from cm3jax.io.files import write_json
from cm3jax.report.html import png
from cm3jax.tokenizers import lpips
from cm3jax.tokenizers.fidelity import psnr
from cm3jax.training.exported_run import LoadedRun, write_run
from launch.evaluate import run as launch
from tests.evaluate import inputs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A run of an image tokenizer that was trained on images which are elsewhere by now."""
    folder = tmp_path_factory.mktemp("vqgan")
    config = dataclasses.replace(
        testing.experiment(),
        learner="vqgan",
        data=DataConfig(source="gone"),
        vqgan_loss=VQGANLossConfig(perceptual=1.0, lpips="gone.npz"),
    )
    variables = dict(testing.image_tokenizer().variables)
    write_run(LoadedRun(config, variables, 1, {}), folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """150 images with captions, three of which are for validation."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, picture in enumerate(testing.pictures(150)):
        (folder / f"{number}.png").write_bytes(png(picture))
        lines.append(json.dumps({"file": f"{number}.png", "caption": "noise"}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow  # Inception is compiled
def test_figures_of_all_and_of_each_label(tokenizer, source):
    extractor = Extractor(from_tensors(inputs.weights(shapes(1)), "x"), devices=1)
    where = tokenizer, "validation", 0, str(source), "", extractor
    scores = evaluate_reconstruction(*where)
    true = testing.pictures(150)[49::50]
    ours = testing.image_tokenizer()
    codes = ours.encode(true)
    remade = ours.decode(codes)
    values = np.asarray(psnr(jnp.asarray(true), jnp.asarray(remade)))
    assert scores["psnr.all"].value == pytest.approx(values.mean(), rel=1e-5)
    assert scores["psnr.all"].n == len(true) == 3
    used = len(np.unique(codes)) / ours.config.codes
    assert scores["code_usage.all"].value == pytest.approx(used)
    assert {name.split(".")[1] for name in scores} == {"all", "pair"}
    assert {"psnr", "ssim", "code_usage", "code_perplexity", "rfid"} == {
        name.split(".")[0] for name in scores
    }
    features = [np.concatenate(list(extractor.features(part))) for part in (true, remade)]
    real, made = (fid.moments([part], part.shape[1]).gaussian for part in features)
    assert scores["rfid.all"].value == pytest.approx(Frechet(real)(made), rel=1e-6)
    assert scores["rfid.all"].value > 0
    assert "Inception" in scores["rfid.all"].protocol.extractor


@pytest.mark.slow
def test_lpips_where_its_weights_are_given(tokenizer, source, tmp_path, capsys):
    draw, width, arrays = np.random.default_rng(0), 3, {}
    for number, name in lpips._numbers().items():
        channels = lpips.LEVELS[int(name[5])][0]
        arrays[f"features.{number}.weight"] = 0.05 * draw.normal(size=(channels, width, 3, 3))
        arrays[f"features.{number}.bias"] = 0.1 * draw.normal(size=channels)
        width = channels
    for level, (channels, _) in enumerate(lpips.LEVELS):
        arrays[f"lin{level}.model.1.weight"] = draw.uniform(0.1, 1, (1, channels, 1, 1))
    np.savez(tmp_path / "lpips.npz", **arrays)
    options = ["--run", tokenizer, "--source", source, "--lpips", tmp_path / "lpips.npz"]
    options += ["--count", 1, "--out", tmp_path / "scores.json"]
    launch(["reconstruction", *map(str, options)])
    assert "lpips.all" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["lpips"]["all"] > 0
    assert scores["details"]["lpips"]["all"]["n"] == 1
    assert "rfid" not in scores


@pytest.mark.slow
def test_the_reader_judges_emblems(tokenizer, tmp_path):
    """Noise instead of reconstructions can't be read."""
    values = json.loads((tokenizer / "config.json").read_text())
    values["data"] |= {"source": "emblems", "raw": str(tmp_path / "raw"), "records": 50}
    values["data"] |= {"emblems": 10}
    values["vqgan"] |= {"image_size": 32}
    values["vocab"] |= {"grid": 4}
    run = tmp_path / "run"
    run.mkdir()
    (run / "params.safetensors").write_bytes((tokenizer / "params.safetensors").read_bytes())
    write_json(run / "config.json", values)
    scores = evaluate_reconstruction(run, "train", 20)
    assert scores["read_exact.all"].value == 0
    assert scores["read_exact.all"].chance < 0.1
    counts = {k.split(".")[1]: s.n for k, s in scores.items() if k.startswith("psnr.")}
    assert len(counts) > 2
    assert 2 * counts["all"] == sum(counts.values())
    means = sum(counts[k] * scores[f"psnr.{k}"].value for k in counts if k != "all")
    assert scores["psnr.all"].value == pytest.approx(means / counts["all"], rel=1e-6)


def test_a_folder_without_a_tokenizer_raises_user_error(source, tmp_path):
    with pytest.raises(UserError, match="holds no trained run"):
        evaluate_reconstruction(tmp_path, source=str(source))
