"""Replies that share their prompt's keys and values are those of replies with copies of them."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import ARCHITECTURES
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.architectures import LONGEST, VOCAB, WIDTH, tiny_config, tiny_model
from dailydialog_gym.models.cache import RoomyCache
from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.forward import forward_cached
from dailydialog_gym.models.groups import Grouped, GroupedCache, Groups
from dailydialog_gym.models.precision import MixedPrecision, masked_attention

CPU = torch.device("cpu")
PROMPTS, COPIES = 5, 4
# Their attention is eager, or does something with the keys and values of the cache first
WITHOUT = {"gptj", "gemma2", "gpt_oss", "deepseek_v3"}


def write(model, precision, seed, monkeypatch, grouped=True):
    """What a decoder writes whose replies end at different tokens, and the largest number of rows of its caches."""
    made = []

    class Spy(GroupedCache):
        def __init__(self, prompts, copies):
            super().__init__(prompts, copies)
            made.append(copies)

    rng = np.random.default_rng(seed)
    mask = (np.arange(WIDTH) >= rng.integers(0, WIDTH - 1, (PROMPTS, 1))).astype(np.int64)
    mask[0] = 1
    ids = rng.integers(3, VOCAB, mask.shape) * mask
    ends = np.zeros((2, VOCAB), np.int64)
    ends[:, : VOCAB // 5] = 1
    torch.manual_seed(seed)
    uniform = torch.rand(PROMPTS * COPIES, LONGEST, dtype=torch.double)

    def next_token(ids, **inputs):
        logits = forward_cached(model, ids, **inputs).logits[:, -1]
        return logits, logits[:, 0]  # in the place of values

    network = model if grouped else None
    with monkeypatch.context() as patch:
        patch.setattr("dailydialog_gym.models.decoder.GroupedCache", Spy)
        decoder = Decoder(next_token, ends, LONGEST, precision, CPU, network=network)
        made.clear()  # the decoder's trial
        drawn, values = decoder.write(ids, mask, COPIES, uniform)
    before = ends[0][drawn.tokens].cumsum(1) - ends[0][drawn.tokens]
    return drawn, values, torch.from_numpy(before == 0), made


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_replies_are_those_of_copied_prompts(kind, monkeypatch):
    model = tiny_model(tiny_config(kind))
    for seed in range(3):
        expected, values, there, made = write(model, nullcontext(), seed, monkeypatch, grouped=False)
        assert not made
        ours, our_values, _, made = write(model, MixedPrecision(CPU, None, WIDTH + LONGEST), seed, monkeypatch)
        assert made == ([] if kind in WITHOUT else [COPIES])
        assert len(set(there.sum(1).tolist())) > 3  # rows were dropped while others went on
        assert torch.equal(ours.tokens[there], expected.tokens[there])
        torch.testing.assert_close(ours.log_probs[there], expected.log_probs[there], rtol=0, atol=1e-4)
        torch.testing.assert_close(our_values[there], values[there], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_mixed_precision_they_are_as_near_to_float32_as_copies(kind, monkeypatch):
    model, mixed = tiny_model(tiny_config(kind)), MixedPrecision(CPU, torch.bfloat16, WIDTH + LONGEST)
    squares = {False: [], True: []}
    for seed in range(4):
        exact, _, there, _ = write(model, nullcontext(), seed, monkeypatch, grouped=False)
        for grouped in squares:
            found, _, _, made = write(model, mixed, seed, monkeypatch, grouped)
            assert made == [COPIES] * grouped
            # Up to the first token that rounding changes, after which the replies differ
            same = there & ((exact.tokens != found.tokens).cumsum(1) == 0)
            assert same.sum() > 0.5 * there.sum()
            squares[grouped].append((exact.log_probs - found.log_probs)[same].square())
    copies, ours = (torch.cat(parts).mean().sqrt() for parts in squares.values())
    assert 0 < ours < 1.5 * copies < 0.1


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=5), kv=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99)
)
def test_grouped_products_are_those_of_whole_keys(counts, kv, seed):
    torch.manual_seed(seed)
    groups = Groups(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
    rows, heads = sum(counts), 4
    some = Grouped(
        torch.randn(len(counts), kv, 7, 3, dtype=torch.double), torch.randn(rows, kv, 5, 3, dtype=torch.double), groups
    )
    whole = some.whole().repeat_interleave(heads // kv, dim=1)
    query, weights = torch.randn(rows, heads, 1, 3).double(), torch.randn(rows, heads, 1, 12).double()
    torch.testing.assert_close(some.scores(query), query @ whole.transpose(2, 3))
    torch.testing.assert_close(some.average(weights), weights @ whole)
    torch.testing.assert_close(groups.scatter(groups.gather(query, kv), heads), query)


@pytest.mark.parametrize("more", [{}, {"position_bias": torch.linspace(-1, 1, 9).double().expand(1, 4, 1, 9)}])
def test_attention_is_pytorchs(more):
    """PyTorch's own also computes what `masked_attention` does not, here a bias."""
    groups = Groups(torch.tensor([0, 0, 0, 1, 1]))
    key, value = (Grouped(torch.randn(2, 2, 6, 8).double(), torch.randn(5, 2, 3, 8).double(), groups) for _ in range(2))
    query, mask = torch.randn(5, 4, 1, 8).double(), torch.rand(5, 1, 1, 9) < 0.7
    mask[..., -1] = True
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    ours, _ = masked_attention(module, query, key, value, mask, **more)
    theirs, _ = sdpa_attention_forward(module, query, key.whole(), value.whole(), mask, **more)
    torch.testing.assert_close(ours, theirs)


def test_prompts_are_held_once_and_go_with_their_last_row():
    prompts, states = RoomyCache(), torch.randn(3, 2, 6, 4)
    prompts.update(states, 2 * states, 0)
    cache = GroupedCache(prompts, copies=9)
    assert cache.layers[0].shared[0].data_ptr() == states.data_ptr()
    cache.batch_select_indices(torch.tensor([i for i in range(27) if i % 9]))  # before any token of a reply
    keys, values = cache.update(torch.randn(24, 2, 1, 4), torch.randn(24, 2, 1, 4), 0)
    before = keys.whole()
    cache.batch_select_indices(torch.tensor([1, 16, 23]))  # none of the second prompt
    keys, values = cache.update(torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4), 0)
    assert len(keys.shared) == 2 and cache.get_seq_length() == 8
    assert torch.equal(keys.whole()[:, :, :7], before[[1, 16, 23]])
    assert torch.equal(values.shared, 2 * keys.shared)
