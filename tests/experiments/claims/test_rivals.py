import dataclasses

import pytest

from cm3jax.emblems.looks import catalogue
from cm3jax.emblems.sample import home
from cm3jax.presets import load_experiment
from experiments.claims import rivals
from experiments.claims.model_eval import known
from tests.evaluate.test_protocol import score
from tests.experiments.claims.test_harness import bench  # noqa: F401


def test_known_emblems_are_trainings_in_scenes_of_prompts(bench):  # noqa: F811
    every = known(bench)
    assert [len(asked) for asked in every] == [3, 3]
    emblems = catalogue(0, bench.emblems)
    for prompt in (prompt for asked in every for prompt in asked):
        (emblem,) = prompt.scene.emblems
        assert emblem.name in emblems.names
        assert emblem.name not in emblems.memory_only
        assert home(prompt.text) == "prompts"
    assert len({prompt.text for asked in every for prompt in asked}) == 6


def test_what_a_model_cannot_do_is_no_zero():
    scores = {f"{name}.scene.docs_0": score(100) for name in rivals.MODELS}
    scores["cm3.caption"] = score(0)
    rows = {row[0]: row[3:] for row in rivals._abilities(scores).rows}
    assert rows["DALL-E"][-2:] == ("cannot", "cannot")
    assert rows["CM3"][-2].startswith("0.0%")
    assert rows["Parti"][-3].startswith("50.0%")


@pytest.mark.parametrize("name", rivals.MODELS)
def test_all_are_trained_alike(name):
    mine, ours = (load_experiment(f"miniature/rivals/{which}") for which in (name, "cm3leon"))
    same = ("vocab", "tokenizers", "vqgan", "clip", "optim", "train", "decode", "seed", "loss")
    for field in same:
        assert getattr(mine, field) == getattr(ours, field)
    assert dataclasses.replace(mine.data, batch=ours.data.batch) == ours.data
    assert rivals.tokens(mine) == rivals.tokens(ours)
