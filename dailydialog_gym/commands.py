"""The installed commands. They run the scripts of the repository's top level, which a wheel holds in ``scripts/``."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from dailydialog_gym.errors import one_line

PACKAGE = Path(__file__).parent


def train() -> None:
    """``dailydialog-train``: ``ppo_dialog.py``."""
    _run(_script("ppo_dialog.py"), "dailydialog_gym.runs")


def chat() -> None:
    """``dailydialog-chat``: ``chat_app.py``."""
    _run(_script("chat_app.py"), "dailydialog_gym.chat")


def evaluate() -> None:
    """``dailydialog-evaluate``: ``python -m dailydialog_gym.evaluate``."""
    _run(PACKAGE / "evaluate" / "__main__.py", "dailydialog_gym.evaluate")


def _run(path: Path, room: str) -> None:
    """Run a script under the command's name, after a room whose import reports what is not installed."""
    try:
        import_module(room)
    except ModuleNotFoundError as error:
        raise SystemExit(one_line(error)) from error
    sys.argv[0] = Path(sys.argv[0]).name
    loader = SourceFileLoader("__main__", str(path))
    spec = spec_from_loader("__main__", loader)
    assert spec  # None only without a loader
    sys.modules["__main__"] = script = module_from_spec(spec)
    loader.exec_module(script)


def _script(name: str) -> Path:
    installed = PACKAGE / "scripts" / name
    return installed if installed.exists() else PACKAGE.parent / name  # the latter in an editable installation
