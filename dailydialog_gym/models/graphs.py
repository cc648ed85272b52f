"""Decoding by CUDA graphs: the GPU repeats a recorded step, which the CPU launches with one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dailydialog_gym.models.cache import FixedCache
from dailydialog_gym.models.decoder import Decoder, empty_records, put
from dailydialog_gym.models.sampling import Drawn, draw

DEVICE = "cuda"  # the type of device that records graphs
SMALLEST = 8  # rows; a step of fewer takes as long
PER_ROW = ("tokens", "state", "rows", "position_ids", "mask")
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


def bucket(rows: int, live: int) -> int:
    """How many rows the smallest graph has that holds ``live`` rows: all ``rows``, half of them, half of that, ..."""
    while live <= rows // 2 and rows > SMALLEST:
        rows = -(-rows // 2)
    return rows


class GraphDecoder(Decoder):
    """A `Decoder` for a GPU that records a step as a CUDA graph and then replays it, with one launch for each token.

    A step is the forward of one token, sampling the next one, the automaton that detects the end of a reply, and the
    records of what was drawn. A graph uses the same addresses at each replay, so whatever a step reads and writes
    stays where it is: the cache is a `FixedCache`, the random numbers are drawn before, and the weights are cast as
    `KeptCasts` does it. A graph also has a fixed number of rows. When at most half of the replies go on, their rows are
    moved to the first ones, and a graph of half as many takes over, see `bucket`.

    Each bucket's first step runs without a graph, its second step is recorded, and from then on the graph is replayed,
    in later batches too. vLLM decodes in this manner. ``torch.compile(mode="reduce-overhead")`` would compile for each
    bucket, and decodes without a graph where it cannot record one, with nothing but a hint in its log.

    No GPU has run this yet: the tests replay the recorded operations on a CPU.

    The arguments are those of `Decoder` without the last two. All batches have the same number of rows, and the
    network's parameters stay where they are: an optimizer changes them in place.

    Raises:
        ValueError: the device is not a GPU. `write` raises it if the network waits for the GPU during a step, which a
            graph cannot do, or if a batch has another number of rows than the first one.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[torch.Tensor, ...]],
        transitions: np.ndarray,
        max_new_tokens: int,
        autocast: AbstractContextManager,
        device: torch.device,
        top_k: int = 0,
    ):
        if device.type != DEVICE:
            raise ValueError(f"--cuda-graphs needs a CUDA GPU, and PyTorch finds none here ({device}): leave it out")
        self._casts = KeptCasts(autocast)
        super().__init__(forward, transitions, max_new_tokens, self._casts, device, top_k)
        self._held: dict[str, torch.Tensor] = {}  # at fixed addresses, as the records and the caches
        self._records: list[torch.Tensor | None] = []
        self._caches: dict[int, FixedCache] = {}  # of the first rows, by their number
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    @torch.no_grad()
    def write(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, copies: int, uniform: torch.Tensor
    ) -> tuple[Drawn, torch.Tensor]:
        self._casts.refresh()
        outputs = self.prefill(input_ids, attention_mask, copies)
        self._hold(uniform)
        rows = len(uniform)
        self._draw(rows, *outputs)
        for written in range(1, self._longest):
            if written % self._look_every == 0:
                ended = self._held["state"][:rows] == self._end
                live = rows - int(ended.sum())
                if live == 0:
                    break
                rows = self._move(ended, bucket(rows, live))
            self._run(rows)
        *drawn, values = (None if record is None else record.clone() for record in self._records)
        return Drawn(*drawn), values

    def _hold(self, uniform: torch.Tensor) -> None:
        """Copy a batch, after `prefill`, to where the graphs read it."""
        batch = {
            "tokens": torch.zeros_like(self.rows),
            "state": self._state,
            "rows": self.rows,
            "position_ids": self._position_ids,
            "mask": self._mask,
            "uniform": uniform,
            "column": torch.full_like(self.rows[:1], self._columns),  # of the next token
            "t": torch.zeros_like(self.rows[:1]),  # of its reply, the first is 0
        }
        if not self._held:
            self._held = {name: tensor.clone() for name, tensor in batch.items()}
            self._fixed = FixedCache(self._mask.shape[1])
        if len(uniform) != len(self._held["uniform"]):
            raise ValueError(f"{len(uniform)} replies: expected {len(self._held['uniform'])}, as in the first batch")
        for name, tensor in batch.items():
            self._held[name].copy_(tensor)
        self._fixed.hold(self._cache, self._first)
        del self._cache

    def _move(self, ended: torch.Tensor, rows: int) -> int:
        """Move the rows that have not ended, and if need be some that have, to the first ``rows``; returns ``rows``."""
        if rows < len(ended):
            moved = ended.int().argsort(stable=True)[:rows]
            for name in PER_ROW:
                self._held[name][:rows] = self._held[name][moved]
            self._fixed.move_rows(moved)
        return rows

    def _run(self, rows: int) -> None:
        """Take a step of the first rows: the first time without a graph."""
        if rows not in self._caches:
            self._caches[rows] = self._fixed.first_rows(rows)
            # On the stream that records: what cuBLAS allocates for a stream must not be allocated within a graph
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream), _NoWaits():
                self._step(rows)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if rows not in self._graphs:
            self._graphs[rows] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graphs[rows], pool=self._pool, stream=self._stream):
                self._step(rows)
        self._graphs[rows].replay()

    def _step(self, rows: int) -> None:
        """Read one token of each of the first rows, and draw the next one. Nothing here may depend on the CPU."""
        tokens, position_ids, mask = (self._held[name][:rows] for name in ("tokens", "position_ids", "mask"))
        mask.index_fill_(1, self._held["column"], 1)
        with self._autocast:
            outputs = self._forward(
                tokens[:, None], attention_mask=mask, position_ids=position_ids, past_key_values=self._caches[rows]
            )
        position_ids += 1
        self._held["column"] += 1
        self._held["t"] += 1
        self._draw(rows, *outputs)

    def _draw(self, rows: int, logits: torch.Tensor, values: torch.Tensor) -> None:
        """Draw a token for each of the first rows, record it, and advance the automaton."""
        tokens, state, of_batch = (self._held[name][:rows] for name in ("tokens", "state", "rows"))
        drawn = draw(logits, self._held["uniform"][of_batch, self._held["t"]], self._top_k)
        self._records = self._records or empty_records(len(self._held["uniform"]), self._longest, *drawn, values)
        put(self._records, of_batch, self._held["t"], *drawn, values)
        tokens.copy_(drawn.tokens)
        state.copy_(self._transitions[state, drawn.tokens])


