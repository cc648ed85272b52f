"""Confidence intervals of shares and of differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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


def bootstrap_difference(
    before: Sequence[float], after: Sequence[float], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95% interval of the mean of ``after - before``, by the percentile bootstrap (Efron 1979) over pairs.

    Args:
        before, after: ``n`` numbers each, of the same cases.
        resamples: the number of samples of ``n`` pairs that are drawn, with replacement.
        seed: of the drawing.

    >>> bootstrap_difference([0.0] * 50, [1.0] * 50)
    (1.0, 1.0)
    """
    differences = np.subtract(after, before)
    rng = np.random.default_rng(seed)
    means = [differences[rng.integers(len(differences), size=len(differences))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
