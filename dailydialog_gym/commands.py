"""The installed commands. They run the scripts of the repository's top level, which a wheel holds in ``scripts/``."""

from __future__ import annotations

import runpy
from importlib import import_module
from pathlib import Path

from dailydialog_gym.errors import one_line

PACKAGE = Path(__file__).parent


def train() -> None:
    """``dailydialog-train``: ``ppo_dialog.py``."""
    _import("dailydialog_gym.runs")
    runpy.run_path(_script("ppo_dialog.py"), run_name="__main__")


def chat() -> None:
    """``dailydialog-chat``: ``chat_app.py``."""
    _import("dailydialog_gym.chat")
    runpy.run_path(_script("chat_app.py"), run_name="__main__")


def evaluate() -> None:
    """``dailydialog-evaluate``: ``python -m dailydialog_gym.evaluate``."""
    _import("dailydialog_gym.evaluate")
    runpy.run_module("dailydialog_gym.evaluate", run_name="__main__", alter_sys=True)


def _import(room: str) -> None:
    """Import a room, which raises an error that names the extra to install if a library is missing."""
    try:
        import_module(room)
    except ModuleNotFoundError as error:
        raise SystemExit(one_line(error)) from error


def _script(name: str) -> str:
    installed = PACKAGE / "scripts" / name
    return str(installed if installed.exists() else PACKAGE.parent / name)  # the latter in an editable installation
