"""The notebook runs as it stands, in a kernel of its own, with smaller sizes; it is kept without outputs."""

import os
import re
import sys
from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs/demo.ipynb"
SMALL = {
    "PIXELS": "64",
    "DEMONSTRATIONS": "2",
    "SFT_STEPS": "2",
    "SFT_BATCH": "4",
    "GRPO_STEPS": "1",
    "N_GROUPS": "1",
    "GROUP_SIZE": "2",
    "STARTS": "2",
    "WORKERS": "1",
}


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def sizes_cell(notebook: nbformat.NotebookNode) -> int:
    (index,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    return index


def test_it_is_valid_and_without_outputs(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "%pip install" in code[0].source, "on Colab nothing is there"


def test_every_size_that_a_command_takes_is_in_one_cell(notebook: nbformat.NotebookNode):
    given = set(re.findall(r'"([A-Z_]+)": ', notebook.cells[sizes_cell(notebook)].source))
    taken = {name for cell in notebook.cells for name in re.findall(r"\$([A-Z_]+)", cell.source)}
    assert taken == given == {"OUT", *SMALL}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_runs_and_shows_the_report(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook.cells.insert(sizes_cell(notebook) + 1, nbformat.v4.new_code_cell(f"os.environ |= {SMALL}"))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    page = (tmp_path / "outputs/notebook/report.html").read_text(encoding="utf-8")
    (shown,) = (output.data["text/html"] for output in outputs if output.output_type == "execute_result")
    assert unescape(shown.partition('srcdoc="')[2].rpartition('" width')[0]) == page
    assert page.count("<video") >= 2, "of both policies"
