"""docs/tutorial.ipynb, run cell by cell as a notebook server runs it."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"

# What the notebook's texts say, of the values that its cells leave.
CHECKS = """
assert right == {0: False, 1: True}
assert pair_right == {0: False, 1: False, 2: True}
assert looks[0] == looks[1]
assert told and restored
(own,) = question.scene.emblems
cells = np.isin(np.arange(grid * grid), own.cells).reshape(grid, grid)
assert gain[cells].min() > 1 > np.abs(gain[~cells]).max(), gain
assert {piece.weight for piece in pieces(one_row, model.vocab)[0]} >= {0.0, 1.0}
"""


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS))
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    setup = {cell.id for cell in notebook.cells[:4]}  # installing and finding the weights
    silent = [name for name, outputs in shown.items() if not outputs and name not in setup]
    assert silent == [notebook.cells[-1].id], "every cell shows something"
    outputs = [out for outputs in shown.values() for out in outputs]
    kinds = [kind for out in outputs for kind in out.get("data", {})]
    assert "image/png" in kinds
    assert kinds.count("text/html") >= 10
    said = "".join(out["text"] for out in outputs if out.output_type == "stream")
    for line in ("documents: 0, right: False", "documents: 1, right: True", "documents: 2, right:"):
        assert line in said
