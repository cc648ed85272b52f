"""Draw the replies of a rollout: a batch in lockstep, token by token, with a key-value cache.

Each prompt is read once for all replies to it, and the rows of replies that have ended are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import torch
from torch.nn import functional
from transformers import Cache, PreTrainedModel

from dailydialog_gym.models.cache import DROP_BELOW, FixedCache, RoomyCache, read_prompts
from dailydialog_gym.models.forward import forward_cached
from dailydialog_gym.models.groups import GroupedCache
from dailydialog_gym.models.linear import packed_weights
from dailydialog_gym.models.precision import MixedPrecision
from dailydialog_gym.models.sampling import Drawn, draw

LOOK_EVERY = 16  # tokens, on a GPU: the CPU looks which replies have ended, and waits for the GPU to know


def empty_records(rows: int, longest: int, *columns: torch.Tensor | None) -> list[torch.Tensor | None]:
    """For each column, which has an entry for each row, zeros for each row and token, ``(rows, longest, ...)``."""
    return [None if column is None else column.new_zeros(rows, longest, *column.shape[1:]) for column in columns]


def put(
    records: list[torch.Tensor | None], rows: torch.Tensor, t: int | torch.Tensor, *columns: torch.Tensor | None
) -> None:
    """Write columns of some rows to the records of token ``t``."""
    for record, column in zip(records, columns, strict=True):
        if record is not None:
            record[rows, t] = column


@torch.no_grad()
def _takes_groups(model: PreTrainedModel, autocast: AbstractContextManager) -> bool:
    """Whether a model passes what a `GroupedCache` returns on to attention. Some do something else with it first.

    A trial tells: two replies to a prompt of one token.
    """
    cache, one = RoomyCache(), torch.ones(2, 1, dtype=torch.long, device=model.device)
    with autocast:
        forward_cached(model, one[:1], one[:1], 0 * one[:1], cache)
        try:
            forward_cached(model, one, one.expand(2, 2), one, GroupedCache(cache, copies=2))
        # Any error of a model that takes `Grouped` for a tensor: the forward above showed that the model itself works
        except Exception:
            return False
    return True


class Decoder:
    """Decodes a batch of replies token by token: `write` draws whole replies.

    For other choices of tokens, `prefill` reads the prompts, and each `step` reads one token of every row.

    Which replies have ended is known on the device, and a row goes on after the end of its reply, so that no token
    waits for the CPU. On a GPU the CPU looks every 16th token, on a CPU at every one. Then the ended rows are dropped
    if less than four fifths of the rows are live. With a `FixedCache` no row is dropped, since a compiled step needs a
    fixed shape. `dailydialog_gym.models.graphs.GraphDecoder` writes the same replies by CUDA graphs.

    Args:
        forward: the network, called as a transformers model with ``input_ids``, ``attention_mask``, ``position_ids``
            and ``past_key_values``; returns tensors with one entry for each row, here called outputs.
        transitions: ``(states, vocabulary)`` int64, the automaton that detects the end of a reply, see
            `dailydialog_gym.env.tokenizer.ReplyTokenizer`. It begins in state 0, and the last state is the end.
        max_new_tokens: of a reply.
        autocast: the precision of the forwards.
        device: where the network is.
        top_k: for `write`: draw each token from so many likeliest ones; 0 draws from all.
        fixed_cache: what `compile_decoding` returns, or None for a cache that grows.
        network: the model that ``forward`` runs. If it is given, `write` may use `packed_weights`, and with a
            `MixedPrecision` for ``autocast`` the replies to a prompt may share a `GroupedCache`.

    Attributes:
        rows: ``(n,)`` int64 on the device, the rows of the batch that the last outputs belong to.
        written: the number of tokens that each of them has, those after its end included.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[torch.Tensor, ...]],
        transitions: np.ndarray,
        max_new_tokens: int,
        autocast: AbstractContextManager,
        device: torch.device,
        top_k: int = 0,
        fixed_cache: FixedCache | None = None,
        network: PreTrainedModel | None = None,
    ):
        self._forward, self._longest, self._autocast, self._device = forward, max_new_tokens, autocast, device
        self._top_k, self._fixed_cache = top_k, fixed_cache
        self._network = network if fixed_cache is None else None  # a compiled forward is left alone
        masked = isinstance(autocast, MixedPrecision) and autocast.masked_steps
        self._groups = self._network is not None and masked and _takes_groups(self._network, autocast)
        self._end = len(transitions) - 1
        self._transitions = torch.tensor(transitions, device=device)
        self._transitions[self._end] = self._end  # what has ended stays so
        self._look_every = 1 if device.type == "cpu" else LOOK_EVERY

    @torch.no_grad()
    def write(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, copies: int, uniform: torch.Tensor
    ) -> tuple[Drawn, torch.Tensor]:
        """Draw replies to some prompts, until all have ended.

        The outputs of the network must be ``(n, vocabulary)`` logits and ``(n,)`` values.

        Args:
            input_ids, attention_mask, copies: as in `prefill`.
            uniform: ``(B, max_new_tokens)`` float64 on the device, a random number in [0, 1) for each token.

        Returns:
            What was drawn, ``(B, max_new_tokens)`` and for candidates ``(B, max_new_tokens, top_k)``, and the values
            before each token, ``(B, max_new_tokens)``. What follows the end of a reply means nothing.
        """
        records = list[torch.Tensor | None]()
        # Autocast caches the cast weights until its outermost block ends. With this block around the others, they are
        # cast once for all tokens.
        with torch.autocast(self._device.type, enabled=False), ExitStack() as stack:
            if self._network is not None:
                with self._autocast:  # which says whether there is anything to pack
                    stack.enter_context(packed_weights(self._network, len(uniform)))
            outputs: tuple[torch.Tensor, ...] | None = self.prefill(input_ids, attention_mask, copies)
            while outputs:  # until all replies have ended
                logits, values = outputs
                drawn = draw(logits, uniform[self.rows, self.written], self._top_k)
                records = records or empty_records(*uniform.shape, *drawn, values)
                put(records, self.rows, self.written, *drawn, values)
                outputs = self.step(drawn.tokens)
        *columns, values = records
        return Drawn(*columns), values

    @torch.no_grad()
    def prefill(self, input_ids: np.ndarray, attention_mask: np.ndarray, copies: int) -> tuple[torch.Tensor, ...]:
        """Read each prompt once, for ``copies`` replies to it, which become consecutive rows.

        Args:
            input_ids, attention_mask: ``(prompts, max_prompt_length)``, left-padded.

        Returns:
            The outputs for the first token of each of the ``prompts * copies`` replies.
        """
        first = int(attention_mask.any(0).argmax())  # the columns before it are padding in every row
        columns = attention_mask.shape[1]
        with self._autocast:
            outputs, cache = read_prompts(self._read, input_ids[:, first:], attention_mask[:, first:])
        if copies > 1 and self._groups:
            cache = GroupedCache(cache, copies)
        else:
            cache.batch_repeat_interleave(copies)
        self._cache = self._fixed_cache.hold(cache, first) if self._fixed_cache else cache
        self._first = 0 if self._fixed_cache else first
        there = torch.from_numpy(attention_mask).to(self._device).repeat_interleave(copies, dim=0)
        self._mask = functional.pad(there, (0, self._longest))
        self._columns = columns
        self._position_ids = self._mask.sum(1, keepdim=True)  # of the next token, (rows, 1)
        self.rows = torch.arange(len(self._mask), device=self._device)
        self._state = torch.zeros_like(self.rows)
        self.written = 0
        return tuple(output.repeat_interleave(copies, dim=0) for output in outputs)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """Read one token of every row.

        Args:
            tokens: ``(n,)`` the tokens of `rows`.

        Returns:
            The outputs for the next token of the new `rows`; None when all replies have ended.
        """
        self._state = self._transitions[self._state, tokens]
        self.written += 1
        if self.written == self._longest:
            return None
        if self.written % self._look_every == 0:
            live = self._state != self._end
            count = int(live.sum())
            if count == 0:
                return None
            if count < DROP_BELOW * len(live) and not self._fixed_cache:
                tokens = self._keep(live.nonzero()[:, 0], tokens)
        self._mask[:, self._columns] = 1
        self._columns += 1
        with self._autocast:
            outputs = self._forward(
                tokens[:, None],
                attention_mask=self._mask[:, self._first : None if self._fixed_cache else self._columns],
                position_ids=self._position_ids,
                past_key_values=self._cache,
            )
        self._position_ids = self._position_ids + 1
        return outputs

    def _keep(self, kept: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        self.rows, self._state, self._mask, self._position_ids, tokens = (
            each[kept] for each in (self.rows, self._state, self._mask, self._position_ids, tokens)
        )
        self._cache.batch_select_indices(kept)
        return tokens

    def _read(self, input_ids: np.ndarray, attention_mask: np.ndarray, cache: Cache) -> tuple[torch.Tensor, ...]:
        ids, mask = (torch.as_tensor(array, device=self._device) for array in (input_ids, attention_mask))
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        return self._forward(ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache)
