"""The page in a real browser (Debian's Chromium), and its endpoints through gradio_client."""

import asyncio
import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect, sync_playwright
from served import Served

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import Chat
from dailydialog_gym.chat.trained import TrainedAgent
from dailydialog_gym.reports.tables import LABELS

CHROMIUM = shutil.which("chromium")
browser_test = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium: apt-get install chromium"
)
NASTY = "<img src=x onerror=alert(1)> <b>bold</b> **stars** ${alert(2)} {{value}} $x^2$ \u202eback"


@pytest.fixture(scope="module")
def served(tiny_model, intent, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "metrics.jsonl").write_text(
        json.dumps({"episodes": 64, "charts/episodic_return": 0.5, "reward/a<b>": 1}), encoding="utf-8"
    )
    trained = TrainedAgent("builtin", "runs/demo <i>", "The newest finished run.", run, run, tiny_model)
    chat = Chat(DialogueAgent.load("builtin"), DialogueAgent.load(tiny_model), intent, run / "votes.jsonl")
    served = Served(chat, trained)
    yield served
    served.page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(served, browser):
    """Opens the page. Fails in the end if there was a console error, a dialog, or a request to another host."""
    contexts, wrong = [], []

    def open_page(**options) -> Page:
        served.delay = 0.0
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: _is_outside(request.url, served.url) and wrong.append(request.url))
        page.goto(served.url)
        page.get_by_label("Your message").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _is_outside(url: str, home: str) -> bool:
    return not url.startswith((home, home.replace("http", "ws"), "data:", "blob:"))


def send(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def reset(page: Page) -> None:
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".talk-turn")).to_have_count(0)


def wait_for_reply(page: Page) -> str:
    expect(page.get_by_role("button", name="Retry")).to_be_visible(timeout=20_000)
    return page.locator(".talk-agent .talk-text").last.inner_text()


def replies_to(page: Page, text: str, times: int, longest: int) -> set[str]:
    """The distinct replies to a message that starts a new conversation each time."""
    replies = set()
    for _ in range(times):
        send(page, text)
        replies.add(wait_for_reply(page))
        assert page.locator(".talk-turn").last.locator(".talk-token").count() <= longest
        reset(page)
    return replies


@browser_test
def test_a_message_is_answered_token_by_token(served, open_page):
    page = open_page()
    assert page.title() == "Talk with runs/demo <i>"
    served.delay = 0.1
    send(page, "How are you?")
    reply = page.locator(".talk-agent .talk-text")
    grown = set()
    while page.get_by_role("button", name="Stop").count() or not grown:
        grown.add(reply.inner_text() if reply.count() else "")
        time.sleep(0.03)
    final = wait_for_reply(page)
    assert len(grown) > 3 and all(final.startswith(text.rstrip(" .,'\u2019")) for text in grown)
    expect(page.locator(".talk-user .talk-text")).to_have_text("How are you?")


@browser_test
def test_stop_ends_the_reply_and_frees_the_worker(served, open_page):
    page = open_page()
    served.delay = 0.3
    send(page, "Tell me a long story.")
    expect(page.locator(".talk-agent .talk-text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    deadline = time.monotonic() + 2
    while served.chat.worker.load and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.chat.worker.load == 0
    served.delay = 0.0
    send(page, "Thank you.")
    wait_for_reply(page)
    expect(page.locator(".talk-turn")).to_have_count(4)


@browser_test
def test_retry_edit_undo_and_reset(served, open_page):
    page = open_page()
    served.delay = 0.05  # slow enough for the browser to show the states in between
    page.get_by_role("button", name="Hi! How are you today?").click()
    wait_for_reply(page)
    send(page, "What is your name?")
    first = wait_for_reply(page)
    replies = {first}
    for _ in range(5):
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("button", name="Retry")).to_be_hidden()
        replies.add(wait_for_reply(page))
    assert len(replies) > 1  # the seed is empty, so a new one is chosen for each reply
    expect(page.locator(".talk-turn")).to_have_count(4)

    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your last message").fill("Where do you live?")
    page.keyboard.press("Enter")
    expect(page.locator(".talk-user .talk-text").last).to_have_text("Where do you live?")
    wait_for_reply(page)
    expect(page.locator(".talk-turn")).to_have_count(4)

    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".talk-turn")).to_have_count(2)
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.locator(".talk-turn")).to_have_count(0)
    expect(page.get_by_role("button", name="Hi! How are you today?")).to_be_visible()


