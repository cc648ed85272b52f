"""The two ways to run a policy: on whole replies in packed rows, and token by token with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Cache

from dailydialog_gym.models.cache import FixedCache, read_prompts
from dailydialog_gym.models.last_block import only_tail_is_read
from dailydialog_gym.models.masks import attention_masks
from dailydialog_gym.models.packing import Packed

DROP_BELOW = 0.8  # dropping rows copies the cache, which costs more than it saves while more rows than this are live


def forward_packed(model: nn.Module, packed: Packed, **options: Any):
    """A transformers model's output for packed rows; only its last ``packed.tail`` columns are meaningful.

    `Packed.predicting` selects from it what predicts the reply tokens. ``options`` are passed on to the model.
    """
    with only_tail_is_read(model, packed.tail):
        return model(
            packed.input_ids,
            attention_mask=attention_masks(model, packed.attention_mask, packed.position_ids),
            position_ids=packed.position_ids,
            use_cache=False,
            **options,
        )


class Decoder:
    """Decodes a batch of replies token by token: `prefill` reads the prompts, each `step` reads one token of every row.

    A row whose reply has ended is computed on until less than four fifths of the rows are live; then the ended rows are
    dropped. With a `FixedCache` no row is dropped, since a compiled step needs a fixed shape.

    Args:
        forward: the network, called as a transformers model with ``input_ids``, ``attention_mask``, ``position_ids``
            and ``past_key_values``; returns tensors with one entry for each row, here called outputs.
        columns: of a row, ``max_prompt_length + max_new_tokens``.
        autocast: the precision of the forwards.
        device: where the network is.
        fixed_cache: what `compile_decoding` returns, or None for a cache that grows.

    Attributes:
        rows: ``(n,)`` int64 on the device, the rows of the batch that the last outputs belong to.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[torch.Tensor, ...]],
        columns: int,
        autocast: AbstractContextManager,
        device: torch.device,
        fixed_cache: FixedCache | None = None,
    ):
        self._forward, self._columns, self._autocast, self._device = forward, columns, autocast, device
        self._fixed_cache = fixed_cache

    @torch.no_grad()
    def prefill(self, input_ids: np.ndarray, attention_mask: np.ndarray, copies: int) -> tuple[torch.Tensor, ...]:
        """Read each prompt once, for ``copies`` replies to it, which become consecutive rows.

        Args:
            input_ids, attention_mask: ``(prompts, max_prompt_length)``, left-padded.

        Returns:
            The outputs for the first token of each of the ``prompts * copies`` replies.
        """
        first = int(attention_mask.any(0).argmax())  # the columns before it are padding in every row
        input_ids, attention_mask = input_ids[:, first:], attention_mask[:, first:]
        with self._autocast:
            outputs, cache = read_prompts(self._read, input_ids, attention_mask)
        cache.batch_repeat_interleave(copies)
        self._cache = self._fixed_cache.hold(cache, first) if self._fixed_cache else cache
        self._begin = first
        self._end = first + input_ids.shape[1]
        self._mask = torch.zeros(len(input_ids) * copies, self._columns, dtype=torch.long, device=self._device)
        self._mask[:, first : self._end] = torch.from_numpy(attention_mask).repeat_interleave(copies, dim=0)
        self._position_ids = self._mask.sum(1, keepdim=True)  # of the next token, (rows, 1)
        self.rows = torch.arange(len(self._mask), device=self._device)
        self._row_numbers = np.arange(len(self._mask))  # `rows` on the CPU
        return tuple(output.repeat_interleave(copies, dim=0) for output in outputs)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor, live: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Read one token of every row.

        Args:
            tokens: ``(n,)`` the tokens of `rows`.
            live: ``(batch,)`` bool, the rows of the whole batch whose replies have not ended.

        Returns:
            The outputs for the next token of the new `rows`.
        """
        live = live[self._row_numbers]
        if live.mean() < DROP_BELOW and not self._fixed_cache:
            self._row_numbers = self._row_numbers[live]
            kept = torch.from_numpy(live.nonzero()[0]).to(self._device)
            tokens, self.rows = tokens[kept], self.rows[kept]
            self._mask, self._position_ids = self._mask[kept], self._position_ids[kept]
            self._cache.batch_select_indices(kept)
        self._mask[:, self._end] = 1
        self._end += 1
        seen = self._mask if self._fixed_cache else self._mask[:, self._begin : self._end]
        with self._autocast:
            outputs = self._forward(
                tokens[:, None], attention_mask=seen, position_ids=self._position_ids, past_key_values=self._cache
            )
        self._position_ids = self._position_ids + 1
        return outputs

    def _read(self, input_ids: np.ndarray, attention_mask: np.ndarray, cache: Cache) -> tuple[torch.Tensor, ...]:
        input_ids, attention_mask = (torch.as_tensor(a, device=self._device) for a in (input_ids, attention_mask))
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return self._forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache)
