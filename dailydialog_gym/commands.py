"""The installed commands. They run the scripts of the repository's top level, which a wheel holds in ``scripts/``."""

from __future__ import annotations

import runpy
from pathlib import Path

from dailydialog_gym.errors import one_line
from dailydialog_gym.extras import need

PACKAGE = Path(__file__).parent


def train() -> None:
    """``dailydialog-train``: ``ppo_dialog.py``."""
    _check("torch", "transformers", "tyro", extra="train")
    runpy.run_path(_script("ppo_dialog.py"), run_name="__main__")


def chat() -> None:
    """``dailydialog-chat``: ``chat_app.py``."""
    _check("torch", "transformers", "gradio", "tyro", extra="chat")
    runpy.run_path(_script("chat_app.py"), run_name="__main__")


def evaluate() -> None:
    """``dailydialog-evaluate``: ``python -m dailydialog_gym.evaluate``."""
    _check("torch", "transformers", "evaluate", "tyro", extra="train")
    runpy.run_module("dailydialog_gym.evaluate", run_name="__main__", alter_sys=True)


def _check(*modules: str, extra: str) -> None:
    try:
        need(*modules, extra=extra)
    except ModuleNotFoundError as error:
        raise SystemExit(one_line(error)) from error


def _script(name: str) -> str:
    installed = PACKAGE / "scripts" / name
    return str(installed if installed.exists() else PACKAGE.parent / name)  # the latter in an editable installation
