"""Tokens are drawn as often as they are probable, by one random number a row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.distributions import Categorical

from dailydialog_gym.models.sampling import BLOCK, draw, search

VOCABULARY = 3 * BLOCK + 40


def some_logits(rows, vocabulary=VOCABULARY, dtype=torch.float32):
    return (3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))).to(dtype)


def some_uniform(rows, seed=0):
    return torch.rand(rows, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "top_k"), [(VOCABULARY, 0), (VOCABULARY, 20), (50, 0), (50, 50)])
def test_the_counts_of_many_draws_pass_a_chi_squared_test(vocabulary, top_k, dtype):
    logits, draws = some_logits(1, vocabulary, dtype), 50_000
    probabilities = logits[0].double().softmax(-1)
    if top_k:
        kept = logits[0].topk(top_k).indices
        probabilities = torch.zeros_like(probabilities).index_add(0, kept, probabilities[kept])
    expected = draws * probabilities / probabilities.sum()
    found = draw(logits.expand(draws, -1), some_uniform(draws), top_k).tokens.bincount(minlength=vocabulary)
    assert found[expected == 0].sum() == 0
    common = expected >= 10
    counts = np.append(found[common].numpy(), found[~common].sum())
    means = np.append(expected[common].numpy(), expected[~common].sum())
    if means[-1] == 0:
        counts, means = counts[:-1], means[:-1]
    assert chisquare(counts, means * counts.sum() / means.sum()).pvalue > 0.01


@pytest.mark.parametrize("top_k", [0, 7])
def test_log_probs_are_those_of_the_distributions(top_k):
    logits = some_logits(100)
    drawn = draw(logits, some_uniform(100), top_k)
    torch.testing.assert_close(drawn.log_probs, Categorical(logits=logits).log_prob(drawn.tokens))
    if not top_k:
        assert drawn.candidates is None and (drawn.actions is drawn.tokens)
        assert drawn.action_log_probs is drawn.log_probs
        return
    assert torch.equal(drawn.candidates, logits.topk(top_k).indices)
    assert torch.equal(drawn.candidates.gather(1, drawn.actions[:, None])[:, 0], drawn.tokens)
    among = Categorical(logits=logits.gather(1, drawn.candidates)).log_prob(drawn.actions)
    torch.testing.assert_close(drawn.action_log_probs, among)


def test_a_row_is_drawn_by_its_own_number_alone():
    logits, uniform = some_logits(64), some_uniform(64)
    whole = draw(logits, uniform).tokens
    some = torch.tensor([5, 40, 63])
    assert torch.equal(draw(logits[some], uniform[some]).tokens, whole[some])
    assert not torch.equal(draw(logits, some_uniform(64, seed=1)).tokens, whole)


@settings(deadline=None)
@given(
    st.lists(st.just(0.0) | st.floats(1e-30, 1.0), min_size=1, max_size=600).filter(any),
    st.sampled_from([0.0, 0.3, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_a_column_of_weight_zero_is_never_drawn(weights, uniform):
    columns = len(weights) if len(weights) <= BLOCK else -(-len(weights) // BLOCK) * BLOCK
    row = torch.zeros(1, columns)
    row[0, : len(weights)] = torch.tensor(weights)
    column = search(row, torch.tensor([uniform], dtype=torch.double)).item()
    assert row[0, column] > 0


def test_numbers_in_a_row_draw_columns_in_a_row():
    weights = some_logits(1, 2 * BLOCK).exp()
    uniform = torch.linspace(0, 1, 5000, dtype=torch.double)[:-1]
    found = search(weights.expand(len(uniform), -1), uniform)
    cumulative = (weights.double() / weights.double().sum()).cumsum(-1)[0]
    expected = torch.searchsorted(cumulative, uniform, right=True)
    assert (found == expected).float().mean() > 0.999 and (found.diff() >= 0).all()
