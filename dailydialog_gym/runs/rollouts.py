"""What PPO sees of some replies, token by token: the lines of ``rollouts.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dailydialog_gym.env.tokenizer import ReplyTokenizer, split_prompt
from dailydialog_gym.files import write_text
from dailydialog_gym.models import pack

MAX_BYTES = 50_000_000  # of a run's file; iterations after that are not written


@torch.no_grad()
def action_ratios(agent: Callable, batch: Any, rows: np.ndarray, copies: int, autocast: AbstractContextManager):
    """``(n, T)``: the probability of each action by the agent as it is, divided by that when it was drawn.

    Args:
        agent: logits and values before every reply token, by a packed forward.
        batch: the script's ``Batch``.
        rows: ``(n,)``, rows of the batch: whole groups of replies to one context.
        copies: the number of replies to each context.
        autocast: of the forward.
    """
    tokens = batch.reply_mask.shape[1]
    start = batch.input_ids.shape[1] - tokens
    packed = pack(batch.input_ids[rows], batch.attention_mask[rows], start, rows // copies, batch.reply_mask.device)
    with autocast:
        logits, _ = agent(packed)
    there = batch.reply_mask[rows].bool()
    if batch.candidates is not None:
        logits = logits.gather(-1, batch.candidates[rows][there])
    actions = batch.actions[rows][there]
    logprobs = logits.float().log_softmax(-1).gather(-1, actions[:, None])[:, 0]
    ratios = torch.zeros(there.shape, device=there.device)
    ratios[there] = (logprobs - batch.logprobs[rows][there]).exp()
    return ratios.cpu().numpy()


def describe_rollouts(
    iteration: int, batch: Any, rows: np.ndarray, copies: int, ratios: np.ndarray, tokenizer: ReplyTokenizer
) -> list[dict[str, Any]]:
    """A line for each context: its utterances, what people said, and the replies with their numbers by token.

    The numbers of a token are its log-probability by the policy that drew it and by the reference, both over all
    tokens, its share of every wrapper's reward, the value of the state before it, its normalized advantage, and the
    ratio of its probabilities after and before the update.

    Args:
        iteration: the number of the iteration.
        batch: the script's ``Batch``, with advantages.
        rows: ``(n,)``, as for `action_ratios`.
        copies: the number of replies to each context.
        ratios: ``(n, T)``, from `action_ratios`.
        tokenizer: the environment's.
    """
    infos, shares = batch.infos, [key for key in batch.infos if key.startswith("token_rewards/")]
    columns = {
        "log_prob": infos["log_probs"],
        "ref_log_prob": infos["ref_log_probs"],
        **{key.replace("token_rewards/", "reward/"): infos[key] for key in shares},
        "value": (batch.values + batch.baselines).float().cpu().numpy(),
        "advantage": batch.advantages.float().cpu().numpy(),
    }
    columns = {name: values[rows] for name, values in columns.items()} | {"ratio": ratios}
    lengths = batch.reply_mask[rows].sum(1).int().tolist()
    reply_ids = batch.input_ids[rows, -batch.reply_mask.shape[1] :]
    lines = []
    for first in range(0, len(rows), copies):
        replies = []
        for place in range(first, first + copies):
            ids = reply_ids[place, : lengths[place]].tolist()
            numbers = {name: values[place, : len(ids)].astype(float) for name, values in columns.items()}
            numbers = {name: values.round(4).tolist() for name, values in numbers.items()}
            texts = tokenizer.backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
            replies.append({"text": infos["response"][rows[place]], "tokens": texts, **numbers})
        line = {"iteration": iteration, "context": split_prompt(infos["prompt"][rows[first]])}
        lines.append({**line, "reference": infos["reference"][rows[first]], "replies": replies})
    return lines


def forget_after(path: Path, iteration: int) -> None:
    """Drop from a file, if there is one, what a killed run wrote after its last checkpoint, and broken lines."""
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            kept = [line for line in file if line.endswith("\n") and _iteration(line) <= iteration]
        write_text(path, "".join(kept))


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, LookupError, TypeError):  # a disk that was not synced may hold anything after a power cut
        return math.inf
