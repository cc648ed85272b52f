"""Conversations with agents for the page and its API: check messages, stream replies, and store votes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.dialogues import ACTS
from dailydialog_gym.env.tokenizer import EOU, format_prompt
from dailydialog_gym.models.decoding import Decoding, Reply, ReplyWorker
from dailydialog_gym.text import escape_invisible

if TYPE_CHECKING:
    from dailydialog_gym.rewards.intent import IntentMatch

MAX_REPLIES = 200  # that are being written or waiting; who comes then is asked to come again
MAX_MESSAGE = 1000  # characters; the embedded policy only reads the last 128 tokens
SIDES = ("start", "trained")


class Chat:
    """One or two agents, the thread that generates their replies, and the votes between their replies.

    Args:
        trained: the agent.
        start: the agent before training, which `trained` is compared with. None disables comparisons.
        intent: the classifier of dialogue acts, for text in the agent's spacing, or None.
        votes: the file to which votes are appended.
    """

    def __init__(self, trained: DialogueAgent, start: DialogueAgent | None, intent: IntentMatch | None, votes: Path):
        self.trained, self.start, self.intent, self.votes = trained, start, intent, votes
        self.worker = ReplyWorker()
        self._batches = {agent: agent.decoding_batch() for agent in (trained, start) if agent}
        self._pairs: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by ticket: pairs of replies without a vote
        self._votes_lock = threading.Lock()

    async def open_reply(self, agent: DialogueAgent, utterances: Sequence[str], decoding: Decoding) -> Reply:
        """`DialogueAgent.open_reply` in a thread, because a chat template may be slow."""
        return await asyncio.to_thread(agent.open_reply, utterances, decoding)

    async def stream(self, reply: Reply, agent: DialogueAgent | None = None) -> AsyncIterator[None]:
        """Generate a reply, and yield each time it has changed. The last yield is after it is done.

        `Reply.cancel`, or closing the iterator (`contextlib.aclosing`), stops the generation before the next token.

        Args:
            reply: a reply from `DialogueAgent.open_reply`.
            agent: the agent that opened it, by default the trained one.

        Raises:
            ValueError: too many replies are being written.
            Exception: the exception that the model raised.
        """
        if self.worker.load >= MAX_REPLIES:
            raise ValueError(f"{MAX_REPLIES} replies are being written: try again in a moment")
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        reply.on_change = lambda: loop.is_closed() or loop.call_soon_threadsafe(changed.set)
        self.worker.submit(self._batches[agent or self.trained], reply)
        if reply.done:
            changed.set()  # the reply was cancelled before it was submitted
        try:
            done = False
            while not done:
                await changed.wait()
                changed.clear()
                if reply.error:
                    raise reply.error
                done = reply.done  # read before the yield, because the last token may arrive during it
                yield
        finally:
            reply.cancel()

    async def stream_both(self, utterances: Sequence[str], decoding: Decoding) -> AsyncIterator[dict[str, Reply]]:
        """Generate the replies of both agents, and yield them by side each time one has changed.

        The last yield is after both are done.
        """
        agents: dict[str, DialogueAgent] = {"start": self.start, "trained": self.trained}
        replies = {side: await self.open_reply(agent, utterances, decoding) for side, agent in agents.items()}
        changes: asyncio.Queue[Exception | None] = asyncio.Queue()

        async def forward_changes(side: str) -> None:
            try:
                async with aclosing(self.stream(replies[side], agents[side])) as updates:
                    async for _ in updates:
                        changes.put_nowait(None)
            except Exception as error:  # raised again below, in the caller's task
                changes.put_nowait(error)

        tasks = [asyncio.create_task(forward_changes(side)) for side in SIDES]
        try:
            done = False
            while not done:
                if error := await changes.get():
                    raise error
                done = all(reply.done for reply in replies.values())
                yield replies
        finally:
            for task in tasks:
                task.cancel()

    def read_act(self, previous: str, reply: str) -> tuple[str, float]:
        """The most probable act of a reply to the previous utterance, a name in `ACTS`, and its probability."""
        previous, reply = (self.trained.own_text(check_message(text)) for text in (previous, reply))
        probabilities = self.intent.probabilities([format_prompt([previous])], [reply])[0]
        return ACTS[int(probabilities.argmax()) + 1], float(probabilities.max())

    def add_pair(self, utterances: Sequence[str], replies: dict[str, str]) -> str:
        """Store two replies that can be voted on. Returns the ticket for the vote.

        Args:
            utterances: the conversation, including the message that was answered.
            replies: the texts by side.
        """
        ticket = secrets.token_urlsafe(12)
        self._pairs[ticket] = {"utterances": list(utterances), **replies}
        while len(self._pairs) > 1000:
            self._pairs.popitem(last=False)
        return ticket

    def vote(self, ticket: str, preferred: str) -> int:
        """Append a preference pair to the file of votes, a line of JSON.

        Its keys are ``prompt``, ``chosen``, ``rejected`` and ``preferred``. The texts are in the training format, or
        lists of messages if the agent uses a chat template. `datasets` and TRL's DPO trainer read both.

        Args:
            ticket: the ticket from `add_pair`, which is valid for one vote.
            preferred: the side with the better reply, ``"trained"`` or ``"start"``.

        Returns:
            The number of votes in the file.

        Raises:
            ValueError: the side or the ticket does not exist, or the ticket has been used.
        """
        if preferred not in SIDES:
            raise ValueError(f"preferred is {preferred!r}: expected 'trained' or 'start'")
        with self._votes_lock:
            pair = self._pairs.get(ticket) if isinstance(ticket, str) else None
            if pair is None:
                raise ValueError("these replies have been voted on already, or are too old")
            count = _append_line(self.votes, json.dumps(self._preference(pair, preferred), ensure_ascii=False))
            del self._pairs[ticket]  # not before the vote is in the file
            return count

    def _preference(self, pair: dict[str, Any], preferred: str) -> dict[str, Any]:
        replies = [pair[preferred], pair["start" if preferred == "trained" else "trained"]]
        said, replies = ([self.trained.own_text(text) for text in texts] for texts in (pair["utterances"], replies))
        if self.trained.template:
            prompt: Any = self.trained.messages(said)
            replies = [[{"role": "assistant", "content": text}] for text in replies]
        else:
            prompt = format_prompt(said[-self.trained.context_size :])
            replies = [f" {text} {EOU}" for text in replies]
        return {"prompt": prompt, "chosen": replies[0], "rejected": replies[1], "preferred": preferred}


def _append_line(path: Path, line: str) -> int:
    """Append a line to a file, which keeps what it has even if the disk is full. Returns: the number of lines."""
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        begin = b"" if file.read(1) in (b"", b"\n") else b"\n"  # another program's last line may lack its end
        new = begin + line.encode() + b"\n"
        try:
            if file.write(new) < len(new):
                raise OSError(f"no room for a vote in {path}")
        except OSError:
            with suppress(OSError):  # the first error is the one to report
                file.truncate(size)
            raise
        file.seek(0)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def choose_threads(model: PreTrainedModel) -> None:
    """Use one thread for a small model, which more threads do not speed up. The server needs the other cores."""
    if sum(parameter.numel() for parameter in model.parameters()) < 20e6:
        torch.set_num_threads(1)


def reply_turn(agent: DialogueAgent, reply: Reply) -> dict[str, Any]:
    """A reply as a turn of a conversation: its text and, once it is done, each token with its probability."""
    turn: dict[str, Any] = {"role": "agent", "text": escape_invisible(agent.reply_text(reply.ids))}
    if reply.done:
        # The worker may still add one token to a cancelled reply. It adds the token's probability before the token.
        ids = list(reply.ids)
        texts = agent.tokenizer.backend.decode_batch([[i] for i in ids], skip_special_tokens=True)
        turn["pieces"] = [
            (escape_invisible(text) or "(end)", round(probability, 4))
            for text, probability in zip(texts, reply.probabilities[: len(ids)], strict=True)
        ]
        if reply.cancelled:
            turn["note"] = "Stopped."
        elif not turn["text"]:
            turn["note"] = "The agent ended its reply without writing a word."
    return turn


def check_message(text: Any) -> str:
    """The message with invisible characters escaped and without surrounding whitespace.

    Raises:
        ValueError: the message is not a text, is empty, or is too long.
    """
    if not isinstance(text, str):
        raise ValueError(f"a message is {type(text).__name__}: expected text")
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"the message has {len(text):,} characters: expected at most {MAX_MESSAGE:,}")
    text = escape_invisible(text).strip()
    if not text:
        raise ValueError("the message is empty")
    return text


def make_decoding(sample: Any, temperature: Any, top_k: Any, top_p: Any, longest: Any, seed: Any) -> Decoding:
    """The `Decoding` of the untrusted values that a form or a client sends.

    Args:
        sample, temperature, top_k, top_p: see `Decoding`. Any type that converts to a number is accepted.
        longest: the maximum number of tokens of the reply.
        seed: an integer or its digits. None and ``""`` choose a new seed.

    Raises:
        ValueError: a value is not a number or is out of range.
    """
    try:
        seed = random.getrandbits(32) if seed in (None, "") else int(seed)
        return Decoding(bool(sample), float(temperature), int(top_k), float(top_p), int(longest), seed)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a setting is not a number ({error})") from error


def apply_request(turns: list[dict[str, Any]], request: Any) -> tuple[list[dict[str, Any]], str | None]:
    """Apply a request from the page to a conversation.

    Args:
        turns: ``{"role": "user" | "agent", "text": ...}``, in turn.
        request: ``{"do": "send" | "edit", "text": ...}`` or ``{"do": "retry" | "undo" | "reset"}``. It comes from a
            browser and is not trusted.

    Returns:
        turns: the turns that remain.
        message: the message that the agent is to answer, None if there is none.

    Raises:
        ValueError: the request is not one of these, or the conversation is too short for it.
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


def conversation_so_far(turns: list[dict[str, Any]], message: str) -> list[str]:
    """The utterances that the agent reads: those of the turns, and the new message.

    Messages whose reply was empty are left out, so that the speakers alternate.
    """
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [*(turn["text"] for pair in pairs if pair[1]["text"] for turn in pair), message]
