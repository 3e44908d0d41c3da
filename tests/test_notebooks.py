"""Notebooks run on the study of the tests, and are what their scripts say."""

import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: Seconds that a notebook may take. On two cores that are free each takes less than 60, so that
#: nobody waits longer for it; twice that fails here, since a busy machine is no fault of ours.
LONGEST = 120


def test_notebooks__are_pairs_without_outputs():
    assert [path.stem for path in NOTEBOOKS] == sorted(p.stem for p in FOLDER.glob("*.py"))
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        script = jupytext.read(path.with_suffix(".py"))
        assert [c.source for c in notebook.cells] == [c.source for c in script.cells], path.name
        assert not any(cell.get("outputs") for cell in notebook.cells), path.name


def test_notebooks__have_pictures():
    texts = [path.read_text() for path in FOLDER.glob("*.py")]
    assert all("plt.show()" in text for text in texts)
    assert any("scalebrain.plot_regions(" in text for text in texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__runs(path, study, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEBRAIN_STUDY", str(study))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    began = time.perf_counter()
    client.execute()
    took = time.perf_counter() - began
    print(f"{path.stem}: {took:.1f} s")
    told = [
        output["text"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("name") == "stderr" and "Warning" in output["text"]
    ]
    assert not told
    assert took < LONGEST
