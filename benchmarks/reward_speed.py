"""How long the rewards of one batch take with the embedded models, compared with a bare forward of the reference model.

    python benchmarks/reward_speed.py

As in a run, METEOR gets replies and references that are new to it, while its cache already has most of their words.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from machine import processor, versions
from replies import MAX_NEW_TOKENS, finished_episodes

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.samples import Samples, load_samples
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.rewards import Episodes, Meteor, TokenCredit
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.rewards.kl import KLDivergence

BATCH, ROUNDS, WARM_UP = 64, 30, 20
ROUNDS_BY_TOKEN = 5


@torch.no_grad()
def bare_forward(model: torch.nn.Module, episodes: Episodes) -> None:
    """The least work that a KL penalty needs: the reference's logits of the replies, without the columns of padding."""
    mask = torch.from_numpy(episodes.attention_mask)
    first = int(mask.any(0).nonzero()[0])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(
        torch.from_numpy(episodes.input_ids)[:, first:],
        attention_mask=mask[:, first:],
        position_ids=positions[:, first:],
        logits_to_keep=MAX_NEW_TOKENS + 1,
        use_cache=False,
    )


def meteor_by_token(samples: Samples, agent: DialogueAgent, replies: int) -> float:
    """The median seconds of METEOR by token for so many replies, eight to each context."""
    credit, seconds = TokenCredit(Meteor(), samples.tokenizer), []
    for seed in range(ROUNDS_BY_TOKEN + 1):
        ids = np.random.default_rng(seed).choice(len(samples), replies // 8, replace=False).repeat(8)
        episodes = finished_episodes(samples, agent, ids, seed=seed)
        start = time.perf_counter()
        credit(episodes)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def main() -> None:
    samples, agent, model = load_samples(), DialogueAgent.load("builtin"), load_model("builtin")
    drawn = np.random.default_rng(0).permutation(len(samples))[: BATCH * ROUNDS].reshape(ROUNDS, BATCH)
    batches = [finished_episodes(samples, agent, ids, seed=seed) for seed, ids in enumerate(drawn)]
    parts = {
        "METEOR": Meteor(),
        "intent": IntentMatch("builtin"),
        "KL": KLDivergence(model, samples.tokenizer.vocab_size),
        "bare forward of the reference": lambda episodes: bare_forward(model, episodes),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for batch in batches:  # the parts take turns, so that other work of the machine slows down all of them
        episodes = replace(batch, log_probs=np.full(batch.reply_mask.shape, -2.0))
        for name, part in parts.items():
            start = time.perf_counter()
            part(episodes)
            times[name].append(time.perf_counter() - start)
    print(f"{processor()}, {torch.get_num_threads()} threads; {versions('torch', 'transformers')}")
    print(f"\n{BATCH} finished replies, median of {ROUNDS - WARM_UP} batches after {WARM_UP} others\n")
    print("| | ms |\n| --- | ---: |")
    medians = {name: 1e3 * float(np.median(values[WARM_UP:])) for name, values in times.items()}
    for name, milliseconds in medians.items():
        print(f"| {name} | {milliseconds:.1f} |")
    for replies in (256, 1024):
        print(f"| METEOR by token, {replies} replies | {1e3 * meteor_by_token(samples, agent, replies):.1f} |")
    print(f"\nThe KL takes as long as {medians['KL'] / medians['bare forward of the reference']:.2f} bare forwards.")


if __name__ == "__main__":
    main()
