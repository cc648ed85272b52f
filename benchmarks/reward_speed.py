"""What the rewards of one batch cost, with the embedded models, beside a bare forward of the reference.

    python benchmarks/reward_speed.py

METEOR is timed on replies and references that it has not seen before, as in a run; of the words it then knows most.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.rewards import Episodes, Meteor
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.rewards.kl import KLDivergence

BATCH, ROUNDS, WARM_UP = 64, 30, 20
PROMPT, REPLY = 128, 20


def finished_episodes(samples, agent, sample_ids, seed) -> Episodes:
    """The agent's sampled replies to some samples, through the token MDP."""
    mdp = TokenMDP(samples, len(sample_ids), REPLY, lockstep=True)
    mdp.reset(slice(None), sample_ids)
    texts = agent.reply([samples.prompts[i] for i in sample_ids], sample=True, seed=seed)
    tokens = samples.tokenizer.encode([f"{text} {EOU}" for text in texts])
    for t in range(REPLY):
        mdp.step(np.array([ids[t] if t < len(ids) else 0 for ids in tokens]))  # of ended rows ignored
    info = mdp.final_info(slice(None))
    episodes = Episodes.from_info(mdp.observation(), info, REPLY)
    return replace(episodes, log_probs=np.full(episodes.reply_mask.shape, -2.0))


@torch.no_grad()
def bare_forward(model, episodes):
    """The reference on the columns in use, logits of the reply only: what KL can't do without."""
    mask = torch.from_numpy(episodes.attention_mask)
    first = int(mask.any(0).nonzero()[0])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(
        torch.from_numpy(episodes.input_ids)[:, first:],
        attention_mask=mask[:, first:],
        position_ids=positions[:, first:],
        logits_to_keep=REPLY + 1,
        use_cache=False,
    )


if __name__ == "__main__":
    samples = load_samples("builtin", "train", "builtin", 5, PROMPT)
    agent = DialogueAgent.load("builtin")
    drawn = np.random.default_rng(0).permutation(len(samples))[: BATCH * ROUNDS].reshape(ROUNDS, BATCH)
    batches = [finished_episodes(samples, agent, ids, seed) for seed, ids in enumerate(drawn)]
    model = load_model("builtin")
    parts = {
        "METEOR": Meteor(),
        "intent": IntentMatch("builtin"),
        "KL": KLDivergence(model, samples.tokenizer.vocab_size),
        "bare forward of the reference": lambda episodes: bare_forward(model, episodes),
    }
    times = {name: [] for name in parts}
    for episodes in batches:  # in turn, so that what else the machine does hits all alike
        for name, part in parts.items():
            start = time.perf_counter()
            part(episodes)
            times[name].append(time.perf_counter() - start)
    threads = torch.get_num_threads()
    print(f"{BATCH} finished replies, {threads} threads, median of {ROUNDS - WARM_UP} batches after {WARM_UP}:\n")
    medians = {name: 1e3 * float(np.median(values[WARM_UP:])) for name, values in times.items()}
    for name, milliseconds in medians.items():
        print(f"| {name:<30} | {milliseconds:7.1f} ms |")
    print(f"\nKL costs {medians['KL'] / medians['bare forward of the reference']:.2f} bare forwards")
