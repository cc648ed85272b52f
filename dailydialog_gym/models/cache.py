"""Caches of keys and values for decoding token by token."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np
import torch
from torch.nn import functional
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

ROOM = 32  # columns
MOST_GROUPS = 4  # more save less padding than their small matrices cost
DROP_BELOW = 0.8  # dropping rows copies the cache, which costs more than it saves while more rows than this are live


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` that copies what it holds every 32nd token, not at every one.

    `keys` and `values` have columns for tokens to come, which hold zeros, and attention gets them all, so its mask must
    hide these. A part of them would not be contiguous in memory, and PyTorch's bfloat16 matmuls on a CPU would copy it.
    """

    held = 0  # columns

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start, self.held = self.held, self.held + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        if self.keys.shape[-2] < self.held:
            self._move(*(states[..., :start, :] for states in (self.keys, self.values)))
        self.keys[..., start : self.held, :] = key_states
        self.values[..., start : self.held, :] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The columns that attention gets after the next update, and the first of them."""
        if not self.is_initialized:
            return query_length, 0
        columns = self.keys.shape[-2]
        return columns if self.held + query_length <= columns else self.held + ROOM, 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._move(*(s[:, None].expand(-1, repeats, -1, -1, -1) for s in (self.keys, self.values)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]

    def append_rows(self, other: RoomyLayer) -> None:
        columns = max(self.held, other.held)

        def stack(*parts: tuple[torch.Tensor, int]) -> torch.Tensor:
            return torch.cat([functional.pad(part[..., :n, :], (0, 0, columns - n, 0)) for part, n in parts])

        self._move(
            stack((self.keys, self.held), (other.keys, other.held)),
            stack((self.values, self.held), (other.values, other.held)),
        )
        self.held = columns

    def drop_columns(self, count: int) -> None:
        self.keys, self.values = (states[..., count:, :].contiguous() for states in (self.keys, self.values))
        self.held -= count

    def _move(self, *held: torch.Tensor) -> None:
        """Copy keys and values, ``(rows, [repeats,] heads, columns, width)``, to where there is room."""
        self.keys, self.values = (functional.pad(states, (0, 0, 0, ROOM)).flatten(0, -4) for states in held)


class RoomyCache(Cache):
    """A faster `transformers.DynamicCache` with the same contents, in front of empty columns. Rows can be added to it.

    `dailydialog_gym.models.forward.forward_cached` makes the masks that hide the empty columns, and so does a
    transformers model by itself from a two-dimensional mask.
    """

    def __init__(self):
        super().__init__(layer_class_to_replicate=RoomyLayer)

    def append_rows(self, other: RoomyCache) -> None:
        """Add another cache's rows below; the columns of the narrower one are padded on the left."""
        for own, others in zip(self.layers, other.layers, strict=True):
            own.append_rows(others)

    def drop_columns(self, count: int) -> None:
        """Leave out the first columns."""
        for layer in self.layers:
            layer.drop_columns(count)


def read_prompts(
    read: Callable, input_ids: np.ndarray, attention_mask: np.ndarray
) -> tuple[tuple[torch.Tensor, ...], RoomyCache]:
    """Read left-padded prompts into a cache. Prompts of similar length share a forward, so little padding is computed.

    Args:
        read: gets the input_ids and the attention_mask of some rows, ``(n, columns)``, and an empty cache, which it
            fills; returns tensors of n rows.
        input_ids, attention_mask: ``(rows, columns)``; the first column is padding in some rows, but not in all.

    Returns:
        What ``read`` returns and a `RoomyCache`, for all rows as if read at once.
    """
    rows, columns = attention_mask.shape
    lengths = attention_mask.sum(1)
    groups = np.array_split(lengths.argsort(kind="stable"), min(MOST_GROUPS, -(-rows // 4)))
    if len(groups) == 1:
        cache = RoomyCache()
        return read(input_ids, attention_mask, cache), cache
    outputs, caches, starts = [], [], [columns - lengths[group].max() for group in groups]
    for group, start in zip(groups, starts, strict=True):
        caches.append(RoomyCache())
        outputs.append(read(input_ids[group, start:], attention_mask[group, start:], caches[-1]))
    device = outputs[0][0].device
    order = torch.from_numpy(np.concatenate(groups).argsort()).to(device)
    groups = [torch.from_numpy(group).to(device) for group in groups]  # an array would be copied to a GPU at every use
    whole = RoomyCache()
    for i, layer in enumerate(caches[0].layers):
        held = [
            states.new_zeros(rows, states.shape[1], columns, states.shape[3]) for states in (layer.keys, layer.values)
        ]
        for group, start, cache in zip(groups, starts, caches, strict=True):
            for states, part in zip(held, (cache.layers[i].keys, cache.layers[i].values), strict=True):
                states[group, :, start:] = part
        whole.update(*held, i)
    return tuple(torch.cat(parts)[order] for parts in zip(*outputs, strict=True)), whole


class FixedCache(Cache):
    """A cache with a fixed number of columns at a fixed address, so that every step runs the same program, as
    `torch.compile` needs for a CUDA graph. The attention mask has the same width and hides the empty columns."""

    layers: list[StaticLayer]

    def __init__(self, columns: int):
        super().__init__(layer_class_to_replicate=partial(StaticLayer, max_cache_len=columns))

    def hold(self, cache: RoomyCache, first: int) -> FixedCache:
        """Copy what a cache holds, whose number of rows is the same in every call, to the columns from ``first`` on."""
        if not self.layers:
            self.layers = [self.layer_class_to_replicate() for _ in cache.layers]
        for own, other in zip(self.layers, cache.layers, strict=True):
            if not own.is_initialized:
                own.lazy_initialization(other.keys, other.values)
                # transformers gives the values the type of the keys, and mixed precision may rotate keys in float32
                own.values = own.values.to(other.values.dtype)
                torch._dynamo.mark_static_address(own.values)
            end = first + other.held
            own.keys[..., first:end, :] = other.keys[..., : other.held, :]
            own.values[..., first:end, :] = other.values[..., : other.held, :]
            own.cumulative_length.fill_(end)
        return self

    def first_rows(self, count: int) -> FixedCache:
        """A cache of the first rows of this one, in the same memory."""
        part = FixedCache(self.layers[0].max_cache_len)
        for layer in self.layers:
            rows = copy(layer)
            rows.keys, rows.values = layer.keys[:count], layer.values[:count]
            part.layers.append(rows)
        return part

    def move_rows(self, rows: torch.Tensor) -> None:
        """Copy some rows to the first ones."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[: len(rows)] = states[rows]
