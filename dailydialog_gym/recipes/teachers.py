"""What the intent classifier is taught beside the labels: other classifiers' opinions."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import hstack
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.dialogues import ACTS, Dialogue
from dailydialog_gym.env.samples import format_prompt, load_samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.recipes.sft import read_pretraining
from dailydialog_gym.rewards.intent import IntentMatch


def soft_labels(dialogues: Sequence[Dialogue], folds: int = 4) -> torch.Tensor:
    """``(n, 4)``: how probable each act of each utterance is, the mean of two logistic regressions on words.

    One reads the utterance and the one before. The other is also told the dialogue's other acts, which say what the
    utterance answers, what was made of it, and how its annotator tends to label. Either judges only dialogues that it
    wasn't fitted on.
    """
    number: dict[tuple[str, ...], int] = {}  # a dialogue that stands twice is in one fold
    fold, acts, texts, others = [], [], [], []
    for dialogue in dialogues:
        own = number.setdefault(dialogue.utterances, len(number)) % folds
        lower = ["", *(utterance.lower() for utterance in dialogue.utterances)]
        around = [0, 0, *dialogue.acts, 0]
        for i, act in enumerate(dialogue.acts, 1):
            fold.append(own)
            acts.append(act - 1)
            before, last, after = around[i - 1], around[i], around[i + 2]
            words = lower[i].split()
            answer = [*words[:8], "_".join(words[:2]), "_".join(words[:3])]
            texts.append((lower[i - 1], lower[i], " ".join(f"{last}|{word}" for word in answer)))
            rest = [*dialogue.acts[: i - 1], *dialogue.acts[i:]]
            others.append({f"{last}?": 0.5, f"?{after}": 0.5, f"{last}?{after}": 0.5, f"{before}{last}?": 0.5})
            others[-1] |= {f"share of {a}": rest.count(a) / max(len(rest), 1) for a in ACTS}
    words = [
        TfidfVectorizer(
            ngram_range=(1, longest), min_df=rarest, token_pattern=r"\S+", sublinear_tf=True, dtype=np.float32
        ).fit_transform(column)
        for column, longest, rarest in zip(zip(*texts, strict=True), (2, 3, 1), (4, 3, 3), strict=True)
    ]
    told = DictVectorizer(dtype=np.float32).fit_transform(others)
    fold, acts = np.array(fold), np.array(acts)
    result = np.zeros((len(acts), len(ACTS)), np.float32)
    for features in hstack(words[:2]).tocsr(), hstack([*words, told]).tocsr():
        for i in range(folds):
            regression = LogisticRegression(C=3, tol=1e-3, max_iter=50).fit(features[fold != i], acts[fold != i])
            result[fold == i] += regression.predict_proba(features[fold == i]) / 2
    return torch.from_numpy(result)


def opinions(teacher: str, pairs: Sequence[tuple[str, str]], amp: bool) -> torch.Tensor:
    """``(n, 4)``: how probable a trained classifier finds each act of each reply to an utterance, even of those that it
    learned from, as in born-again networks (Furlanello et al. 2018, arXiv:1805.04770)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    match = IntentMatch(teacher, device, amp_dtype=torch.bfloat16 if amp else None)
    last, replies = zip(*pairs, strict=True)
    return torch.from_numpy(match.probabilities([format_prompt([text]) for text in last], replies)).float()


def unlabelled_pairs(path: Path, n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` utterances with the replies to them, no pair twice, drawn by chance from a file of dialogues."""
    dialogues = read_pretraining(path)
    pairs = dict.fromkeys(pair for dialogue in dialogues for pair in pairwise(dialogue))
    if len(pairs) < n:
        raise ValueError(f"{path} has {len(pairs):,} replies, fewer than --unlabelled-replies {n:,}")
    return random.Random(seed).sample(list(pairs), n)


def policy_pairs(dataset: str, n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` last utterances of training contexts, chosen by chance, with the embedded policy's replies to them, drawn
    as `ppo_dialog.py` draws them: what the classifier will be paid for, half sentences and nonsense included."""
    prompts = load_samples(dataset, "train").prompts
    if len(prompts) < n:
        raise ValueError(f"dataset {dataset!r} has {len(prompts):,} contexts, fewer than --policy-replies {n:,}")
    prompts = random.Random(seed).sample(prompts, n)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    replies = DialogueAgent.load("builtin", device).reply(prompts, sample=True, top_k=20, seed=seed, batch_size=256)
    return [(prompt.split(EOU)[-2].strip(), reply) for prompt, reply in zip(prompts, replies, strict=True)]


def pairs_of(dialogues: Sequence[Dialogue]) -> list[tuple[str, str]]:
    """Every utterance as a reply to the one before it, or to nothing."""
    return [pair for dialogue in dialogues for pair in pairwise(("", *dialogue.utterances))]


def pieces(dialogues: Sequence[Dialogue], seed: int) -> list[tuple[str, str]]:
    """Of each reply of several sentences two runs of them, drawn by chance, as other replies to the same utterance.

    A reply is labelled as a whole: which of its sentences make it so is for teachers to say. No piece comes twice.
    """
    rng = random.Random(seed)
    result = []
    for last, reply in dict.fromkeys(pairs_of(dialogues)):
        sentences = re.split(r"(?<=[.?!]) +", reply)
        runs = list(combinations(range(len(sentences) + 1), 2))
        runs.remove((0, len(sentences)))
        result += [(last, " ".join(sentences[i:j])) for i, j in rng.sample(runs, min(2, len(runs)))]
    return list(dict.fromkeys(result))
