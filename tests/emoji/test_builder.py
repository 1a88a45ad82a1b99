import numpy as np
import pytest

from cm3jax.config import DataConfig
from cm3jax.data.sources import open_source
from cm3jax.emoji.builder import MANUAL, build_emoji, open_catalogue
from cm3jax.emoji.examples import Examples
from cm3jax.errors import UserError
from tests.emoji import small


def test_emoji_is_a_source(tmp_path):
    small.pack(tmp_path / MANUAL)
    data = DataConfig(source="emoji", records=40, raw=str(tmp_path), image_size=64)
    archives = build_emoji(tmp_path, 40, 5, 64).builder_config.archives
    examples = Examples(open_catalogue(tmp_path, archives, 64), 5, 64)
    for split, count in (("train", 40), ("validation", 200), ("bank", examples.bank_size)):
        source = open_source(data, split, 5)
        assert len(source) == count
        for index in (0, 1, 17, 39):
            record, document = source[index], examples.example(split, index)
            text, picture = record.segments
            assert (text,) == source.texts(index) == (document.caption,)
            np.testing.assert_array_equal(picture, document.picture)
            assert (record.key, record.kind) == (document.key, document.kind)
            assert record.subjects == document.scene.nouns
            things = document.scene.things
            assert record.looks == tuple(f"{t.noun}, {t.style}, {t.size}" for t in things)
            assert (record.source, record.licence) == (document.source, document.licence)
            assert record.held_out == (document.kind == "memory")


def test_without_archives_it_says_how_to_get_them(tmp_path):
    data = DataConfig(source="emoji", raw=str(tmp_path), image_size=64)
    with pytest.raises(UserError, match=f"npm pack --pack-destination {tmp_path}/{MANUAL} @"):
        open_source(data, "train", 0)
    assert not list(tmp_path.iterdir())
