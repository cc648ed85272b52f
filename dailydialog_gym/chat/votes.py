"""Votes between two replies: preference pairs in a file, and how often one agent won."""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.tokenizer import EOU, format_prompt
from dailydialog_gym.files import check_output
from dailydialog_gym.models.decoding import Decoding
from dailydialog_gym.reports.votes import count_votes, describe_votes

SIDES = ("trained", "start")  # the agent, and what it is compared with
VERDICTS = (*SIDES, "tie", "both bad")


def two_draws(decoding: Decoding) -> dict[str, Decoding]:
    """How the two sides decode: with the same settings and different random numbers."""
    other = random.Random(decoding.seed).getrandbits(32)
    return dict(zip(SIDES, (decoding, replace(decoding, seed=other)), strict=True))


class Votes:
    """A file of votes, and the pairs of replies that can still be voted on.

    Args:
        path: the file, to which votes are appended.

    Raises:
        ValueError: there can't be such a file: it is a folder or a pipe, or its folder does not exist.
    """

    def __init__(self, path: Path):
        check_output(path, "--votes")
        self.path = path
        self._pairs: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by ticket
        self._lock = threading.Lock()

    def add_pair(
        self,
        agent: DialogueAgent,
        names: dict[str, dict[str, str]],
        utterances: Sequence[str],
        replies: dict[str, str],
        decodings: dict[str, Decoding],
        blind: bool,
    ) -> str:
        """Remember two replies that can be voted on. Returns: the ticket for the vote.

        Args:
            agent: the one in whose format the pair is written.
            names: by side, the agent's ``name`` and ``revision``.
            utterances: the conversation, including the message that was answered.
            replies: by side, the texts.
            decodings: by side, how they were decoded.
            blind: whether the voter does not know which agent wrote which.
        """
        said, texts = ([agent.own_text(text) for text in group] for group in (utterances, replies.values()))
        if agent.template:
            prompt: Any = agent.messages(said)
            formatted: list[Any] = [[{"role": "assistant", "content": text}] for text in texts]
        else:
            prompt = format_prompt(said[-agent.context_size :])
            formatted = [f" {text} {EOU}" for text in texts]
        ticket = secrets.token_urlsafe(12)
        self._pairs[ticket] = {
            "prompt": prompt,
            "replies": dict(zip(replies, formatted, strict=True)),
            "blind": blind,
            "conversation": list(utterances),
            **{side: {**names[side], **asdict(decodings[side])} for side in SIDES},
        }
        while len(self._pairs) > 1000:
            self._pairs.popitem(last=False)
        return ticket

    def vote(self, ticket: Any, verdict: Any) -> int:
        """Append a preference pair to the file, a line of JSON. `datasets` and TRL's DPO trainer read it.

        Its keys are ``prompt``, ``chosen`` and ``rejected``, texts in the training format or lists of messages if the
        agent uses a chat template; ``preferred``, which is ``"trained"``, ``"start"`` or ``"tie"``; ``both_bad``,
        ``blind``, ``conversation``, ``time``; and ``trained`` and ``start``, each with the agent's ``name``, its
        ``revision`` and the settings of its reply.

        Args:
            ticket: from `add_pair`, which is valid for one vote.
            verdict: one of ``VERDICTS``. Of a tie, and where both are bad, the chosen reply is the agent's.

        Returns: the number of lines in the file.

        Raises:
            ValueError: the verdict or the ticket does not exist, or the ticket has been used.
            OSError: the vote could not be written; the ticket stays valid.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"the vote is {str(verdict)[:80]!r}: expected one of {', '.join(VERDICTS)}")
        with self._lock:
            pair = self._pairs.get(ticket) if isinstance(ticket, str) else None
            if pair is None:
                raise ValueError("these replies have been voted on already, or are too old")
            row = dict(pair)
            replies = row.pop("replies")
            chosen = verdict if verdict in SIDES else "trained"
            (rejected,) = set(SIDES) - {chosen}
            line = {
                "prompt": row.pop("prompt"),
                "chosen": replies[chosen],
                "rejected": replies[rejected],
                "preferred": verdict if verdict in SIDES else "tie",
                "both_bad": verdict == "both bad",
                **row,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            count = _append_line(self.path, json.dumps(line, ensure_ascii=False))
            del self._pairs[ticket]  # not before the vote is in the file
            return count

    def result(self, first: str, second: str) -> str:
        """How often the first of two agents won, by the blind votes, as a sentence; empty if there are none.

        Raises:
            ValueError: a line of the file is no vote.
        """
        counts = count_votes(self.path) if self.path.exists() else {}
        for pair in ((first, second), (second, first)):
            if pair in counts:
                return describe_votes(*pair, counts[pair])
        return ""


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
