"""The chat page, a Gradio app of four tabs."""

import asyncio
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.api import add_endpoints
from dailydialog_gym.chat.conversation import (
    MAX_MESSAGE,
    USUAL,
    Chat,
    Turn,
    check_message,
    conversation_so_far,
    make_decoding,
    reply_turn,
    turns_before,
)
from dailydialog_gym.chat.rollouts import MEASURES, last_iteration, read_rollouts, rollouts_page
from dailydialog_gym.chat.trained import ORDERS, TrainedAgent, results_page, samples_page
from dailydialog_gym.chat.votes import SIDES, Votes, two_draws
from dailydialog_gym.models.decoding import Reply

KEYS = Path(__file__).parent / "static/keys.js"
OPENERS = ["Hi! How are you today?", "What are you doing this weekend?", "Can you help me? I lost my wallet."]
TINY = 50e6  # parameters
REFRESH = 10  # seconds between two looks at a run that goes on
# The reply that was clicked has the focus. Beside its tokens the conversation is narrower, so the reply has moved.
SCROLL_TO_CLOSER = """() => {
  document.activeElement.scrollIntoView({block: 'nearest'});
  document.querySelector('.closer').scrollIntoView({block: 'nearest', behavior: 'smooth'});
}"""
FOCUS_COMPARE = "() => document.querySelector('#compare-box textarea').focus()"
NO_RUN = "This agent belongs to no run. Train one with ppo_dialog.py, and choose its run above."
NO_ROLLOUTS = "The run has logged no replies: it had --log-rollouts 0, or is of an older version."
# Options of the page's own events: no progress bar, no API endpoint, no limit of events at the same time.
EVENT_OPTIONS = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


def html(text: str = "", **options: Any) -> gr.HTML:
    """HTML of ours. What is not ours in it must be escaped."""
    return gr.HTML(text, apply_default_css=False, js_on_load=None, **options)


def notice(text: str = "") -> str:
    return f'<p class="notice" role="status">{escape(text)}</p>'


def sentence(error: Exception) -> str:
    return f"That did not work: {error}."


