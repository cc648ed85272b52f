"""Users' own classes and functions, named on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def import_object(path: str, flag: str) -> Any:
    """What ``module:name`` names, for a flag; the module may stand in the current folder.

    Raises:
        ValueError: there is no such module or name.
    """
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:  # python puts the script's folder there, which may be another
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{flag} {path!r}: expected module:name, and {error}") from error
