"""How often one agent's reply was preferred to another's, by the votes of the chat page."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from dailydialog_gym.files import check_file, decode_lines
from dailydialog_gym.reports.intervals import wilson

RESULTS = ("trained", "start", "tie")
UNNAMED = {"trained": "the agent", "start": "its start"}  # the sides of a vote that does not name its agents
FLIPPED = {"trained": "start", "start": "trained", "tie": "tie"}


def count_votes(path: Path) -> dict[tuple[str, str], Counter[str]]:
    """By the names of two agents, how many votes of a file prefer each of ``RESULTS``: the first, the second, neither.

    Only blind votes count, and no votes between two replies of one agent.

    Raises:
        ValueError: it is no file, or a line is no vote; the message has its number.
    """
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    check_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(decode_lines(path, file), 1):
            try:
                row = json.loads(line)
                result, blind = row["preferred"], row.get("blind", True)
                first, second = (row[side]["name"] if side in row else UNNAMED[side] for side in ("trained", "start"))
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'{path}, line {number}: expected {{"preferred": ...}}, got {line[:80]!r}') from error
            if result not in RESULTS:
                raise ValueError(f"{path}, line {number}: 'preferred' is {result!r}: expected {', '.join(RESULTS)}")
            if not (isinstance(first, str) and isinstance(second, str)):
                raise ValueError(f"{path}, line {number}: expected texts as names of the agents, got {line[:80]!r}")
            if not blind or first == second:
                continue
            if (second, first) in counts:
                first, second, result = second, first, FLIPPED[result]
            counts[first, second][result] += 1
    return dict(counts)


def describe_votes(first: str, second: str, counts: Counter[str]) -> str:
    """The first agent's win rate with its interval, as a sentence. A tie is half a win.

    >>> describe_votes("The agent", "its start", Counter(trained=8, start=2))
    'The agent wins 80.0% of 10 votes against its start (95% interval 49.0% to 94.3%): 8 won, 2 lost, 0 ties.'
    """
    won, lost, ties = (counts[result] for result in RESULTS)
    hits, n = won + ties / 2, counts.total()
    low, high = wilson(hits, n)
    return (
        f"{first} wins {hits / n:.1%} of {n:,} votes against {second} (95% interval {low:.1%} to {high:.1%}): "
        f"{won:,} won, {lost:,} lost, {ties:,} ties."
    )
