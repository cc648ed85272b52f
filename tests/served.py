"""The chat page on a local server, for tests."""

import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import Chat
from dailydialog_gym.chat.page import build_page
from dailydialog_gym.chat.server import launch
from dailydialog_gym.chat.trained import TrainedAgent
from dailydialog_gym.models.decoding import Decoding, Reply
from dailydialog_gym.rewards.intent import IntentMatch


def chat_of(*agents: DialogueAgent, intent: IntentMatch | None = None) -> Chat:
    """A chat with loaded agents, whose titles are "agent 0 <i>" and so on."""
    choices = [TrainedAgent(str(number), f"agent {number} <i>", "It.") for number in range(len(agents))]
    return Chat(choices, lambda choice: agents[int(choice.model)], intent)


class Served:
    """A page on a local server.

    `delay` is the time, in seconds, by which every forward pass of its model is slowed. A slowed reply has at least
    eight tokens, whatever is drawn, so that a test sees it grow and can stop it.
    """

    def __init__(self, chat: Chat, votes: Path, host: str = "127.0.0.1", **options):
        self.chat, self.votes, self.delay = chat, votes, 0.0
        self.title = chat.default.title
        self.agent = chat.agent(self.title)
        self.agent.model.register_forward_pre_hook(lambda *_: time.sleep(self.delay))
        self._open_reply, chat.open_reply = chat.open_reply, self._open_slowed_reply
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.page = build_page(chat, votes)
        port = launch(self.page, host, port, prevent_thread_lock=True, quiet=True, **options)
        self.url = f"http://127.0.0.1:{port}/"

    async def _open_slowed_reply(self, title: str, utterances: Sequence[str], decoding: Decoding) -> Reply:
        return await self._open_reply(title, utterances, replace(decoding, min_new_tokens=8 if self.delay else 0))
