import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.models.decoding import Decoding, DecodingBatch, Reply, choose

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


def test_greedy_writes_what_generate_writes(agent):
    prompts = [f"{message} <EOU>" for message in MESSAGES]
    assert agent.chat_batch(MESSAGES) == agent.reply(prompts)
    for message in MESSAGES:
        reply = open_reply(agent, message, sample=False)
        prompt = torch.tensor([reply.prompt_ids])
        theirs = agent.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20
        )
        (ours,) = write(agent.decoding_batch(), reply)
        assert ours == theirs[0, prompt.shape[1] :][: len(ours)].tolist()


def test_equal_prompts_are_read_once(agent, monkeypatch):
    rows = []
    forward = agent.model.forward
    monkeypatch.setattr(agent.model, "forward", lambda ids, **inputs: rows.append(len(ids)) or forward(ids, **inputs))
    replies = [open_reply(agent, MESSAGES[i % 2], seed=i) for i in range(6)]
    together = write(agent.decoding_batch(), *replies)
    assert rows[:2] == [2, 6]
    assert together == [write(agent.decoding_batch(), open_reply(agent, MESSAGES[i % 2], seed=i))[0] for i in range(6)]


def test_rows_of_all_settings_are_drawn_as_each_would_be_alone():
    torch.manual_seed(0)
    logits, uniform = torch.randn(200, 50), torch.rand(200, dtype=torch.float64)
    decodings = [
        Decoding(row % 5 > 0, 0.5 + row % 7 / 4, (0, 1, 5, 20, 99)[row % 11 % 5], (1.0, 0.5, 0.9)[row % 3])
        for row in range(200)
    ]
    alone = [choose(logits[row : row + 1], [decodings[row]], uniform[row : row + 1]).item() for row in range(200)]
    assert choose(logits, decodings, uniform).tolist() == alone


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def draw_many(logits, count=1000, **how):
    """What random numbers that are spread evenly over [0, 1) draw."""
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return choose(logits.expand(count, -1), [Decoding(sample=True, **how)] * count, uniform)


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 2.0}])
def test_tokens_are_drawn_as_often_as_they_are_probable(how):
    probabilities = torch.tensor([0.1, 0.6, 0.0, 0.3]) ** (1 / how.get("temperature", 1))
    if "top_p" in how:
        probabilities[0] = 0
    counts = draw_many(logits_of(0.1, 0.6, 0.0, 0.3), **how).bincount(minlength=4)
    assert (counts - 1000 * probabilities / probabilities.sum()).abs().max() <= 1
    assert counts[2] == 0


def test_top_k_and_top_p_keep_the_likeliest_tokens_and_no_more():
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    for how, kept in (
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.8}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"top_p": 0.01}, {0}),
        ({}, {0, 1, 2, 3}),
        ({"temperature": 0.05}, {0}),
    ):
        assert set(draw_many(logits, **how).tolist()) == kept, how


class Fixed(GPT2LMHeadModel):
    """A model that gives the rows of a batch these logits, ``(rows, vocabulary)``, whatever it reads."""

    def __init__(self, *logits):
        super().__init__(GPT2Config(vocab_size=len(logits[0]), n_embd=1, n_layer=0, n_head=1))
        self.fixed = torch.stack(logits)

    def forward(self, input_ids, past_key_values, **inputs):
        states = torch.zeros(*input_ids.shape, 1)[:, None]
        past_key_values.update(states, states, 0)
        return SimpleNamespace(logits=self.fixed[:, None])


def test_probabilities_are_the_models_own_whatever_the_drawing():
    reply = Reply([0], Decoding(sample=True, top_k=1, temperature=3.0, max_new_tokens=2), lambda ids: False)
    write(DecodingBatch(Fixed(logits_of(0.5, 0.3, 0.2)), 3), reply)
    assert reply.probabilities == pytest.approx([0.5, 0.5])


@given(
    st.builds(
        Decoding,
        sample=st.booleans(),
        temperature=st.floats(0.05, 10),
        top_k=st.integers(0, 10**6),
        top_p=st.floats(1e-6, 1),
    ),
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(-math.inf), min_size=1, max_size=20),
    st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_any_decoding_of_any_logits_chooses_a_token_that_is_not_forbidden(how, logits, uniform):
    assume(max(logits) > -math.inf)
    (token,) = choose(torch.tensor([logits]), [how], torch.tensor([uniform], dtype=torch.float64))
    assert logits[token] > -math.inf


@pytest.mark.parametrize("sample", [False, True])
def test_logits_of_minus_infinity_forbid_tokens_and_other_infinities_fail_their_reply_alone(sample):
    inf, nan = math.inf, math.nan
    rows = torch.tensor([[-inf, 0, -inf, 0], [nan, 0, 0, 0], [inf, 0, 0, 0], [-inf] * 4, [0, -inf, -inf, -inf]])
    replies = [
        Reply([i], Decoding(sample=sample, max_new_tokens=40, seed=1), lambda ids: False) for i in range(len(rows))
    ]
    batch = DecodingBatch(Fixed(*rows), 4)
    batch.add(replies)
    assert [bool(reply.error) for reply in replies] == [False, True, True, True, False]
    assert "not finite" in str(replies[1].error)
    assert replies[0].ids[0] in (1, 3) and replies[4].ids == [0] and replies[4].probabilities == [1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"min_new_tokens": -1},
    ],
)
def test_decoding_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding(**wrong)
