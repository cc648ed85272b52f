"""Score tables: for the console, a run's folder, the chat page and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    "reward": "Reward",
}


def score_cells(
    rows: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Sequence[float]] | None = None
) -> list[list[str]]:
    """The cells of a score table: a line of headings, then a line for each model.

    With two models, a line shows the second model's scores relative to the first's. Where intervals of the change are
    given, two more lines show their ends in the same way.

    Args:
        rows: by model, its scores by their keys in ``LABELS``.
        intervals: by key, the two ends of the 95% interval of the change, from
            `dailydialog_gym.evaluate.change_intervals`. A key may be missing.
    """
    keys = list(next(iter(rows.values())))
    cells = [["", *(LABELS[key] for key in keys)]]
    for name, scores in rows.items():
        cells.append([name, *(f"{scores[key]:.4f}" if abs(scores[key]) < 1 else f"{scores[key]:.2f}" for key in keys)])
    if len(rows) == 2:
        first, second = rows.values()
        changes: dict[str, Mapping[str, float]] = {"change": {key: second[key] - first[key] for key in keys}}
        if intervals:
            for end, name in enumerate(("95% from", "95% to")):
                changes[name] = {key: ends[end] for key, ends in intervals.items()}
        for name, change in changes.items():
            shares = {key: difference / first[key] for key, difference in change.items() if first[key] > 0}
            cells.append([name, *(f"{shares[key]:+.1%}" if key in shares else "" for key in keys)])
    return cells


def table(rows: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Sequence[float]] | None = None) -> str:
    """The score table of `score_cells` in Markdown.

    >>> print(table({"before": {"meteor": 0.1}, "after": {"meteor": 0.12}}, {"meteor": [0.015, 0.025]}))
    |          | METEOR |
    | -------- | ------ |
    | before   | 0.1000 |
    | after    | 0.1200 |
    | change   | +20.0% |
    | 95% from | +15.0% |
    | 95% to   | +25.0% |
    """
    return markdown(score_cells(rows, intervals))


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Cells, the headings first, as a Markdown table whose columns are aligned in plain text too."""
    header, *lines = cells
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (header, ["-" * width for width in widths], *lines)
    )
