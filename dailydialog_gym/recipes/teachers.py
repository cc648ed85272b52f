"""Soft targets for the intent classifier: other classifiers' predictions, also for replies without labels."""

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
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.env.tokenizer import format_prompt, split_prompt
from dailydialog_gym.recipes.training import read_unlabelled
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.text import Spacing

Pairs = list[tuple[str, str]]  # an utterance, and the reply to it


def soft_labels(dialogues: Sequence[Dialogue], folds: int = 4) -> torch.Tensor:
    """``(n, 4)``: the probabilities of each utterance's act, as the mean of two logistic regressions on word counts.

    The first regression reads the utterance and the one before it. The second also gets the acts of the rest of the
    dialogue, which show what the utterance answers, how it was answered, and which acts its annotator prefers. Each
    predicts only the dialogues of the fold that it was not fitted on (cross-validation).
    """
    number: dict[tuple[str, ...], int] = {}  # equal dialogues are in the same fold
    fold, acts, texts, others = [], [], [], []
    for dialogue in dialogues:
        own = number.setdefault(dialogue.utterances, len(number)) % folds
        lower = ["", *(utterance.lower() for utterance in dialogue.utterances)]
        around = [0, 0, *dialogue.acts, 0]
        for i, act in enumerate(dialogue.acts, 1):
            fold.append(own)
            acts.append(act - 1)
            before, last, after = around[i - 1], around[i], around[i + 2]
            first = lower[i].split()[:8]
            answer = [*first, "_".join(first[:2]), "_".join(first[:3])]
            texts.append((lower[i - 1], lower[i], " ".join(f"{last}|{word}" for word in answer)))
            # The acts around the reply; "?" stands for its own, which is to be predicted
            rest = [*dialogue.acts[: i - 1], *dialogue.acts[i:]]
            others.append({f"{last}?": 0.5, f"?{after}": 0.5, f"{last}?{after}": 0.5, f"{before}{last}?": 0.5})
            others[-1] |= {f"share of {a}": rest.count(a) / max(len(rest), 1) for a in ACTS}
    words = [
        TfidfVectorizer(
            ngram_range=(1, longest), min_df=rarest, token_pattern=r"\S+", sublinear_tf=True, dtype=np.float32
        ).fit_transform(column)
        for column, longest, rarest in zip(zip(*texts, strict=True), (2, 3, 1), (4, 3, 3), strict=True)
    ]
    of_acts = DictVectorizer(dtype=np.float32).fit_transform(others)
    folds_of, labels = np.array(fold), np.array(acts)
    result = np.zeros((len(acts), len(ACTS)), np.float32)
    for features in hstack(words[:2]).tocsr(), hstack([*words, of_acts]).tocsr():
        for i in range(folds):
            known = labels[folds_of != i]
            if len(set(known)) < 2:
                raise ValueError(f"the acts of {len(number)} dialogues are too few or too alike to learn from")
            regression = LogisticRegression(C=3, tol=1e-3, max_iter=50).fit(features[folds_of != i], known)
            found = regression.predict_proba(features[folds_of == i])  # of the acts that there are
            result[np.ix_(folds_of == i, regression.classes_)] += found / 2
    return torch.from_numpy(result)


def predictions(teacher: str, pairs: Pairs, amp: bool, spacing: Spacing = "spaced") -> torch.Tensor:
    """``(n, 4)``: the probabilities of the replies' acts by a trained classifier, also for replies that it was trained
    on, as in born-again networks (Furlanello et al. 2018, arXiv:1805.04770). The pairs have the given spacing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    match = IntentMatch(teacher, device, amp_dtype=torch.bfloat16 if amp else None, spacing=spacing)
    last, replies = zip(*pairs, strict=True)
    return torch.from_numpy(match.probabilities([format_prompt([text]) for text in last], replies)).float()


def unlabelled_pairs(path: Path, n: int, seed: int, spacing: Spacing) -> Pairs:
    """``n`` different pairs, chosen at random from a file of dialogues, in the given spacing."""
    pairs = dict.fromkeys(pair for dialogue in read_unlabelled(path, spacing) for pair in pairwise(dialogue))
    if len(pairs) < n:
        raise ValueError(f"{path} has {len(pairs):,} replies, fewer than --unlabelled-replies {n:,}")
    return random.Random(seed).sample(list(pairs), n)


def policy_pairs(dataset: str, test_share: float, n: int, seed: int) -> Pairs:
    """The last utterances of ``n`` training contexts, chosen at random, and the embedded policy's replies to them.

    The replies are sampled as in `ppo_dialog.py`, so that they resemble what the classifier will judge as a reward, and
    have the dataset's spacing.
    """
    samples = load_samples(dataset, "train", test_share=test_share)
    prompts = samples.prompts
    if len(prompts) < n:
        raise ValueError(f"dataset {dataset!r} has {len(prompts):,} contexts, fewer than --policy-replies {n:,}")
    prompts = random.Random(seed).sample(prompts, n)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    agent = DialogueAgent.load("builtin", device)
    replies = agent.reply(prompts, sample=True, top_k=20, seed=seed, batch_size=256, spacing=samples.spacing)
    return [(split_prompt(prompt)[-1], reply) for prompt, reply in zip(prompts, replies, strict=True)]


def pairs_of(dialogues: Sequence[Dialogue]) -> Pairs:
    """Every utterance as a reply to the one before it, or to an empty text."""
    return [pair for dialogue in dialogues for pair in pairwise(("", *dialogue.utterances))]


def sentence_pairs(dialogues: Sequence[Dialogue], seed: int) -> Pairs:
    """For each reply of several sentences, two random runs of consecutive sentences as other replies, without repeats.

    The label of a reply holds for the whole reply; which of its sentences it holds for is predicted by the teachers.
    """
    rng = random.Random(seed)
    result = []
    for last, reply in dict.fromkeys(pairs_of(dialogues)):
        sentences = re.split(r"(?<=[.?!]) +", reply)
        runs = list(combinations(range(len(sentences) + 1), 2))
        runs.remove((0, len(sentences)))
        result += [(last, " ".join(sentences[i:j])) for i, j in rng.sample(runs, min(2, len(runs)))]
    return list(dict.fromkeys(result))
