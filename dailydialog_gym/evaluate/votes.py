"""How often the agent's reply was preferred to that of the model it started from, by the votes of the chat page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from dailydialog_gym.reports.intervals import wilson

RESULTS = ("trained", "start", "tie")


def count_votes(path: Path) -> Counter[str]:
    """How many votes of a file prefer each of ``RESULTS``.

    Raises:
        ValueError: the file has no vote, or a line is none; the message has its number.
    """
    counts: Counter[str] = Counter()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                result = json.loads(line)["preferred"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: expected {{"preferred": ...}}, got {line[:80]!r}') from error
            if result not in RESULTS:
                raise ValueError(f"{path}, line {number}: 'preferred' is {result!r}: expected {', '.join(RESULTS)}")
            counts[result] += 1
    if not counts:
        raise ValueError(f"{path} has no vote")
    return counts


def describe_votes(counts: Counter[str]) -> str:
    """The agent's win rate with its interval, as a sentence. A tie is half a win.

    >>> describe_votes(Counter(trained=8, start=2))
    'The agent wins 80.0% of 10 votes against its start (95% interval 49.0% to 94.3%): 8 won, 2 lost, 0 ties.'
    """
    won, lost, ties = (counts[result] for result in RESULTS)
    hits, n = won + ties / 2, counts.total()
    low, high = wilson(hits, n)
    return (
        f"The agent wins {hits / n:.1%} of {n:,} votes against its start (95% interval {low:.1%} to {high:.1%}): "
        f"{won:,} won, {lost:,} lost, {ties:,} ties."
    )
