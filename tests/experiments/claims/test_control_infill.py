import numpy as np

from experiments.claims import control_infill
from tests.experiments.claims.test_harness import bench  # noqa: F401


def test_a_hole_is_the_emblems_cell_or_its_rows(bench):  # noqa: F811
    prompt = bench.asked("heldout")[0][0]
    cells = prompt.scene.emblems[0].cells
    (mask,) = control_infill._masks([[cells[2]]], prompt.image[None])
    rows, columns = np.nonzero(mask)
    assert (rows.min() // 8 * 4 + columns.min() // 8) == cells[2]
    assert mask.sum() == 64
