"""Score tables and curves of training runs: for the console, a run's folder, the chat page and the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure  # pyplot would need a window system and keep every figure in memory

# The column headings of the scores of `dailydialog_gym.evaluate.score_replies` and `Evaluation`
LABELS = {
    "rouge1": "ROUGE-1",
    "rougeLsum": "ROUGE-Lsum",
    "meteor": "METEOR",
    "sacrebleu": "SacreBLEU",
    "intent": "Intent",
    "distinct1": "Distinct-1",
    "distinct2": "Distinct-2",
    "unique": "Unique",
    "length": "Length",
}


def score_cells(rows: dict[str, dict[str, float]]) -> list[list[str]]:
    """The cells of a score table: a line of headings, then a line for each model.

    With two models, a last line shows the second model's scores relative to the first's.

    Args:
        rows: by model, its scores by their keys in ``LABELS``.
    """
    keys = list(next(iter(rows.values())))
    cells = [["", *(LABELS[key] for key in keys)]]
    for name, scores in rows.items():
        cells.append([name, *(f"{scores[key]:.4f}" if scores[key] < 1 else f"{scores[key]:.2f}" for key in keys)])
    if len(rows) == 2:
        first, second = rows.values()
        cells.append(["change", *(f"{second[key] / first[key] - 1:+.1%}" if first[key] else "" for key in keys)])
    return cells


def table(rows: dict[str, dict[str, float]]) -> str:
    """The score table of `score_cells` in Markdown.

    >>> print(table({"before": {"meteor": 0.1}, "after": {"meteor": 0.12}}))
    |        | METEOR |
    | ------ | ------ |
    | before | 0.1000 |
    | after  | 0.1200 |
    | change | +20.0% |
    """
    return markdown(score_cells(rows))


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Cells, the headings first, as a Markdown table whose columns are aligned in plain text too."""
    header, *lines = cells
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (header, ["-" * width for width in widths], *lines)
    )


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
