"""A cache of keys and values for writing replies token by token."""

from __future__ import annotations

from functools import partial

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

ROOM = 32  # columns


class _RoomyLayer(DynamicLayer):
    """A `DynamicLayer` that copies what it holds every 32nd token, not at every one: that took a third of a rollout."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._move(key_states, value_states)
        else:
            if self.buffers[0].shape[-2] < end:
                self._move(self.keys, self.values)
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[..., start:end, :] = states
        self._hold(end)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._move(*(states[:, None].expand(-1, repeats, -1, -1, -1) for states in (self.keys, self.values)))
        self._hold(self.keys.shape[-2])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._hold(self.keys.shape[-2])

    def _move(self, *held: torch.Tensor) -> None:
        """Copy ``(rows, [repeats,] heads, columns, width)`` to where there is room."""
        self.buffers = []
        for states in held:
            columns = states.shape[-2]
            buffer = states.new_empty((*states.shape[:-2], columns + ROOM, states.shape[-1]))
            buffer[..., :columns, :] = states
            self.buffers.append(buffer.flatten(0, -4))

    def _hold(self, columns: int) -> None:
        self.keys, self.values = (buffer[..., :columns, :] for buffer in self.buffers)


def roomy_cache() -> Cache:
    """An empty cache, equal to a `transformers.DynamicCache` in all but speed."""
    return Cache(layer_class_to_replicate=_RoomyLayer)


class FixedCache(Cache):
    """A cache of a fixed number of columns at a fixed address, with which every step is the same program: what
    `torch.compile` needs for a CUDA graph. The attention mask, as wide, hides the columns that hold nothing."""

    def __init__(self, columns: int):
        super().__init__(layer_class_to_replicate=partial(StaticLayer, max_cache_len=columns))

    def hold(self, cache: Cache, first: int) -> FixedCache:
        """Hold what another cache does, as many rows each time, from this column on."""
        self.layers = self.layers or [self.layer_class_to_replicate() for _ in cache.layers]
        for own, other in zip(self.layers, cache.layers, strict=True):
            if not own.is_initialized:
                own.lazy_initialization(other.keys, other.values)
            end = first + other.keys.shape[-2]
            own.keys[..., first:end, :] = other.keys
            own.values[..., first:end, :] = other.values
            own.cumulative_length.fill_(end)
        return self
