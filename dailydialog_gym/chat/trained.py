"""Which agent is meant, what it started from, and what its run's folder tells: for people who look at a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class TrainedAgent:
    """An agent and where it comes from.

    Attributes:
        model: what `DialogueAgent.load` is to load.
        title: what to call it.
        story: where it comes from, in a sentence.
        home: the folder for what belongs to the agent, such as votes.
        run: the folder of the run that trained it.
        baseline: the model that the run started from.
        shape: the run's ``context_size``, ``max_prompt_length`` and ``max_new_tokens``.
    """

    model: str
    title: str
    story: str
    home: Path = Path()
    run: Path | None = None
    baseline: str | None = None
    shape: dict[str, int] = field(default_factory=dict)


def find_agent(name: str | None, runs: Path = Path("runs")) -> TrainedAgent:
    """The agent of a run folder, an agent folder, ``"builtin"`` or a hub id.

    Args:
        name: None is the newest finished run in ``runs``, and the embedded policy where there is none.
        runs: where runs are.

    Raises:
        ValueError: a run folder has no agent, or a broken configuration.
    """
    if name is None:
        finished = sorted(runs.glob("*/evaluation.json"), key=lambda path: path.stat().st_mtime)
        if finished:
            return _of_run(finished[-1].parent, "The newest finished run")
        return TrainedAgent(
            "builtin",
            "the embedded policy",
            f"There is no finished run in {runs}/ yet, so this is the embedded policy. "
            "Train your own: python ppo_dialog.py",
        )
    if name == "builtin":
        return TrainedAgent(name, "the embedded policy", "The policy that comes with the package.")
    folder = Path(name)
    if (folder / "metrics.jsonl").exists() or (folder / "agent").is_dir():
        return _of_run(folder, "A run")
    if folder.name == "agent" and (folder.parent / "config.json").exists():
        return _of_run(folder.parent, "A run")
    if folder.is_dir():
        return TrainedAgent(name, folder.resolve().name, f"The model in {name}.", folder.parent)
    return TrainedAgent(name, name, "A model of the Hugging Face hub.")


def _of_run(folder: Path, story: str) -> TrainedAgent:
    if not (folder / "agent").is_dir():
        raise ValueError(f"run {folder} has no folder agent/: it has not saved an agent yet")
    try:
        config = json.loads((folder / "config.json").read_text())
        baseline = config["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read {folder}/config.json: expected the flags of a run, with 'model' ({error!r})"
        ) from error
    shape = {key: config[key] for key in ("context_size", "max_prompt_length", "max_new_tokens") if key in config}
    story += "" if (folder / "evaluation.json").exists() else " that has not finished"
    return TrainedAgent(
        str(folder / "agent"),
        f"runs/{folder.resolve().name}" if folder.resolve().parent.name == "runs" else str(folder),
        f"{story}, started from {baseline}.",
        folder,
        folder,
        baseline,
        shape,
    )


def training_page(run: Path) -> str:
    """HTML of a run's curves, its evaluation table and its samples; a sentence for what isn't there (yet)."""
    parts = (
        ("Curves", "metrics.jsonl", _curves),
        ("Before and after, in numbers", "evaluation.json", _table),
        ("Before and after, in words", "samples.md", _samples),
    )
    return "".join(f'<h2 class="run-part">{title}</h2>{_part(run / name, draw)}' for title, name, draw in parts)


def _part(path: Path, draw: Callable[[str], str]) -> str:
    if not path.exists():
        return f'<p class="page-note">The run has not written {escape(path.name)} yet.</p>'
    try:
        return draw(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f'<p class="page-note">Cannot read {escape(str(path))}: {escape(repr(error))}</p>'


def _curves(text: str) -> str:
    rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # the last may be half written
    keys = ["charts/episodic_return", *sorted(key for key in rows[0] if key.startswith(("reward/", "metric/")))]
    figures = "".join(_curve(key, [r["episodes"] for r in rows], [r[key] for r in rows]) for key in keys)
    return (
        '<p class="page-note">Over the replies trained on. Thin: each iteration; thick: running mean.</p>'
        f'<div class="run-curves">{figures}</div>'
    )


def _curve(name: str, xs: list[float], ys: list[float]) -> str:
    width, height, left, bottom = 300, 150, 44, 20
    low, high = min(ys), max(ys)
    span, reach = high - low or 1.0, max(xs) - min(xs) or 1.0
    window = max(1, len(ys) // 10)
    means = [sum(ys[max(0, i + 1 - window) : i + 1]) / len(ys[max(0, i + 1 - window) : i + 1]) for i in range(len(ys))]

    def points(values: list[float]) -> str:
        return " ".join(
            f"{left + (x - min(xs)) / reach * (width - left - 8):.1f},"
            f"{8 + (high - y) / span * (height - bottom - 16):.1f}"
            for x, y in zip(xs, values, strict=True)
        )

    first, last, top, least = (f"{round(value, 4) + 0.0:.3g}" for value in (ys[0], means[-1], high, low))
    label = f"{name}: from {first} to {last}"
    return (
        f'<figure><figcaption>{escape(label)}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}"><polyline class="raw" points="{points(ys)}"/>'
        f'<polyline class="mean" points="{points(means)}"/>'
        f'<text x="4" y="16">{top}</text><text x="4" y="{height - bottom - 4}">{least}</text>'
        f'<text x="{width - 8}" y="{height - 5}" text-anchor="end">{max(xs):,.0f} replies</text></svg></figure>'
    )


def _table(text: str) -> str:
    rows = json.loads(text)
    columns = list(rows["after"])
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in ("", *rows))
    body = "".join(
        f"<tr><th scope='row'>{escape(column)}</th>"
        + "".join(f"<td>{scores.get(column, float('nan')):.3f}</td>" for scores in rows.values())
        + "</tr>"
        for column in columns
    )
    return (
        f'<div class="run-scroll"><table class="run-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _samples(text: str) -> str:
    """Markdown as `runs.py` writes it, every line as text: quotes are the context, list items the replies."""
    cards, quote, replies = [], [], []
    for line in [*text.splitlines(), ">"]:
        if line.startswith(">") and replies:  # the next sample
            cards.append(f'<div class="run-sample"><blockquote>{"".join(quote)}</blockquote>{"".join(replies)}</div>')
            quote, replies = [], []
        if line.startswith(">") and line[1:].strip():
            quote.append(f"<p>{escape(line[1:].strip())}</p>")
        elif line.startswith("- "):
            who, _, said = line[2:].partition(": ")
            replies.append(f"<p><strong>{escape(who)}</strong> {escape(said)}</p>")
    return "".join(cards)
