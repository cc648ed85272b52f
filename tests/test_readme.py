"""What README shows works as it stands there, and what it lists is what there is."""

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run_one_after_the_other():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(block.replace("runs/NAME/agent", "builtin"), names)
    assert names["info"]["response"] is not None
    assert names["envs"].name == "brevity"


def test_every_logged_metric_is_defined_and_every_file_listed(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", tiny_model, "--num-envs", "4", "--total-episodes", "4", "--eval-samples", "4"]
    monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *flags])
    run = runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")["run"]
    logged = set(run.history[0]) - {"episodes"}
    defined = set(re.findall(r"`((?:charts|time|reward|metric|losses)/\w+)`", README))
    assert logged == defined - {"reward/intent", "reward/brevity"}
    rows = README.split("| file | what |")[1].split("\n\n")[0].splitlines()
    listed = {name for row in rows[2:] for name in re.findall(r"`(.*?)`", row.split("|")[1])}
    present = {path.name + "/" * path.is_dir() for path in run.folder.iterdir()}
    assert {re.sub(r"events\..*", "events.*", name) for name in present} == listed


def test_the_layout_has_the_two_commands_on_the_first_screen():
    first_screen = "\n".join(README.splitlines()[:24])
    assert '-e ".[train]" && python ppo_dialog.py' in first_screen
    assert "&& ruff check . && ruff format --check . && pytest" in first_screen
