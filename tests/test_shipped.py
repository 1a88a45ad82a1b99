"""The weights in the repository, without retrieval: the documents are given."""

from pathlib import Path

import numpy as np
import pytest

from cm3jax.checkpoint import export_run, load_run
from cm3jax.config import MeshConfig
from cm3jax.emblems import confirms_batch, example, prompts
from cm3jax.emblems.examples import bank_documents
from cm3jax.emblems.looks import catalogue
from cm3jax.generation import loading
from cm3jax.sequence.document import Image, Text, render

WEIGHTS = Path(__file__).resolve().parents[1] / "experiments/miniature/weights"


@pytest.fixture(scope="module")
def generator():
    return loading.load(WEIGHTS / "decoder")


def test_they_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 20e6


@pytest.mark.slow
def test_devices_that_share_the_work_draw_the_same(generator):
    shared = loading.load(WEIGHTS / "decoder", mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    asked = [prompt.text for prompt in prompts("scene", 6)]
    ours, theirs = (one.text_to_image(asked) for one in (shared, generator))
    for (one,), (other,) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_they_draw_what_only_a_document_shows(generator, tmp_path, dtype):
    """As they are shipped, and as the next decoder will be."""
    export_run(WEIGHTS / "decoder", tmp_path, dtype)
    generator = generator.with_variables(load_run(tmp_path).variables)
    size = (tmp_path / "params.safetensors").stat().st_size
    assert size < {"float32": 4e6, "bfloat16": 2e6}[dtype]
    asked = prompts("heldout", 16)
    numbers = [catalogue(0).names.index(prompt.scene.emblems[0].name) for prompt in asked]
    pairs = [example("bank", bank_documents(number)[0]).segments for number in numbers]
    codes = generator.image.encode([picture for _, picture in pairs])
    documents = [
        [render((Text(tuple(generator.text.encode(text))), Image(tuple(own))), generator.vocab)]
        for (text, _), own in zip(pairs, codes.tolist(), strict=True)
    ]
    texts = [prompt.text for prompt in asked]
    for shown, least, most in ((documents, 13, 16), (None, 0, 0)):
        drawn = generator.text_to_image(texts, shown)
        images = np.stack([group[0].image for group in drawn])
        assert least <= sum(confirms_batch(images, [prompt.scene for prompt in asked])) <= most
