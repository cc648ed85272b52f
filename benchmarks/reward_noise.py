"""How noisy the rewards are: the size of the advantages that PPO gets from them at the beginning of training.

    python benchmarks/reward_noise.py --dataset daily_dialog

The benchmark samples several replies to each context. Its advantage is that of ppo_dialog.py's `--group-baseline`,
without a critic: a token's return (the reward that the reply still earns from this token on) minus the leave-one-out
baseline (the mean return of the other replies to the context from the same position on). The table shows, for each
reward, the root mean square of the advantages of all tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from replies import finished_episodes

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.evaluate.evaluation import evenly_spread
from dailydialog_gym.rewards import Meteor, TokenCredit
from dailydialog_gym.rewards.intent import IntentMatch


@dataclass
class Args:
    model: str = "builtin"
    """the model that writes the replies"""
    dataset: str = "builtin"
    """the dialogues; the contexts are those of the validation split"""
    contexts: int = 200
    """number of contexts, spread evenly over the split"""
    replies: int = 8
    """number of replies to each context"""
    seed: int = 1
    """random seed of the replies, which are sampled with top-k 20"""


def spread(scores: np.ndarray, mask: np.ndarray, replies: int) -> float:
    """The root mean square of the advantages.

    Args:
        scores: ``(n,)``, one reward per reply, or ``(n, T)``, one per token.
        mask: ``(n, T)``, True at the tokens of the replies.
        replies: how many consecutive rows are replies to the same context.
    """
    if scores.ndim == 1:
        scores = np.where(np.arange(mask.shape[1]) == mask.sum(1, keepdims=True) - 1, scores[:, None], 0.0)
    returns = (scores[:, ::-1].cumsum(1)[:, ::-1] * mask).reshape(-1, replies, mask.shape[1])
    others = (returns.sum(1, keepdims=True) - returns) / (replies - 1)
    return float(np.sqrt(((returns - others).reshape(mask.shape)[mask] ** 2).mean()))


def main(args: Args) -> None:
    torch.set_num_threads(1)
    samples = load_samples(args.dataset, "validation", args.model)
    sample_ids = evenly_spread(samples, args.contexts).repeat(args.replies)
    episodes = finished_episodes(samples, DialogueAgent.load(args.model), sample_ids, top_k=20, seed=args.seed)
    scorers = {
        "METEOR, given to the last token": Meteor(),
        "METEOR, by token": TokenCredit(Meteor(), samples.tokenizer),
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
