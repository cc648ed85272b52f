"""The notebook runs from its first cell to its last, and what it trains does what it rewards."""

import json
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from paths import ROOT

NOTEBOOK = ROOT / "docs/first_steps.ipynb"


def test_the_notebook_trains_an_agent(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "ppo_dialog.py").symlink_to(ROOT / "ppo_dialog.py")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell for cell in notebook.cells if "--eval-samples 100" in cell.source)
    training.source = training.source.replace("--eval-samples 100", "--eval-samples 10")  # to save time
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()
    (run,) = (tmp_path / "docs/runs").iterdir()
    asks = [json.loads(row)["reward/asks"] for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 1 - asks[-1] < (1 - asks[0]) / 3
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    before, after = (
        [line for line in printed.splitlines() if line.startswith(f"{when}:")] for when in ("before", "after")
    )
    assert len(before) == len(after) == 3
    assert sum("?" in reply for reply in before) < sum("?" in reply for reply in after)


def test_the_committed_notebook_has_no_warnings_and_no_paths_of_a_machine():
    outputs = [out for cell in nbformat.read(NOTEBOOK, as_version=4).cells for out in cell.get("outputs", [])]
    assert outputs  # readers of the documentation see what happens
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert str(Path.home()) not in json.dumps(outputs)
    assert NOTEBOOK.stat().st_size < 100_000
