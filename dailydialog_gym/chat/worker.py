"""Write the replies of the page in a thread of their own."""

from __future__ import annotations

import threading
from collections import deque

from dailydialog_gym.models.decoding import DecodingBatch, Reply


class ReplyWorker:
    """A thread that decodes the replies of any number of models, one token of each batch in turn.

    A new reply joins its batch at the next token, so it does not wait for other replies to end while there are free
    rows. Without a free row, replies wait in the order in which they were submitted.

    Args:
        max_rows: the largest number of replies in a batch.
        max_new_rows: the largest number that joins between two tokens, so that reading prompts delays others little.
    """

    def __init__(self, max_rows: int = 64, max_new_rows: int = 32):
        self.max_rows, self.max_new_rows = max_rows, max_new_rows
        self._waiting: dict[DecodingBatch, deque[Reply]] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="replies", daemon=True).start()

    def submit(self, batch: DecodingBatch, reply: Reply) -> None:
        """Have a batch write a reply. The batch belongs to the worker from now on."""
        with self._changed:
            self._waiting.setdefault(batch, deque()).append(reply)
            self._changed.notify()

    @property
    def load(self) -> int:
        """How many replies are being written or waiting."""
        return sum(len(batch.replies) + len(queue) for batch, queue in list(self._waiting.items()))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.load)
                turns = [(batch, self._joining(batch)) for batch in self._waiting]
            for batch, joining in turns:
                try:
                    batch.step()
                    if joining:
                        batch.add(joining)
                except Exception as error:  # whatever a model raises reaches those who wait for it; the thread goes on
                    for reply in {*batch.replies, *joining}:
                        reply.fail(error)
                    batch.clear()

    def _joining(self, batch: DecodingBatch) -> list[Reply]:
        queue = self._waiting[batch]
        room = min(self.max_new_rows, self.max_rows - sum(not reply.done for reply in batch.replies))
        joining: list[Reply] = []
        while queue and len(joining) < room:
            reply = queue.popleft()
            if not reply.done:  # cancelled while it waited
                joining.append(reply)
        return joining
