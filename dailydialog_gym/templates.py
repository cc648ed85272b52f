"""Chat templates come with models from anywhere. They are programs: here they get no more time than they need.

As a program of its own, this file renders the template that it reads, and imports little, so that it starts fast.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 10
MAX_CHARACTERS = 1_000_000
MAX_MEMORY = 1 << 30  # bytes
_TOO_LONG = 3


def check_template(name: str, template: str) -> None:
    """Render a chat template in a process of its own, with a limit of time, memory and characters.

    A template that raises an error passes: whoever renders it will see the error.

    Args:
        name: the tokenizer, for the message.
        template: the Jinja text.

    Raises:
        ValueError: it does not end in time, or writes too much.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-P", __file__],  # -P: the modules beside this file must not hide Python's own
            input=json.dumps(template),
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"the chat template of {name!r} does not end within {SECONDS} seconds") from error
    if child.returncode == _TOO_LONG:
        raise ValueError(f"the chat template of {name!r} writes more than {MAX_CHARACTERS:,} characters")
    if child.returncode:
        last = (child.stderr.splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ValueError(f"the chat template of {name!r} could not be rendered in a process of its own: {last}")


class InTime:
    """Calls functions in a thread of their own, and gives up the one that does not end in time, and all after it.

    Args:
        what: what may take too long, for the message.
        seconds: the limit of a call.
    """

    def __init__(self, what: str, seconds: float = SECONDS):
        self._fault = f"{what} did not end within {seconds} seconds, so it is not used any more"
        self._seconds, self._stuck = seconds, False

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """The function's result.

        Raises:
            ValueError: this call or one before it did not end in time.
            Exception: what the function raises.
        """
        outcome: list[tuple[bool, Any]] = []

        def call() -> None:
            try:
                outcome.append((True, function(*args)))
            except Exception as error:
                outcome.append((False, error))

        if not self._stuck:
            thread = threading.Thread(target=call, daemon=True)  # Python can't end a thread, but the process may end
            thread.start()
            thread.join(self._seconds)
            self._stuck = not outcome
        if not outcome:
            raise ValueError(self._fault)
        ((succeeded, value),) = outcome
        if not succeeded:
            raise value
        return value


def _render() -> None:
    from jinja2 import Environment, TemplateError, ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """The block that transformers adds to Jinja, of which only the content matters here."""

        tags = {"generation"}  # noqa: RUF012  Jinja reads an attribute of the class

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    if sys.platform == "linux":  # Windows has no such limit, and macOS may refuse to set it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    environment: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    written = 0
    try:
        template = environment.from_string(json.load(sys.stdin))
        for piece in template.generate(
            messages=turns, add_generation_prompt=True, strftime_now=lambda text: text, bos_token="", eos_token=""
        ):
            written += len(piece)
            if written > MAX_CHARACTERS:
                sys.exit(_TOO_LONG)
    except MemoryError:
        sys.exit(_TOO_LONG)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return


if __name__ == "__main__":
    _render()
