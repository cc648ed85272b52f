"""Whether packed rows and cached decoding give what a model gives for single rows: a run checks it at its start."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.graphs import GraphDecoder
from dailydialog_gym.models.loading import check_positions, check_vocabulary
from dailydialog_gym.models.packing import pack
from dailydialog_gym.models.precision import MixedPrecision

TOLERANCE = 1e-3  # relative to values above 1; float32 gives 1e-6 to 1e-4, and a wrong mask 1e-2 or more
CONTEXTS, REPLIES = 2, 2  # two replies to each of two contexts
END = 0  # the token that ends a reply
REPORT = "Use an architecture that docs/models.md calls right, and please report this one"
LEAVE_OUT = "Leave out --cuda-graphs, and please report this model"


@torch.no_grad()
def self_check(
    agent: Any, vocab_size: int, max_prompt_length: int, max_new_tokens: int, cuda_graphs: bool = False
) -> None:
    """Compare packed rows and cached decoding with single rows, on two contexts with two replies each.

    The tokens are random, from a generator of its own: a run's random numbers stay the same. The log-probabilities of
    single rows come from the plain model, without padding, mask, positions and cache. Everything is in float32, so call
    this outside of autocast, and before anything is compiled. Meanwhile the value head has random weights, because the
    values of a new one are all 0.

    Args:
        agent: the script's `Agent`: ``agent(packed)`` returns logits and values, ``agent.next_token`` is what a
            `Decoder` calls, ``agent.policy`` is the model, ``agent.critic`` has a ``value_head`` or is None, and
            ``agent.shared`` says whether ``agent.next_token`` returns values too.
        vocab_size: the tokenizer's.
        max_prompt_length, max_new_tokens: the run's; the longer context is as long, since a wrong sliding window shows
            only in rows that are longer than it.
        cuda_graphs: also compare what a `GraphDecoder` writes with packed rows. A graph repeats what it recorded, so
            this finds a model whose step depends on something that the CPU counts.

    Raises:
        ValueError: they differ by more than `TOLERANCE`, or the model has too few embeddings or positions, or a
            `GraphDecoder` refuses it.
    """
    model = agent.policy
    check_vocabulary(model, vocab_size)
    check_positions(model, max_prompt_length=max_prompt_length, max_new_tokens=max_new_tokens)
    weights = [] if agent.critic is None else list(agent.critic.value_head.parameters())
    kept = [weight.clone() for weight in weights]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32's error is as large as the tolerance
    try:
        for weight in weights:
            weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
        _compare_with_single_rows(agent, vocab_size, max_prompt_length, min(max_new_tokens, 4))
        if cuda_graphs:
            _compare_graphs(agent, vocab_size, max_prompt_length, min(max_new_tokens, 4))
    finally:
        torch.set_float32_matmul_precision(precision)
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)


def _compare_with_single_rows(agent: Any, vocab_size: int, width: int, longest: int) -> None:
    model, device = agent.policy, agent.policy.device
    input_ids, attention_mask = _some_replies(vocab_size, width, longest)
    live = attention_mask[:, width:].astype(bool)
    tokens, reply_mask = (torch.from_numpy(array).to(device) for array in (input_ids[:, width:], live))
    log_probs, values = [], []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        row = torch.from_numpy(ids[mask == 1]).to(device)
        count = mask[width:].sum()
        logits = model(row[None], use_cache=False).logits[0, -count - 1 : -1]
        log_probs.append(_log_probs(logits[:, :vocab_size], row[-count:]))
        values.append(agent(pack(ids[None], mask[None], width, np.zeros(1, np.int64), device))[1])
    log_probs = torch.cat(log_probs)
    if not log_probs.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} gives log-probabilities that are not finite: its weights are damaged or too large"
        )

    logits, found = agent(pack(input_ids, attention_mask, width, np.arange(len(input_ids)) // REPLIES, device))
    _compare(model, "log-probabilities in packed rows", _log_probs(logits, tokens[reply_mask]), log_probs)
    _compare(model, "values in packed rows", found, torch.cat(values))

    ends = np.zeros((2, vocab_size), np.int64)
    ends[:, END] = 1
    precision = MixedPrecision(device, None, width + REPLIES * longest)
    # With copies of the prompts' keys and values, and on a CPU also without, if the model allows it
    for network in (None, model) if precision.masked_steps else (None,):
        decoder = Decoder(agent.next_token, ends, longest, precision, device, network=network)
        found_log_probs, found_values = torch.zeros(2, *tokens.shape, device=device)
        outputs = decoder.prefill(input_ids[::REPLIES, :width], attention_mask[::REPLIES, :width], copies=REPLIES)
        while outputs:
            rows, t, (logits, found_values[decoder.rows, decoder.written]) = decoder.rows, decoder.written, outputs
            found_log_probs[rows, t] = _log_probs(logits, tokens[rows, t])
            outputs = decoder.step(tokens[rows, t])
        _compare(model, "log-probabilities of decoding with a cache", found_log_probs[reply_mask], log_probs)
        if agent.shared:
            _compare(model, "values of decoding with a cache", found_values[reply_mask], torch.cat(values))


def _compare_graphs(agent: Any, vocab_size: int, width: int, longest: int) -> None:
    model, device = agent.policy, agent.policy.device
    input_ids, attention_mask = _some_replies(vocab_size, width, longest)
    never = np.zeros((2, vocab_size), np.int64)  # no reply ends before it is as long as it may be
    decoder = GraphDecoder(agent.next_token, never, longest, nullcontext(), device)
    uniform = torch.linspace(0.1, 0.9, len(input_ids) * longest, dtype=torch.double, device=device)
    prompts = (array[::REPLIES, :width] for array in (input_ids, attention_mask))
    drawn, values = decoder.write(*prompts, REPLIES, uniform.view(-1, longest))
    input_ids[:, width:], attention_mask[:, width:] = drawn.tokens.cpu().numpy(), 1
    logits, expected = agent(pack(input_ids, attention_mask, width, np.arange(len(input_ids)) // REPLIES, device))
    log_probs = _log_probs(logits, drawn.tokens.flatten())
    _compare(model, "log-probabilities of CUDA graphs", drawn.log_probs.flatten(), log_probs, LEAVE_OUT)
    if agent.shared:
        _compare(model, "values of CUDA graphs", values.flatten(), expected, LEAVE_OUT)


def _some_replies(vocab_size: int, width: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and their mask, ``(4, width + longest)``: contexts of two lengths, replies of several."""
    rng = np.random.default_rng(0)
    context_lengths = np.array([width, max(1, width // 2)]).repeat(REPLIES)[:, None]
    reply_lengths = np.array([4, 1, 2, 4]).clip(max=longest)[:, None]
    input_ids = rng.integers(END + 1, vocab_size, size=(CONTEXTS * REPLIES, width + longest))
    input_ids[:, :width] = input_ids[::REPLIES, :width].repeat(REPLIES, axis=0)
    np.put_along_axis(input_ids, width + reply_lengths - 1, END, axis=1)
    columns = np.arange(width + longest)
    attention_mask = (columns >= width - context_lengths) & (columns < width + reply_lengths)
    return input_ids * attention_mask, attention_mask.astype(np.int64)


def _log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """``(n,)``, from ``(n, vocabulary)`` logits; of a forbidden token, whose logit is -inf, a number that is finite."""
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0].clamp(min=-1e4)


def _compare(
    model: PreTrainedModel, what: str, found: torch.Tensor, expected: torch.Tensor, cure: str = REPORT
) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:  # also NaN
        raise ValueError(
            f"{type(model).__name__}: {what} differ from those of single rows by {difference:.2g} in float32, so "
            f"training on them would be wrong. {cure}"
        )
