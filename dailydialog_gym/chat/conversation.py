"""A conversation with agents, as a page or an API needs it: untrusted messages in, growing replies out, votes kept."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.dialogues import ACTS
from dailydialog_gym.env.samples import format_prompt
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.models.decoding import Decoding, Reply, ReplyWorker
from dailydialog_gym.text import space_punctuation, visible

if TYPE_CHECKING:
    from dailydialog_gym.rewards.intent import IntentMatch

MAX_MESSAGE = 1000  # characters; the embedded policy reads the last 128 tokens anyway
SIDES = ("start", "trained")


class Chat:
    """Two agents, the thread that writes their replies, and the votes between them.

    Args:
        trained: the agent.
        start: what it started from; None leaves nothing to compare with.
        intent: the classifier that reads acts.
        votes: the file that votes are added to.
    """

    def __init__(self, trained: DialogueAgent, start: DialogueAgent | None, intent: IntentMatch | None, votes: Path):
        self.trained, self.start, self.intent, self.votes = trained, start, intent, votes
        self.worker = ReplyWorker()
        self._batches = {agent: agent.decoding_batch() for agent in (trained, start) if agent}
        self._pairs: OrderedDict[str, dict[str, Any]] = OrderedDict()  # shown, and not voted on yet
        self._file = threading.Lock()

    async def stream(self, reply: Reply, agent: DialogueAgent | None = None) -> AsyncIterator[None]:
        """Have a reply written, and yield each time there is more of it, last when it is done.

        Cancel the reply to end it there, or close the iterator (`contextlib.aclosing`): the worker then turns to
        others before its next token.

        Args:
            reply: opened by the agent, `DialogueAgent.open_reply`.
            agent: one of the two, by default the trained one.

        Raises:
            Exception: whatever the model raised.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        reply.on_change = lambda: loop.is_closed() or loop.call_soon_threadsafe(changed.set)
        self.worker.submit(self._batches[agent or self.trained], reply)
        if reply.done:
            changed.set()  # cancelled before it began
        try:
            done = False
            while not done:
                await changed.wait()
                changed.clear()
                if reply.error:
                    raise reply.error
                done = reply.done  # not after the yield, during which the last token may come
                yield
        finally:
            reply.cancel()

    async def stream_both(self, utterances: Sequence[str], decoding: Decoding) -> AsyncIterator[dict[str, Reply]]:
        """The growing replies of both agents, by side; last when both are done."""
        agents: dict[str, DialogueAgent] = {"start": self.start, "trained": self.trained}
        replies = {side: agent.open_reply(utterances, decoding) for side, agent in agents.items()}
        news: asyncio.Queue[Exception | None] = asyncio.Queue()

        async def pump(side: str) -> None:
            try:
                async with aclosing(self.stream(replies[side], agents[side])) as growing:
                    async for _ in growing:
                        news.put_nowait(None)
            except Exception as error:  # raised again below, where somebody listens
                news.put_nowait(error)

        pumps = [asyncio.create_task(pump(side)) for side in SIDES]
        try:
            done = False
            while not done:
                if error := await news.get():
                    raise error
                done = all(reply.done for reply in replies.values())
                yield replies
        finally:
            for task in pumps:
                task.cancel()

    def read_act(self, previous: str, reply: str) -> tuple[str, float]:
        """The act, a word of `ACTS`, that the intent model finds in a reply to an utterance, and its probability."""
        previous, reply = (space_punctuation(check_message(text)) for text in (previous, reply))
        probabilities = self.intent.probabilities([format_prompt([previous])], [reply])[0]
        return ACTS[int(probabilities.argmax()) + 1], float(probabilities.max())

    def offer(self, utterances: Sequence[str], replies: dict[str, str]) -> str:
        """Remember two replies, by side, that can be voted on; returns their ticket."""
        ticket = secrets.token_urlsafe(12)
        self._pairs[ticket] = {"utterances": list(utterances), **replies}
        while len(self._pairs) > 1000:
            self._pairs.popitem(last=False)
        return ticket

    def vote(self, ticket: str, preferred: str) -> int:
        """Add a preference pair to the file: ``prompt``, ``chosen``, ``rejected``, and which side was ``preferred``.

        Pairs are text in the training format, or messages for an agent that speaks a chat template. `datasets` and
        TRL's DPO read both.

        Args:
            ticket: from `offer`; good for one vote.
            preferred: ``"trained"`` or ``"start"``.

        Returns:
            How many votes the file holds.

        Raises:
            ValueError: there is no such side, or the ticket is used up.
        """
        if preferred not in SIDES:
            raise ValueError(f"preferred is {preferred!r}: expected 'trained' or 'start'")
        pair = self._pairs.pop(ticket, None) if isinstance(ticket, str) else None
        if pair is None:
            raise ValueError("these replies have been voted on already, or are too old")
        said = [pair[preferred], pair["start" if preferred == "trained" else "trained"]]
        if self.trained.template:
            prompt: Any = self.trained.messages(pair["utterances"])
            said = [[{"role": "assistant", "content": text}] for text in said]
        else:
            prompt = format_prompt([space_punctuation(u) for u in pair["utterances"][-self.trained.context_size :]])
            said = [f" {space_punctuation(text)} {EOU}" for text in said]
        row = {"prompt": prompt, "chosen": said[0], "rejected": said[1], "preferred": preferred}
        with self._file:
            with open(self.votes, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            with open(self.votes, encoding="utf-8") as file:
                return sum(1 for _ in file)


def choose_threads(model: PreTrainedModel) -> None:
    """Give a small model one thread: it gains nothing from more, and serving its words needs the other cores."""
    if sum(parameter.numel() for parameter in model.parameters()) < 20e6:
        torch.set_num_threads(1)


def reply_turn(agent: DialogueAgent, reply: Reply) -> dict[str, Any]:
    """A reply as a turn of a conversation: its text, and once it is whole each token with its probability."""
    turn: dict[str, Any] = {"role": "agent", "text": visible(agent.reply_text(reply.ids))}
    if reply.done:
        ids = list(reply.ids)  # one more may come yet where the reply was cancelled; its probability comes first
        texts = agent.tokenizer.backend.decode_batch([[i] for i in ids], skip_special_tokens=True)
        turn["pieces"] = [
            (visible(text) or "(end)", round(probability, 4))
            for text, probability in zip(texts, reply.probabilities[: len(ids)], strict=True)
        ]
        if reply.cancelled:
            turn["note"] = "Stopped."
        elif not turn["text"]:
            turn["note"] = "The agent ended its reply at once, without a word."
    return turn


def check_message(text: Any) -> str:
    """A message as it is shown and answered: signs that can't be seen have their names instead.

    Raises:
        ValueError: it is no text, empty or too long.
    """
    if not isinstance(text, str):
        raise ValueError(f"a message is {type(text).__name__}: expected text")
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"the message has {len(text):,} characters: expected at most {MAX_MESSAGE:,}")
    text = visible(text).strip()
    if not text:
        raise ValueError("the message is empty")
    return text


