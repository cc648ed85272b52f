"""Batched decoding: one batch and one KV cache, which replies join and leave between any two tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional
from transformers import Cache, PreTrainedModel

from dailydialog_gym.models.cache import DROP_BELOW, RoomyCache, read_prompts
from dailydialog_gym.models.forward import forward_cached
from dailydialog_gym.models.sampling import exponentials, search


@dataclass(frozen=True)
class Decoding:
    """How the tokens of a reply are chosen.

    Args:
        sample: sample them; otherwise each is the likeliest.
        temperature: sampling temperature, 0.05 to 10; below 1 likely tokens become likelier.
        top_k: sample from the likeliest k tokens; 0 leaves all.
        top_p: sample from the fewest tokens that together have this probability, above 0; 1 leaves all.
        max_new_tokens: the longest reply.
        seed: random seed of sampling; the reply depends on it alone, whoever else is being answered.
        min_new_tokens: the fewest tokens before the end of a reply; until then no token is chosen that ends it.

    Raises:
        ValueError: a value is out of its range.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 20
    seed: int = 0
    min_new_tokens: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("temperature", 0.05, 10),
            ("top_k", 0, 2**31),
            ("top_p", 1e-6, 1),
            ("max_new_tokens", 1, 2**31),
            ("seed", 0, 2**63 - 1),
            ("min_new_tokens", 0, 2**31),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise ValueError(f"{name} is {value}: expected {low} to {high}")


def choose(logits: torch.Tensor, decodings: Sequence[Decoding], uniform: torch.Tensor) -> torch.Tensor:
    """The next token of every row, ``(n,)``.

    Drawing is inverse transform sampling, see `dailydialog_gym.models.sampling.search`: each row has a random number of
    its own. All rows that draw from a part of the vocabulary are drawn together, whatever their settings.

    Args:
        logits: ``(n, vocabulary)``. A token with the logit -inf is never drawn.
        decodings: how to choose the token of each row.
        uniform: ``(n,)`` float64, a random number in [0, 1) for each row.
    """
    tokens, vocabulary = torch.zeros(len(logits), dtype=torch.long, device=logits.device), logits.shape[-1]
    # Rows that draw from nothing, from the whole vocabulary, or from a part of it
    greedy, whole, part = list[int](), list[int](), list[int]()
    for row, decoding in enumerate(decodings):
        some = 0 < decoding.top_k < vocabulary or decoding.top_p < 1
        (greedy if not decoding.sample else part if some else whole).append(row)
    if greedy:
        tokens[greedy] = logits[greedy].argmax(-1)
    for rows in filter(None, (whole, part)):
        temperature = logits.new_tensor([decodings[row].temperature for row in rows])
        scaled, candidates = logits[rows] / temperature[:, None], None
        if rows is whole:
            weights = exponentials(scaled, scaled.amax(-1, keepdim=True))
        else:
            counts = [min(decodings[row].top_k or vocabulary, vocabulary) for row in rows]
            scaled, candidates = scaled.topk(max(counts))  # in descending order
            if min(counts) < max(counts):
                columns = torch.arange(max(counts), device=logits.device)
                scaled = scaled.masked_fill(columns >= columns.new_tensor(counts)[:, None], -torch.inf)
            weights = exponentials(scaled, scaled[:, :1])
        if any(decodings[row].top_p < 1 for row in rows):
            # A token is left out if the likelier ones together have the probability top_p
            cumulative = weights.cumsum(-1, dtype=torch.float64)
            top_p = cumulative.new_tensor([[decodings[row].top_p if decodings[row].top_p < 1 else 2.0] for row in rows])
            weights = weights.masked_fill(cumulative - weights >= top_p * cumulative[:, -1:], 0)
        drawn = search(weights, uniform[rows])
        drawn.clamp_(max=scaled.shape[-1] - 1)  # logits that are not finite are reported elsewhere
        tokens[rows] = drawn if candidates is None else candidates.gather(1, drawn[:, None])[:, 0]
    return tokens


@dataclass(eq=False)
class Reply:
    """A reply during decoding and afterwards.

    Args:
        prompt_ids: the tokens before it, at least one.
        decoding: how to choose its tokens.
        ends: called with the tokens so far; returns whether they are a whole reply.
        on_change: called without arguments, from any thread, when `ids`, `done` or `error` changed.
        end_tokens: called with the tokens so far; returns those of which each would end the reply.

    Attributes:
        ids: the tokens so far.
        probabilities: their probabilities under the model, before temperature, top-k and top-p.
        done: whether decoding has ended.
        cancelled: whether it ended because of `cancel`.
        error: the error that ended it, or None.
    """

    prompt_ids: list[int]
    decoding: Decoding
    ends: Callable[[Sequence[int]], bool]
    on_change: Callable[[], object] = lambda: None
    end_tokens: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ()
    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    done: bool = False
    cancelled: bool = False
    error: Exception | None = None

    def __post_init__(self):
        self.random = random.Random(self.decoding.seed)

    def cancel(self) -> None:
        """Stop the decoding before the next token. This does nothing once the reply is done."""
        if not self.done:
            self.done = self.cancelled = True
            self.on_change()

    def take(self, token: int, probability: float) -> None:
        """Add the next token and its probability."""
        self.probabilities.append(probability)
        self.ids.append(token)
        if len(self.ids) >= self.decoding.max_new_tokens or self.ends(self.ids):
            self.done = True

    def fail(self, error: Exception) -> None:
        self.error, self.done = error, True
        self.on_change()


