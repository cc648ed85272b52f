"""The curves of training runs: for a run's folder, the chat page and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # pyplot would need a window system and keep every figure in memory

TITLES = {
    "charts/episodic_return": "Return",
    "reward/meteor": "METEOR",
    "reward/intent": "Intent",
    "reward/kl": "KL a reply",
    "metric/kl_per_token": "KL a token",
    "metric/kl_coef": "KL coefficient",
}


def title_of(key: str) -> str:
    """What a metric is called above its curve.

    >>> title_of("metric/kl_per_token"), title_of("reward/my_rewards")
    ('KL a token', 'My rewards')
    """
    name = key.partition("/")[2].replace("_", " ")
    return TITLES.get(key, name[:1].upper() + name[1:])


def targets_of(flags: dict[str, Any]) -> dict[str, float]:
    """The KL divergence at which a run's KL coefficient stays, by the metric that it is a target of.

    Args:
        flags: the run's flags, as in its ``config.json``.
    """
    key = {"openrl": "metric/kl_per_token", "ziegler": "reward/kl"}.get(flags.get("kl_rule", ""))
    target = flags.get("kl_target")
    return {key: target} if key and target else {}


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


def plot_curves(
    groups: Mapping[str, Sequence[Sequence[Mapping[str, float | None]]]],
    keys: Sequence[str],
    targets: Mapping[str, float] = MappingProxyType({}),
    over: str = "episodes",
) -> Figure:
    """A panel for each metric, over the number of replies trained on or over another metric.

    A thick line is the mean of the running means of a group's runs. Over the replies, thin lines are each run's metric
    in each iteration, and a band spans the lowest and the highest running mean; over another metric, thin lines are
    each run's running mean. The groups have the colours ``C0`` and on, and their names as labels.

    Args:
        groups: by name, the rows of the ``metrics.jsonl`` of its runs, the same number for each.
        keys: the metrics.
        targets: by metric, a value that is marked by a dashed line.
        over: the key of the horizontal axis.
    """
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    width, height = 4.5 * columns, 3 * lines
    figure = Figure(figsize=(width, height))
    # Margins in inches: a layout engine would draw everything twice to find them
    margins = {"left": 0.7 / width, "right": 1 - 0.2 / width, "bottom": 0.5 / height, "top": 1 - 0.4 / height}
    axes = figure.subplots(lines, columns, squeeze=False, gridspec_kw=margins | {"wspace": 0.25, "hspace": 0.45}).flat
    for axis, key in zip(axes, keys, strict=False):
        for number, (name, group) in enumerate(groups.items()):
            # (runs, iterations); None, and a metric that a run does not have, is NaN
            values, across = (np.array([[row.get(k) for row in run] for run in group], float) for k in (key, over))
            means = running_mean(values)
            across, thin = (across, values) if over == "episodes" else (running_mean(across), means)
            axis.plot(across.T, thin.T, color=f"C{number}" if len(groups) > 1 else "black", alpha=0.4, linewidth=0.8)
            if len(group) > 1 and over == "episodes":
                axis.fill_between(across[0], means.min(0), means.max(0), color=f"C{number}", alpha=0.2, linewidth=0)
            axis.plot(across.mean(0), means.mean(0), color=f"C{number}", label=name)
        if key in targets:
            axis.axhline(targets[key], color="tab:red", linestyle="--", linewidth=1)
        axis.set(title=title_of(key), xlabel="replies" if over == "episodes" else title_of(over))
        axis.grid(alpha=0.3)
    for axis in axes[len(keys) :]:
        axis.axis("off")
    return figure
