"""A batch of prompts and replies in rows without padding, each context once for all of its replies."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Packed(NamedTuple):
    """B rows of L columns; the last R of them hold all columns that predict one of the N reply tokens."""

    input_ids: torch.Tensor
    """``(B, L)``"""
    attention_mask: torch.Tensor
    """boolean ``(B, 1, L, L)``"""
    position_ids: torch.Tensor
    """``(B, L)``"""
    tail: int
    """R"""
    before: torch.Tensor
    """``(N,)``: in the flattened ``(B, R)``, the column that predicts a reply token; tokens in the order in which
    ``attention_mask[:, P:].nonzero()`` finds them"""
    replies: torch.Tensor | None = None
    """``(N,)``: the reply tokens in the flattened ``(n, T)`` of the whole batch; None for windows of text"""

    def predicting(self, outputs: torch.Tensor) -> torch.Tensor:
        """A model's outputs, ``(B, L or R, ...)``, in the columns that predict the reply tokens, ``(N, ...)``."""
        return outputs[:, -self.tail :].flatten(0, 1)[self.before]


def share_out(sizes: np.ndarray) -> list[list[int]]:
    """Distribute items over rows of about equal length: each item, the largest first, is put into the shortest row
    (longest processing time, Graham 1969, doi:10.1137/0117039).

    Fewer rows have less padding, but longer rows cost more attention. Row lengths of one to two times the largest item
    are compared, with a cost of ``width + width**2 / 1024`` for each row, and the cheapest is taken.
    """
    counts = {min(len(sizes), -(-sizes.sum() // int(sizes.max() * length))) for length in (1, 1.25, 1.5, 1.75, 2)}
    found = []
    rows: list[tuple[int, int, list[int]]]  # a heap: what is in a row, which one it is, its items
    for count in {*counts, len(sizes)}:
        rows = [(0, b, []) for b in range(count)]
        for item in np.argsort(-sizes, kind="stable").tolist():
            filled, b, items = rows[0]
            heapq.heapreplace(rows, (filled + int(sizes[item]), b, [*items, item]))
        width = max(filled for filled, *_ in rows)
        found.append((count * width * (width + 1024), count, [items for *_, items in rows]))
    return min(found)[2]


def pack(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    P: int,
    context: np.ndarray,
    device: torch.device | str,
    rows: np.ndarray | None = None,
) -> Packed:
    """Contexts with all their replies in shared rows; a reply sees its context and itself.

    The outputs are those of separate rows: the positions of a reply continue its context's, wherever it is in the row.
    A row begins with its contexts without their last tokens. Then follow, for each context, its last token, which
    predicts the first token of each reply, and its replies. Everything is copied to the device at once.

    Args:
        input_ids, attention_mask: ``(n, P + T)`` int64, the prompts in the first P columns, left-padded.
        context: ``(n,)``; those with the same number here have the same prompt.
        rows: the rows of a minibatch; by default all.
    """
    T = input_ids.shape[1] - P
    rows = np.arange(len(input_ids)) if rows is None else rows
    ids, there = input_ids[rows], attention_mask[rows].astype(bool)
    first, context = np.unique(context[rows], return_index=True, return_inverse=True)[1:]
    reply_lengths, read = there[:, P:].sum(1), there[first, :P].sum(1)
    tail = 1 + np.bincount(context, reply_lengths).astype(np.int64)
    shared = share_out(read - 1 + tail)
    R = max(tail[some].sum() for some in shared)
    L = max((read[some] - 1 + tail[some]).sum() for some in shared)
    where, body, column = np.zeros((3, len(first)), np.int64)  # of each context, its row, and where its two parts begin
    for b, some in enumerate(shared):
        where[some] = b
        column[some] = L - tail[some].sum() + tail[some].cumsum() - tail[some]
        body[some] = L - tail[some].sum() - (read[some] - 1).sum() + (read[some] - 1).cumsum() - (read[some] - 1)
    order = context.argsort(kind="stable")  # the replies to a context one after the other
    begin = np.zeros_like(reply_lengths)
    begin[order] = reply_lengths[order].cumsum() - reply_lengths[order]
    begin += 1 + column[context] - begin[order[np.searchsorted(context[order], context)]]

    row_ids, position, prompt, reply = np.zeros((4, len(shared), L), np.int64)  # prompt 0 is padding, reply 0 none
    c, source = there[first, :P].nonzero()
    i = (there[first, :P].cumsum(1) - 1)[c, source]
    at = where[c], np.where(i < read[c] - 1, body[c] + i, column[c])
    row_ids[at], position[at], prompt[at] = ids[first[c], source], i, c + 1
    which, t = there[:, P:].nonzero()
    c = context[which]
    at = where[c], begin[which] + t
    row_ids[at], position[at], prompt[at] = ids[which, P + t], read[c] + t, c + 1
    reply[at] = which + 1
    before = where[c] * R + np.where(t > 0, begin[which] + t - 1, column[c]) - (L - R)

    arrays = row_ids, position, prompt, reply, before, rows[which] * T + t
    sizes = [array.size for array in arrays]
    parts = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device).split(sizes)
    row_ids, position, prompt, reply = (part.view(len(shared), L) for part in parts[:4])
    one, other = np.s_[:, :, None], np.s_[:, None]
    mask = (prompt[one] == prompt[other]) & ((reply[other] == 0) | (reply[one] == reply[other]))
    mask = mask.tril_()  # of padding too, because a softmax over nothing is NaN
    return Packed(row_ids, mask[:, None], position, int(R), parts[4], parts[5])


def pack_windows(windows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Packed, torch.Tensor]:
    """Windows of text in shared rows; a token sees its own window up to itself, and positions begin at 0 in each.

    Args:
        windows: token ids, at least two in each. All but the first are predicted, and all but the last are read.

    Returns:
        The packed rows, in which every column is in the tail, and the ``(N,)`` tokens that its columns predict.
    """
    sizes = np.array([len(window) - 1 for window in windows])
    rows = share_out(sizes)
    L = max(sizes[row].sum() for row in rows)
    input_ids, position, window = np.zeros((3, len(rows), L), np.int64)  # window 0 is padding
    before, targets = list[np.ndarray](), list[int]()
    for b, row in enumerate(rows):
        ends = sizes[row].cumsum()
        for i, end in zip(row, ends, strict=True):
            own = np.arange(end - sizes[i], end)
            input_ids[b, own] = windows[i][:-1]
            position[b, own] = np.arange(sizes[i])
            window[b, own] = i + 1
            before.append(b * L + own)
            targets += windows[i][1:]
    mask = (window[:, :, None] == window[:, None]) & np.tri(L, dtype=bool)
    arrays = input_ids, mask[:, None], position, np.concatenate(before), np.array(targets)
    input_ids, mask, position, before, targets = (torch.from_numpy(array).to(device) for array in arrays)
    return Packed(input_ids, mask, position, int(L), before), targets
