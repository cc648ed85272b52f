"""Confidence intervals of shares, and the bootstrap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike


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


def bootstrap_means(
    columns: Sequence[ArrayLike], groups: Sequence[Hashable], resamples: int = 2000, seed: int = 0
) -> list[np.ndarray]:
    """The means of columns in samples that are drawn with replacement, for a bootstrap (Efron 1979).

    Whole groups of rows are drawn, such as all replies to a context, since the rows of a group are alike. The same ones
    are drawn of all columns, so that measures of the same replies can be compared.

    Args:
        columns: ``(n,)`` or ``(n, k)`` each. NaN is left out of a mean.
        groups: ``n`` names, the same for the rows of a group.
        resamples: the number of samples.
        seed: of the samples.

    Returns: for each column ``(resamples,)`` or ``(resamples, k)``, NaN where a sample has no numbers of it.

    >>> [mean.tolist() for mean in bootstrap_means([[1.0] * 9, [[2, 3]] * 9], range(9), resamples=2)]
    [[1.0, 1.0], [[2.0, 3.0], [2.0, 3.0]]]
    """
    values = [np.asarray(column, dtype=float) for column in columns]
    flat = np.concatenate([column.reshape(len(column), -1) for column in values], axis=1)  # (n, all k)
    there = ~np.isnan(flat)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    totals = np.zeros((len(numbers), 2 * flat.shape[1]))  # of each group: sums, and how many numbers they are of
    np.add.at(totals, [numbers[group] for group in groups], np.concatenate([np.where(there, flat, 0.0), there], axis=1))
    rng, n = np.random.default_rng(seed), len(numbers)
    drawn = np.array([np.bincount(rng.integers(n, size=n), minlength=n) @ totals for _ in range(resamples)])
    sums, counts = np.split(drawn, 2, axis=1)
    ends = np.cumsum([column[0].size for column in values])[:-1]
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    parts = np.split(means, ends, axis=1)
    return [part.reshape(resamples, *column.shape[1:]) for part, column in zip(parts, values, strict=True)]
