import dataclasses
import itertools

import pytest

from cm3jax.emblems.sample import home
from cm3jax.emblems.wording import caption_states, relations
from cm3jax.presets import load_experiment
from experiments.claims import sizes
from tests.evaluate.test_protocol import score
from tests.experiments.claims.test_harness import bench  # noqa: F401


def test_prompts_count_what_they_say(bench):  # noqa: F811
    every = sizes._questions(bench)
    assert sum(len(asked) for asked in every["heldout"]) == 6
    words = [every[f"word.letters_{n}"][seed][0].scene.word for n in range(1, 9) for seed in (0, 1)]
    assert [len(word) for word in words[::2]] == list(range(1, 9))
    assert [len(word) for word in words[1::2]] == list(range(1, 9))
    for clauses in (1, 2, 3, 4, 6, 8, 10, 12):
        for (prompt,) in every[f"scene.clauses_{clauses}"]:
            head, *claims = prompt.text.split(", the ")
            assert len(prompt.scene.shapes) + len(claims) == clauses
            assert len(relations(prompt.scene)) >= len(claims)
            assert caption_states(prompt.text) == prompt.scene
            assert home(head) == "prompts"
    for fingers in range(2, 7):
        assert every[f"palm.fingers_{fingers}"][0][0].scene.fingers == fingers


@pytest.mark.parametrize(
    ("fid", "expected"),
    [
        (60.0, ("below", 1.0)),
        (50.0, ("below", 1.0)),
        (20.0, ("about", 10.0)),  # halfway between the logarithms of 50 and 8
        (8.0, ("about", 100.0)),
        (4.0, ("about", 1000.0)),
        (3.0, ("above", 1000.0)),
    ],
)
def test_hours_at_equal_fid(fid, expected):
    bound, hours = sizes.hours_at([(1.0, 50.0), (100.0, 8.0), (1000.0, 4.0)], fid)
    assert (bound, pytest.approx(hours)) == expected


@pytest.mark.parametrize(
    ("fids", "expected"),
    [
        ((30.0, 25.0, 20.0), ("about", 8.0, 20.0)),  # 32 hours where CM3Leon needs 4
        ((90.0, 60.0, 60.0), ("above", 8.0, 60.0)),  # of equal ones the cheaper
        ((8.0, 9.0, 9.0), ("below", 2 / 16, 8.0)),
    ],
)
def test_compute_of_a_rival_over_cm3leons(fids, expected):
    hours = dict(
        zip(
            itertools.product(("cm3leon", "parti"), sizes.SIZES),
            (1.0, 4.0, 16.0, 2.0, 8.0, 32.0),
            strict=True,
        )
    )
    fid = dict(zip(hours, (50.0, 20.0, 10.0, *fids), strict=True))
    scores = {}
    for (family, size), value in hours.items():
        for what, figure in (("a100_hours", value), ("fid", fid[family, size])):
            scores[f"{family}.{size}.{what}"] = dataclasses.replace(score(100), value=figure)
    bound, times, lowest = sizes.saving(scores, "parti")
    assert (bound, pytest.approx(times), lowest) == expected


@pytest.mark.parametrize("family", sizes.FAMILIES)
def test_nothing_but_the_size_differs(family):
    experiments = [load_experiment(f"miniature/rivals/{family}{s}") for s in sizes.SIZES.values()]
    widths = [experiment.model.width for experiment in experiments]
    assert widths == [32, 64, 128]
    small, medium, large = experiments
    for field in ("data", "optim", "train", "cm3", "retrieval", "vocab", "decode", "seed", "loss"):
        assert getattr(small, field) == getattr(medium, field) == getattr(large, field)
