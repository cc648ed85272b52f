"""A user's own scorer, named on the command line."""

from __future__ import annotations

from dailydialog_gym.objects import import_object
from dailydialog_gym.rewards.episodes import Scorer


def load_scorer(text: str) -> tuple[Scorer, float, str]:
    """A scorer, its weight and its name from ``"module:callable=weight"``, as `ScoreReward` wants them.

    It is named after the callable; a class is called without arguments first.

    Raises:
        ValueError: the text has another form, or there is no such module or callable.

    >>> load_scorer("dailydialog_gym.rewards:Meteor=0.3")[1:]
    (0.3, 'Meteor')
    """
    target, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(
            f"reward {text!r} is not of the form module:callable=weight, such as my_rewards:brevity=0.3"
        ) from None
    scorer = import_object(target, "--reward")
    if isinstance(scorer, type):
        scorer = scorer()
    if not callable(scorer):
        raise ValueError(f"reward {text!r}: it is no function or class, but {scorer!r}")
    return scorer, weight, target.partition(":")[2]
