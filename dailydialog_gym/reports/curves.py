"""The curves of training runs: for a run's folder, the chat page and the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure  # pyplot would need a window system and keep every figure in memory


def curve_keys(row: dict[str, float]) -> list[str]:
    """The keys of a row of ``metrics.jsonl`` that are drawn as curves: return, rewards and the wrappers' metrics."""
    return ["charts/episodic_return", *(key for key in row if key.startswith(("reward/", "metric/")))]


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each entry and those before it, over a window of a tenth of the last axis.

    >>> running_mean(np.arange(20.0))[:4]
    array([0. , 0.5, 1.5, 2.5])
    """
    length = values.shape[-1]
    window = max(1, length // 10)
    means = [values[..., max(0, i + 1 - window) : i + 1].mean(-1) for i in range(length)]
    return np.stack(means, axis=-1)


def plot_curves(runs: Sequence[Sequence[dict[str, float]]], keys: Sequence[str]) -> Figure:
    """A panel for each metric, over the number of replies trained on.

    A thin line is a run's metric in each iteration. The thick line is the running mean; with several runs, it is the
    mean of their running means, and a band spans the lowest and the highest of them.

    Args:
        runs: the rows of each run's ``metrics.jsonl``, the same number for each.
        keys: the metrics.
    """
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    width, height = 4.5 * columns, 3 * lines
    figure = Figure(figsize=(width, height))
    # Margins in inches: a layout engine would draw everything twice to find them
    margins = {"left": 0.7 / width, "right": 1 - 0.2 / width, "bottom": 0.5 / height, "top": 1 - 0.4 / height}
    axes = figure.subplots(lines, columns, squeeze=False, gridspec_kw=margins | {"wspace": 0.25, "hspace": 0.45}).flat
    episodes = [row["episodes"] for row in runs[0]]
    for axis, key in zip(axes, keys, strict=False):
        values = np.array([[row[key] for row in run] for run in runs], dtype=float)  # (runs, iterations), None is NaN
        means = running_mean(values)
        axis.plot(episodes, values.T, color="black", alpha=0.4, linewidth=0.8)
        if len(runs) > 1:
            axis.fill_between(episodes, means.min(0), means.max(0), color="tab:blue", alpha=0.2, linewidth=0)
        axis.plot(episodes, means.mean(0), color="tab:blue")
        axis.set(title=key, xlabel="replies")
        axis.grid(alpha=0.3)
    for axis in axes[len(keys) :]:
        axis.axis("off")
    return figure
