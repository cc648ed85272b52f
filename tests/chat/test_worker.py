"""The thread that writes the page's replies."""

import threading
import time

import pytest

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.worker import ReplyWorker
from dailydialog_gym.models.decoding import Decoding, Reply

MESSAGES = ["Hi !", "What time does the train to Oslo leave , please ?", "No .", "I lost my wallet , can you help ?"]


@pytest.fixture(scope="module")
def agent(tiny_model):
    return DialogueAgent.load(tiny_model)


class Waited(Reply):
    """A reply that can be waited for."""

    def __post_init__(self):
        super().__post_init__()
        self.started, self.finished, self.on_change = threading.Event(), threading.Event(), self.changed

    def changed(self):
        self.started.set()
        if self.done:
            self.finished.set()


def waited(agent, message, ends=None, **decoding):
    reply = agent.open_reply([message], Decoding(sample=True, **decoding))
    return Waited(reply.prompt_ids, reply.decoding, ends or reply.ends)


def test_a_worker_answers_many_at_once_each_as_if_alone(agent):
    worker, batch = ReplyWorker(max_rows=6, max_new_rows=2), agent.decoding_batch()
    replies = [waited(agent, MESSAGES[i % 4], seed=i) for i in range(20)]
    for reply in replies:
        worker.submit(batch, reply)
    assert all(reply.finished.wait(20) for reply in replies)
    alone = [agent.open_reply([MESSAGES[i % 4]], Decoding(sample=True, seed=i)) for i in range(20)]
    batch = agent.decoding_batch()
    batch.add(alone)
    while batch.replies:
        batch.step()
    assert [reply.ids for reply in replies] == [reply.ids for reply in alone]


def test_a_cancelled_reply_frees_the_worker(agent):
    worker, batch = ReplyWorker(max_rows=1), agent.decoding_batch()
    endless = waited(agent, "Hi !", ends=lambda ids: time.sleep(0.1), max_new_tokens=32)  # for three seconds
    worker.submit(batch, endless)
    assert endless.started.wait(20)
    waiting, gone = waited(agent, "No .", seed=1), waited(agent, "No .", seed=1)
    worker.submit(batch, gone)
    worker.submit(batch, waiting)
    gone.cancel()  # before its turn
    assert not waiting.started.wait(0.2)
    endless.cancel()
    assert waiting.finished.wait(20)
    assert gone.ids == []
    written = len(endless.ids)
    time.sleep(0.3)
    assert len(endless.ids) == written < 32 and worker.load == 0


def test_a_reply_that_fails_says_so_and_the_worker_goes_on(agent):
    worker, batch = ReplyWorker(), agent.decoding_batch()
    broken = Waited([10**6], Decoding(), lambda ids: False)  # no such token
    worker.submit(batch, broken)
    assert broken.finished.wait(20) and isinstance(broken.error, IndexError)
    fine = waited(agent, "Hi !")
    worker.submit(batch, fine)
    assert fine.finished.wait(20) and fine.error is None
