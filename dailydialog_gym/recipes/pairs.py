"""Make preference pairs without people, from dialogues and a policy: the embedded ``pairs.jsonl.gz``.

    python -m dailydialog_gym.recipes.pairs --out pairs.jsonl.gz

For each context of the training and the validation dialogues there is one pair: what the dialogue's writer answered
beats the policy's reply.

All replies are cut where the environment cuts the policy, so that neither a length that the policy cannot reach nor an
unfinished sentence tells them apart. A line of the file is what `chat_app.py` writes for a vote, ``prompt``, ``chosen``
and ``rejected``, with the ``split`` of the dialogue.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.dialogues import TEST_SHARE
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.errors import run_script
from dailydialog_gym.files import check_output, write_file
from dailydialog_gym.ranges import Count, CountOrZero, Seed
from dailydialog_gym.recipes.intent import cut_utterances


@dataclass
class Args:
    out: Path
    """the .jsonl.gz file to write"""
    dataset: str = "builtin"
    """the dialogues, as in `gym.make("DailyDialog-v0", dataset=...)`"""
    test_share: float = TEST_SHARE
    """where the dataset has no validation or no test split: the share of its dialogues that is held out for it"""
    model: str = "builtin"
    """the policy whose replies are compared, as in `DialogueAgent.load`"""
    max_new_tokens: Count = 20
    """longest reply, in tokens of the embedded policy"""
    top_k: CountOrZero = 20
    """draw the policy's replies from the k likeliest tokens; 0 is all"""
    seed: Seed = 1
    """random seed"""


def make_pairs(args: Args, split: str) -> list[dict[str, str]]:
    """The pairs of one split's contexts, in the order of the dialogues. Two equal replies make no pair."""
    samples = load_samples(args.dataset, split, test_share=args.test_share)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    agent = DialogueAgent.load(args.model, device, max_new_tokens=args.max_new_tokens)
    replies = agent.reply(
        samples.prompts, sample=True, top_k=args.top_k, seed=args.seed, batch_size=256, spacing=samples.spacing
    )
    replies, references = (cut_utterances(texts, args.max_new_tokens) for texts in (replies, samples.references))
    return [
        {"prompt": prompt, "chosen": f" {reference} {EOU}", "rejected": f" {reply} {EOU}", "split": split}
        for prompt, reference, reply in zip(samples.prompts, references, replies, strict=True)
        if reference != reply
    ]


def main(args: Args) -> None:
    check_output(args.out, "--out")
    transformers.utils.logging.disable_progress_bar()
    pairs = [pair for split in ("train", "validation") for pair in make_pairs(args, split)]
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    # mtime=0: the same pairs are the same bytes
    write_file(args.out, lambda file: file.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0)))
    print(f"{len(pairs):,} pairs, {args.out.stat().st_size / 1e3:.0f} kB in {args.out}")


if __name__ == "__main__":
    run_script(main, Args, __doc__)
