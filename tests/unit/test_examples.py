"""The notebook of the three uses runs from the beginning to the end."""

import copy
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOK = FOLDER / "three_uses.ipynb"


def shown(notebook: Any) -> str:
    """What the cells print and display as text."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_the_notebook_runs_and_its_output_agrees_with_its_text() -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    run = copy.deepcopy(committed)
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(run, timeout=120, kernel_name="python3", resources=where).execute()
    for text in (shown(run), shown(committed)):
        assert "encoder.layers.3.self_attn" in text and "parameters" in text
        accuracies = dict(re.findall(r"without (\d) of 4: .*fine-tuned ([01]\.\d+)", text))
        assert float(accuracies["2"]) > 0.9 > 0.7 > float(accuracies["4"])
        assert "True" in text.splitlines()
        assert "Uncertainty: each network" in text and "RLinear" in text
        assert "2024-02-20 00:00:00" in text
        assert "iTransformer" in text.split("removed")[-1]
    assert not re.search(r"/(home|root|tmp|work)/", NOTEBOOK.read_text(encoding="utf-8"))
