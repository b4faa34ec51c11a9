"""The line that tells how far a run is, as an executed notebook keeps it."""

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = {
    "hundreds of updates": "told = Progress('seed 7')\nfor done in range(301): told(done, 300, 0.5)",
    "nothing to do": "told = Progress('seed 8')",
    "two in one cell": "for told in (Progress('a'), Progress('b')): [told(done, 3) for done in range(4)]",
    "diverged": "told = Progress('seed 9')\nfor done in (1, 1200): told(done, 3000, float('nan'))",
    "failed at once": "told = Progress('reading', 'cells')\nraise ValueError",
    "stopped": "told = Progress('reading', 'cells')\nfor done in (5, 1000): told(done, 3000)\nraise KeyboardInterrupt",
}
SHOWN = {
    "hundreds of updates": ["seed 7: finished"],
    "nothing to do": ["seed 8: finished"],
    "two in one cell": ["a: finished", "b: finished"],
    "diverged": ["seed 9: stopped at 1,200 of 3,000 updates"],
    "failed at once": ["reading: not finished"],
    "stopped": ["reading: stopped at 1,000 of 3,000 cells"],
}


@pytest.fixture(scope="module")
def saved():
    """A notebook with one cell of each kind, executed as papermill does; every update is shown."""
    first = "from lib import notebook\nfrom lib.run.notebook import Progress\nnotebook.EVERY = 0"
    cells = [nbformat.v4.new_code_cell(source) for source in (first, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    return dict(zip(CELLS, notebook.cells[1:], strict=True))


@pytest.mark.parametrize("case", CELLS)
def test_a_saved_notebook_keeps_one_line_that_says_how_a_run_ended(saved, case):
    shown = [output for output in saved[case].outputs if output.output_type != "error"]
    assert {output.output_type for output in shown} == {"display_data"}
    assert [output.data["text/plain"] for output in shown] == SHOWN[case]
