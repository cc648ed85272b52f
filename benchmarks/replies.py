"""Finished episodes of an agent, for the benchmarks of the rewards."""

from typing import Any

import numpy as np

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.rewards import Episodes

MAX_NEW_TOKENS = 20


def finished_episodes(samples: Samples, agent: DialogueAgent, sample_ids: np.ndarray, **decoding: Any) -> Episodes:
    """The agent's sampled replies to the contexts ``sample_ids``, ``(n,)``, as episodes of the environment."""
    mdp = TokenMDP(samples, len(sample_ids), MAX_NEW_TOKENS, lockstep=True)
    mdp.reset(slice(None), sample_ids)
    replies = agent.reply([samples.prompts[i] for i in sample_ids], sample=True, **decoding)
    tokens = samples.tokenizer.encode([f"{reply} {EOU}" for reply in replies])
    for t in range(MAX_NEW_TOKENS):
        mdp.step(np.array([ids[t] if t < len(ids) else 0 for ids in tokens]))  # rows that have ended ignore the token
    return Episodes.from_info(mdp.observation(), mdp.final_info(slice(None)), MAX_NEW_TOKENS)