def literal(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns for `gr.Chatbot`, which would take HTML in them for markup.

    A zero-width non-joiner ends what the parser of HTML takes for the beginning of a tag or of an entity, and leaves
    it to be shown, copied and edited as text.
    """
    return [
        {"role": turn["role"], "content": [{"type": "text", "text": re.sub("([<&])", "\\1\u200c", turn["content"])}]}
        for turn in turns
    ]


def typed(text: Any) -> str:
    """A message as it was typed, without the joiners of `literal` that were in the box when it was edited."""
    return check_message(re.sub("([<&])\u200c", "\\1", text) if isinstance(text, str) else text)


def header(choice: TrainedAgent, agent: DialogueAgent) -> str:
    """What the agent is, in a line, and a note on what it reads and what it can't do."""
    parameters = sum(p.numel() for p in agent.model.parameters())
    size = f"{parameters / 1e6:.1f} million parameters"
    start = f"<span> · from {escape(choice.baseline)}</span>" if choice.baseline else ""
    reads = "DailyDialog's format" if agent.spacing == "spaced" else "plain text"
    reads = "its chat template" if agent.template else reads
    limits = "It can be wrong about anything."
    if parameters < TINY:
        limits = (
            "This is a tiny model, GPT-2 small has 124 million. It writes short replies in the manner of everyday "
            "dialogues, often beside the point. It knows no facts, can't calculate and follows no instructions."
        )
    return (
        f'<div class="about"><h1 class="about-line">{size}{start}</h1>'
        '<details><summary aria-label="About this agent" title="About this agent">i</summary>'
        f'<div class="about-more"><p>{escape(choice.story)}</p><p>{limits}</p>'
        f"<p>It reads {reads}: the last {agent.context_size} utterances, at most {agent.max_prompt_length} tokens. "
        f"A message may have {MAX_MESSAGE:,} characters.</p></div></details></div>"
    )


def settings_form(agent: DialogueAgent) -> list[gr.components.Component]:
    """The settings in the order of the arguments of `make_decoding`."""
    gr.Markdown("### Settings of the replies")
    sample = gr.Radio(
        [("Sample", True), ("Greedy (always the most probable token)", False)], value=USUAL.sample, label="Decoding"
    )
    lower = "Lower: more predictable. Higher: more varied. 1: as in training."
    temperature = gr.Slider(0.1, 2, USUAL.temperature, step=0.05, label="Temperature", info=lower)
    top_k = gr.Slider(0, 100, USUAL.top_k, step=1, label="Top-k", info="Only the k most probable tokens. 0: all.")
    likeliest = "Only the likeliest tokens that reach this probability together."
    top_p = gr.Slider(0.05, 1, USUAL.top_p, step=0.05, label="Top-p", info=likeliest)
    seed_info = "Empty: other replies each time. A number: the same replies each time."
    longest = longest_slider(agent)
    seed = gr.Textbox("", max_lines=1, max_length=18, label="Seed", info=seed_info)
    return [sample, temperature, top_k, top_p, longest, seed]


def longest_slider(agent: DialogueAgent) -> gr.Slider:
    info = f"In tokens. The agent was trained with at most {agent.max_new_tokens}."
    usual = min(agent.max_new_tokens, agent.longest_reply)
    return gr.Slider(1, agent.longest_reply, usual, step=1, label="Longest reply", info=info)


def conversation(**options: Any) -> gr.Chatbot:
    """A conversation whose messages are shown as text."""
    return gr.Chatbot(
        show_label=False,
        container=False,
        render_markdown=False,
        latex_delimiters=[],
        allow_tags=False,
        group_consecutive_messages=False,
        height="100%",
        **options,
    )


def composer(label: str, **options: Any) -> gr.Textbox:
    """The box for messages, with the button that sends."""
    return gr.Textbox(
        label=label,
        show_label=False,
        container=False,
        placeholder=f"{label} (Enter sends, Shift+Enter: new line)",
        lines=1,
        max_lines=6,
        submit_btn="Send",
        elem_classes="composer",
        **options,
    )


def while_writing(**values: Any) -> gr.Textbox:
    """The composer with Stop in the place of Send."""
    return gr.Textbox(submit_btn=False, stop_btn="Stop", **values)


def when_done(**values: Any) -> gr.Textbox:
    return gr.Textbox(submit_btn="Send", stop_btn=False, **values)


class BusyError(ValueError):
    """The session is writing already."""


@dataclass
class Written:
    """Replies that a session is writing.

    Attributes:
        discarded: whether the conversation was cleared meanwhile.
    """

    replies: list[Reply] = field(default_factory=list)
    stopped: bool = False
    discarded: bool = False

    def add(self, *replies: Reply) -> None:
        self.replies += replies
        if self.stopped:  # before there were replies
            self.stop()

    def stop(self) -> None:
        self.stopped = True
        for reply in self.replies:
            reply.cancel()


class Writing:
    """What the sessions of the page are writing, to stop it.

    Gradio's ``cancels`` does not work here: the last output of the cancelled event may arrive after this event's.
    """

    def __init__(self):
        self._now: dict[str, Written] = {}

    @contextmanager
    def begin(self, session: gr.Request) -> Iterator[Written]:
        """Within it the session is writing: the replies that `stop` is to stop are added to what it yields.

        Raises:
            BusyError: the session is writing already.
        """
        if session.session_hash in self._now:
            raise BusyError("a reply is being written")
        self._now[session.session_hash] = written = Written()
        try:
            yield written
        finally:
            del self._now[session.session_hash]

    async def stop(self, session: gr.Request, discard: bool = False) -> None:
        """Stop what the session is writing, and where wanted have it discarded by who writes it."""
        if written := self._now.get(session.session_hash):
            written.discarded = written.discarded or discard
            written.stop()


def take(text: str) -> tuple[str, str]:
    """Empty the composer, and keep its text.

    This is an event of its own, because a slow connection delivers the updates of an event all at once, and then the
    browser shows the last one only.
    """
    return "", text


def chat_tab(chat: Chat, agent: gr.Dropdown, settings: list) -> None:
    """The tab with one conversation. Every browser session has a conversation of its own."""
    turns, sent, writing = gr.State([]), gr.State(""), Writing()
    with gr.Row(elem_classes="talk"):
        with gr.Column(scale=3, min_width=280, elem_classes="talk-main"):
            talk = conversation(
                editable="user",
                buttons=["copy", "copy_all"],
                placeholder="<h2>Say something</h2><p>Then click on a reply to see its tokens.</p>",
                examples=[{"text": opener} for opener in OPENERS],
                elem_classes="talk-list closable",
            )
            note = html(notice())
            box = composer("Your message")
        with gr.Column(scale=2, min_width=280, visible=False, elem_classes="closer") as closer:
            close = gr.Button("Close", size="sm", elem_classes="closer-close")
            look = html()

    def saying(request: Callable[[Any, list[Turn], str], tuple[list[Turn], Any]], from_box: bool = False) -> Callable:
        """A handler that has a message answered. The request gives the turns before the message, and the message.

        Args:
            request: of the event's data, the turns and the text that was taken from the box.
            from_box: whether that text goes back where it can't be answered.
        """

        async def say(
            event: gr.EventData, session: gr.Request, text: str, turns: list[Turn], title: str, *settings: Any
        ):
            back = {"value": text} if from_box else {}
            try:
                with writing.begin(session) as written:
                    before, message = request(event._data, turns, text)
                    message, decoding = typed(message), make_decoding(*settings)
                    before = [*before, {"role": "user", "content": message}]
                    now = [*before, {"role": "assistant", "content": ""}]
                    yield now, literal(now), while_writing(), notice()
                    reply = await chat.open_reply(title, conversation_so_far(before[:-1], message), decoding)
                    written.add(reply)
                    async with aclosing(chat.stream((title, reply))) as updates:
                        async for _ in updates:
                            now = [*before, reply_turn(title, chat.agent(title), reply)]
                            yield gr.skip(), literal(now), gr.skip(), gr.skip()
                    now = [] if written.discarded else now
                yield now, literal(now), when_done(), notice(now[-1].get("note", "") if now else "")
            except BusyError as error:
                yield gr.skip(), gr.skip(), gr.Textbox(**back), notice(sentence(error))
            except ValueError as error:
                yield turns, literal(turns), when_done(**back), notice(sentence(error))

        return say

    def retry(data: Any, turns: list[Turn], text: str) -> tuple[list[Turn], Any]:
        return turns_before(turns, data["index"], "user"), turns[data["index"]]["content"]

    def undo(event: gr.EventData, session: gr.Request, turns: list[Turn], text: str):
        try:
            with writing.begin(session):
                before, message = retry(event._data, turns, text)
        except ValueError as error:
            return gr.skip(), gr.skip(), gr.skip(), notice(sentence(error))
        return before, literal(before), message, notice()

    async def clear(session: gr.Request):
        await writing.stop(session, discard=True)
        return [], [], gr.skip(), notice(), gr.Column(visible=False)

    def look_closer(event: gr.EventData, turns: list[Turn]):
        index = event._data["index"]
        try:
            *before, question = turns_before(turns, index, "assistant")
            found = chat.look_closer(conversation_so_far(before, question["content"]), turns[index])
        except ValueError as error:
            found = notice(sentence(error))
        return gr.Column(visible=True), found

    inputs, outputs = [sent, turns, agent, *settings], [turns, talk, box, note]
    answer = saying(lambda data, turns, text: (turns, text), from_box=True)
    # "multiple": what is sent while a reply is written must come back, too
    taken = box.submit(take, box, [box, sent], **EVENT_OPTIONS)
    taken.then(answer, inputs, outputs, trigger_mode="multiple", **EVENT_OPTIONS)
    for event, request in (
        (talk.example_select, lambda data, turns, text: (turns, data["value"]["text"])),
        (talk.retry, retry),
        (talk.edit, lambda data, turns, text: (turns_before(turns, data["index"], "user"), data["value"])),
    ):
        event(saying(request), inputs, outputs, trigger_mode="once", **EVENT_OPTIONS)
    box.stop(writing.stop, **EVENT_OPTIONS)
    talk.undo(undo, [turns, box], outputs, **EVENT_OPTIONS)
    talk.clear(clear, None, [*outputs, closer], **EVENT_OPTIONS)
    talk.select(look_closer, turns, [closer, look], **EVENT_OPTIONS).then(None, js=SCROLL_TO_CLOSER)
    close.click(lambda: gr.Column(visible=False), None, closer, **EVENT_OPTIONS)


def cards(texts: Sequence[str], names: Sequence[str], better: int | None = None) -> str:
    """Two replies side by side, with the names of their agents unless they are empty."""
    found = ""
    for number, (text, name) in enumerate(zip(texts, names, strict=True)):
        title = f"Reply {number + 1}" + (f" · {escape(name)}" if name else "")
        kind = "card better" if number == better else "card"
        found += f'<article class="{kind}"><h3>{title}</h3><p dir="auto">{escape(text)}</p></article>'
    return f'<div class="cards">{found}</div>'


def compare_tab(page: gr.Blocks, chat: Chat, votes: Votes, settings: list) -> None:
    """The tab where two agents answer each message, and the conversation goes on with the better reply."""
    titles = list(chat.choices)
    turns, pair, sent, writing = gr.State([]), gr.State(), gr.State(""), Writing()
    with gr.Column(elem_classes="talk-main"):
        with gr.Row(elem_classes="match"):
            match = [
                gr.Dropdown(titles, value=title, label=label, filterable=False)
                for label, title in (("Compare", titles[0]), ("with", titles[min(1, len(titles) - 1)]))
            ]
            blind = gr.Checkbox(True, label="Hide which is which until I have voted")
        rate = html(elem_classes="rate")
        talk = conversation(
            buttons=[],
            placeholder="<h2>Which reply is better?</h2><p>Two agents answer you, or one of them twice. The "
            f"conversation goes on with the better reply. Votes are saved in {escape(str(votes.path))}.</p>",
            elem_classes="talk-list",
        )
        both = html()
        with gr.Row(visible=False, elem_classes="verdicts") as verdicts:
            buttons = {
                verdict: gr.Button(label, elem_id=f"vote-{key}", size="sm")
                for verdict, key, label in (
                    (0, 1, "1 is better"),
                    (1, 2, "2 is better"),
                    ("tie", 0, "Tie"),
                    ("both bad", 3, "Both bad"),
                )
            }
        note = html(notice())
        box = composer("Your message to both", elem_id="compare-box")

    def cleared() -> tuple:
        return [], None, [], "", when_done(interactive=True), notice()

    def results(first: str, second: str) -> str:
        try:
            return notice(votes.result(first, second) if first != second else "Two draws of one agent.")
        except (ValueError, OSError) as error:
            return notice(sentence(error))

    async def compare(
        session: gr.Request,
        text: str,
        turns: list[Turn],
        pair: Any,
        first: str,
        second: str,
        blind: bool,
        *settings: Any,
    ):
        try:
            with writing.begin(session) as written:
                if pair:
                    raise ValueError("vote on these two replies first")
                message, decodings = check_message(text), two_draws(make_decoding(*settings))
                asked = [*turns, {"role": "user", "content": message}]
                yield gr.skip(), None, literal(asked), cards(["", ""], ["", ""]), while_writing(), notice()
                agents = dict(zip(SIDES, (first, second), strict=True))
                sides = random.sample(SIDES, 2) if blind else SIDES
                names, shown = [agents[side] for side in sides], ["", ""] if blind else [first, second]
                said = conversation_so_far(turns, message)
                replies = [await chat.open_reply(agents[side], said, decodings[side]) for side in sides]
                written.add(*replies)
                async with aclosing(chat.stream(*zip(names, replies, strict=True))) as updates:
                    async for _ in updates:
                        answers = [reply_turn(n, chat.agent(n), r) for n, r in zip(names, replies, strict=True)]
                        texts = [answer["content"] for answer in answers]
                        yield *[gr.skip()] * 3, cards(texts, shown), *[gr.skip()] * 2
            if written.discarded:
                yield cleared()
            elif any(reply.cancelled for reply in replies):
                stopped = notice("Stopped, so there is nothing to vote on.")
                yield turns, None, literal(turns), "", when_done(value=text), stopped
            elif texts[0] == texts[1]:
                now = [*asked, answers[0]]
                same = notice("Both replies are the same, so the conversation goes on with it.")
                yield now, None, literal(now), cards(texts, names), when_done(), same
            else:
                about = {side: await asyncio.to_thread(chat.identity, agents[side]) for side in SIDES}
                both = dict(zip(sides, texts, strict=True))
                ticket = votes.add_pair(chat.agent(first), about, said, both, decodings, blind)
                pair = {"ticket": ticket, "sides": sides, "names": names, "answers": answers, "asked": asked}
                question = notice("Which reply is better? Press 1, 2, 0 for a tie, or 3 if both are bad.")
                yield gr.skip(), pair, gr.skip(), cards(texts, shown), when_done(interactive=False), question
        except BusyError as error:
            yield *[gr.skip()] * 4, gr.Textbox(value=text), notice(sentence(error))
        except ValueError as error:
            yield turns, pair, literal(turns), gr.skip(), when_done(value=text), notice(sentence(error))

    async def clear(session: gr.Request):
        await writing.stop(session, discard=True)
        return cleared()

    def vote(pair: dict[str, Any] | None, first: str, second: str, verdict: int | str):
        if pair is None:
            return [gr.skip()] * 7
        sides, answers, asked = pair["sides"], pair["answers"], pair["asked"]
        try:
            count = votes.vote(pair["ticket"], sides[verdict] if isinstance(verdict, int) else verdict)
        except (ValueError, OSError) as error:
            return *[gr.skip()] * 5, notice(sentence(error)), gr.skip()
        if verdict == "both bad":
            now, text = asked[:-1], asked[-1]["content"]
        else:
            better = verdict if isinstance(verdict, int) else random.randrange(2)
            now, text = [*asked, answers[better]], ""
        preferred = verdict if isinstance(verdict, int) else None
        shown = cards([answer["content"] for answer in answers], pair["names"], preferred)
        saved = notice(f"Saved as number {count:,} in {votes.path}.")
        return now, None, literal(now), shown, when_done(value=text, interactive=True), saved, results(first, second)

    outputs = [turns, pair, talk, both, box, note]
    inputs = [sent, turns, pair, *match, blind, *settings]
    taken = box.submit(take, box, [box, sent], **EVENT_OPTIONS)
    taken.then(compare, inputs, outputs, api_name="page_compare", trigger_mode="multiple", **EVENT_OPTIONS)
    box.stop(writing.stop, **EVENT_OPTIONS)
    for verdict, button in buttons.items():
        cast = partial(vote, verdict=verdict)
        cast = button.click(cast, [pair, *match], [*outputs, rate], trigger_mode="once", **EVENT_OPTIONS)
        cast.then(None, js=FOCUS_COMPARE)
    pair.change(lambda pair: gr.Row(visible=pair is not None), pair, verdicts, **EVENT_OPTIONS)
    talk.clear(clear, None, outputs, **EVENT_OPTIONS)
    gr.on([*(choice.change for choice in match), page.load], results, match, rate, **EVENT_OPTIONS)


def training_tab(page: gr.Blocks, chat: Chat, agent: gr.Dropdown) -> None:
    """The tab with the run's curves, scores and samples. Those of a run that goes on are drawn again and again."""
    runs = {title: choice.run for title, choice in chat.choices.items() if choice.run}
    with gr.Row(elem_classes="match", visible=len(runs) > 1):
        others = gr.Dropdown(list(runs), value=[], multiselect=True, label="Curves of other runs", filterable=False)
    results = html()
    with gr.Row(elem_classes="match"):
        order = gr.Radio(list(ORDERS.items()), value="", label="Order, by the change of the run's reward")
    samples, timer = html(), gr.Timer(REFRESH)

    def show_results(title: str, laid_over: list[str]):
        if not (run := runs.get(title)):
            return f'<p class="page-note">{NO_RUN}</p>', gr.Timer(active=False)
        found = results_page(run, {name: runs[name] for name in laid_over if name != title})
        return found, gr.Timer(active=not (run / "evaluation.json").exists())

    def show_samples(title: str, by: str) -> tuple[gr.Radio, str]:
        found = samples_page(runs[title], by) if title in runs else ""
        return gr.Radio(visible=bool(found)), found

    triggers = [page.load, agent.input, timer.tick]
    gr.on([*triggers, others.change], show_results, [agent, others], [results, timer], **EVENT_OPTIONS)
    gr.on([*triggers, order.input], show_samples, [agent, order], [order, samples], **EVENT_OPTIONS)


def rollouts_tab(page: gr.Blocks, chat: Chat, agent: gr.Dropdown) -> None:
    """The tab that walks through what PPO saw of the run's replies."""
    with gr.Row(elem_classes="match"):
        iteration = gr.Slider(1, 2, 1, step=1, label="Iteration")
        measure = gr.Radio(list(MEASURES.items()), value="advantage", label="Colour of the tokens")
    groups = html()

    def show(title: str, number: int, by: str) -> str:
        run = chat.choices[title].run
        try:
            found = rollouts_page(read_rollouts(run, number), by) if run else ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            return notice(f"Cannot read the run's rollouts.jsonl: {error!r}")
        return found or f'<p class="page-note">{NO_ROLLOUTS if run else NO_RUN}</p>'

    def begin(title: str, by: str):
        run = chat.choices[title].run
        last = last_iteration(run) if run else 0
        return gr.Slider(maximum=max(last, 2), value=max(last, 1)), show(title, last, by)

    iteration.input(show, [agent, iteration, measure], groups, trigger_mode="always_last", **EVENT_OPTIONS)
    measure.input(show, [agent, iteration, measure], groups, **EVENT_OPTIONS)
    gr.on([page.load, agent.input], begin, [agent, measure], [iteration, groups], **EVENT_OPTIONS)


def build_page(chat: Chat, votes: Path = Path("votes.jsonl")) -> gr.Blocks:
    """The page with its API endpoints.

    Args:
        chat: the agents; the default one is loaded.
        votes: the file to which votes are appended.
    """
    default, record = chat.default, Votes(votes)
    with gr.Blocks(title=f"{default.title} · dailydialog-gym", analytics_enabled=False, fill_height=True) as page:
        with gr.Row(elem_classes="top"):
            agent = gr.Dropdown(
                list(chat.choices),
                value=default.title,
                label="Agent",
                show_label=False,
                container=False,
                filterable=False,
                elem_classes="agent",
            )
            about = html(header(default, chat.agent(default.title)))
        with gr.Sidebar("Settings of the replies", open=False, position="right"):
            settings = settings_form(chat.agent(default.title))
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat_tab(chat, agent, settings)
            with gr.Tab("Compare"):
                compare_tab(page, chat, record, settings)
            with gr.Tab("Training"):
                training_tab(page, chat, agent)
            with gr.Tab("Rollouts"):
                rollouts_tab(page, chat, agent)

        def choose(title: str):
            try:
                return header(chat.choices[title], chat.agent(title)), longest_slider(chat.agent(title))
            except ValueError as error:
                return notice(sentence(error)), gr.skip()

        agent.input(choose, agent, [about, settings[4]], **EVENT_OPTIONS)
        page.load(None, js=KEYS.read_text(encoding="utf-8"))
        add_endpoints(chat, record)
    return page
