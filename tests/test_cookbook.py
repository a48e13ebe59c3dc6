"""The cookbook runs from top to bottom, and is stored with the outputs that it gives."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "cookbook.ipynb"
MAX_BYTES = 2_000_000
# Remarks of libraries in what a command printed, which differ from machine to machine.
OTHERS = re.compile(r"kernels|\[transformers\]")


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.read(FILE, as_version=4)
    stored = [printed(cell) for cell in notebook.cells]
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    return stored, client.execute()


def printed(cell) -> list[str]:
    """Lines that a cell printed, without those of the libraries."""
    outputs = [output for output in cell.get("outputs", []) if output.output_type == "stream"]
    lines = "".join(output.text for output in outputs if output.name == "stdout").splitlines()
    return [line for line in lines if line.strip() and not OTHERS.search(line)]


def test_every_cell_runs_and_prints_what_is_stored(executed):
    stored, notebook = executed
    for before, cell in zip(stored, notebook.cells, strict=True):
        assert printed(cell) == before, cell.source


def test_media_are_shown(executed):
    shown = [
        kind for cell in executed[1].cells for output in cell.get("outputs", []) for kind in output.get("data", {})
    ]
    assert shown.count("image/png") >= 3
    assert any("audio" in json.dumps(cell) for cell in executed[1].cells if "Audio(" in cell.source)


def test_answers_are_right(executed):
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    text = "\n".join(line for cell in executed[1].cells for line in printed(cell))
    for name in ("picture", "recording", "clip"):
        assert expected[name] in text


def test_it_is_small_enough_to_be_read_on_a_page():
    assert FILE.stat().st_size < MAX_BYTES
