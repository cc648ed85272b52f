"""Train a reward model from preference pairs, such as the votes of the chat page.

    python -m dailydialog_gym.recipes.reward --pairs runs/NAME/votes.jsonl --out reward
    python ppo_dialog.py --reward-model reward --kl-coef 1 --kl-rule fixed

A reward model r gives a reply y in its context x a number. The loss is the negative log-likelihood of the preferences
under Bradley and Terry's model, P(y1 beats y2) = sigmoid(r(x, y1) - r(x, y2)), as Christiano et al. (2017,
arXiv:1706.03741) use it: ``-log sigmoid(r(x, chosen) - r(x, rejected) - margin)``. A tie counts as half a preference
for either side. It follows reward.py of https://github.com/vwxyzjn/summarize_from_feedback_details, which shifts the
trained rewards to a mean of 0; here `RewardModel` standardizes them while they are used.

A line of a file of pairs has ``prompt``, ``chosen`` and ``rejected``: texts, in which ``<EOU>`` ends an utterance, or
lists of messages. It may have a ``margin`` (arXiv:2307.09288), a number by which the chosen reply must lead;
``"preferred": "tie"``; and a ``split``.

Pairs whose split is not "train" are held out, and of the others without a split a share of the contexts. The model that
is kept is that of the epoch with the lowest held-out loss. `OUT` becomes a Hugging Face folder (float16 safetensors and
tokenizer), with the training curve in ``metrics.jsonl`` and the held-out scores in ``scores.json``. After a kill, the
same command resumes.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from dailydialog_gym.embedded import asset
from dailydialog_gym.env.columns import SILENT_ROLES
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.errors import run_script
from dailydialog_gym.files import write_text
from dailydialog_gym.models.loading import load_classifier
from dailydialog_gym.ranges import Count, NotNegative, Share
from dailydialog_gym.recipes.training import (
    Training,
    TrainingArgs,
    calibration_error,
    check_flags,
    check_inputs,
    group_by_length,
    read_rows,
)
from dailydialog_gym.reports.intervals import wilson
from dailydialog_gym.rewards.model import DialogueFormat, pad
from dailydialog_gym.runs.fingerprint import model_files
from dailydialog_gym.text import convert_spacing, spacing_of

FEW = 50  # pairs
LABELS = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}


@dataclass
class Args(TrainingArgs):
    pairs: tuple[str, ...] = ("builtin",)
    """.jsonl or .jsonl.gz files of preference pairs; "builtin" are the embedded ones"""
    start: str = "builtin"
    """what to begin with: "builtin", the embedded intent classifier's encoder, or any encoder or causal language model
    by folder or hub id; its head is replaced by one with a single output"""
    held_out: Share = 0.1
    """share of the contexts that is held out, of pairs without a split, or of all if no pair's split holds it out"""
    max_length: Count = 192
    """longest input in tokens; a longer one loses its beginning"""
    epochs: Count = 2
    learning_rate: NotNegative = 5e-4
    warmup_steps: Count = 10
    weight_decay: NotNegative = 0.05


class Pair(NamedTuple):
    """Two replies to a context."""

    context: tuple[str, ...]
    """the utterances, the oldest first"""
    chosen: str
    rejected: str
    target: float
    """the probability that the chosen reply is the better one: 1, or 0.5 for a tie"""
    margin: float
    held_out: bool | None
    """None if the pair has no split"""
    source: str = ""
    """the name of the file"""


def read_pairs(name: str) -> list[Pair]:
    """The pairs of a file.

    Raises:
        ValueError: the file cannot be read, or a line is not a pair; the message has its number.
    """
    if name == "builtin":
        with asset("pairs.jsonl.gz") as path:
            return read_pairs(str(path))
    expected = '{"prompt": ..., "chosen": ..., "rejected": ...}, texts or lists of messages'
    return read_rows(Path(name), _pair, expected)


def _pair(row: dict[str, Any]) -> Pair:
    (*before, chosen), (*_, rejected) = _utterances(row["chosen"]), _utterances(row["rejected"])
    split, margin = row.get("split"), row.get("margin")
    return Pair(
        context=tuple(before or _utterances(row["prompt"])),  # some datasets repeat the conversation before each reply
        chosen=chosen,
        rejected=rejected,
        target=0.5 if row.get("preferred") == "tie" else 1.0,
        margin=0.0 if margin is None else _finite(margin),
        held_out=None if split is None else split.lower() != "train",
    )


def _finite(number: Any) -> float:
    if not math.isfinite(margin := float(number)):
        raise ValueError("the margin is not finite")
    return margin


