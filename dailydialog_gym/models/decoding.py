"""Replies written token by token for many people at once: one batch and one KV cache, which replies join and leave."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Decoding:
    """How the tokens of a reply are chosen.

    Args:
        sample: draw them; otherwise each is the likeliest.
        temperature: of the drawing, 0.05 to 10; below 1 likely tokens become likelier.
        top_k: draw from the likeliest k tokens; 0 leaves all.
        top_p: draw from the fewest tokens that together have this probability, above 0; 1 leaves all.
        max_new_tokens: the longest reply.
        seed: of the drawing; the reply depends on it alone, whoever else is being answered.

    Raises:
        ValueError: a value is out of its range.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 20
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("temperature", 0.05, 10),
            ("top_k", 0, 2**31),
            ("top_p", 1e-6, 1),
            ("max_new_tokens", 1, 2**31),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise ValueError(f"{name} is {value}: expected {low} to {high}")


@dataclass(eq=False)
class Reply:
    """A reply while it is being written, and then as it stands.

    Args:
        prompt_ids: the tokens before it, at least one.
        decoding: how to choose its tokens.
        ends: whether these tokens of it are a whole reply.
        on_change: called without arguments, from any thread, when `ids`, `done` or `error` changed.

    Attributes:
        ids: the tokens so far.
        probabilities: what the model gave each of them before temperature, top-k and top-p.
        done: nothing more will come.
        cancelled: because nobody wants more.
        error: why the reply could not be written.
    """

    prompt_ids: list[int]
    decoding: Decoding
    ends: Callable[[Sequence[int]], bool]
    on_change: Callable[[], None] = lambda: None
    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    done: bool = False
    cancelled: bool = False
    error: Exception | None = None

    def __post_init__(self):
        self._generator = torch.Generator().manual_seed(self.decoding.seed)

    def cancel(self) -> None:
        """Ask for no more tokens: the batch drops the reply before its next token. Nothing, once it is done."""
        if not self.done:
            self.done = self.cancelled = True
            self.on_change()

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from ``(vocabulary,)`` logits."""
        probabilities = logits.softmax(-1)
        token = self._draw(logits) if self.decoding.sample else int(logits.argmax())
        self.probabilities.append(float(probabilities[token]))
        self.ids.append(token)
        if len(self.ids) >= self.decoding.max_new_tokens or self.ends(self.ids):
            self.done = True

    def fail(self, error: Exception) -> None:
        self.error, self.done = error, True
        self.on_change()

    def _draw(self, logits: torch.Tensor) -> int:
        how = self.decoding
        logits = logits / how.temperature
        if 0 < how.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(how.top_k).values[-1], -torch.inf)
        probabilities = logits.softmax(-1)
        if how.top_p < 1:
            ordered, tokens = probabilities.sort(descending=True)
            beyond = ordered.cumsum(-1) - ordered >= how.top_p  # the likelier ones already have that much
            probabilities[tokens[beyond]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


class DecodingBatch:
    """The replies a model is writing, a row each. They may join and leave before any token.

    Rows are left-padded to one length, in the cache as in the mask, so each has its own positions. A row's logits do
    not depend on the others (beyond rounding).

    Args:
        model: a causal language model whose cache is plain keys and values: not a state-space model.
        vocab_size: tokens from here on are never chosen (models often have more rows than their tokenizer tokens).
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int):
        self.model, self.vocab_size = model, vocab_size
        self.replies: list[Reply] = []
        self.cache = DynamicCache()
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # (rows, columns), on the CPU

    @torch.inference_mode()
    def add(self, replies: list[Reply]) -> None:
        """Read the prompts of new replies and write each one's first token."""
        width = max(len(reply.prompt_ids) for reply in replies)
        input_ids = torch.zeros(len(replies), width, dtype=torch.long)
        mask = torch.zeros(len(replies), width, dtype=torch.long)
        for row, reply in enumerate(replies):
            input_ids[row, width - len(reply.prompt_ids) :] = torch.tensor(reply.prompt_ids)
            mask[row, width - len(reply.prompt_ids) :] = 1
        cache = DynamicCache()
        logits = self._forward(input_ids, mask, cache)
        if self.replies:
            self._append(cache, mask)
        else:
            self.cache, self.mask = cache, mask
        self.replies += replies
        self._choose(replies, logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Write one more token of every reply that isn't done, and drop those that are."""
        self._drop_done()
        if not self.replies:
            return
        self.mask = functional.pad(self.mask, (0, 1), value=1)
        input_ids = torch.tensor([[reply.ids[-1]] for reply in self.replies])
        self._choose(self.replies, self._forward(input_ids, self.mask, self.cache))

    def clear(self) -> None:
        self.replies, self.cache = [], DynamicCache()

    def _forward(self, input_ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """``(rows, vocabulary)`` logits of the next token, on the CPU, where the drawing is."""
        device = self.model.device
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        logits = self.model(
            input_ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1, : self.vocab_size].float().cpu()

    @staticmethod
    def _choose(replies: list[Reply], logits: torch.Tensor) -> None:
        for reply, row in zip(replies, logits, strict=True):
            if not torch.isfinite(row).all():
                reply.fail(ValueError("the model's logits are not finite: its weights are broken, or overflow"))
            elif not reply.done:
                reply.take(row)
                reply.on_change()

    def _append(self, cache: DynamicCache, mask: torch.Tensor) -> None:
        """New rows below the old ones, the shorter side padded on the left."""
        shift = mask.shape[1] - self.mask.shape[1]

        def stack(old: torch.Tensor, new: torch.Tensor, *after: int) -> torch.Tensor:
            old, new = functional.pad(old, (*after, max(shift, 0), 0)), functional.pad(new, (*after, max(-shift, 0), 0))
            return torch.cat([old, new])

        for old, new in zip(self.cache.layers, cache.layers, strict=True):
            old.keys = stack(old.keys, new.keys, 0, 0)
            old.values = stack(old.values, new.values, 0, 0)
        self.mask = stack(self.mask, mask)

    def _drop_done(self) -> None:
        staying = [row for row, reply in enumerate(self.replies) if not reply.done]
        if len(staying) == len(self.replies):
            return
        self.replies = [self.replies[row] for row in staying]
        if not staying:
            self.clear()
            return
        self.mask = self.mask[staying]
        first = int(self.mask.any(0).int().argmax())  # columns that only the dropped rows used
        self.mask = self.mask[:, first:]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[staying, :, first:], layer.values[staying, :, first:]


class ReplyWorker:
    """A thread that writes everybody's replies, of any number of models, a token of each in turn.

    A new reply joins at the next token, so nobody waits for anybody's reply to end while there are rows left; after
    that, first come, first served.

    Args:
        max_rows: replies a model writes at once.
        max_new_rows: how many may join before a token, so that reading prompts never stops the others for long.
    """

    def __init__(self, max_rows: int = 32, max_new_rows: int = 8):
        self.max_rows, self.max_new_rows = max_rows, max_new_rows
        self._waiting: dict[DecodingBatch, deque[Reply]] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="replies", daemon=True).start()

    def submit(self, batch: DecodingBatch, reply: Reply) -> None:
        """Have a batch write a reply. The batch belongs to the worker from now on."""
        with self._changed:
            self._waiting.setdefault(batch, deque()).append(reply)
            self._changed.notify()

    @property
    def load(self) -> int:
        """How many replies are being written or waiting."""
        return sum(len(batch.replies) + len(queue) for batch, queue in list(self._waiting.items()))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.load)
                turns = [(batch, self._joining(batch)) for batch in self._waiting]
            for batch, joining in turns:
                try:
                    batch.step()
                    if joining:
                        batch.add(joining)
                except Exception as error:  # whatever a model raises reaches those who wait for it; the thread goes on
                    for reply in {*batch.replies, *joining}:
                        reply.fail(error)
                    batch.clear()

    def _joining(self, batch: DecodingBatch) -> list[Reply]:
        queue = self._waiting[batch]
        room = min(self.max_new_rows, self.max_rows - len(batch.replies))
        joining = []
        while queue and len(joining) < room:
            reply = queue.popleft()
            if not reply.done:  # cancelled while it waited
                joining.append(reply)
        return joining
