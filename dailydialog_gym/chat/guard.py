"""A middleware that refuses foreign requests and large bodies, limits guesses of passwords, and ends unused events."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import PlainTextResponse

LOCAL = {"127.0.0.1", "localhost", "::1"}
MAX_BODY = 1_000_000  # bytes; the longest conversation that the page sends is far smaller
SLOW = 1.0  # seconds that a wrong password takes, for each address that guesses one at a time
TIMEOUT = 10.0  # seconds until an event whose results nobody fetches is given up
_HOST = re.compile(r"(?:\[([\da-f:]+)\]|([\w.-]+))(?::\d*)?")  # a name or an address, and perhaps a port

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI middleware.

    A website can make a browser send requests to 127.0.0.1, and by DNS rebinding under a name of its own. So a page
    that listens there answers only requests for its own names (the header ``Host``), and no page answers requests that
    a script of another site makes (``Origin``). What visitors see behind a proxy, such as that of Hugging Face Spaces,
    is in ``X-Forwarded-Host``, which no script can send to another site unasked. Nobody uploads files, and no body is
    larger than `MAX_BODY`. An event whose results nobody fetches is given up after `TIMEOUT`.

    Args:
        app: the application behind it.
        names: the host names that the page answers to, or None for all.
        public: host and port that a proxy shows to visitors, or None.
        give_up: ends an event or all events of a session, by ``event_id`` or ``session_hash``.
    """

    def __init__(self, app: Any, names: set[str] | None, public: str | None, give_up: Callable[..., Awaitable[None]]):
        self.app, self.names, self.public, self._give_up = app, names, public, give_up
        # By address: its logins that run or wait, and the lock that lets one of them run
        self._logins: Counter[str] = Counter()
        self._guessing: dict[str, asyncio.Lock] = {}
        # By event or session: the requests that fetch its results, and the timer where there is none
        self._listeners: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._refuse(scope, headers):
            await _answer(send, *refused)
            return
        path = scope["path"].rstrip("/")
        body = await _read(receive) if scope["method"] == "POST" else b""
        if body is None:
            await _answer(send, 413, f"A request has at most {MAX_BODY:,} bytes.")
            return
        if scope["method"] == "POST":
            receive = _replay(body, receive)
        if path.endswith("/login"):
            await self._login(scope, receive, send)
        elif "/call/" in path or path.endswith(("/queue/join", "/queue/data")):
            if scope["method"] == "POST":
                await self._begin(scope, body, receive, send)
            else:
                await self._listen(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refuse(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _HOST.fullmatch(host.lower())
        if self.names is not None and not (name and (name[1] or name[2]) in self.names):
            return 403, f"This page does not answer to the name {host[:100]!r}: see --host and --root-path."
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        if origin is not None and origin.partition("://")[2] not in {host, forwarded, self.public} - {""}:
            return 403, f"This page does not answer requests of {origin[:100]!r}: see --root-path."
        if scope["path"].rstrip("/").endswith(("/upload", "/upload_progress")):
            return 404, "Nothing can be uploaded here."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return 413, f"A request has at most {MAX_BODY:,} bytes."
        return None

    async def _login(self, scope: Message, receive: Receive, send: Send) -> None:
        async def slow(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 400:
                await asyncio.sleep(SLOW)
            await send(message)

        address = (scope.get("client") or ("",))[0]
        self._logins[address] += 1
        try:
            async with self._guessing.setdefault(address, asyncio.Lock()):
                await self.app(scope, receive, slow)
        finally:
            self._logins[address] -= 1
            if not self._logins[address]:
                del self._logins[address], self._guessing[address]

    async def _begin(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """Begin an event, which is given up unless somebody listens in time."""
        answer = bytearray()

        async def read(message: Message) -> None:
            answer.extend(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, read)
        try:
            event = json.loads(answer)["event_id"]
            session = json.loads(body).get("session_hash")
        except (ValueError, KeyError, TypeError, AttributeError):  # refused: there is no event
            return
        key = session or event
        if key not in self._timers and not self._listeners[key]:
            what = {"session_hash": session} if session else {"event_id": event}
            self._timers[key] = asyncio.get_running_loop().call_later(TIMEOUT, self._end, key, what)

    async def _listen(self, scope: Message, receive: Receive, send: Send) -> None:
        """Fetch the results of an event, or of the events of a session."""
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash")
        key = session[0] if session else scope["path"].rstrip("/").rsplit("/", 1)[1]
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._listeners[key] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._listeners[key] -= 1
            self._listeners += Counter()  # drops the zeros

    def _end(self, key: str, what: dict[str, str]) -> None:
        del self._timers[key]
        task = asyncio.ensure_future(self._give_up(**what))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def refuse_body(request: Request, error: Exception) -> PlainTextResponse:
    """The answer to a body that is not what an endpoint expects.

    FastAPI's own answer repeats the body. Where that fails, as for bytes that are no UTF-8 and for NaN, the server
    would log the whole body with a traceback.
    """
    return PlainTextResponse("The body of this request is not what the page expects.", 422)


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None as soon as it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a body that has been read."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
