"""Load a user-defined scorer that is named on the command line."""

from __future__ import annotations

from dailydialog_gym.objects import import_object
from dailydialog_gym.rewards.episodes import Scorer


def load_scorer(text: str) -> tuple[Scorer, float, str]:
    """Load the scorer of ``"module:callable=weight"``.

    Returns:
        scorer: the callable, or an instance of it if it is a class. A class is called without arguments.
        weight: the weight.
        name: the name of the callable.

    Raises:
        ValueError: the text does not have this form, or the module or the callable does not exist.

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
    scorer = import_object(target, "--reward")
    if isinstance(scorer, type):
        scorer = scorer()
    if not callable(scorer):
        raise ValueError(f"reward {text!r}: expected a function or a class, got {scorer!r}")
    return scorer, weight, target.partition(":")[2]
