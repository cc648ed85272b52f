"""Decoding of several replies to each prompt, whose keys and values are held once, and read once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache

from dailydialog_gym.models.cache import RoomyCache, RoomyLayer


class Groups:
    """Which prompt each row belongs to. Every prompt has equally many slots, and its rows take the first of them.

    Args:
        prompts: ``(rows,)`` ascending, without gaps.
    """

    def __init__(self, prompts: torch.Tensor):
        counts = prompts.bincount()
        self.prompts, self.count, self.most = prompts, len(counts), int(counts.max())
        first = counts.cumsum(0) - counts  # row of each prompt
        self._slots = prompts * self.most + torch.arange(len(prompts), device=prompts.device) - first[prompts]

    def gather(self, rows: torch.Tensor, heads: int) -> torch.Tensor:
        """``(rows, H, 1, x)`` as ``(prompts, heads, slots * H / heads, x)``; a slot without a row has zeros."""
        slots = rows[:, :, 0]
        if len(rows) < self.count * self.most:
            slots = rows.new_zeros(self.count * self.most, *slots.shape[1:])
            slots[self._slots] = rows[:, :, 0]
        return slots.reshape(self.count, self.most, heads, -1, rows.shape[-1]).transpose(1, 2).flatten(2, 3)

    def scatter(self, slots: torch.Tensor, all_heads: int) -> torch.Tensor:
        """What `gather` made of ``(rows, H, 1, x)``, back in this shape."""
        slots = slots.unflatten(2, (self.most, -1)).transpose(1, 2)  # (prompts, slots, heads, H / heads, x)
        slots = slots.reshape(self.count * self.most, all_heads, 1, -1)
        return slots if len(slots) == len(self.prompts) else slots[self._slots]


def scores_of(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The products of queries and keys, ``(rows, H, L, columns)``. Each head of keys is for H / heads heads of queries.

    Args:
        query: ``(rows, H, L, d)``.
        key: ``(rows, heads, columns, d)``.
    """
    rows, heads, columns, width = key.shape
    return (query.reshape(rows, heads, -1, width) @ key.transpose(2, 3)).view(*query.shape[:3], columns)


def average_of(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The averages of values by weights, ``(rows, H, L, d)``.

    Args:
        weights: ``(rows, H, L, columns)``.
        value: ``(rows, heads, columns, d)``.
    """
    rows, heads, columns, width = value.shape
    return (weights.reshape(rows, heads, -1, columns) @ value).view(*weights.shape[:3], width)


@dataclass
class Grouped:
    """Keys or values of some rows: those of their prompts, and those of the tokens after them.

    Args:
        shared: ``(prompts, heads, P, d)``.
        own: ``(rows, heads, columns, d)``.
        groups: the prompts of the rows.
    """

    shared: torch.Tensor
    own: torch.Tensor
    groups: Groups

    def scores(self, query: torch.Tensor) -> torch.Tensor:
        """The products of ``(rows, H, 1, d)`` queries with these keys, ``(rows, H, 1, P + columns)``."""
        shared = self.groups.gather(query, self.own.shape[1]) @ self.shared.transpose(2, 3)
        return torch.cat([self.groups.scatter(shared, query.shape[1]), scores_of(query, self.own)], -1)

    def average(self, weights: torch.Tensor) -> torch.Tensor:
        """The averages of these values by ``(rows, H, 1, P + columns)`` weights, ``(rows, H, 1, d)``."""
        prompt = self.shared.shape[2]
        shared = self.groups.gather(weights[..., :prompt], self.own.shape[1]) @ self.shared
        return self.groups.scatter(shared, weights.shape[1]) + average_of(weights[..., prompt:], self.own)

    def whole(self) -> torch.Tensor:
        """``(rows, heads, P + columns, d)``"""
        return torch.cat([self.shared[self.groups.prompts], self.own], 2)


class _GroupedLayer(RoomyLayer):
    """Holds the tokens after the prompts, and gives attention both."""

    def __init__(self, prompts: RoomyLayer, groups: Groups):
        super().__init__()
        self.shared = tuple(states[..., : prompts.held, :].contiguous() for states in (prompts.keys, prompts.values))
        self.groups = groups

    def update(self, *args, **kwargs) -> tuple[Grouped, Grouped]:
        keys, values = (
            Grouped(shared, own, self.groups)
            for shared, own in zip(self.shared, super().update(*args, **kwargs), strict=True)
        )
        return keys, values

    def get_seq_length(self) -> int:
        return self.shared[0].shape[2] + self.held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        columns, first = super().get_mask_sizes(query_length)
        return self.shared[0].shape[2] + columns, first


class GroupedCache(Cache):
    """A cache in which several rows share a prompt, for attention that takes `Grouped` keys and values.

    The rows of a prompt read its keys and values together, as a product of two matrices, where each row would read a
    copy of its own: attention takes a fraction of the time, and the cache of the memory.

    Args:
        prompts: holds prompts alone.
        copies: how many consecutive rows each of them gets.
    """

    is_initialized = True  # it holds the prompts; transformers looks at the first layer, which may have no token yet

    def __init__(self, prompts: RoomyCache, copies: int):
        device, count = prompts.layers[0].keys.device, len(prompts.layers[0].keys)
        self._groups = Groups(torch.arange(count, device=device).repeat_interleave(copies))
        super().__init__(layers=[_GroupedLayer(layer, self._groups) for layer in prompts.layers])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows, in ascending order, and the prompts that they belong to."""
        kept, prompts = self._groups.prompts[indices].unique_consecutive(return_inverse=True)
        fewer, self._groups = len(kept) < self._groups.count, Groups(prompts)
        for layer in self.layers:
            if layer.held:
                layer.batch_select_indices(indices)
            layer.groups = self._groups
            if fewer:
                layer.shared = tuple(states[kept] for states in layer.shared)
