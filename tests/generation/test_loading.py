import shutil

import pytest

import cm3jax
from cm3jax.config import ONE_DEVICE
from cm3jax.errors import UserError
from cm3jax.generation import loading
from cm3jax.io.files import read_json, write_json


def test_parts_that_do_not_belong_together_are_refused(chain, tmp_path):
    with pytest.raises(UserError, match="is a run of a clip"):
        cm3jax.load(str(chain / "clip"))
    with pytest.raises(UserError, match="is a run of a clip; give a decoder's"):
        loading.load(chain / "clip", mesh=ONE_DEVICE)
    moved = shutil.copytree(chain, tmp_path / "moved")
    config = read_json(moved / "decoder" / "config.json", "config")
    write_json(moved / "decoder" / "config.json", config | {"data": {"bank": ""}})
    other = cm3jax.load(str(moved / "decoder"))
    with pytest.raises(UserError, match="names no memory bank"):
        other.retrieve(["a fox"])
    found = cm3jax.load(str(moved / "decoder"), str(chain / "bank")).retrieve(["a fox"])
    assert len(found[0]) == 2
    type(other.text).train(["another text"], 300).save(moved / "text")
    with pytest.raises(UserError, match="was made with vocabulary"):
        cm3jax.load(str(moved / "decoder"))