@browser_test
def test_whatever_is_said_is_shown_as_text(open_page, served, monkeypatch):
    monkeypatch.setattr(served.chat.trained, "reply_text", lambda ids: NASTY)
    page = open_page()
    send(page, NASTY)
    assert wait_for_reply(page) == NASTY.replace("\u202e", "⟨U+202E⟩")
    expect(page.locator(".talk-user .talk-text")).to_have_text(NASTY.replace("\u202e", "⟨U+202E⟩"))
    assert page.locator(".talk-list img, .talk-list b").count() == 0


@browser_test
def test_a_closer_look_shows_the_act_and_each_tokens_probability(open_page):
    page = open_page()
    send(page, "How are you?")
    reply = wait_for_reply(page)
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("The intent model reads:")).to_be_visible()
    tokens = page.locator(".talk-token")
    assert all(re.search(r"\d%$", text) for text in tokens.all_inner_texts())  # readable without colour
    assert tokens.count() >= len(reply.split())


@browser_test
def test_settings_change_the_replies(open_page):
    page = open_page()
    page.get_by_role("button", name="Settings of the replies").click()
    page.get_by_label("Greedy").check()
    page.get_by_label("number input for Longest reply").fill("3")
    page.keyboard.press("Tab")
    assert len(replies_to(page, "What time is it?", times=3, longest=3)) == 1
    page.get_by_label("Sample", exact=True).check()
    page.get_by_label("number input for Longest reply").fill("20")
    page.get_by_label("Seed").fill("7")
    page.keyboard.press("Tab")
    assert len(replies_to(page, "What time is it?", times=2, longest=20)) == 1


@browser_test
def test_two_replies_are_compared_blindly_and_voted_on(served, open_page):
    page = open_page()
    page.get_by_role("tab", name="Compare").click()
    assert str(served.chat.votes) in page.get_by_role("tabpanel").inner_text()
    page.get_by_label("Message for both").fill("What would you like to eat?")
    page.get_by_role("button", name="Compare", exact=True).click()
    left = page.get_by_role("button", name="Left is better")
    expect(left).to_be_enabled(timeout=20_000)
    panes = page.locator(".talk-pane")
    assert panes.locator(".talk-who:not(:text('You'))").all_inner_texts() == ["Left", "Right"]
    said = panes.locator(".talk-agent .talk-text").all_inner_texts()
    left.click()
    expect(page.get_by_text("is saved: number 1")).to_be_visible()
    names = panes.locator(".talk-who:not(:text('You'))").all_inner_texts()
    assert sorted(names) == ["After training", "Before training"]
    expect(left).to_be_disabled()
    (row,) = map(json.loads, served.chat.votes.read_text(encoding="utf-8").splitlines())
    assert row["preferred"] == ("trained" if names[0] == "After training" else "start")
    assert row["prompt"] == "What would you like to eat ? <EOU>"
    assert "".join(row["chosen"].removesuffix("<EOU>").split()) == "".join(said[0].split())


