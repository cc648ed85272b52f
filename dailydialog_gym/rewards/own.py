"""A user's own scorer, named on the command line."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from dailydialog_gym.rewards.episodes import Scorer


class OwnReward(NamedTuple):
    """What `ScoreReward` wants to know."""

    scorer: Scorer
    weight: float
    name: str


def load_scorer(text: str) -> OwnReward:
    """A scorer from ``"module:callable=weight"``, named after the callable; a class is called without arguments first.

    The module is looked up as in an ``import``.

    Raises:
        ValueError: the text has another form, or there is no such module or callable.

    >>> load_scorer("dailydialog_gym.rewards:Meteor=0.3")[1:]
    (0.3, 'Meteor')
    """
    target, _, number = text.partition("=")
    module, _, name = target.partition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = None
    if not module or not name or weight is None:
        raise ValueError(f"reward {text!r} is not of the form module:callable=weight, such as my_rewards:brevity=0.3")
    try:
        scorer = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"reward {text!r}: cannot import module {module!r} ({error})") from error
    except AttributeError as error:
        raise ValueError(f"reward {text!r}: module {module!r} has no {name!r}") from error
    if isinstance(scorer, type):
        scorer = scorer()
    if not callable(scorer):
        raise ValueError(f"reward {text!r}: {name!r} is no function or class, but {scorer!r}")
    return OwnReward(scorer, weight, name)
