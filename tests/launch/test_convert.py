"""The command: a folder in, a run that others read, a folder out."""

import shutil

import jax
import numpy as np
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.errors import UserError
from launch.convert import run
from tests.interop import foreign


def test_weights_are_imported_and_exported(tmp_path, capsys):
    source = foreign.write_chameleon(tmp_path / "in", "plain", "bfloat16", shards=1)
    run(["chameleon", str(source), "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    count = len(foreign.state("chameleon-plain"))
    assert "can read images but not draw them" in said
    assert f"{count} tensors in {tmp_path / 'run'}" in said
    report = (tmp_path / "run" / "report.txt").read_text()
    assert report.count("\n") == count
    run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "back")])
    assert f"{count} tensors in" in capsys.readouterr().out


def test_what_is_left_out_is_said(tmp_path, capsys):
    source, config = foreign.write_vqgan(tmp_path / "in")
    run(["vqgan", str(source), "--config", str(config), "--out", str(tmp_path / "vqgan")])
    assert "loss.discriminator.main.0.weight left out (of its training)" in capsys.readouterr().out


def test_wrong_models_and_folders(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        run(["clip", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    decoder = testing.write_chain(tmp_path)
    with pytest.raises(UserError, match=r"no Chameleon: it has model\.positions=learned"):
        run(["export", str(decoder), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="vqgan is a run of a vqgan; give a decoder's"):
        run(["export", str(tmp_path / "vqgan"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_a_quantised_run_draws_as_its_original_with_that_option(tmp_path, kind, capsys):
    """Also from a copy elsewhere, since it brings its tokenizers along."""
    decoder = testing.write_chain(tmp_path / "from")
    out = tmp_path / "out"
    run(["quantize", str(decoder), "--out", str(out), "--weights", kind, "--cache", "int8"])
    assert f"a decoder of {kind}, " in capsys.readouterr().out
    given = cm3jax.load(decoder, weights=kind, cache="int8")
    shutil.rmtree(tmp_path / "from")
    found = cm3jax.load(out)
    assert (found.model.config.weights, found.model.config.cache) == (kind, "int8")
    jax.tree.map(np.testing.assert_array_equal, given._variables, found._variables)
    one, other = (model.generate("a fox") for model in (given, found))
    assert one.ids.tolist() == other.ids.tolist()
    assert one.logprob == other.logprob
    with pytest.raises(UserError, match="exists; give another --out, or remove it first"):
        run(["quantize", str(out), "--out", str(out)])
    assert cm3jax.load(out).model.config.weights == kind


def test_a_quantisation_that_fails_leaves_nothing(tmp_path):
    decoder = testing.write_chain(tmp_path / "from")
    shutil.rmtree(tmp_path / "from" / "vqgan")
    with pytest.raises(UserError, match="vqgan"):
        run(["quantize", str(decoder), "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["from"]