def make_decoding(sample: Any, temperature: Any, top_k: Any, top_p: Any, longest: Any, seed: Any) -> Decoding:
    """Decoding from what a form or a client sends.

    Args:
        sample, temperature, top_k, top_p, longest: as in `Decoding`; numbers of any kind.
        seed: a number or its digits; None and "" are another each time.

    Raises:
        ValueError: a value is no number, or out of its range.
    """
    try:
        seed = random.getrandbits(32) if seed in (None, "") else int(seed)
        return Decoding(bool(sample), float(temperature), int(top_k), float(top_p), int(longest), seed)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a setting is not a number ({error})") from error


def take_turn(turns: list[dict[str, Any]], request: Any) -> tuple[list[dict[str, Any]], str | None]:
    """What a request makes of a conversation, and the message to answer, if any.

    Args:
        turns: ``{"role": "user" | "agent", "text": ...}``, by turns.
        request: ``{"do": "send" | "edit", "text": ...}``, or ``{"do": "retry" | "undo" | "reset"}``; it comes from
            a browser, so it may be anything.

    Raises:
        ValueError: it is something else, or can't be done.
    """
    do = request.get("do") if isinstance(request, dict) else None
    if do == "reset":
        return [], None
    if do == "send":
        return turns, check_message(request.get("text"))
    if do not in ("edit", "retry", "undo"):
        raise ValueError("expected send, edit, retry, undo or reset")
    if not turns:
        raise ValueError(f"there is nothing to {do}")
    before, message = turns[:-2], turns[-2]["text"]
    if do == "undo":
        return before, None
    return before, check_message(request.get("text")) if do == "edit" else message


def context(turns: list[dict[str, Any]], message: str) -> list[str]:
    """What an agent is to read: the utterances so far, less messages without an answer, and the message."""
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [*(turn["text"] for pair in pairs if pair[1]["text"] for turn in pair), message]
