import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.models.decoding import Decoding, Reply, ReplyWorker

MESSAGES = ["Hi !", "What time does the train to Oslo leave , please ?", "No .", "I lost my wallet , can you help ?"]


@pytest.fixture(scope="module")
def agent(tiny_model):
    return DialogueAgent.load(tiny_model)


def open_reply(agent, message, **decoding):
    return agent.open_reply([message], Decoding(**{"sample": True, **decoding}))


def write(batch, *replies):
    batch.add(list(replies))
    while batch.replies:
        batch.step()
    return [reply.ids for reply in replies]


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
def test_rows_that_join_and_leave_write_what_they_would_alone(tiny_models, architecture):
    agent = DialogueAgent.load(tiny_models[architecture])
    how = [{"seed": i, "max_new_tokens": n} for i, n in enumerate((20, 4, 9, 15))]
    alone = [write(agent.decoding_batch(), open_reply(agent, m, **h))[0] for m, h in zip(MESSAGES, how, strict=True)]
    batch, replies = agent.decoding_batch(), [open_reply(agent, m, **h) for m, h in zip(MESSAGES, how, strict=True)]
    batch.add(replies[:1])
    batch.step()
    batch.add(replies[1:3])  # a longer and a shorter prompt
    for _ in range(5):
        batch.step()
    batch.add(replies[3:])
    while batch.replies:
        batch.step()
    assert [reply.ids for reply in replies] == alone


def test_a_model_without_position_ids_reads_left_padding_right(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=2, n_head=2, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    agent = DialogueAgent.load(str(tmp_path))
    together = write(agent.decoding_batch(), *(open_reply(agent, m) for m in MESSAGES))
    assert together == [write(agent.decoding_batch(), open_reply(agent, m))[0] for m in MESSAGES]


def test_greedy_writes_what_generate_writes(agent):
    prompts = [f"{message} <EOU>" for message in MESSAGES]
    assert agent.chat_batch(MESSAGES) == agent.reply(prompts)


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def draw_many(how, logits, count=300):
    reply = Reply([0], Decoding(sample=True, max_new_tokens=count, **how), lambda ids: False)
    for _ in range(count):
        reply.take(logits)
    return reply


def test_top_k_and_top_p_keep_the_likeliest_tokens_and_no_more():
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert set(draw_many({"top_k": 2}, logits).ids) == {0, 1}
    assert set(draw_many({"top_p": 0.8}, logits).ids) == {0, 1}
    assert set(draw_many({"top_p": 0.81}, logits).ids) == {0, 1, 2}
    assert set(draw_many({"top_p": 0.01}, logits).ids) == {0}
    assert set(draw_many({}, logits).ids) == {0, 1, 2, 3}
    assert set(draw_many({"temperature": 0.05}, logits).ids) == {0}


def test_probabilities_are_the_models_own_whatever_the_drawing():
    reply = draw_many({"top_k": 1, "temperature": 3.0}, logits_of(0.5, 0.3, 0.2), count=2)
    assert reply.probabilities == pytest.approx([0.5, 0.5])


@given(
    st.builds(
        Decoding,
        sample=st.booleans(),
        temperature=st.floats(0.05, 10),
        top_k=st.integers(0, 10**6),
        top_p=st.floats(1e-6, 1),
        seed=st.integers(0, 2**63 - 1),
    ),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
)
@settings(max_examples=200, deadline=None)
def test_any_decoding_of_any_logits_draws_a_token(how, logits):
    reply = Reply([0], how, lambda ids: False)
    reply.take(torch.tensor(logits))
    assert 0 <= reply.ids[0] < len(logits)
    assert 0 <= reply.probabilities[0] <= 1.000001


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"temperature": float("nan")}, {"top_p": 0}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_decoding_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding(**wrong)


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
    reply = open_reply(agent, message, **decoding)
    return Waited(reply.prompt_ids, reply.decoding, ends or reply.ends)


def test_a_worker_answers_many_at_once_each_as_if_alone(agent):
    worker, batch = ReplyWorker(max_rows=6, max_new_rows=2), agent.decoding_batch()
    replies = [waited(agent, MESSAGES[i % 4], seed=i) for i in range(20)]
    for reply in replies:
        worker.submit(batch, reply)
    assert all(reply.finished.wait(20) for reply in replies)
    alone = write(agent.decoding_batch(), *(open_reply(agent, MESSAGES[i % 4], seed=i) for i in range(20)))
    assert [reply.ids for reply in replies] == alone


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


def test_logits_that_are_not_finite_are_an_error_of_that_reply(agent):
    reply = open_reply(agent, "Hi !")
    agent.decoding_batch()._choose([reply], torch.full((1, 5), torch.nan))
    assert "not finite" in str(reply.error)
