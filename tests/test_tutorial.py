"""docs/tutorial.ipynb, run cell by cell as a notebook server runs it."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    checks = """
assert right == {0: False, 1: True, 2: True}
assert told and restored
assert (gains[0] > 1).any(), gains
"""
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    kinds = [kind for out in outputs for kind in out.get("data", {})]
    assert "image/png" in kinds
    assert kinds.count("text/html") >= 10
    said = "".join(out["text"] for out in outputs if out.output_type == "stream")
    assert "0 documents, right: False" in said
    assert "1 documents, right: True" in said
