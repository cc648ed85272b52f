"""How noisy are the rewards? The spread of what PPO learns from, before it has learned anything.

    python benchmarks/reward_noise.py --dataset daily_dialog

Draws several replies to each context and prints, for each reward, the root mean square over all tokens of what a reply
still earns from that token on, less what the other replies to the context earn on average from the same token on: the
advantage of ppo_dialog.py's `--group-baseline`, without a critic.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro

import dailydialog_gym  # noqa: F401  (registers DailyDialog-v0)
from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.evaluate.evaluation import evenly_spread
from dailydialog_gym.rewards import Episodes, Meteor, TokenCredit
from dailydialog_gym.rewards.intent import IntentMatch


@dataclass
class Args:
    model: str = "builtin"
    """whose replies"""
    dataset: str = "builtin"
    """to the contexts of whose validation split"""
    contexts: int = 200
    """how many, spread evenly"""
    replies: int = 8
    """to each"""
    seed: int = 1
    """of the drawing, from the likeliest 20 tokens"""


def play(args: Args) -> tuple[Episodes, TokenCredit]:
    """The replies as finished episodes, and METEOR by token."""
    envs = gym.make_vec(
        "DailyDialog-v0",
        num_envs=args.contexts * args.replies,
        dataset=args.dataset,
        split="validation",
        tokenizer=args.model,
        lockstep=True,
        autoreset_mode="Disabled",
    )
    samples = envs.unwrapped.samples
    sample_ids = evenly_spread(samples, args.contexts).repeat(args.replies)
    _, infos = envs.reset(seed=args.seed, options={"sample_id": sample_ids})
    replies = DialogueAgent.load(args.model).reply(infos["prompt"], sample=True, top_k=20, seed=args.seed)
    tokens = samples.tokenizer.encode([f"{reply} <EOU>" for reply in replies])
    for t in range(envs.unwrapped.max_new_tokens):
        obs, _, terminated, truncated, infos = envs.step(np.array([ids[t] if t < len(ids) else 0 for ids in tokens]))
        if (terminated | truncated).all():
            break
    return Episodes.from_info(obs, infos, envs.unwrapped.max_new_tokens), TokenCredit(Meteor(), samples.tokenizer)


def spread(scores: np.ndarray, mask: np.ndarray, replies: int) -> float:
    """Root mean square of the advantages; ``scores`` is ``(n,)`` or ``(n, T)``."""
    if scores.ndim == 1:
        scores = np.where(np.arange(mask.shape[1]) == mask.sum(1, keepdims=True) - 1, scores[:, None], 0.0)
    returns = (scores[:, ::-1].cumsum(1)[:, ::-1] * mask).reshape(-1, replies, mask.shape[1])
    others = (returns.sum(1, keepdims=True) - returns) / (replies - 1)
    return float(np.sqrt(((returns - others).reshape(mask.shape)[mask] ** 2).mean()))


def main(args: Args) -> None:
    torch.set_num_threads(1)
    episodes, meteor_by_token = play(args)
    scorers = {
        "METEOR, paid to the last token": Meteor(),
        "METEOR, by token": meteor_by_token,
        "intent, 0 or 1": IntentMatch(),
        "intent, probability": IntentMatch(probability=True),
    }
    print(f"{args.contexts} contexts of {args.dataset}, validation, {args.replies} replies each\n")
    print("| reward | mean | RMS of its advantages |\n| --- | ---: | ---: |")
    for name, scorer in scorers.items():
        scores = scorer(episodes)
        mean = scores.reshape(len(episodes), -1).sum(1).mean()
        print(f"| {name} | {mean:.3f} | {spread(scores, episodes.reply_mask, args.replies):.3f} |")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