class KeptCasts(TorchDispatchMode):
    """Autocast whose casts of the weights stay at fixed addresses, for all forwards until `refresh`.

    Autocast itself keeps them until its outermost block ends, in memory that is then used for something else, while a
    graph would go on reading it. Without any cache, a graph would cast all weights at each token.
    """

    def __init__(self, autocast: AbstractContextManager):
        super().__init__()
        self._autocast = autocast
        self._casts: dict[tuple[int, torch.dtype], tuple[nn.Parameter, torch.Tensor]] = {}

    def refresh(self) -> None:
        """Cast the weights anew, because they have changed."""
        for weight, cast in self._casts.values():
            cast.copy_(weight.detach())

    def __enter__(self) -> KeptCasts:
        super().__enter__()
        self._autocast.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._autocast.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket is not aten._to_copy or not isinstance(args[0], nn.Parameter):
            return function(*args, **kwargs)
        key = id(args[0]), kwargs.get("dtype", args[0].dtype)
        if key not in self._casts:
            self._casts[key] = args[0], function(*args, **kwargs)
        return self._casts[key][1]


class _NoWaits(TorchDispatchMode):
    """Refuses operations for which the CPU waits for the GPU, or copies something to it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if _waits(function, args, kwargs, result):
            raise ValueError(
                f"--cuda-graphs: this model's forward waits for the GPU, or uploads to it ({function}), which a CUDA "
                "graph cannot repeat: leave the flag out"
            )
        return result


def _waits(function: Any, args: tuple, kwargs: dict | None, result: Any) -> bool:
    packet, indices = function.overloadpacket, args[1] if len(args) > 1 else ()
    if packet in BY_INDEX:  # a boolean index is counted first
        return any(index is not None and index.dtype == torch.bool for index in indices)
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
        return True
    tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
    # An operation on the GPU may take a single number from the CPU as an argument, but not copy it to the GPU
    return len({tensor.device for tensor in tensors if tensor.ndim or packet in COPIES}) > 1
