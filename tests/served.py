"""The chat page on a local server, for tests."""

import socket
import time

from dailydialog_gym.chat.conversation import Chat
from dailydialog_gym.chat.page import build_page, launch
from dailydialog_gym.chat.trained import TrainedAgent


class Served:
    """A page on a local server. `delay` is the time, in seconds, by which every forward pass of its model is slowed."""

    def __init__(self, chat: Chat, trained: TrainedAgent, **options):
        self.chat, self.delay = chat, 0.0
        chat.trained.model.register_forward_pre_hook(lambda *_: time.sleep(self.delay))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.page = build_page(chat, trained)
        options = {"share": False, "auth": None, **options}
        launch(self.page, "127.0.0.1", port, prevent_thread_lock=True, quiet=True, **options)
        self.url = f"http://127.0.0.1:{port}/"
