"""The row on the shipped weights, with few prompts."""

import numpy as np
import pytest

from cm3jax.claims import control
from cm3jax.decode import loop
from tests.claims.test_bench import bench  # noqa: F401


@pytest.mark.slow
def test_documents_control_what_is_filled_in_drawn_and_named(bench, monkeypatch):  # noqa: F811
    found = control.ROW.measure(bench)
    value = {name: score.value for name, score in found.scores.items()}
    assert value["infill.rows.with"] >= 0.5
    assert value["infill.rows.without"] == value["infill.cell.without"] == 0
    assert value["infill.rows.another"] == value["infill.cell.another"] == 0
    assert value["five_documents.each_picture"] >= 0.9
    assert value["classify.right_first"] > value["classify.wrong_first"]
    assert control.ROW.headline(found.scores)
    assert len([target.holds(found.scores) for target in control.ROW.targets]) == 6
    protocols = {name: score.protocol for name, score in found.scores.items()}
    assert protocols["infill.rows.with"].retrieved == 1
    assert protocols["infill.rows.without"].retrieved == 0
    assert protocols["classify.one_shot"].retrieved == 2
    assert len({figure.kind for figure in found.figures}) == 4
    # What was drawn is kept.
    monkeypatch.setattr(loop, "plan", lambda requests, *rest: 1 / 0 if requests else ())
    assert control.ROW.measure(bench) == found


def test_a_hole_is_the_emblems_cell_or_its_rows(bench):  # noqa: F811
    prompt = bench.asked("heldout")[0][0]
    cells = prompt.scene.emblems[0].cells
    (mask,) = control._masks([[cells[2]]], prompt.image[None])
    rows, columns = np.nonzero(mask)
    assert (rows.min() // 8 * 4 + columns.min() // 8) == cells[2]
    assert mask.sum() == 64
