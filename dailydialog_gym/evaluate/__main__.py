"""How good are a model's replies? A table of measures against what people answered.

python -m dailydialog_gym.evaluate runs/NAME [--baseline MODEL] [--dataset daily_dialog]
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import transformers
import tyro
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import AgentRecord, DialogueAgent, find_agent_folder
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.errors import run_script
from dailydialog_gym.evaluate.evaluation import Evaluation, FixedReplies, change_intervals, evenly_spread
from dailydialog_gym.evaluate.metrics import floor_replies
from dailydialog_gym.files import check_output
from dailydialog_gym.objects import import_object
from dailydialog_gym.ranges import Count, CountOrZero, Seed
from dailydialog_gym.reports.tables import table
from dailydialog_gym.reports.votes import count_votes, describe_votes
from dailydialog_gym.rewards.intent import IntentMatch

SHAPE = ("context_size", "max_prompt_length", "max_new_tokens")


@dataclass
class Args:
    agent: Annotated[str, tyro.conf.Positional] = "builtin"
    """what to evaluate: a run folder, an agent folder, a hub id, or "builtin\""""
    policy_class: str | None = None
    """MODULE:CLASS of the agent, where it was trained with one; the baseline has it if its folder names it too"""
    baseline: str | None = None
    """a second model, which the table compares the agent with"""
    dataset: str | None = None
    """dialogues, as in `gym.make("DailyDialog-v0", dataset=...)`; by default those that the agent was trained on"""
    split: str = "test"
    """train, validation or test"""
    raw_split: bool = False
    """keep training dialogues that are also in validation or test (only for the train split)"""
    full_context: bool = False
    """only replies with `context_size` utterances before them, as RL4LMs and OpenRL do"""
    samples: CountOrZero = 0
    """how many replies, spread evenly over the split; 0 is all"""
    sample: bool = False
    """sample the tokens, rather than taking the likeliest"""
    temperature: float = 1.0
    """sampling temperature"""
    top_k: CountOrZero = 0
    """sample from the likeliest K tokens only (RL4LMs and OpenRL: 20); 0 is all"""
    seed: Seed = 1
    """random seed of sampling"""
    min_new_tokens: CountOrZero = 0
    """fewest tokens before the end of a reply (RL4LMs and OpenRL: 2)"""
    intent_model: str = "builtin"
    """who judges the replies' acts: "builtin", or a sequence classifier of the four acts by folder or hub id"""
    intent_labels: tuple[str, ...] | None = None
    """what the classifier's outputs stand for, where its configuration doesn't say it"""
    context_size: Count | None = None
    """utterances of context; this and the next two are by default what the agent was trained with"""
    max_prompt_length: Count | None = None
    """tokens of context"""
    max_new_tokens: Count | None = None
    """tokens of reply"""
    chat_template: bool = False
    """write contexts in the tokenizer's chat template, for an instruct model that was not trained here"""
    test_share: float | None = None
    """share of the dialogues that is held out where the dataset has no test split; by default as in the training"""
    keep_eou: bool = False
    """score texts with the marker <EOU> at their ends, as the published figures of RL4LMs and OpenRL are"""
    floors: bool = False
    """add rows of replies that do not depend on the context: unrelated human ones, the most frequent, an empty one"""
    votes: Path | None = None
    """only print how often people preferred the agent's reply, by a file of votes from the chat page"""
    json: Path | None = None
    """also write the scores here"""


def main(args: Args) -> None:
    if args.votes:
        counts = count_votes(args.votes)
        if not counts:
            raise ValueError(f"{args.votes} has no blind vote between two agents")
        for (first, second), results in counts.items():
            print(describe_votes(first[:1].upper() + first[1:], second, results))
        return
    if args.json:
        check_output(args.json, "--json")
    folder, own = find_agent_folder(args.agent)
    given = {name: getattr(args, name) for name in ("dataset", "test_share", *SHAPE)}
    record = replace(own or AgentRecord(), **{name: value for name, value in given.items() if value is not None})
    if args.chat_template:
        if own and not own.chat_template:
            raise ValueError(f"--chat-template: {args.agent} was trained without one, see dialogue_agent.json")
        record = replace(record, chat_template=True)
    shape = {name: getattr(record, name) for name in SHAPE}
    load = partial(
        load_samples,
        record.dataset,
        tokenizer=folder if record.chat_template else "builtin",
        context_size=record.context_size,
        max_prompt_length=record.max_prompt_length,
        raw_split=args.raw_split,
        full_context=args.full_context,
        test_share=record.test_share,
        spacing=own.spacing if own else None,
        chat_template=record.chat_template,
    )
    samples = load(split=args.split)
    record = replace(record, spacing=samples.spacing)  # what is not known of a model without a record
    ids = evenly_spread(samples, args.samples)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    intent = None
    if samples.acts.any():
        intent = IntentMatch(args.intent_model, device, args.intent_labels, spacing=samples.spacing)
    model_class = AutoModelForCausalLM
    if args.policy_class:
        model_class = import_object(args.policy_class, "--policy-class")
    decoding = {name: getattr(args, name) for name in ("sample", "temperature", "top_k", "seed", "min_new_tokens")}

    def evaluate(agent: DialogueAgent | FixedReplies) -> Evaluation:
        return Evaluation(agent, samples, ids, intent, args.keep_eou, spacing=samples.spacing, **decoding)

    evaluations = {}
    if args.floors:
        floors = floor_replies([samples.references[i] for i in ids], load(split="train").references)
        evaluations = {name: evaluate(FixedReplies(texts)) for name, texts in floors.items()}
    for name in [args.agent] if args.baseline is None else [args.baseline, args.agent]:
        _, its_record = find_agent_folder(name)
        has_class = name == args.agent or (its_record and its_record.policy_class == args.policy_class)
        agent_class = model_class if has_class else AutoModelForCausalLM
        evaluations[name] = evaluate(DialogueAgent.load(name, device, agent_class, record=record, **shape))
    rows = {name: evaluation.scores for name, evaluation in evaluations.items()}
    intervals = change_intervals(*evaluations.values()) if len(rows) == 2 else None
    print(f"{table(rows, intervals)}\n\n{evaluations[args.agent].manner}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    run_script(main, Args, __doc__)
