"""The page's API endpoints, which `gradio_client` can call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from dailydialog_gym.chat.conversation import MAX_MESSAGE, USUAL, Chat, check_message, make_decoding, reply_turn
from dailydialog_gym.chat.votes import SIDES, Votes, two_draws
from dailydialog_gym.models.decoding import Decoding
from dailydialog_gym.text import escape_invisible


def add_endpoints(chat: Chat, votes: Votes) -> None:
    """Add the endpoints `about`, `chat`, `compare` and `vote` to the page that is being built."""
    titles = list(chat.choices)
    default, other = titles[0], titles[min(1, len(titles) - 1)]

    def check(message: str, history: Sequence[str], *settings: Any) -> tuple[list[str], Decoding]:
        try:
            return [check_message(text) for text in [*history, message]], make_decoding(*settings)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def about() -> dict:
        """Describe the agent and its limits."""
        agent = chat.agent(default)
        return {
            "agent": default,
            "story": chat.default.story,
            "compared_with": other,
            "context_size": agent.context_size,
            "longest_reply": agent.longest_reply,
            "longest_message": MAX_MESSAGE,
        }

    async def answer(
        message: str,
        history: list[str] = [],  # noqa: B006  nothing changes it
        sample: bool = USUAL.sample,
        temperature: float = USUAL.temperature,
        top_k: int = USUAL.top_k,
        top_p: float = USUAL.top_p,
        longest: int = 20,
        seed: int | None = None,
    ) -> AsyncIterator[str]:
        """Answer a message. The history holds the utterances before it. Streams the reply so far."""
        utterances, decoding = check(message, history, sample, temperature, top_k, top_p, longest, seed)
        try:
            reply = await chat.open_reply(default, utterances, decoding)
            async with aclosing(chat.stream((default, reply))) as updates:
                async for _ in updates:
                    yield escape_invisible(chat.agent(default).reply_text(reply.ids))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    async def compare(
        message: str,
        history: list[str] = [],  # noqa: B006  nothing changes it
        sample: bool = USUAL.sample,
        temperature: float = USUAL.temperature,
        top_k: int = USUAL.top_k,
        top_p: float = USUAL.top_p,
        longest: int = 20,
        seed: int | None = None,
    ) -> dict:
        """The replies of the agent ("trained") and of what it is compared with ("start"), and a ticket for `vote`."""
        utterances, decoding = check(message, history, sample, temperature, top_k, top_p, longest, seed)
        agents, decodings = dict(zip(SIDES, (default, other), strict=True)), two_draws(decoding)
        try:
            replies = [await chat.open_reply(agents[side], utterances, decodings[side]) for side in SIDES]
            async with aclosing(chat.stream(*zip((default, other), replies, strict=True))) as updates:
                async for _ in updates:
                    pass
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        turns = {s: reply_turn(agents[s], chat.agent(agents[s]), r) for s, r in zip(SIDES, replies, strict=True)}
        texts = {side: turn["content"] for side, turn in turns.items()}
        about = {side: await asyncio.to_thread(chat.identity, agents[side]) for side in SIDES}
        ticket = votes.add_pair(chat.agent(default), about, utterances, texts, decodings, blind=False)
        return {**texts, "ticket": ticket}

    def vote(ticket: str, preferred: str) -> int:
        """Vote on a `compare`: "trained", "start", "tie" or "both bad". Returns the number of votes."""
        try:
            return votes.vote(ticket, preferred)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    for name, function in {"about": about, "chat": answer, "compare": compare, "vote": vote}.items():
        gr.api(function, api_name=name, concurrency_limit=None)
