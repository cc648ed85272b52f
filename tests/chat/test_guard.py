"""Who gets in: names and origins, bodies, passwords; and who leaves the queue."""

import asyncio
import logging
import sys
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from gradio_client import Client
from served import Served, chat_of

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat import conversation, guard


@pytest.fixture(scope="module")
def agent():
    return DialogueAgent.load("builtin")


@pytest.fixture(scope="module")
def served(agent, tmp_path_factory):
    served = Served(chat_of(agent), tmp_path_factory.mktemp("votes") / "votes.jsonl")
    yield served
    served.page.close()


@pytest.fixture(scope="module")
def behind_proxy(agent, tmp_path_factory):
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    served = Served(chat_of(agent), votes, root_path="https://talk.example.org/chat")
    yield served
    served.page.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "localhost:99", "[::1]:7860", "LOCALHOST"])
def test_the_page_answers_to_the_names_of_this_machine(served, name):
    assert httpx.get(served.url + "config", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
        "a@127.0.0.1",
    ],
)
@pytest.mark.parametrize("path", ["", "config", "gradio_api/info"])
def test_under_another_name_it_tells_nothing(served, name, path):
    answer = httpx.get(served.url + path, headers={"Host": name})
    assert answer.status_code == 403
    assert "does not answer to the name" in answer.text


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1:1", "http://localhost", "null", "", "file://", "http://["]
)
@pytest.mark.parametrize("call", ["gradio_api/call/about", "gradio_api/run/about", "gradio_api/queue/join", "config"])
def test_a_script_of_another_site_gets_nothing(served, origin, call):
    answer = httpx.post(served.url + call, json={"data": []}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert "does not answer requests of" in answer.text


def test_the_pages_own_scripts_get_an_answer(served):
    for origin in (served.url.rstrip("/"), None):
        headers = {"Origin": origin} if origin else {}
        assert httpx.post(served.url + "gradio_api/run/about", json={"data": []}, headers=headers).status_code == 200


def test_the_pages_own_scripts_get_an_answer_behind_a_proxy_that_forwards_its_name(agent, tmp_path):
    """As on Hugging Face Spaces, where the page listens on all networks."""
    served = Served(chat_of(agent), tmp_path / "votes.jsonl", host="0.0.0.0")
    try:
        for origin, expected in (("https://user-name.hf.space", 200), ("https://evil.example", 403)):
            headers = {"Host": "10.0.0.1:7860", "X-Forwarded-Host": "user-name.hf.space", "Origin": origin}
            answer = httpx.post(served.url + "gradio_api/run/about", json={"data": []}, headers=headers)
            assert answer.status_code == expected
    finally:
        served.page.close()


def test_behind_a_proxy_it_answers_to_the_proxys_name(behind_proxy):
    call = behind_proxy.url + "gradio_api/run/about"
    for host in ("talk.example.org", urlsplit(behind_proxy.url).netloc):
        headers = {"Host": host, "Origin": "https://talk.example.org"}
        assert httpx.post(call, json={"data": []}, headers=headers).status_code == 200
    assert httpx.post(call, json={"data": []}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.get(behind_proxy.url + "config", headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(behind_proxy.url + "config").json()["root"].startswith("https://talk.example.org/chat")


@pytest.mark.parametrize("path", ["gradio_api/upload", "upload", "gradio_api/upload/", "gradio_api/upload_progress"])
def test_nothing_can_be_uploaded(served, path):
    assert httpx.post(served.url + path, files={"files": b"x" * 1000}).status_code == 404


@pytest.fixture
def logged(served, capfd, monkeypatch):
    """The number of characters that the page has written since the last call."""
    (handler,) = (each for each in logging.getLogger("uvicorn").handlers if each.name == "default")
    monkeypatch.setattr(handler, "stream", sys.stderr)  # else it is what was standard error at its start
    return lambda: sum(map(len, capfd.readouterr()))


def chunks(size: int):
    for _ in range(size // 1000):
        yield b"x" * 1000


@pytest.mark.parametrize(
    "path", ["gradio_api/call/chat", "gradio_api/queue/join", "gradio_api/component_server", "login"]
)
@pytest.mark.parametrize("content", [b"x" * 50_000_000, None], ids=["of known length", "of unknown length"])
def test_a_large_body_is_refused_unread(served, logged, path, content):
    try:
        answer = httpx.post(served.url + path, content=content or chunks(50_000_000), timeout=60)
        assert answer.status_code == 413
    except httpx.WriteError:  # the page has hung up while the body was sent
        pass
    assert logged() < 10_000


BROKEN = {
    "no JSON": b"{" * 900_000,
    "no object": b"[" + b"1," * 400_000 + b"1]",
    "deep": b"[" * 900_000,
    "no UTF-8": b"\xff" * 900_000,
    "no character": b'"' + b"\\ud800" * 150_000 + b'"',
    "no number": b"[" + b"NaN," * 200_000 + b"NaN]",
}


@pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_body_is_not_logged_at_length(served, logged, content, kind):
    """The answer repeats it, and what it cannot repeat is an error with a traceback."""
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(served.url + "gradio_api/call/chat", content=BROKEN[content], headers=headers)
    assert answer.status_code in (400, 422)
    httpx.get(served.url + "config")  # what is logged of an answer is written after it
    assert logged() < 10_000


def test_a_password_cannot_be_guessed_quickly(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "SLOW", 0.25)
    served = Served(chat_of(agent), tmp_path / "votes.jsonl", auth="me:sec:ret")

    async def guess() -> list[int]:
        async with httpx.AsyncClient(timeout=60) as client:
            forms = [{"username": "me", "password": str(n)} for n in range(4)]
            answers = await asyncio.gather(*(client.post(served.url + "login", data=form) for form in forms))
            return [answer.status_code for answer in answers]

    try:
        start = time.perf_counter()
        assert asyncio.run(guess()) == [400] * 4
        assert time.perf_counter() - start > 4 * guard.SLOW
        client = Client(served.url, auth=("me", "sec:ret"), verbose=False)
        assert client.predict("Hi", longest=15, sample=False, api_name="/chat") == agent.chat("Hi", max_new_tokens=15)
    finally:
        served.page.close()


@pytest.mark.parametrize(("addresses", "expected"), [(["a"], 1), (["a", "b"], 2)])
def test_each_address_logs_in_once_at_a_time_however_often_it_asks(addresses, expected):
    running, most = 0, 0

    async def app(scope, receive, send):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        if scope["client"][1] == 0:
            raise ConnectionError("this client has gone")

    async def receive():
        return {"type": "http.request", "body": b""}

    async def ask(guarded, address, number):
        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": (address, number)}
        for _ in range(4):
            with suppress(ConnectionError):
                await guarded(scope, receive, None)

    async def flood():
        guarded = guard.Guard(app, None, None, None)
        await asyncio.gather(*(ask(guarded, address, number) for address in addresses for number in range(5)))
        return guarded

    guarded = asyncio.run(flood())
    assert most == expected
    assert not guarded._logins and not guarded._guessing  # nothing of a visitor is kept


def test_requests_that_nobody_listens_to_keep_nobody_waiting(served, monkeypatch):
    monkeypatch.setattr(guard, "TIMEOUT", 2.0)
    served.delay = 0.1  # for each token
    data = ["Hi.", [], True, 1.0, 20, 1.0, 128, 1]

    async def flood() -> float:
        async with httpx.AsyncClient(timeout=60) as client:
            call = served.url + "gradio_api/call"
            posts = [client.post(f"{call}/chat", json={"data": data}) for _ in range(300)]
            assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}
            assert served.chat.worker.load > 0
            start = time.perf_counter()
            event = (await client.post(f"{call}/about", json={"data": []})).json()["event_id"]
            async with client.stream("GET", f"{call}/about/{event}") as lines:
                assert "event: complete" in [line async for line in lines.aiter_lines()]
            assert (await client.get(served.url)).status_code == 200
            return time.perf_counter() - start

    assert asyncio.run(flood()) < 5
    deadline = time.monotonic() + 15  # the 300 replies would take a minute
    while served.chat.worker.load:
        assert time.monotonic() < deadline, served.chat.worker.load
        time.sleep(0.1)
    served.delay = 0.0


def test_a_listener_may_wait_longer_than_that(served, monkeypatch):
    monkeypatch.setattr(guard, "TIMEOUT", 0.5)
    served.delay = 0.1
    answer = Client(served.url, verbose=False).predict("How are you?", longest=15, sample=False, api_name="/chat")
    served.delay = 0.0
    assert answer == served.agent.chat("How are you?", max_new_tokens=15, min_new_tokens=8)


def test_too_many_replies_at_once_are_refused_with_a_sentence(served, monkeypatch):
    monkeypatch.setattr(conversation, "MAX_REPLIES", 0)
    call = served.url + "gradio_api/call/chat"
    event = httpx.post(call, json={"data": ["Hi.", [], True, 1.0, 20, 1.0, 20, 1]}).json()["event_id"]
    assert "0 replies are being written: try again in a moment" in httpx.get(f"{call}/{event}").text
