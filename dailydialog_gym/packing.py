"""Several replies to a context in one row of a batch, so that the context is computed once."""

from __future__ import annotations

import numpy as np
import torch


def pack(
    input_ids: np.ndarray, attention_mask: np.ndarray, P: int, K: int, device: torch.device | str
) -> list[torch.Tensor]:
    """Rows that share a context as one row, context | reply 1 | ... | reply K; a reply sees the context and itself.

    This changes no number: a reply's positions go on from the context's end, wherever it stands in the row. Columns
    that are padding in every row are cut: P' are left of the prompt, T of the replies.

    Args:
        input_ids, attention_mask: ``(B * K, columns)`` int64, the prompt in the first P columns.
        K: so many rows in turn have the same prompt.

    Returns:
        ``input_ids`` ``(B, P' + K * T)``, boolean ``attention_mask`` ``(B, 1, P' + K * T, P' + K * T)``,
        ``position_ids`` ``(B, P' + K * T)``, and ``(K * T,)`` the columns that predict the replies' tokens.
    """
    used = attention_mask.any(0).nonzero()[0]
    first, last = used[0], used[-1] + 1
    prompt, T = P - first, last - P

    def one_row(array):
        return np.concatenate([array[::K, first:P], array[:, P:last].reshape(-1, K * T)], axis=1)

    there = one_row(attention_mask)  # (B, P' + K * T)
    column = np.arange(there.shape[1])
    reply = np.repeat(np.arange(K + 1), [prompt] + K * [T])  # 0 in the context's columns, 1 to K in the replies'
    sees = (column <= column[:, None]) & ((reply == 0) | (reply == reply[:, None]))
    # Padding sees itself, because a softmax over nothing is NaN.
    mask = (sees & there[:, None].astype(bool)) | np.eye(len(column), dtype=bool)
    context = there[:, :prompt]
    position_ids = np.concatenate(
        [(context.cumsum(1) - 1).clip(0), context.sum(1, keepdims=True) + np.tile(np.arange(T), K)], axis=1
    )
    before = prompt + np.arange(K)[:, None] * T + np.arange(-1, T - 1)  # the column before a token predicts it
    before[:, 0] = prompt - 1
    arrays = one_row(input_ids), mask[:, None], position_ids, before.ravel()
    return [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]
