"""docs/notebook.ipynb runs from its first cell to its last, and ships with what it then shows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.process import REPOSITORY

pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")

import nbclient
import nbformat

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def outputs(notebook: Any) -> list[list[tuple[str, list[str]]]]:
    """Of each cell with code: the kinds of its outputs, and in which forms they are."""
    return [
        [(output.output_type, sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_it_is_short_and_ships_with_what_it_shows() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15 and NOTEBOOK.stat().st_size < 400_000
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(
        range(1, len(outputs(notebook)) + 1)
    )
    found = outputs(notebook)
    assert all(found), "a cell shows nothing"
    # No machine's paths, no streams, nothing that failed.
    assert {kind for cell in found for kind, _ in cell} == {"display_data", "execute_result"}
    text = NOTEBOOK.read_text()
    assert "/tmp" not in text and "/home" not in text and str(Path.home()) not in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_and_shows_the_same_kinds_of_things(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    shipped = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=400, resources=resources).execute()
    assert outputs(notebook) == outputs(shipped)
    html = {
        cell.source: cell.outputs[-1].data.get("text/html", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    table = html["hpc_mlp.table(runs)"]
    names = ("baseline", "dropout", "batchnorm", "dropout_batchnorm")
    assert all(name in table for name in names) and "★" in table and "10.1 %" in table
    [live] = [text for source, text in html.items() if 'variants="all"' in source]
    assert "12 runs: 12 done" in live
    assert "against" in html['hpc_mlp.summary("runs")']
