"""What the reader still reads of reconstructions: the tokenizer's own ceiling."""

import dataclasses

import numpy as np
import pytest

from cm3jax.config import DataConfig
from cm3jax.emoji.builder import MANUAL, open_examples
from cm3jax.evaluate.reconstruction import _readings
from tests.emoji import small


def test_readings_of_emoji_know_what_each_picture_shows(tmp_path):
    small.pack(tmp_path / MANUAL)
    data = DataConfig(source="emoji", raw=str(tmp_path), image_size=64)
    documents = [open_examples(tmp_path, 2, 64).example("validation", i) for i in range(40)]
    images = np.stack([document.picture for document in documents])
    remade = np.concatenate([images[:20], 255 - images[20:]])
    readings = _readings(data, "validation", 2, images, remade)
    mine = np.arange(40) < 20
    for name in ("read_thing", "read_look"):
        assert readings[name].right[mine].all()
        assert not readings[name].right[~mine].any()
    things = [len(document.scene.things) for document in documents[:20]]
    assert readings["read_thing"].chance(mine) == pytest.approx(np.mean([9.0**-n for n in things]))
    assert not _readings(dataclasses.replace(data, source="x"), "validation", 2, images, remade)
