"""The chat page, a Gradio app, and its API endpoints. static/talk.js draws the conversations."""

import errno
import os
import random
import socket
import sys
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
from starlette.middleware import Middleware

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import (
    MAX_MESSAGE,
    MAX_REPLIES,
    SIDES,
    Chat,
    apply_request,
    check_message,
    conversation_so_far,
    make_decoding,
    reply_turn,
)
from dailydialog_gym.chat.guard import LOCAL, Guard
from dailydialog_gym.chat.trained import TrainedAgent, training_page
from dailydialog_gym.models.decoding import Decoding, Reply
from dailydialog_gym.text import escape_invisible

STATIC = Path(__file__).parent / "static"
OPENERS = ["Hi! How are you today?", "What are you doing this weekend?", "Can you help me? I lost my wallet."]
ACT_WORDS = {"inform": "it informs", "question": "it asks", "directive": "it directs", "commissive": "it commits"}
BEFORE_AND_AFTER = {"start": "Before training", "trained": "After training"}
NOTHING_TO_COMPARE = (
    "There is nothing to compare this agent with: it belongs to no run, so the model that it was trained from is not "
    "known. Name a model with --baseline, or chat with the agent of a run: --agent runs/NAME"
)
NO_RUN = "This agent belongs to no run. Train one with ppo_dialog.py, then: python chat_app.py --agent runs/NAME"
# Options of the page's own events: no progress bar, no API endpoint, no limit of events at the same time.
EVENT_OPTIONS = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


def headline(trained: TrainedAgent, chat: Chat) -> str:
    agent = chat.trained
    parameters = sum(p.numel() for p in agent.model.parameters()) / 1e6
    prompt_format = "Uses DailyDialog's format" if agent.spacing == "spaced" else "Uses ordinary text"
    prompt_format = "Uses its chat template" if agent.template else prompt_format
    return (
        f'<header class="page-head"><h1>Talk with {escape(trained.title)}</h1><p>{escape(trained.story)}</p>'
        f"<p>{parameters:.1f} million parameters. {prompt_format}; reads the last {agent.context_size} utterances, "
        f"at most {agent.max_prompt_length} tokens. A message may have {MAX_MESSAGE:,} characters.</p></header>"
    )