class DecodingBatch:
    """The replies that a model is decoding, one row each. Replies may join and leave before any token.

    Rows are left-padded to one length, in the cache as in the mask, so each has its own positions. A row's logits do
    not depend on the others (beyond rounding).

    Args:
        model: a causal language model, see `dailydialog_gym.models.masks.check_supported`.
        vocab_size: tokens from here on are never chosen (models often have more rows than their tokenizer tokens).
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int):
        self.model, self.vocab_size = model, vocab_size
        self.clear()

    def clear(self) -> None:
        self.replies: list[Reply] = []
        self.cache = RoomyCache()
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.model.device)  # (rows, columns)
        self.tokens = self.mask[:, :1]  # (rows, 1), which the cache lacks

    @torch.inference_mode()
    def add(self, replies: list[Reply]) -> None:
        """Read the prompts of new replies, equal prompts once, and choose the first token of each reply."""
        prompts: dict[tuple[int, ...], int] = {}
        rows = [prompts.setdefault(tuple(reply.prompt_ids), len(prompts)) for reply in replies]
        width = max(map(len, prompts))
        input_ids, mask = np.zeros((2, len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        (logits,), cache = read_prompts(self._forward, input_ids, mask)
        mask = torch.from_numpy(mask).to(self.mask.device)
        if len(prompts) < len(replies):
            rows = torch.tensor(rows, device=mask.device)
            logits, mask = logits[rows], mask[rows]
            cache.batch_select_indices(rows)
        tokens = self._choose(replies, logits)
        if self.replies:
            self.cache.append_rows(cache)
            width = max(self.mask.shape[1], mask.shape[1])
            mask = torch.cat([functional.pad(m, (width - m.shape[1], 0)) for m in (self.mask, mask)])
            tokens = torch.cat([self.tokens, tokens])
            cache = self.cache
        self.replies, self.cache, self.mask, self.tokens = [*self.replies, *replies], cache, mask, tokens

    @torch.inference_mode()
    def step(self) -> None:
        """Choose one more token of every reply that isn't done. Rows of replies that are done are dropped in groups."""
        self._drop_done()
        if not self.replies:
            return
        self.mask = functional.pad(self.mask, (0, 1), value=1)
        (logits,) = self._forward(self.tokens, self.mask, self.cache)
        self.tokens = self._choose(self.replies, logits)

    def _forward(
        self, input_ids: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor, cache: Cache
    ) -> tuple[torch.Tensor]:
        """``(rows, vocabulary)`` logits of the next token, from the tokens that the cache lacks."""
        input_ids, mask = (torch.as_tensor(array, device=self.model.device) for array in (input_ids, mask))
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        outputs = forward_cached(self.model, input_ids, mask, position_ids, cache)
        return (outputs.logits[:, -1, : self.vocab_size].float(),)

    @staticmethod
    def _choose(replies: list[Reply], logits: torch.Tensor) -> torch.Tensor:
        """Give each reply its next token, from ``(rows, vocabulary)`` logits; returns all of them, ``(rows, 1)``."""
        uniform = torch.tensor([reply.random.random() for reply in replies], dtype=torch.float64, device=logits.device)
        allowed = logits
        short = [row for row, reply in enumerate(replies) if len(reply.ids) < reply.decoding.min_new_tokens]
        if short:
            allowed = logits.clone()
            for row in short:
                allowed[row, list(replies[row].end_tokens(replies[row].ids))] = -torch.inf
        tokens = choose(allowed, [reply.decoding for reply in replies], uniform)
        probabilities = (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)).exp()
        # A policy may forbid tokens with -inf. NaN, +inf, or nothing but -inf is a fault, and then so is the maximum
        sound = logits.amax(1).isfinite()
        columns = torch.stack([tokens.double(), probabilities.double(), sound.double()]).cpu().tolist()
        for reply, token, probability, fine in zip(replies, *columns, strict=True):
            if not fine:
                reply.fail(ValueError("the model's logits are not finite: its weights are broken, or overflow"))
            elif not reply.done:
                reply.take(int(token), probability)
                reply.on_change()
        return tokens[:, None]

    def _drop_done(self) -> None:
        staying = [row for row, reply in enumerate(self.replies) if not reply.done]
        if not staying:
            self.clear()
        if len(staying) >= DROP_BELOW * len(self.replies):
            return
        self.replies = [self.replies[row] for row in staying]
        rows = torch.tensor(staying, device=self.mask.device)
        self.mask, self.tokens = self.mask[rows], self.tokens[rows]
        first = int(self.mask.any(0).int().argmax())  # columns that only the dropped rows used
        self.mask = self.mask[:, first:]
        self.cache.batch_select_indices(rows)
        self.cache.drop_columns(first)
