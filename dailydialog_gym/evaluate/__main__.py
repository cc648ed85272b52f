"""How good are a model's replies? A table of measures against what people answered.

python -m dailydialog_gym.evaluate AGENT [--baseline MODEL] [--dataset daily_dialog]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import tyro
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.errors import run_script
from dailydialog_gym.evaluate.evaluation import Evaluation, evenly_spread
from dailydialog_gym.objects import import_object
from dailydialog_gym.reports.tables import table
from dailydialog_gym.rewards.intent import IntentMatch


@dataclass
class Args:
    agent: Annotated[str, tyro.conf.Positional] = "builtin"
    """what to evaluate: an agent folder, a hub id, or "builtin\""""
    policy_class: str | None = None
    """MODULE:CLASS of the agent, where it was trained with one"""
    baseline: str | None = None
    """a second model, which the table compares the agent with"""
    dataset: str = "builtin"
    """dialogues, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    split: str = "test"
    """train, validation or test"""
    raw_split: bool = False
    """keep training dialogues that are also in validation or test (only for the train split)"""
    full_context: bool = False
    """only replies with `context_size` utterances before them, as RL4LMs and OpenRL do"""
    samples: int = 0
    """how many replies, spread evenly over the split; 0 is all"""
    sample: bool = False
    """draw the tokens, rather than taking the likeliest"""
    temperature: float = 1.0
    """of the drawing"""
    top_k: int = 0
    """draw from the likeliest K tokens only (RL4LMs and OpenRL: 20); 0 is all"""
    seed: int = 1
    """of the drawing"""
    intent_model: str = "builtin"
    """who judges the replies' acts: "builtin", or a sequence classifier of the four acts by folder or hub id"""
    intent_labels: tuple[str, ...] | None = None
    """what the classifier's outputs stand for, where its configuration doesn't say it"""
    context_size: int = 5
    """utterances of context"""
    max_prompt_length: int = 128
    """tokens of context"""
    max_new_tokens: int = 20
    """tokens of reply"""
    json: Path | None = None
    """also write the scores here"""


def main(args: Args) -> None:
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {args.seed}")
    samples = load_samples(
        args.dataset,
        args.split,
        "builtin",
        args.context_size,
        args.max_prompt_length,
        args.raw_split,
        args.full_context,
    )
    ids = evenly_spread(samples, args.samples)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    intent = IntentMatch(args.intent_model, device, args.intent_labels)
    model_class = AutoModelForCausalLM
    if args.policy_class:
        model_class = import_object(args.policy_class, "--policy-class")
    evaluations = {}
    for name in filter(None, (args.baseline, args.agent)):
        agent = DialogueAgent.load(
            name,
            device,
            model_class if name == args.agent else AutoModelForCausalLM,
            context_size=args.context_size,
            max_prompt_length=args.max_prompt_length,
            max_new_tokens=args.max_new_tokens,
        )
        evaluations[name] = Evaluation(
            agent,
            samples,
            ids,
            intent,
            sample=args.sample,
            temperature=args.temperature,
            top_k=args.top_k,
            seed=args.seed,
        )
    rows = {name: evaluation.scores for name, evaluation in evaluations.items()}
    print(f"{table(rows)}\n\n{evaluations[args.agent].manner}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    run_script(main, Args, __doc__)