def conversation(chat: Chat, empty: str, composer: bool, **kwargs: Any) -> gr.HTML:
    """A conversation that static/talk.js draws.

    Args:
        chat: the agents.
        empty: the text of an empty conversation.
        composer: show the box for messages and the buttons.
        kwargs: more options of `gr.HTML`.
    """

    def read_act(utterance_and_reply: list[str]) -> str:
        act, probability = chat.read_act(*utterance_and_reply)
        return f"The intent model reads: {act} ({ACT_WORDS[act]}), {probability:.0%} sure."

    return gr.HTML(
        {"turns": []},
        # Gradio evaluates templates as JavaScript, so a value inside the template would run as code.
        html_template='<div class="talk"><ol class="talk-list" role="log" tabindex="0" aria-label="Conversation"></ol>'
        '<div class="talk-foot"></div></div>',
        js_on_load=(STATIC / "talk.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[read_act] if chat.intent else None,
        empty=empty,
        openers=OPENERS if composer else [],
        limit=MAX_MESSAGE,
        composer=composer,
        acts=chat.intent is not None,
        **kwargs,
    )


def settings_form(agent: DialogueAgent) -> list[gr.components.Component]:
    """The settings in the order of the arguments of `make_decoding`."""
    sample = gr.Radio(
        [("Sample", True), ("Greedy (always the most probable token)", False)], value=True, label="Decoding"
    )
    with gr.Row():
        temperature = gr.Slider(
            0.1, 2, 1, step=0.05, label="Temperature", info="Lower: more predictable. Higher: more varied."
        )
        top_k = gr.Slider(0, 100, 20, step=1, label="Top-k", info="Only the k most probable tokens. 0: all.")
        top_p = gr.Slider(
            0.05,
            1,
            1,
            step=0.05,
            label="Top-p",
            info="Only the most probable tokens that reach this probability together.",
        )
    with gr.Row():
        longest = gr.Slider(
            1,
            agent.longest_reply,
            min(agent.max_new_tokens, agent.longest_reply),
            step=1,
            label="Longest reply",
            info=f"In tokens. The agent was trained with at most {agent.max_new_tokens}.",
        )
        seed = gr.Textbox(
            "",
            max_lines=1,
            max_length=18,
            label="Seed",
            info="Empty: other replies each time. A number: the same replies each time.",
        )
    return [sample, temperature, top_k, top_p, longest, seed]


def chat_tab(chat: Chat, settings: list) -> None:
    """The tab with one conversation. Every browser session has a conversation of its own."""
    turns = gr.State([])
    talk = conversation(chat, "Say something, or begin with one of these.", composer=True)

    unfinished: dict[str, Reply] = {}  # by session

    async def say(event: gr.EventData, session: gr.Request, turns: list[dict], *settings: Any):
        before = turns
        try:
            before, message = apply_request(turns, event._data)
            if message is None:
                yield before, {"turns": before}
                return
            decoding = make_decoding(*settings)
            question = {"role": "user", "text": message}
            now = [*before, question, {"role": "agent", "text": ""}]
            yield now, {"turns": now, "busy": True}
            reply = await chat.open_reply(chat.trained, conversation_so_far(before, message), decoding)
            unfinished[session.session_hash] = reply
            async with aclosing(chat.stream(reply)) as updates:
                async for _ in updates:
                    now = [*before, question, reply_turn(chat.trained, reply)]
                    yield now, {"turns": now, "busy": "pieces" not in now[-1]}
        except ValueError as error:
            yield before, {"turns": before, "notice": f"That did not work: {error}."}
        finally:
            unfinished.pop(session.session_hash, None)

    def halt(session: gr.Request) -> None:
        # Gradio's `cancels` does not work here: the last output of the cancelled event may arrive after this event's.
        if session.session_hash in unfinished:
            unfinished[session.session_hash].cancel()

    talk.say(say, [turns, *settings], [turns, talk], trigger_mode="once", **EVENT_OPTIONS)
    talk.halt(halt, **EVENT_OPTIONS)


def compare_tab(chat: Chat, settings: list) -> None:
    """The tab where both agents answer one message, side by side, and the user votes for the better reply."""
    message = gr.Textbox(
        label="Message for both",
        placeholder="Both agents answer it, with the same settings.",
        lines=2,
        submit_btn="Compare",
    )
    blind = gr.Checkbox(
        True,
        label="Hide which is which until I have voted",
        info=f"Votes are saved in {chat.votes}, as preference pairs.",
    )
    with gr.Row(elem_classes="panes"):
        panes = [conversation(chat, "No replies yet.", composer=False, elem_classes="talk-pane") for _ in SIDES]
    with gr.Row():
        buttons = [gr.Button(f"{side} is better", interactive=False) for side in ("Left", "Right")]
    note = gr.HTML(apply_default_css=False)
    pair = gr.State()

    def status(text: str) -> str:
        return f'<p class="page-note" role="status">{escape(text)}</p>'

    def vote_buttons(enabled: bool) -> list[gr.Button]:
        return [gr.Button(interactive=enabled)] * 2

    def pane_values(talks: list[list[dict]], names: list[str], busy: bool = False) -> list[dict]:
        return [{"turns": t, "speaker": n, "busy": busy} for t, n in zip(talks, names, strict=True)]

    async def compare(message: str, blind: bool, *settings: Any):
        try:
            message = check_message(message)
            decoding = make_decoding(*settings)
            sides = random.sample(SIDES, 2) if blind else SIDES
            names = ("Left", "Right") if blind else [BEFORE_AND_AFTER[side] for side in sides]
            async with aclosing(chat.stream_both([message], decoding)) as updates:
                async for replies in updates:
                    answers = [reply_turn(getattr(chat, side), replies[side]) for side in sides]
                    busy = any("pieces" not in answer for answer in answers)
                    for answer in answers:
                        if busy:  # token probabilities are shown when both replies are done
                            answer.pop("pieces", None)
                    talks = [[{"role": "user", "text": message}, answer] for answer in answers]
                    yield *pane_values(talks, names, busy), *vote_buttons(False), status(""), None
        except ValueError as error:
            yield gr.skip(), gr.skip(), *vote_buttons(False), status(f"That did not work: {error}."), None
            return
        texts = [answer["text"] for answer in answers]
        if texts[0] == texts[1]:
            names = [BEFORE_AND_AFTER[side] for side in sides]
            text = "Both replies are the same, so there is nothing to vote on."
            yield *pane_values(talks, names), *vote_buttons(False), status(text), None
        else:
            ticket = chat.add_pair([message], dict(zip(sides, texts, strict=True)))
            question = status("Which reply is better?")
            yield *pane_values(talks, names), *vote_buttons(True), question, (ticket, sides, talks)

    def vote(pair: tuple[str, list[str], list], choice: int):
        ticket, sides, talks = pair
        try:
            count = chat.vote(ticket, sides[choice])
        except (ValueError, OSError) as error:
            return gr.skip(), gr.skip(), *vote_buttons(False), status(f"That did not work: {error}."), None
        names = [BEFORE_AND_AFTER[side] for side in sides]
        text = f"Your vote for “{names[choice].lower()}” is saved: number {count:,} in {chat.votes}."
        return *pane_values(talks, names), *vote_buttons(False), status(text), None

    outputs = [*panes, *buttons, note, pair]
    message.submit(
        compare, [message, blind, *settings], outputs, api_name="page_compare", trigger_mode="once", **EVENT_OPTIONS
    )
    for choice, button in enumerate(buttons):
        button.click(partial(vote, choice=choice), pair, outputs, **EVENT_OPTIONS)


def add_endpoints(chat: Chat, trained: TrainedAgent) -> None:
    """Add the API endpoints `about`, `chat`, `compare` and `vote`, which `gradio_client` can call."""

    def check(message: str, history: Sequence[str], *settings: Any) -> tuple[list[str], Decoding]:
        try:
            return [check_message(text) for text in [*history, message]], make_decoding(*settings)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def about() -> dict:
        """Describe the agent and its limits."""
        return {
            "agent": trained.title,
            "story": trained.story,
            "can_compare": chat.start is not None,
            "context_size": chat.trained.context_size,
            "longest_reply": chat.trained.longest_reply,
            "longest_message": MAX_MESSAGE,
        }

    async def answer(
        message: str,
        history: list[str] = (),
        sample: bool = True,
        temperature: float = 1.0,
        top_k: int = 20,
        top_p: float = 1.0,
        longest: int = 20,
        seed: int | None = None,
    ) -> str:
        """Answer a message. The history holds the utterances before it. Streams the reply so far."""
        utterances, decoding = check(message, history, sample, temperature, top_k, top_p, longest, seed)
        try:
            reply = await chat.open_reply(chat.trained, utterances, decoding)
            async with aclosing(chat.stream(reply)) as updates:
                async for _ in updates:
                    yield escape_invisible(chat.trained.reply_text(reply.ids))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    async def compare(
        message: str,
        history: list[str] = (),
        sample: bool = True,
        temperature: float = 1.0,
        top_k: int = 20,
        top_p: float = 1.0,
        longest: int = 20,
        seed: int | None = None,
    ) -> dict:
        """The replies of the agent ("trained") and of the agent before training ("start"), and a ticket for `vote`."""
        if chat.start is None:
            raise gr.Error(NOTHING_TO_COMPARE, print_exception=False)
        utterances, decoding = check(message, history, sample, temperature, top_k, top_p, longest, seed)
        try:
            async for replies in chat.stream_both(utterances, decoding):
                texts = {side: reply_turn(getattr(chat, side), reply)["text"] for side, reply in replies.items()}
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return {**texts, "ticket": chat.add_pair(utterances, texts)}

    def vote(ticket: str, preferred: str) -> int:
        """Vote for the better reply of a `compare`, "trained" or "start". Returns the number of votes."""
        try:
            return chat.vote(ticket, preferred)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    for name, function in {"about": about, "chat": answer, "compare": compare, "vote": vote}.items():
        gr.api(function, api_name=name, concurrency_limit=None)


def build_page(chat: Chat, trained: TrainedAgent) -> gr.Blocks:
    """The page with its API endpoints.

    Args:
        chat: the agents.
        trained: the description of the agent, and of the run that trained it.
    """
    with gr.Blocks(title=f"Talk with {trained.title}", analytics_enabled=False) as page:
        gr.HTML(headline(trained, chat), apply_default_css=False)
        with gr.Accordion("Settings of the replies", open=False, render=False) as settings_accordion:
            settings = settings_form(chat.trained)
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat_tab(chat, settings)
            with gr.Tab("Compare"):
                if chat.start is None:
                    gr.HTML(f'<p class="page-note">{NOTHING_TO_COMPARE}</p>', apply_default_css=False)
                else:
                    compare_tab(chat, settings)
            with gr.Tab("Training"):
                training = gr.HTML(f'<p class="page-note">{NO_RUN}</p>', apply_default_css=False)
                if trained.run:  # read on every visit, because the run may still go on
                    page.load(partial(training_page, trained.run), outputs=training, **EVENT_OPTIONS)
        settings_accordion.render()
        add_endpoints(chat, trained)
    return page


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
    page: gr.Blocks, host: str, port: int, share: bool, auth: str | None, root_path: str | None = None, **options: Any
) -> int:
    """Serve the page.

    Args:
        page: the page from `build_page`.
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
    # Gradio's own queue never fills: all events begin at once, and `Chat` limits the replies that are being written
    page.queue(max_size=None).launch(
        server_name=host,
        server_port=free,
        share=share,
        auth=(name, password) if auth else None,
        max_threads=2 * MAX_REPLIES,
        root_path=root_path,
        app_kwargs={"middleware": [guard]},
        theme=make_theme(),
        css=(STATIC / "style.css").read_text(encoding="utf-8"),
        footer_links=[],
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
