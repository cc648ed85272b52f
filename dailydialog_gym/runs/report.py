"""What people look at after a run: its curves, and the replies before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # not pyplot: no window system, no global state

from dailydialog_gym.evaluate.evaluation import Evaluation
from dailydialog_gym.env.tokenizer import EOU


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Return, rewards and metrics over the replies trained on, one panel each: every iteration, and a running mean."""
    keys = ["charts/episodic_return", *(key for key in history[0] if key.startswith(("reward/", "metric/")))]
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4.5 * columns, 3 * rows))
    # Margins in inches: a layout engine would draw everything twice to find them
    edges = {"left": 0.7 / (4.5 * columns), "right": 1 - 0.2 / (4.5 * columns)}
    edges |= {"bottom": 0.5 / (3 * rows), "top": 1 - 0.4 / (3 * rows)}
    gaps = {"wspace": 0.25, "hspace": 0.45}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | gaps).flatten()
    episodes = [row["episodes"] for row in history]
    for axis, key in zip(axes, keys, strict=False):
        values = [row[key] for row in history]
        axis.plot(episodes, values, color="0.8")
        axis.plot(episodes, _running_mean(values, max(1, len(values) // 10)), color="tab:blue")
        axis.set(title=key, xlabel="replies")
        axis.grid(alpha=0.3)
    for axis in axes[len(keys) :]:
        axis.axis("off")
    figure.savefig(path, dpi=120)


def _running_mean(values: list[float], width: int) -> list[float]:
    return [float(np.mean(values[max(0, i + 1 - width) : i + 1])) for i in range(len(values))]


def side_by_side(before: Evaluation, after: Evaluation) -> str:
    """Markdown: a context each, the reply before and after training, and what people answered."""
    lines = ["# Replies before and after\n"]
    for i in range(min(20, len(before.prompts))):
        context = "".join(f"> {utterance.strip()}\n>\n" for utterance in before.prompts[i].split(EOU)[:-1])
        lines.append(
            f"{context}\n- before: {before.replies[i]}\n- after: {after.replies[i]}\n- people: {before.references[i]}\n"
        )
    return "\n".join(lines)
