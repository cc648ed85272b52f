"""Serve the chat page: its address and its theme, and who may reach it."""

import errno
import gc
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from dailydialog_gym.chat.conversation import MAX_REPLIES
from dailydialog_gym.chat.guard import LOCAL, Guard, refuse_body

STYLE = Path(__file__).parent / "static/style.css"


def make_theme() -> gr.Theme:
    """The theme. It uses the system's fonts, so none is loaded from the network; every text has a contrast of 4.5."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        color_accent="*primary_700",
        slider_color="*primary_600",
    )


def launch(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: str | None = None,
    root_path: str | None = None,
    **options: Any,
) -> int:
    """Serve the page.

    Args:
        page: the page, see `dailydialog_gym.chat.page.build_page`.
        host, port: the address to listen on; a busy port is replaced by the next free one.
        share: open a public link through Gradio's servers.
        auth: ``NAME:PASSWORD`` that visitors must enter, or None.
        root_path: the URL under which a proxy shows the page, or None.
        options: more options of `gradio.Blocks.launch`.

    Returns: the port.

    Raises:
        ValueError: ``auth`` has not this form, ``root_path`` is no URL, or no port is free.
    """
    name, _, password = (auth or "").partition(":")
    if auth is not None and not (name and password):
        raise ValueError("--auth: expected NAME:PASSWORD, such as me:secret")
    proxy = urlsplit(root_path or "")
    if root_path is not None and not (proxy.scheme in ("http", "https") and proxy.hostname):
        raise ValueError(f"--root-path {root_path}: expected a URL, such as https://example.org/chat")
    free = free_port(host, port)
    if free != port:
        print(f"port {port} is in use, so the page is on port {free}")
    local = not share and (host in LOCAL or host.startswith("127."))
    guard = Middleware(
        Guard,
        names={*LOCAL, host, *([proxy.hostname] if proxy.hostname else [])} if local else None,
        public=proxy.netloc or None,
        give_up=page._queue.clean_events,
    )
    # Else each full collection looks through all that was imported, a third of a second in which nobody is answered
    gc.freeze()
    # Gradio's own queue never fills: all events begin at once, and `Chat` limits the replies that are being written
    page.queue(max_size=None).launch(
        server_name=host,
        server_port=free,
        share=share,
        auth=(name, password) if auth else None,
        max_threads=2 * MAX_REPLIES,
        root_path=root_path,
        app_kwargs={"middleware": [guard], "exception_handlers": {RequestValidationError: refuse_body}},
        theme=make_theme(),
        css=STYLE.read_text(encoding="utf-8"),
        footer_links=[],
        ssr_mode=False,  # a second server in front of this one would hide who asks
        **options,
    )
    return free


def free_port(host: str, port: int) -> int:
    """The first of the 100 ports from ``port`` on that nobody listens on."""
    for candidate in range(port, min(port + 100, 65536)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            if sys.platform != "win32":  # there this option would share a port that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ValueError(f"--host {host} --port {candidate}: {error.strerror}") from error
                continue
            return candidate
    raise ValueError(f"--port {port}: it is in use, and so are the next 99")
