"""Freezing by name, and low-rank corrections: what is trained, kept, restored and exported."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import partition
from cm3jax.checkpoint import load_run
from cm3jax.config import DecoderConfig, MeshConfig, OptimConfig
from cm3jax.errors import UserError
from cm3jax.memory import abstract_batch, footprint, planned
from cm3jax.model import lora
from cm3jax.model.decoder import Decoder
from cm3jax.presets import load_experiment
from cm3jax.testing import random_variables
from cm3jax.train import train
from cm3jax.training.state import plan_layout
from tests.tiny import VOCAB, experiment, learner

RANK = 3


def tuned(workdir, trained="", rank=RANK, **fields):
    config = experiment(workdir, **fields)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, lora_rank=rank),
        optim=dataclasses.replace(config.optim, trained=trained),
    )


def changed(before, after) -> set[str]:
    """Names of the parameters that differ."""
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(before)
    ]
    pairs = zip(names, *map(jax.tree.leaves, (before, after)), strict=True)
    return {name for name, one, other in pairs if not np.array_equal(one, other)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run to start from, whose layers say something."""
    config = experiment(tmp_path_factory.mktemp("base"))
    return config, train(learner(config))


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """A run of corrections that started from it."""
    where = tmp_path_factory.mktemp("adapted")
    config = tuned(where, init_from=base[0].workdir)
    return config, train(learner(config))


def test_only_corrections_are_trained(base, adapted):
    _, state = adapted
    kept = lora.strip(state.params)
    jax.tree.map(np.testing.assert_array_equal, kept, base[1].params)
    up = {name: leaf for name, leaf in flat(state.params).items() if name.endswith("lora_up")}
    assert len(up) == 6
    assert all(leaf.any() for leaf in up.values())
    layout = plan_layout(learner(adapted[0]), partition.make_mesh(MeshConfig(data=1)))
    count = sum(leaf.size for name, leaf in flat(state.params).items() if "lora_" in name)
    assert f"{count:,} of {layout.parameters:,} parameters are trained" in layout.trained_table
    assert layout.parameters == adapted[0].model.parameters(VOCAB.size)
    assert re.search("layers/query/kernel +frozen", layout.trained_table)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * count


def flat(tree) -> dict:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_the_table_is_printed_at_the_start(base, tmp_path, capsys):
    config = tuned(tmp_path, rank=0, trained="^embedding|feed_forward/up")
    config = dataclasses.replace(config, init_from=base[0].workdir)
    state = train(learner(config))
    out = capsys.readouterr().out
    assert re.search("embedding +trained", out)
    assert "parameters are trained" in out
    assert changed(base[1].params, state.params) == {"embedding", "layers/feed_forward/up/kernel"}


def test_only_rows_of_some_ids_are_trained(base, tmp_path, capsys):
    """As Anole did with the image codes of an imported head; decay leaves the others too."""
    config = tuned(tmp_path, rank=0, trained="^embedding")
    optim = dataclasses.replace(config.optim, trained_ids="image", weight_decay=0.5)
    config = dataclasses.replace(config, init_from=base[0].workdir, optim=optim)
    state = train(learner(config))
    out = capsys.readouterr().out
    count = VOCAB.config.image_codes * config.model.width
    assert re.search(f"embedding +trained +{count:,} of 4,096", out)
    assert f"\n{count:,} of {config.model.parameters(VOCAB.size):,} parameters are trained" in out
    assert changed(base[1].params, state.params) == {"embedding"}
    same = np.asarray(state.params["embedding"] == base[1].params["embedding"]).all(-1)
    ids = np.arange(VOCAB.size)
    images = (ids >= VOCAB.first_image) & (ids < VOCAB.first_text)
    np.testing.assert_array_equal(~same, images)


@pytest.mark.parametrize(
    ("rank", "trained", "ids"),
    [
        pytest.param(RANK, "", "all", marks=pytest.mark.slow),
        (0, "^embedding", "image"),
        pytest.param(0, "up", "all", marks=pytest.mark.slow),
    ],
)
def test_muon_trains_the_rest_and_keeps_nothing_of_what_is_frozen(
    base, tmp_path, rank, trained, ids
):
    """As the miniature's presets do: matrices by Muon, low-rank corrections and tables by Adam."""
    config = tuned(tmp_path, trained, rank, init_from=base[0].workdir)
    optim = dataclasses.replace(config.optim, method="muon", trained_ids=ids, peak_lr=0.01)
    state = train(learner(dataclasses.replace(config, optim=optim)))
    before, after = flat(base[1].params), flat(state.params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    if rank:
        assert moved == set()
        assert all(leaf.any() for name, leaf in after.items() if name.endswith("lora_up"))
        count = sum(leaf.size for name, leaf in after.items() if "lora_" in name)
    else:
        assert moved == {name for name in before if re.search(trained, name)}
        count = sum(before[name].size for name in moved)
    # Muon also keeps the three coefficients of its iteration.
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1)
    assert count <= moments <= 2 * count


