"""Chat templates come with models from anywhere, and are programs: here they are rendered with a limit of time.

As a program of its own, this file renders the template that it reads, and imports little, so that it starts fast.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 10
MAX_CHARACTERS = 1_000_000
MAX_MEMORY = 1 << 30  # bytes
_TOO_LONG = 3  # exit code of the process that renders
_CURE = "correct the template, or use the model without it (no --chat-template; in Python use_template=False)"


def render_apart(name: str, template: str, messages: list[dict[str, str]], tokens: Mapping[str, Any]) -> str:
    """Render a chat template in a process of its own, with a limit of time, memory and characters.

    The template is rendered with and without the prompt for a reply, so that both are known to end.

    Args:
        name: the tokenizer, for error messages.
        template: the Jinja text.
        messages: the conversation.
        tokens: the tokenizer's special tokens, by their names in the template.

    Returns: the text without the prompt for a reply, as transformers renders it.

    Raises:
        ValueError: the template fails, does not end in time, or writes too much.
    """
    what = f"the chat template of tokenizer {name!r}"
    try:
        child = subprocess.run(
            [sys.executable, "-P", __file__],  # -P: the modules beside this file must not hide Python's own
            input=json.dumps([template, messages, dict(tokens)]),
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
            capture_output=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{what} does not end within {SECONDS} seconds: {_CURE}") from error
    if child.returncode == _TOO_LONG:
        raise ValueError(f"{what} writes more than {MAX_CHARACTERS:,} characters: {_CURE}")
    if child.returncode:
        last = (child.stderr.splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ValueError(f"{what} could not be rendered in a process of its own: {last}")
    text, fault = json.loads(child.stdout)
    if fault:
        raise ValueError(f"{what} fails ({fault}): {_CURE}")
    return text


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
    """Write a pair of JSON, the text and None, or None and what is wrong with the template."""
    from jinja2 import Environment, TemplateError, ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """The block that transformers adds to Jinja, of which only the content matters here."""

        tags = {"generation"}  # noqa: RUF012  Jinja reads an attribute of the class

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    if sys.platform == "linux":  # Windows has no such limit, and macOS may refuse to set it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    environment: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    # The filter and the globals of `transformers.utils.chat_template_utils`
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: json.dumps(
        value, ensure_ascii=ensure_ascii, **options
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    source, messages, tokens = json.load(sys.stdin)
    variables = {"messages": messages, "tools": None, "documents": None, **tokens}
    try:
        template = environment.from_string(source)
        for prompt in (True, False):  # the second text is the one that is returned
            pieces, written = [], 0
            for piece in template.generate(add_generation_prompt=prompt, **variables):
                pieces.append(piece)
                written += len(piece)
                if written > MAX_CHARACTERS:
                    sys.exit(_TOO_LONG)
        result = ["".join(pieces), None]
    except MemoryError:
        sys.exit(_TOO_LONG)
    except Exception as error:  # a template is a program, which may raise anything
        result = [None, f"{type(error).__name__}: {error}"]
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    _render()
