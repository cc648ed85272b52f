"""Import a user's class or function that is named on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def import_object(path: str, flag: str) -> Any:
    """Import ``name`` from ``module``, which may also be a module in the current folder.

    Args:
        path: ``"module:name"``.
        flag: the command line flag, for error messages.

    Raises:
        ValueError: the module or the name does not exist, or importing the module raises an error.
    """
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:  # Python adds the script's folder, which may be another one
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"{flag} {path!r}: expected module:name ({type(error).__name__}: {error})") from error