def _utterances(text: str | list[dict[str, str]]) -> list[str]:
    """The utterances of a text in the training format, or of messages; those of the system and of tools are none."""
    if isinstance(text, list):
        return [message["content"].strip() for message in text if message["role"].lower() not in SILENT_ROLES]
    return [utterance.strip() for utterance in text.strip().removesuffix(EOU).split(EOU)]


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and those that are held out: by their split, and of the others a share of the contexts.

    If no pair is held out by its split, the splits do not count. Pairs of one context are on the same side, except
    where their splits say otherwise.

    Raises:
        ValueError: one of the two is empty.
    """
    by_split = {pair.context: pair.held_out for pair in pairs if pair.held_out is not None}
    if not any(by_split.values()):
        by_split, pairs = {}, [pair._replace(held_out=None) for pair in pairs]
    contexts = sorted({pair.context for pair in pairs} - by_split.keys())
    count = round(share * len(contexts)) if by_split else min(len(contexts), max(1, round(share * len(contexts))))
    by_share = set(random.Random(seed).sample(contexts, count))
    train, test = list[Pair](), list[Pair]()
    for pair in pairs:
        held_out = pair.held_out
        if held_out is None:
            held_out = by_split.get(pair.context, pair.context in by_share)
        (test if held_out else train).append(pair)
    if not train or not any(pair.target == 1 for pair in test):
        raise ValueError(
            f"{len(train)} pairs to train on and {sum(pair.target == 1 for pair in test)} without a tie to hold out: "
            "expected at least one of each, so collect more votes"
        )
    return train, test


def initial_model(args: Args) -> tuple[PreTrainedModel, DialogueFormat]:
    """The model with a new head of one output, and how it reads a pair."""
    options: dict[str, Any] = {"kind": "--start", "new_head": True, **LABELS}
    if args.start == "builtin":  # its positions are rotary, so it can read more than in its own training
        with asset("intent") as folder:
            model, tokenizer = load_classifier(str(folder), max_position_embeddings=args.max_length, **options)
        tokenizer.model_max_length = args.max_length
    else:
        model, tokenizer = load_classifier(args.start, **options)
        tokenizer.model_max_length = min(args.max_length, tokenizer.model_max_length)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if "separator" not in model.config.to_dict():
        model.config.separator = tokenizer.sep_token or tokenizer.eos_token or "\n"
    if not torch.cuda.is_available():  # on a CPU, the backward pass of fused attention is slow
        model.set_attn_implementation("eager")
    return model, DialogueFormat(tokenizer, model.config, args.start)


Rows = list[tuple[list[int], list[int]]]  # the token ids of each pair: chosen, rejected


def encode(form: DialogueFormat, pairs: Sequence[Pair]) -> Rows:
    """What the model reads of each pair."""
    written = [(*pair.context, pair.chosen, pair.rejected) for pair in pairs]
    texts = [[convert_spacing(text, spacing_of(pair), form.spacing) for text in pair] for pair in written]
    contexts = [pair[:-2] for pair in texts]
    sides = ([pair[side] for pair in texts] for side in (-2, -1))
    return list(zip(*(form.encode(contexts, replies) for replies in sides), strict=True))


def minibatches(rows: Rows, batch_tokens: int) -> list[list[int]]:
    """Indices of pairs of similar length. Both sides of a pair are in the same minibatch."""
    return group_by_length([range(2 * max(map(len, row))) for row in rows], batch_tokens)


def leads(model: PreTrainedModel, form: DialogueFormat, rows: Rows, batch: list[int], amp: bool) -> torch.Tensor:
    """``(n,)``: by how much the chosen reply's reward is above the rejected one's, in the pairs of a minibatch."""
    inputs = pad([rows[i][side] for side in (0, 1) for i in batch], form.tokenizer.pad_token_id, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
        chosen, rejected = model(**inputs).logits.float().squeeze(-1).chunk(2)
    return chosen - rejected


@torch.no_grad()
def all_leads(model: PreTrainedModel, form: DialogueFormat, rows: Rows, args: Args) -> torch.Tensor:
    """`leads` of all pairs, in their order."""
    model.eval()
    result = torch.empty(len(rows))
    for batch in minibatches(rows, args.batch_tokens):
        result[batch] = leads(model, form, rows, batch, args.amp).cpu()
    return result


def loss_of(lead: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
    """The mean of ``-log sigmoid(lead - margin)`` over pairs; a tie is the mean of both directions."""
    margins, targets = (
        torch.tensor([getattr(pair, name) for pair in pairs], device=lead.device) for name in ("margin", "target")
    )
    return binary_cross_entropy_with_logits(lead - margins, targets)


def scores(lead: torch.Tensor, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How well the rewards predict the preferences, ties apart.

    Returns:
        The number of pairs; the accuracy and its 95% interval; the loss in nats (0.693 is a coin); the expected
        calibration error of the predicted preference in 10 bins; and the share of the pairs whose longer reply was
        chosen, which is what a reward of length alone would reach.
    """
    decided = torch.tensor([pair.target == 1 for pair in pairs])
    lead, pairs = lead[decided], [pair for pair in pairs if pair.target == 1]
    hit = (lead > 0).double()
    longer = [(len(pair.chosen) > len(pair.rejected)) + (len(pair.chosen) == len(pair.rejected)) / 2 for pair in pairs]
    return {
        "n": len(pairs),
        "accuracy": hit.mean().item(),
        "interval": wilson(hit.sum().item(), len(pairs)),
        "loss": loss_of(lead, pairs).item(),
        "calibration_error": calibration_error(lead.abs().sigmoid().double(), hit, 10, lowest=0.5),
        "longer_is_chosen": sum(longer) / len(pairs),
    }


