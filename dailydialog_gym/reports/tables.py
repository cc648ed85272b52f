"""Score tables: for the console, a run's folder, the chat page and the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

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
