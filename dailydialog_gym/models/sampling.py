"""Inverse transform sampling of tokens: one random number a row, and a search in the cumulative probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

BLOCK = 256  # tokens


class Drawn(NamedTuple):
    """The tokens that `draw` chose, one for each of n rows."""

    tokens: torch.Tensor
    """``(n,)``"""
    log_probs: torch.Tensor
    """``(n,)`` float, of the tokens under the whole distribution"""
    actions: torch.Tensor
    """``(n,)`` with ``top_k``, the index of the token among the candidates; otherwise the token"""
    action_log_probs: torch.Tensor
    """``(n,)`` float, of the tokens among the candidates; otherwise `log_probs`"""
    candidates: torch.Tensor | None
    """``(n, top_k)``, the likeliest tokens, the first of them first; None without ``top_k``"""


def draw(logits: torch.Tensor, uniform: torch.Tensor, top_k: int = 0) -> Drawn:
    """Draw a token for each row.

    Args:
        logits: ``(n, vocabulary)`` of any floating type; probabilities are computed in float32 or better.
        uniform: ``(n,)`` float64, a random number in [0, 1) for each row.
        top_k: draw from the likeliest tokens, so many of them; 0 draws from all.
    """
    likeliest = logits.topk(top_k) if top_k else None
    peak = logits.amax(-1, keepdim=True) if likeliest is None else likeliest.values[:, :1]
    weights = exponentials(logits, peak)
    log_total = weights.sum(-1).log()

    def among_all(tokens: torch.Tensor) -> torch.Tensor:
        return (logits.gather(1, tokens[:, None]).to(weights.dtype) - peak)[:, 0] - log_total

    if likeliest is None:
        tokens = search(weights, uniform).clamp_(max=logits.shape[1] - 1)  # logits that are NaN are reported elsewhere
        log_probs = among_all(tokens)
        return Drawn(tokens, log_probs, tokens, log_probs, None)
    among_likeliest = likeliest.values.to(weights.dtype).log_softmax(-1)
    actions = search(among_likeliest.exp(), uniform)
    tokens, action_log_probs = (each.gather(1, actions[:, None])[:, 0] for each in (likeliest.indices, among_likeliest))
    return Drawn(tokens, among_all(tokens), actions, action_log_probs, likeliest.indices)


def exponentials(logits: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    """``exp(logits - peak)`` in float32 or better, ``(n, columns)``: zeros fill the last block, if there are several.

    Args:
        logits: ``(n, vocabulary)``.
        peak: ``(n, 1)``, the largest logit of each row.
    """
    n, vocabulary = logits.shape
    columns = vocabulary if vocabulary <= BLOCK else -(-vocabulary // BLOCK) * BLOCK
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.zeros(n, columns, dtype=dtype, device=logits.device)
    weights[:, :vocabulary].copy_(logits).sub_(peak).exp_()
    return weights


def search(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """``(n,)``: for each row the first column up to which the weights sum to more than ``uniform`` of their total.

    So column ``i`` is drawn with probability ``weights[:, i] / weights.sum(1)``, and never where its weight is 0.
    `torch.multinomial` draws a random number for every column instead of one for every row. With many columns, the
    sums of blocks are searched first, and then one block.

    Args:
        weights: ``(n, columns)``, at least 0. More than `BLOCK` columns are a multiple of it.
        uniform: ``(n,)`` float64, in [0, 1).
    """
    fraction = uniform[:, None]
    if weights.shape[1] <= BLOCK:
        return _search(weights, fraction)[0][:, 0]
    blocks = weights.view(len(weights), -1, BLOCK)
    block, fraction = _search(blocks.sum(-1), fraction)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    return (block * BLOCK + _search(within, fraction)[0])[:, 0]


def _search(weights: torch.Tensor, fraction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(n, 1)`` each: the column in which the given fraction of the total lies, and the fraction of that column."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    goal = torch.minimum(fraction * total, total.nextafter(torch.zeros_like(total)))  # rounding may reach the total
    column = torch.searchsorted(cumulative, goal, right=True).clamp_(max=weights.shape[1] - 1)  # NaN
    before = functional.pad(cumulative, (1, 0)).gather(1, column)
    return column, (goal - before) / (cumulative.gather(1, column) - before)
