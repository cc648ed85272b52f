"""Reads the flags of a command line with the script's own parser, without running the script."""

import re
import runpy
import sys
from functools import partial

import pytest
import tyro
from paths import ROOT

from dailydialog_gym.runs import parse_args


class Parsed(Exception):  # noqa: N818
    """Ends a script once its flags have been read."""


def parse(command, monkeypatch):
    """Read a Python command's flags with its own parser, and nothing more."""
    script, *flags = command
    if script.startswith("ppo_dialog"):
        parse_args(runpy.run_path(script)["Args"], "", flags)
        return
    run = partial(runpy.run_path, script)
    if script == "-m":
        module, *flags = flags
        run = partial(runpy.run_module, module, alter_sys=True)
    elif not re.search(r"tyro\.cli|run_script", (ROOT / script).read_text(encoding="utf-8")):
        assert not flags  # it takes none
        return
    cli = tyro.cli
    monkeypatch.setattr(tyro, "cli", lambda *args, **kwargs: cli(*args, **kwargs) and raise_parsed())
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as Python does for a script in this folder
    with pytest.raises(Parsed):
        run(run_name="__main__")


def raise_parsed():
    raise Parsed
