"""A closer look at a reply: each token's probability, the tokens that were likelier, the reward by token, the act."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.dialogues import ACTS
from dailydialog_gym.env.tokenizer import format_prompt
from dailydialog_gym.text import escape_invisible

if TYPE_CHECKING:
    from dailydialog_gym.rewards.intent import IntentMatch
    from dailydialog_gym.rewards.model import RewardModel

LIKELIEST = 5
ACT_WORDS = {"inform": "it informs", "question": "it asks", "directive": "it directs", "commissive": "it commits"}


class Token(NamedTuple):
    """A token of a reply: its text, its probability, and the likeliest tokens in its place with theirs."""

    text: str
    probability: float
    likeliest: list[tuple[str, float]]


@torch.inference_mode()
def read_tokens(agent: DialogueAgent, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[Token]:
    """The tokens of a reply, by one forward pass: probabilities before temperature, top-k and top-p.

    Args:
        agent: the agent that wrote it.
        prompt_ids: the tokens before the reply.
        ids: the tokens of the reply.
    """
    if not ids:
        return []
    given = torch.tensor([[*prompt_ids, *ids[:-1]]], device=agent.model.device)
    logits = agent.model(given, logits_to_keep=len(ids)).logits[0, :, : agent.tokenizer.vocab_size]
    probabilities = logits.float().softmax(-1)
    values, tokens = probabilities.topk(LIKELIEST)
    own = probabilities.gather(1, torch.tensor(ids, device=given.device)[:, None])[:, 0]

    def texts(of: list[int]) -> list[str]:
        decoded = agent.tokenizer.backend.decode_batch([[i] for i in of], skip_special_tokens=True)
        return [escape_invisible(text) or "(end)" for text in decoded]

    return [
        Token(text, probability, list(zip(texts(likeliest), shares, strict=True)))
        for text, probability, likeliest, shares in zip(
            texts(list(ids)), own.tolist(), tokens.tolist(), values.tolist(), strict=True
        )
    ]


def read_act(intent: IntentMatch, previous: str, reply: str) -> tuple[str, float]:
    """The most probable act of a reply to the previous utterance, a name in `ACTS`, and its probability."""
    probabilities = intent.probabilities([format_prompt([previous])], [reply])[0]
    return ACTS[int(probabilities.argmax()) + 1], float(probabilities.max())


def reward_by_token(
    model: RewardModel, agent: DialogueAgent, utterances: Sequence[str], ids: Sequence[int]
) -> np.ndarray:
    """``(len(ids),)``: by how much each token raises the raw score of the reply so far.

    Args:
        model: a reward model for ordinary text.
        agent: the agent that wrote the reply.
        utterances: the conversation before the reply.
        ids: the tokens of the reply.
    """
    prefixes = [agent.reply_text(ids[:count]) for count in range(len(ids) + 1)]
    return np.diff(model.scores([list(utterances)[-agent.context_size :]] * len(prefixes), prefixes))


def closer_look(tokens: Sequence[Token], rewards: dict[str, np.ndarray], act: tuple[str, float] | None) -> str:
    """HTML of the tokens of a reply.

    Args:
        tokens: from `read_tokens`.
        rewards: by the name of a reward model, `reward_by_token`.
        act: from `read_act`, or None.
    """
    pieces = []
    for number, token in enumerate(tokens):
        others = "".join(
            f'<span class="other"><bdi>{escape(text)}</bdi> <span>{share:.1%}</span>'
            f'<span class="bar" style="width:{share:.1%}"></span></span>'
            for text, share in token.likeliest
        )
        raised = "".join(f"<small>{values[number]:+.2f}</small>" for values in rewards.values())
        pieces.append(
            f'<button type="button" class="token" style="--likely:{token.probability:.3f}">'
            f"<bdi>{escape(token.text)}</bdi><small>{token.probability:.0%}</small>{raised}"
            f'<span class="others"><span class="hint">The likeliest in its place</span>{others}</span></button>'
        )
    hint = "Under each token: how likely the model found it"
    hint += "".join(f"; by how much it raises {escape(name)}" for name in rewards)
    html = f'<p class="hint">{hint}. Hover over a token, or focus it, to see the likeliest ones in its place.</p>'
    html += f'<div class="tokens">{"".join(pieces)}</div>'
    for name, values in rewards.items():
        html += f'<p class="hint">{escape(name)}: {values.sum():+.2f} for the whole reply.</p>'
    if act:
        html += f'<p class="hint">The intent model reads: {act[0]} ({ACT_WORDS[act[0]]}), {act[1]:.0%} sure.</p>'
    return html
