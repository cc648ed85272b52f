"""The page in a real browser (Debian's Chromium), and its endpoints through gradio_client."""

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import gradio
import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import browser_test
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect
from rollout_files import write_rollouts
from served import Served, chat_of

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import USUAL, Chat
from dailydialog_gym.chat.trained import TrainedAgent
from dailydialog_gym.reports.tables import LABELS
from dailydialog_gym.text import escape_invisible

expect.set_options(timeout=20_000)  # as open_page's for actions: the workers share the cores
DRAWN = {"sample": True, "temperature": USUAL.temperature, "top_k": 20}  # a reply with the usual settings
TABS = ("Chat", "Compare", "Training", "Rollouts")
NASTY = "<img src=x onerror=alert(1)> <b>bold</b> **stars** ${alert(2)} {{value}} $x^2$ \u202eback"


@pytest.fixture(scope="module")
def served(tiny_model, intent, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "metrics.jsonl").write_text(
        json.dumps({"episodes": 64, "charts/episodic_return": 0.5, "reward/a<b>": 1}), encoding="utf-8"
    )
    write_rollouts(run)
    choices = [
        TrainedAgent("builtin", "demo <i>", "The <b>newest</b> finished run.", run, run, tiny_model),
        TrainedAgent(tiny_model, "its start", "Where it began."),
        TrainedAgent("nowhere", "gone", "It is no longer there."),
    ]
    chat = Chat(choices, lambda choice: DialogueAgent.load(choice.model), intent)
    served = Served(chat, run / "votes.jsonl")
    yield served
    served.page.close()


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
        page.get_by_role("textbox", name="Your message").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _is_outside(url: str, home: str) -> bool:
    return not url.startswith((home, home.replace("http", "ws"), "data:", "blob:"))


def message_box(page: Page, name: str = "Your message"):
    return page.get_by_role("textbox", name=name, exact=False).locator("visible=true")


def replies(page: Page):
    return page.locator("[data-testid=bot]").locator("visible=true")


def send(page: Page, text: str) -> None:
    message_box(page).fill(text)
    page.keyboard.press("Enter")


def wait_for_reply(page: Page) -> str:
    expect(page.get_by_role("button", name="Retry", exact=True)).to_be_visible(timeout=20_000)
    expect(page.get_by_role("button", name="Send", exact=True).locator("visible=true")).to_be_visible()
    return replies(page).last.inner_text()


def choose_seed(page: Page, seed: int) -> None:
    press(page, "Toggle Sidebar")
    page.get_by_label("Seed").fill(str(seed))
    page.keyboard.press("Tab")
    press(page, "Toggle Sidebar")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()


@browser_test
def test_a_message_is_answered_token_by_token(served, open_page):
    page = open_page()
    assert page.title() == "demo <i> · dailydialog-gym"
    choose_seed(page, 7)
    served.delay = 0.1
    send(page, "How are you?")
    grown, deadline = set(), time.monotonic() + 60
    while page.get_by_role("button", name="Stop", exact=True).count() or len(grown) < 2:
        grown.add(replies(page).inner_text() if replies(page).count() else "")
        assert time.monotonic() < deadline, grown
        time.sleep(0.03)
    *growing, whole = served.agent.chat_stream("How are you?", seed=7, min_new_tokens=8, **DRAWN)
    assert wait_for_reply(page) == whole
    assert len(grown) > 3 and grown <= {*growing, whole, ""}
    expect(page.locator("[data-testid=user]")).to_have_text("How are you?")
    expect(message_box(page)).to_have_value("")


@browser_test
def test_stop_ends_the_reply_and_frees_the_worker(served, open_page):
    page = open_page()
    served.delay = 0.3
    send(page, "Tell me a long story.")
    expect(replies(page)).not_to_be_empty()
    press(page, "Stop")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    deadline = time.monotonic() + 2
    while served.chat.worker.load and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.chat.worker.load == 0
    served.delay = 0.0
    send(page, "Thank you.")
    expect(replies(page)).to_have_count(2)
    wait_for_reply(page)