@browser_test
def test_the_training_tab_shows_the_run_as_text(open_page):
    page = open_page()
    page.get_by_role("tab", name="Training").click()
    expect(page.get_by_role("img", name="charts/episodic_return: from 0.5 to 0.5")).to_be_visible()
    expect(page.get_by_text("reward/a<b>: from 1 to 1")).to_be_visible()
    expect(page.get_by_text("has not written evaluation.json yet")).to_be_visible()


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(open_page, served, request, scheme):
    evaluation = served.chat.votes.with_name("evaluation.json")
    evaluation.write_text(
        json.dumps({side: dict.fromkeys(LABELS, 0.5) for side in ("before", "after")}), encoding="utf-8"
    )
    request.addfinalizer(evaluation.unlink)
    page = open_page(viewport={"width": 360, "height": 700}, color_scheme=scheme)
    send(page, "a" * 300)
    wait_for_reply(page)
    page.locator("summary").click()
    page.get_by_role("button", name="Settings of the replies").click()
    for tab in ("Chat", "Compare", "Training"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Training":
            expect(page.get_by_role("cell", name="+0.0%")).to_have_count(len(LABELS))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


@browser_test
def test_a_conversation_by_keyboard_alone(served, open_page):
    page = open_page()

    def tab_to(name):
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText")
            if focused == name:
                return
        raise AssertionError(f"{name} is not reached by Tab")

    tab_to("What are you doing this weekend?")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    tab_to("Your message")
    page.keyboard.type("Hello!")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    assert page.evaluate("document.activeElement.ariaLabel") == "Your message"
    served.delay = 0.3
    page.keyboard.type("A story, please.")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")  # at once, perhaps before the server has started
    expect(page.get_by_text("Stopped.")).to_be_visible()


@browser_test
def test_a_message_that_is_too_long_is_announced(open_page):
    page = open_page()
    page.get_by_label("Your message").fill("word " * 220)
    expect(page.get_by_role("status").first).to_have_text("100 characters too many: only the first 1000 will be sent.")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    assert len(page.locator(".talk-user .talk-text").inner_text()) <= 1000


@pytest.fixture
def client(served):
    served.delay = 0.0
    return Client(served.url, verbose=False)


def test_the_endpoints_and_no_others_have_these_names(client):
    api = client.view_api(return_format="dict")
    assert set(api["named_endpoints"]) == {"/about", "/chat", "/compare", "/vote"}
    assert api["unnamed_endpoints"] == {}
    assert client.predict(api_name="/about")["agent"] == "runs/demo <i>"


def test_the_chat_endpoint_streams_what_the_agent_says(client, served):
    job = client.submit("How are you?", ["Good morning!"], seed=3, api_name="/chat")
    answer = job.result()
    how = {"sample": True, "top_k": 20, "seed": 3}
    assert answer == served.chat.trained.chat("How are you?", ["Good morning!"], **how)
    assert len(job.outputs()) > 1


def test_comparing_and_voting_through_the_api(client, served):
    before = len(served.chat.votes.read_text(encoding="utf-8").splitlines()) if served.chat.votes.exists() else 0
    pair = client.predict("How are you?", seed=3, api_name="/compare")
    assert pair["trained"] == served.chat.trained.chat("How are you?", sample=True, top_k=20, seed=3)
    assert client.predict(pair["ticket"], "start", api_name="/vote") == before + 1
    with pytest.raises(AppError, match="voted on already"):
        client.predict(pair["ticket"], "start", api_name="/vote")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"message": "a" * 1001}, "1,001 characters"),
        ({"message": ""}, "empty"),
        ({"message": "Hi", "temperature": 0}, "temperature is 0"),
        ({"message": "Hi", "longest": 10**9}, "expected at most 128"),
        ({"message": "Hi", "history": [{"role": "user"}]}, "expected text"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(client, arguments, complaint):
    with pytest.raises(AppError, match=complaint):
        client.predict(**arguments, api_name="/chat")


def test_twenty_clients_get_a_first_token_soon_and_their_own_replies(served):
    served.delay = 0.0
    how = {"sample": True, "top_k": 20}
    alone = [served.chat.trained.chat(f"I am number {n}.", seed=n, **how) for n in range(20)]

    async def talk(client, n):
        call = f"{served.url}gradio_api/call/chat"
        data = [f"I am number {n}.", [], True, 1.0, 20, 1.0, 20, n]
        event = (await client.post(call, json={"data": data})).json()["event_id"]
        first = None
        async with client.stream("GET", f"{call}/{event}") as lines:
            async for line in lines.aiter_lines():
                if line.startswith("data: ["):
                    first, last = first or time.process_time(), json.loads(line[6:])[0]
        return last, first

    async def everybody():
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=20)) as client:
            start = time.process_time()
            answers = await asyncio.gather(*(talk(client, n) for n in range(20)))
            return [text for text, _ in answers], max(first for _, first in answers) - start

    with ThreadPoolExecutor(1) as pool:  # Playwright's event loop is this thread's
        replies, waited = pool.submit(asyncio.run, everybody()).result()
    assert replies == alone
    # Processor time of the server and the clients together. On one idle core, this is how long the last client waits.
    assert waited < 3


def test_a_name_and_a_password_are_asked_for_where_wanted(served):
    guarded = Served(
        Chat(served.chat.trained, None, None, served.chat.votes), TrainedAgent("builtin", "it", "It."), auth="me:secret"
    )
    try:
        assert httpx.get(guarded.url + "config").status_code == 401
        assert httpx.post(guarded.url + "gradio_api/call/chat", json={"data": ["Hi"]}).status_code == 401
        assert Client(guarded.url, auth=("me", "secret"), verbose=False).predict("Hi", api_name="/chat")
    finally:
        guarded.page.close()
