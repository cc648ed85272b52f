"""How a script ends after a mistake of its user: with one line instead of a traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from dailydialog_gym.ranges import check_numbers

T = TypeVar("T")
MISTAKES = (ValueError, OSError, MemoryError, ModuleNotFoundError)
TIMEOUT = 15.0  # seconds, more than ranks differ in the time that they need for their imports


def one_line(error: BaseException) -> str:
    """``error: `` and the exception's message in one line."""
    return f"error: {' '.join(str(error).split()) or type(error).__name__}"


def report_in_one_line(*kinds: type[BaseException]) -> None:
    """Let an exception of these kinds that nobody catches end the process with `one_line` instead of a traceback.

    Ctrl-C ends it with one word.

    In a job of several processes (``RANK``), usually all ranks make the same mistake. Rank 0 reports it, and the
    launcher ends the job. The other ranks wait `TIMEOUT` seconds before they report it too.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):  # Python then ends the process as the signal would
            print("\nstopped", file=sys.stderr)
        elif issubclass(kind, kinds):
            if os.environ.get("RANK", "0") != "0":
                time.sleep(TIMEOUT)
            print(one_line(error), file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook


def print_any_character() -> None:
    """Let standard output escape what its encoding lacks, as standard error does: a reply may contain anything.

    Windows gives a file or pipe an encoding of one language.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_script(main: Callable[[T], None], args: type[T], description: str) -> None:
    """Parse the command line of a script into the dataclass ``args``, and call ``main`` with it.

    One of `MISTAKES` is the user's: it ends the script with `one_line`, or with a traceback if the command line has
    ``--traceback``.

    Raises:
        SystemExit: the command line is wrong, ``main`` raised such an error, or Ctrl-C stopped it.
    """
    import tyro

    print_any_character()
    argv = [word for word in sys.argv[1:] if word != "--traceback"]
    parsed = tyro.cli(args, args=argv, description=f"{description}\n--traceback shows where an error occurred.")
    try:
        check_numbers(parsed)
        main(parsed)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except MISTAKES as error:
        if len(argv) < len(sys.argv) - 1:
            raise
        raise SystemExit(one_line(error)) from error