@browser_test
def test_openers_retry_edit_undo_and_clear(served, open_page):
    page = open_page()
    served.delay = 0.05  # slow enough for the browser to show the states in between
    page.get_by_role("button", name="Hi! How are you today?").click()
    wait_for_reply(page)
    send(page, "What is your name?")
    expect(replies(page)).to_have_count(2)
    seen = {wait_for_reply(page)}
    for _ in range(3):
        press(page, "Retry")
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
        seen.add(wait_for_reply(page))
    assert len(seen) > 1  # the seed is empty, so a new one is chosen for each reply
    expect(replies(page)).to_have_count(2)

    page.get_by_role("button", name="Edit", exact=True).last.click()
    page.locator("textarea.edit-textarea").fill("Where do you <live>?")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator("[data-testid=user]").last).to_have_text("Where do you <\u200clive>?")
    wait_for_reply(page)
    expect(replies(page)).to_have_count(2)

    page.get_by_role("button", name="Undo", exact=True).last.click()
    expect(replies(page)).to_have_count(1)
    expect(message_box(page)).to_have_value("Where do you <live>?")
    press(page, "Clear")
    expect(replies(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Hi! How are you today?")).to_be_visible()


@browser_test
def test_what_is_cleared_while_it_is_written_stays_cleared(served, open_page):
    page = open_page()
    served.delay = 0.3
    send(page, "Tell me a story.")
    expect(replies(page)).not_to_be_empty()
    message_box(page).fill("Are you there?")
    page.keyboard.press("Enter")
    expect(page.get_by_text("That did not work: a reply is being written.")).to_be_visible()
    expect(message_box(page)).to_have_value("Are you there?")
    press(page, "Clear")
    expect(page.get_by_role("button", name="Send", exact=True).locator("visible=true")).to_be_visible()
    expect(replies(page)).to_have_count(0)
    page.get_by_role("tab", name="Compare").click()
    cards = compare(page, "Tell me a story.")
    expect(cards.first).not_to_be_empty()
    press(page, "Clear")
    expect(page.get_by_role("button", name="Send", exact=True).locator("visible=true")).to_be_visible()
    expect(cards).to_have_count(0)
    expect(page.locator("[data-testid=user]").locator("visible=true")).to_have_count(0)
    expect(message_box(page, "Your message to both")).to_be_enabled()


@browser_test
def test_a_slow_connection_leaves_nothing_in_the_box(open_page):
    """All updates of the reply arrive at once."""
    page = open_page()
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 300, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slow)
    send(page, "How are you?")
    wait_for_reply(page)
    expect(message_box(page)).to_have_value("")


@browser_test
def test_whatever_is_said_is_shown_as_text(open_page, served, monkeypatch):
    monkeypatch.setattr(served.agent, "reply_text", lambda ids: NASTY)
    page = open_page()
    send(page, NASTY)
    shown = NASTY.replace("\u202e", "⟨U+202E⟩")
    assert wait_for_reply(page).replace("\u200c", "") == shown
    assert page.locator("[data-testid=user]").inner_text().replace("\u200c", "") == shown
    for hidden in ("img", "b", "strong", "em", "a", ".katex"):
        assert page.locator(f"[data-testid] {hidden}").count() == 0
    assert page.locator("[data-testid=bot]").evaluate("node => getComputedStyle(node).unicodeBidi") == "plaintext"


@browser_test
def test_a_click_on_a_reply_shows_its_tokens_and_their_probabilities(served, open_page):
    page = open_page()
    served.delay = 0.01  # so that the reply has several tokens
    send(page, "How are you?")
    reply = wait_for_reply(page)
    replies(page).click()
    expect(page.get_by_text("The intent model reads:")).to_be_visible()
    tokens = page.locator(".token")
    assert all(re.search(r"\d%", text) for text in tokens.all_inner_texts())  # readable without colour
    assert tokens.count() >= len(reply.split())
    others = tokens.nth(1).locator(".others")
    expect(others).to_be_hidden()
    tokens.nth(1).hover()
    expect(others).to_be_visible()
    assert len(re.findall(r"\d%", others.inner_text())) == 5
    press(page, "Close")
    expect(tokens.first).to_be_hidden()
    send(page, "Really?")
    expect(replies(page)).to_have_count(2)
    wait_for_reply(page)
    replies(page).first.focus()
    page.keyboard.press("Enter")
    expect(tokens.first).to_be_visible()
    tokens.first.focus()
    expect(tokens.first.locator(".others")).to_be_visible()


@browser_test
def test_on_a_phone_the_tokens_are_scrolled_into_view(served, open_page):
    page = open_page(viewport={"width": 390, "height": 700})
    served.delay = 0.01  # so that the reply has several tokens
    send(page, "How are you?")
    wait_for_reply(page)
    replies(page).click()
    expect(page.locator(".token").first).to_be_in_viewport()


@browser_test
def test_settings_change_the_replies(served, open_page):
    page = open_page()
    press(page, "Toggle Sidebar")
    page.get_by_label("Greedy").check()
    page.get_by_label("number input for Longest reply").fill("3")
    page.keyboard.press("Tab")

    def seen():
        found = set()
        for _ in range(2):
            send(page, "What time is it?")
            found.add(wait_for_reply(page))
            press(page, "Clear")
            expect(replies(page)).to_have_count(0)
        return found

    assert seen() == {served.agent.chat("What time is it?", max_new_tokens=3)}
    page.get_by_label("Sample", exact=True).check()
    page.get_by_label("number input for Longest reply").fill("20")
    page.get_by_label("Seed").fill("7")
    page.keyboard.press("Tab")
    assert seen() == {served.agent.chat("What time is it?", seed=7, **DRAWN)}


@browser_test
def test_the_agent_can_be_switched(offline, served, open_page):
    page = open_page()
    expect(page.locator(".about-line")).to_contain_text("million parameters · from")
    page.get_by_label("About this agent").click()
    expect(page.get_by_text("The <b>newest</b> finished run.")).to_be_visible()
    expect(page.get_by_text("This is a tiny model")).to_be_visible()
    page.get_by_label("Agent", exact=True).click()
    page.get_by_role("option", name="gone").click()
    expect(page.get_by_text("cannot load model 'nowhere'")).to_be_visible()
    page.get_by_label("Agent", exact=True).click()
    page.get_by_role("option", name="its start").click()
    expect(page.get_by_text("Where it began.")).to_be_attached()
    choose_seed(page, 7)
    send(page, "Hi!")
    said = served.chat.agent("its start").chat("Hi!", seed=7, **DRAWN)
    assert wait_for_reply(page) == escape_invisible(said)


def compare(page: Page, text: str):
    box = message_box(page, "Your message to both")
    box.fill(text)
    box.press("Enter")
    return page.locator(".card p")


@browser_test
def test_two_replies_are_compared_blindly_and_voted_on_by_key(served, open_page):
    page = open_page()
    page.get_by_role("tab", name="Compare").click()
    served.delay = 0.01  # so that the replies have several tokens and differ
    box, text = message_box(page, "Your message to both"), "What would you like <b>to eat</b>?"
    box.fill(text)
    box.focus()
    for turn, key in enumerate(("3", "0", "1", "2")):
        number = len(served.votes.read_text(encoding="utf-8").splitlines()) + 1 if served.votes.exists() else 1
        page.keyboard.press("Enter")
        better = page.get_by_role("button", name="1 is better")
        expect(better).to_be_visible(timeout=20_000)
        said = page.locator(".card p").all_inner_texts()
        assert page.locator(".card h3").all_inner_texts() == ["Reply 1", "Reply 2"]
        page.keyboard.press(key)
        expect(page.get_by_text(f"Saved as number {number}")).to_be_visible()
        expect(better).to_be_hidden()
        names = [title.partition(" · ")[2] for title in page.locator(".card h3").all_inner_texts()]
        assert sorted(names) == ["demo <i>", "its start"]
        expect(page.locator(".block.rate")).to_contain_text("95% interval")
        row = json.loads(served.votes.read_text(encoding="utf-8").splitlines()[-1])
        assert row["blind"] and {row["trained"]["name"], row["start"]["name"]} == set(names)
        expect(replies(page)).to_have_count(turn)
        if key == "3":  # the conversation does not go on
            assert (row["preferred"], row["both_bad"]) == ("tie", True)
            expect(box).to_have_value(text)
            box.focus()
            continue
        assert len(row["conversation"]) == 2 * turn - 1
        if key == "0":
            assert (row["preferred"], row["both_bad"]) == ("tie", False)
            assert replies(page).inner_text() in said
        else:
            winner = int(key) - 1
            assert row["preferred"] == ("trained" if names[winner] == "demo <i>" else "start")
            assert "".join(row["chosen"].removesuffix("<EOU>").split()) == "".join(said[winner].split())
            assert replies(page).last.inner_text() == said[winner]
        expect(box).to_be_focused()
        page.keyboard.type("120")  # in the box these keys are text
        expect(box).to_have_value("120")


@browser_test
def test_a_comparison_can_be_stopped(served, open_page):
    page = open_page()
    page.get_by_role("tab", name="Compare").click()
    served.delay = 0.3
    compare(page, "Tell me a story.")
    press(page, "Stop")
    expect(page.get_by_text("Stopped, so there is nothing to vote on.")).to_be_visible()
    expect(message_box(page, "Your message to both")).to_have_value("Tell me a story.")


@browser_test
def test_the_training_tab_shows_the_run_as_text(open_page):
    page = open_page()
    page.get_by_role("tab", name="Training").click()
    expect(page.get_by_role("img", name="Return: from 0.5 to 0.5")).to_be_visible()
    expect(page.get_by_text("A<b>: from 1 to 1")).to_be_visible()
    expect(page.get_by_text("has not written evaluation.json yet")).to_be_visible()


def test_the_training_tab_is_drawn_again_until_the_run_ends(served, request):
    """What the browser's timer calls, and what it tells the timer."""
    (timer,) = [block for block in served.page.blocks.values() if isinstance(block, gradio.Timer)]
    show = {each.fn.__name__: each for each in served.page.fns.values() if (timer._id, "tick") in each.targets}
    assert timer.active and show.keys() == {"show_results", "show_samples"}
    metrics = served.votes.with_name("metrics.jsonl")
    before = metrics.read_text(encoding="utf-8")
    request.addfinalizer(lambda: metrics.write_text(before, encoding="utf-8"))
    later = json.loads(before) | {"episodes": 128, "charts/episodic_return": 0.75}
    metrics.write_text(f"{before}\n{json.dumps(later)}", encoding="utf-8")
    found, now = show["show_results"].fn("demo <i>", [])
    assert "Return: from 0.5 to 0.75" in found and now.active
    write_results(served, request)
    found, now = show["show_results"].fn("demo <i>", [])
    assert "has not written evaluation.json yet" not in found and not now.active
    assert not show["show_results"].fn("its start", [])[1].active  # which is of no run
    assert "Yes ." in show["show_samples"].fn("demo <i>", "")[1]


@browser_test
def test_the_rollouts_tab_walks_through_the_iterations(open_page):
    page = open_page()
    page.get_by_role("tab", name="Rollouts").click()
    expect(page.locator(".replies li")).to_have_count(4)
    number = page.get_by_label("number input for Iteration")
    expect(number).to_have_value("2")
    number.fill("1")
    page.keyboard.press("Tab")
    page.get_by_label("KL", exact=True).check()
    expect(page.locator(".token.bad").locator("visible=true")).to_have_count(8)
    token = page.locator(".replies .token").first
    token.focus()
    expect(token.get_by_text("ratio after the update")).to_be_visible()
    expect(page.get_by_text("Hi <i>").first).to_be_visible()
    number.fill("9")
    page.keyboard.press("Tab")
    expect(page.locator(".replies li")).to_have_count(4)  # the slider ends at the last iteration


def write_results(served, request) -> None:
    """A table and a sample in the run's folder, until the test ends."""
    scores = {side: dict.fromkeys(LABELS, 0.5) for side in ("before", "after")}
    sample = {"context": ["Hi"], "before": "No .", "after": "Yes .", "people": "Ok", "rewards": [0.25, 0.5]}
    for name, content in {"evaluation.json": scores, "samples.json": [sample]}.items():
        path = served.votes.with_name(name)
        path.write_text(json.dumps(content), encoding="utf-8")
        request.addfinalizer(path.unlink)


@browser_test
@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1280)])
def test_no_tab_scrolls_sideways_or_has_what_axe_calls_serious(open_page, served, request, scheme, width):
    write_results(served, request)
    page = open_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
    assert serious_findings(page) == []
    send(page, "a" * 300)
    wait_for_reply(page)
    expect(message_box(page)).to_be_in_viewport(ratio=1)
    replies(page).click()
    expect(page.locator(".token").first).to_be_visible()
    for tab in TABS:
        open_tab(page, tab)
        if tab == "Compare":
            compare(page, "What would you like to eat?")
            expect(page.get_by_role("button", name="1 is better")).to_be_visible(timeout=20_000)
        if tab == "Training":
            expect(page.get_by_role("cell", name="+0.0%")).to_have_count(len(LABELS))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious_findings(page) == [], tab
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


