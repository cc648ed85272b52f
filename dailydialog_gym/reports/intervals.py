"""Confidence intervals of shares."""

from __future__ import annotations


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927): 95% by default. It is also right near 0 and 1, and for few trials.

    Args:
        hits: the number of successes; ties count half.
        n: the number of trials, at least 1.
        z: the quantile of the normal distribution.

    >>> [round(bound, 2) for bound in wilson(8, 10)]
    [0.49, 0.94]
    """
    centre = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * (hits * (n - hits) / n + z**2 / 4) ** 0.5
    return centre - half, centre + half
