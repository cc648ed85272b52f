"""What a base installation lacks: the error that names the extra which installs it."""

from __future__ import annotations

from importlib.util import find_spec


def need(*modules: str, extra: str = "train") -> None:
    """Make sure that optional libraries are installed.

    Args:
        modules: the names of their modules.
        extra: the extra of this package that installs them.

    Raises:
        ModuleNotFoundError: one of them is missing. The message has the command that installs it.

    >>> need("no_such_library", extra="chat")
    Traceback (most recent call last):
    ModuleNotFoundError: no_such_library is not installed: pip install "dailydialog-gym[chat]"
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f'{module} is not installed: pip install "dailydialog-gym[{extra}]"', name=module)