def main(args: Args) -> None:
    check_flags(args)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # or it reports at length that the head is new
    pairs = [pair._replace(source=name) for name in args.pairs for pair in read_pairs(name)]
    train, held_out = split_pairs(pairs, args.held_out, args.seed)
    print(f"{len(train):,} pairs to train on, {len(held_out):,} held out")
    if len(pairs) < FEW:
        print(
            f"{len(pairs)} pairs are few. Expect a reward that has learnt little but length and a handful of words, "
            "and a held-out accuracy that may be chance: look at its interval, and at the share of longer replies. Add "
            "--pairs builtin to begin with the embedded pairs, and collect some hundred votes before you trust it"
        )
    torch.manual_seed(args.seed)
    model, form = initial_model(args)
    check_inputs(args.out, pairs=pairs, start=model_files(args.start, "intent"))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows, held_out_rows = encode(form, train), encode(form, held_out)
    form.tokenizer.save_pretrained(args.out)  # from here on `OUT` holds a run, whose flags `check_flags` compares
    steps = [len(minibatches(rows, args.batch_tokens))] * args.epochs
    training = Training(args, model, steps, decay=lambda share: 1 - share)
    print(f"{model.num_parameters():,} parameters, {model.device}")
    while training.epoch < args.epochs and training.epoch - training.best_epoch < args.patience:
        data, rng = minibatches(rows, args.batch_tokens), training.seed_epoch()
        rng.shuffle(data)
        model.train()
        for batch in training.minibatches(data, [sum(len(side) for i in batch for side in rows[i]) for batch in data]):
            loss = loss_of(leads(model, form, rows, batch, args.amp), [train[i] for i in batch])
            training.step(loss, loss=loss)
        train_loss = training.losses["loss"]
        found = scores(all_leads(model, form, held_out_rows, args), held_out)
        training.end_epoch(
            {"train_loss": train_loss, **{key: found[key] for key in ("accuracy", "loss", "calibration_error")}},
            score=-found["loss"],
            save_best=lambda: copy.deepcopy(model).half().save_pretrained(args.out),
        )
    finish(args, form, held_out)


def finish(args: Args, form: DialogueFormat, held_out: list[Pair]) -> None:
    """Score the model that was kept, and say what it is good for."""
    model, _ = load_classifier(str(args.out), "reward model")
    lead = all_leads(model, form, encode(form, held_out), args)
    found = scores(lead, held_out)
    write_text(args.out / "scores.json", json.dumps(found, indent=1) + "\n")
    low, high = found["interval"]
    print(
        f"held out: the chosen reply has the higher reward in {found['accuracy']:.1%} of {found['n']:,} pairs (95% "
        f"interval {low:.1%} to {high:.1%}), loss {found['loss']:.3f} (a coin: 0.693), calibration error "
        f"{found['calibration_error']:.3f}; the longer reply is the chosen one in {found['longer_is_chosen']:.1%}"
    )
    for name in args.pairs if len(args.pairs) > 1 else ():
        own = [i for i, pair in enumerate(held_out) if pair.source == name and pair.target == 1]
        share = f"in {(lead[own] > 0).double().mean():.1%} of {len(own):,} pairs" if own else "no pair is held out"
        print(f"    {name}: {share}")
    print(f"reward model in {args.out}: python ppo_dialog.py --reward-model {args.out} --kl-coef 1 --kl-rule fixed")


if __name__ == "__main__":
    run_script(main, Args, __doc__)
