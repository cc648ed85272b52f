"""A cache of keys and values for writing replies token by token."""

from __future__ import annotations

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 32  # columns


class _RoomyLayer(DynamicLayer):
    """A `DynamicLayer` that copies what it holds every 32nd token, not at every one: that took a third of a rollout."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = None
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < end:
            shape = (*key_states.shape[:-2], end + ROOM, key_states.shape[-1])
            held, self.buffers = (self.keys, self.values), (key_states.new_empty(shape), value_states.new_empty(shape))
            for buffer, states in zip(self.buffers, held, strict=True):
                if start:
                    buffer[..., :start, :] = states
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.buffers = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.buffers = None


def roomy_cache() -> Cache:
    """An empty cache, equal to a `transformers.DynamicCache` in all but speed."""
    return Cache(layer_class_to_replicate=_RoomyLayer)