def serious_findings(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the elements that it names."""
    found = Axe().run(page).response["violations"]
    nodes = {each["id"]: [node["html"][:200] for node in each["nodes"]] for each in found}
    return [f"{each['id']}: {nodes[each['id']]}" for each in found if each["impact"] in ("serious", "critical")]


def open_tab(page: Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name).locator("visible=true")
    if not tab.count():  # a narrow window hides the last ones in a menu
        page.get_by_label("More tabs").click()
        page.locator(".overflow-dropdown").get_by_text(name).click()
    else:
        tab.click()


@browser_test
def test_the_composer_stays_in_the_window(open_page):
    page = open_page()
    for number in range(6):
        height = (900, 600)[number % 2]
        page.set_viewport_size({"width": 800, "height": height})
        send(page, f"This is message number {number}.")
        expect(replies(page)).to_have_count(number + 1)
        wait_for_reply(page)
        expect(message_box(page)).to_be_in_viewport(ratio=1)
        expect(replies(page).last).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollHeight") <= height


@browser_test
def test_a_conversation_by_keyboard_alone(served, open_page):
    page = open_page()

    def tab_to(name):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("name => document.activeElement.innerText?.includes(name)", name):
                return
        raise AssertionError(f"{name} is not reached by Tab")

    tab_to("What are you doing this weekend?")
    page.keyboard.press("Enter")
    wait_for_reply(page)
    message_box(page).focus()
    page.keyboard.type("Hello!")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Are you there?")
    page.keyboard.press("Enter")
    expect(replies(page)).to_have_count(2)
    wait_for_reply(page)
    expect(page.locator("[data-testid=user]").last).to_have_text("Hello!\nAre you there?")
    expect(message_box(page)).to_be_focused()
    served.delay = 0.3
    page.keyboard.type("A story, please.")
    page.keyboard.press("Enter")
    expect(replies(page)).to_have_count(3)
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.")).to_be_visible()


@browser_test
def test_a_message_that_is_too_long_stays_in_the_box(open_page):
    page = open_page()
    send(page, "word " * 220)
    expect(page.get_by_role("status").first).to_have_text(
        "That did not work: the message has 1,100 characters: expected at most 1,000."
    )
    assert len(message_box(page).input_value()) == 1100


@pytest.fixture
def client(served):
    served.delay = 0.0
    return Client(served.url, verbose=False)


def test_the_endpoints_and_no_others_have_these_names(client):
    api = client.view_api(return_format="dict")
    assert set(api["named_endpoints"]) == {"/about", "/chat", "/compare", "/vote"}
    assert api["unnamed_endpoints"] == {}
    assert client.predict(api_name="/about")["agent"] == "demo <i>"


def test_the_chat_endpoint_streams_what_the_agent_says(client, served):
    served.delay = 0.01
    job = client.submit("How are you?", ["Good morning!"], seed=3, api_name="/chat")
    answer = job.result()
    assert answer == served.agent.chat("How are you?", ["Good morning!"], seed=3, min_new_tokens=8, **DRAWN)
    assert len(job.outputs()) > 1


def test_comparing_and_voting_through_the_api(client, served):
    before = len(served.votes.read_text(encoding="utf-8").splitlines()) if served.votes.exists() else 0
    pair = client.predict("How are you?", seed=3, api_name="/compare")
    assert pair["trained"] == served.agent.chat("How are you?", seed=3, **DRAWN)
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
    alone = [served.agent.chat(f"I am number {n}.", seed=n, **how) for n in range(20)]

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
    guarded = Served(chat_of(served.agent), served.votes, auth="me:secret")
    try:
        assert httpx.get(guarded.url + "config").status_code == 401
        assert httpx.post(guarded.url + "gradio_api/call/chat", json={"data": ["Hi"]}).status_code == 401
        client = Client(guarded.url, auth=("me", "secret"), verbose=False)
        assert client.predict("Hi", seed=1, api_name="/chat") == served.agent.chat("Hi", seed=1, **DRAWN)
    finally:
        guarded.page.close()