def test_a_start_changes_nothing_and_merging_neither(base, adapted):
    """At first the corrections are zero; what they are later can be added to the matrices."""
    config, state = adapted
    row = jnp.arange(32, 48)[None]
    inputs = row, jnp.arange(16)[None], jnp.ones_like(row)
    plain, corrected = (
        jax.jit(Decoder(model, VOCAB.size).apply) for model in (base[0].model, config.model)
    )
    fresh = nn.unbox(jax.jit(learner(config).init)(jax.random.key(0)))["params"]
    start = lora.load_into(fresh, base[1].params)
    reference = plain({"params": base[1].params}, *inputs)
    np.testing.assert_array_equal(corrected({"params": start}, *inputs), reference)
    tuned_output = corrected({"params": state.params}, *inputs)
    assert np.abs(tuned_output - reference).max() > 1e-3
    merged = lora.merged(state.params, config.model.lora[1])
    assert flat(merged).keys() == flat(base[1].params).keys()
    np.testing.assert_allclose(plain({"params": merged}, *inputs), tuned_output, atol=1e-5)


def test_a_correction_is_a_product_of_thin_matrices():
    model = DecoderConfig(
        layers=1, width=8, heads=2, head_width=4, ffn=16, context=8, dtype="float32", lora_rank=2
    )
    decoder, row = Decoder(model, 20), jnp.arange(6)[None]
    params = random_variables(decoder.init, row, row, row)["params"]
    query = params["layers"]["query"]
    merged = lora.merged(params, model.lora[1])["layers"]["query"]["kernel"]
    product = np.zeros((1, 8, 2, 4))
    for rank in range(2):
        product += np.einsum(
            "ne,nha->neha", query["lora_down"][..., rank], query["lora_up"][:, rank]
        )
    np.testing.assert_allclose(merged, query["kernel"] + 16 / 2 * product, rtol=1e-5)


def test_resumes_and_goes_on_from_corrections(adapted, tmp_path):
    config, state = adapted
    again = train(learner(config))
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    loaded = load_run(config.workdir).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded, state.params)
    further = dataclasses.replace(config, workdir=str(tmp_path), init_from=config.workdir)
    after = train(learner(further))
    assert changed(state.params, after.params) == {
        name for name in flat(state.params) if "lora_" in name
    }


def test_every_correction_can_be_cut(tmp_path):
    """And a plan counts no gradients or moments of what is frozen."""
    config = tuned(tmp_path, rank=4, mesh=MeshConfig(data=1, fsdp=2, tensor=2))
    mesh = partition.make_mesh(config.mesh)
    mine, other = planned(config), planned(experiment(""))
    layout = plan_layout(mine, mesh)
    cut = layout.shardings.params["layers"]["query"]
    assert cut["lora_down"].spec == jax.P(None, "fsdp", None)
    assert cut["lora_up"].spec == jax.P(None, None, "tensor", None)
    batch = abstract_batch(mine, mesh)
    whole = footprint(other, plan_layout(other, mesh), batch)
    ours = footprint(mine, layout, batch)
    assert ours.gradients < whole.gradients / 2
    assert ours.moments < whole.moments / 2
    assert ours.parameters > whole.parameters


@pytest.mark.parametrize("sizes", [(1, 8, 1), pytest.param((1, 1, 8), marks=pytest.mark.slow)])
def test_corrections_of_a_large_model_fit_any_mesh(sizes):
    """Where one is not cut, every device has a copy."""
    config = load_experiment("chameleon_7b")
    model = dataclasses.replace(config.model, lora_rank=16)
    config = dataclasses.replace(config, model=model, mesh=MeshConfig(*sizes))
    layout = plan_layout(planned(config), partition.abstract_mesh(config.mesh))
    bare = dataclasses.replace(model, lora_rank=0).parameters(65536)
    assert sum(jax.tree.leaves(layout.trained)) == model.parameters(65536) - bare > 0


def test_one_line_names_the_parameters_of_a_pattern_that_none_has():
    config = load_experiment("cm3leon_350m")
    config = dataclasses.replace(config, optim=OptimConfig(trained="^head", trained_ids="image"))
    with pytest.raises(UserError, match=r"is found in no parameter's name; they are ") as refused:
        plan_layout(planned(config), partition.abstract_mesh(config.mesh))
    said = str(refused.value)
    assert "embedding, layers/" in said
    assert said.endswith("; the head is the embedding (model.tied).")
    assert len(said.splitlines()) == 1


def test_patterns_that_freeze_everything_or_are_none(tmp_path):
    with pytest.raises(UserError, match="not a regular expression"):
        OptimConfig(trained="(")
    with pytest.raises(UserError, match=r"optim\.trained='decoder/' is found in no parameter"):
        train(learner(tuned(tmp_path, trained="decoder/")))
    small = tuned(tmp_path, rank=2)
    optim = dataclasses.replace(small.optim, trained_ids="text")
    with pytest.raises(UserError, match=r"^optim\.trained_ids=text is for the embedding and the"):
        train(learner(dataclasses.replace(small, optim=optim)))
    with pytest.raises(UserError, match=r"lora_alpha=0\.0 multiplies corrections"):
        DecoderConfig(lora_rank=2, lora_alpha=0.0)
    optim = OptimConfig(trained_ids="image")
    with pytest.raises(UserError, match=r"trained_ids=image is for a decoder"):
        experiment(tmp_path, learner="parti", optim=optim)
    with pytest.raises(UserError, match=r"trained=head is for what learns in steps"):
        experiment(tmp_path, learner="text_tokenizer", optim=OptimConfig(trained="head"))
    with pytest.raises(UserError, match=r"model\.lora_rank=3 is for a decoder"):
        dataclasses.replace(tuned(tmp_path), learner="parti")
