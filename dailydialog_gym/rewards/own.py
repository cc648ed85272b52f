"""Load a user-defined scorer that is named on the command line."""

from __future__ import annotations

import math

import numpy as np

from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.objects import import_object
from dailydialog_gym.rewards.episodes import Episodes, Scorer, add_score


def load_scorer(text: str) -> tuple[Scorer, float, str]:
    """Load the scorer of ``"module:callable=weight"``, and let it score one episode.

    Returns:
        scorer: the callable, or an instance of it if it is a class. A class is called without arguments.
        weight: the weight.
        name: the name of the callable.

    Raises:
        ValueError: the text does not have this form, the module or the callable does not exist, or the scorer does not
            score an episode.

    >>> load_scorer("dailydialog_gym.rewards:Meteor=0.3")[1:]
    (0.3, 'Meteor')
    """
    target, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(
            f"reward {text!r} does not have the form module:callable=weight, such as my_rewards:brevity=0.3"
        ) from None
    if not math.isfinite(weight):
        raise ValueError(f"reward {text!r} does not have a finite weight")
    scorer = import_object(target, "--reward")
    if isinstance(scorer, type):
        scorer = scorer()
    if not callable(scorer):
        raise ValueError(f"reward {text!r}: expected a function or a class, got {scorer!r}")
    name = target.partition(":")[2]
    try:
        add_score(scorer, weight, name, _example(), np.zeros(1), {})
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"reward {text!r} does not score an episode: {type(error).__name__}: {error}") from error
    return scorer, weight, name


def _example() -> Episodes:
    """An episode of the embedded dialogues, whose reply is the reference reply."""
    samples, length = load_samples("builtin", "validation"), 20
    reply = samples.tokenizer.encode([samples.references[0]])[0][:length]
    padding = np.zeros(length - len(reply), np.int64)
    return Episodes(
        prompts=samples.prompts[:1],
        responses=samples.references[:1],
        references=[samples.references[0]],
        intents=samples.acts[:1],
        input_ids=np.concatenate([samples.prompt_ids[0], reply, padding + samples.tokenizer.pad_id])[None],
        attention_mask=np.concatenate([samples.prompt_mask[0], [1] * len(reply), padding])[None].astype(np.int64),
        max_new_tokens=length,
    )
