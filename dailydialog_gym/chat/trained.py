"""The agent that the chat page loads, what it started from, and HTML of what its run's folder holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from html import escape
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dailydialog_gym.agent import agents_of, find_agent_folder
from dailydialog_gym.chat.rollouts import as_html
from dailydialog_gym.files import read_text
from dailydialog_gym.reports.curves import curve_keys, plot_curves, running_mean, targets_of, title_of
from dailydialog_gym.reports.tables import score_cells


@dataclass(frozen=True)
class TrainedAgent:
    """An agent and where it comes from.

    Attributes:
        model: the agent folder, hub id or ``"builtin"`` that `DialogueAgent.load` takes. The folder records what the
            agent was trained with.
        title: the agent's short name on the page.
        story: a sentence that tells where the agent comes from.
        home: the folder where the page keeps the votes.
        run: the folder of the run that trained the agent, None if no run is known.
        baseline: the model that the run started from, None if no run is known.
        reward_models: the learned rewards of the run, as its flag ``--reward-model`` names them.
    """

    model: str
    title: str
    story: str
    home: Path = Path()
    run: Path | None = None
    baseline: str | None = None
    reward_models: tuple[str, ...] = ()


def find_agent(name: str | None, runs: Path = Path("runs")) -> TrainedAgent:
    """The agent of a run folder, an agent folder, ``"builtin"`` or a hub id.

    Args:
        name: None means the newest finished run in ``runs``, or the embedded policy if there is no finished run.
        runs: the folder that holds the run folders.

    Raises:
        ValueError: the run folder has no agent yet, or its ``config.json`` can't be read.
    """
    if name is None:
        finished = sorted(runs.glob("*/evaluation.json"), key=lambda path: path.stat().st_mtime)
        if finished:
            return _of_run(finished[-1].parent, finished[-1].parent / "agent")
        agent = find_agent("builtin")
        return replace(agent, story=f"{agent.story} There is no finished run in {runs}/ yet: python ppo_dialog.py")
    if name == "builtin":
        return TrainedAgent(name, "Embedded policy", "The policy that comes with the package.")
    found, _ = find_agent_folder(name)
    folder = Path(found)
    for run in (folder.parent, *folder.parents[2:3]):  # the second one if it is the agent of a checkpoint
        if folder in agents_of(run) and (run / "config.json").exists():
            return _of_run(run, folder)
    if folder.is_dir():
        return TrainedAgent(name, folder.resolve().name, f"The model in {name}.", folder.parent)
    return TrainedAgent(name, name, "A model of the Hugging Face hub.")


def find_agents(agent: str | None, baseline: str | None, runs: Path = Path("runs")) -> list[TrainedAgent]:
    """The agents that the page offers, under different titles.

    The first is the default one, the second what it is compared with: the baseline, or the model that its run started
    from, or else the agent itself. The runs in ``runs``, the newest first, and the embedded policy follow. A run that
    goes on has the agent of its last checkpoint.

    Args:
        agent: as in `find_agent`.
        baseline: what the agent is compared with, or None.
        runs: the folder that holds the run folders.

    Raises:
        ValueError: the agent or the baseline is not there, or the ``config.json`` of its run can't be read.
    """
    first = find_agent(agent, runs)
    second = find_agent(baseline or first.baseline or first.model)
    others = []
    saved = {run: agents[-1] for run in runs.glob("*") if (agents := agents_of(run))}
    for run, folder in sorted(saved.items(), key=lambda item: item[1].stat().st_mtime, reverse=True):
        with suppress(ValueError):  # the run of a broken configuration is not offered
            others.append(_of_run(run, folder))
    offered: dict[str, TrainedAgent] = {}  # by model
    for each in (first, second, *others, find_agent("builtin")):
        if each.title in {other.title for other in offered.values()}:
            each = replace(each, title=f"{each.title} ({each.model})")
        offered.setdefault(each.model, each)
    return list(offered.values())


def _of_run(folder: Path, agent: Path) -> TrainedAgent:
    try:
        flags = json.loads(read_text(folder / "config.json"))
        baseline, rewards = flags["model"], tuple(flags.get("reward_model", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"cannot read {folder}/config.json: expected the flags of a run, with 'model' ({error!r})"
        ) from error
    finished = "" if (folder / "evaluation.json").exists() else " It has not finished."
    last = "" if agent.parent == folder else f", from its checkpoint {agent.parent.name}"
    name = folder.resolve().name
    if made := re.fullmatch(r"ppo_dialog(?:_deepspeed)?__(\d+)__(\d{9,10})", name):  # the default name of a run
        time = datetime.fromtimestamp(int(made[2]))
        name = f"Run of {time.day} {time:%b %H:%M}, seed {made[1]}"
    story = f"The agent of the run in {folder}{last}, started from {baseline}.{finished}"
    return TrainedAgent(str(agent), name, story, folder, folder, baseline, rewards)


ORDERS = {"As in the dialogues": "", "Improved most": "improved", "Worsened most": "worsened"}


def results_page(run: Path, others: Mapping[str, Path] = MappingProxyType({})) -> str:
    """HTML of a run's curves and its score table. A file that does not exist yet is replaced by a sentence.

    Args:
        run: the run's folder.
        others: by name, the folders of runs whose curves are drawn too.
    """
    curves, scores = _part(run / "metrics.jsonl", partial(_curves, others)), _part(run / "evaluation.json", _scores)
    parts = {"Curves": curves, "Before and after, in numbers": scores, "Before and after, in words": ""}
    return "".join(f'<h2 class="run-part">{title}</h2>{found}' for title, found in parts.items())


def samples_page(run: Path, order: str = "") -> str:
    """HTML of a run's replies before and after training, or a sentence.

    Args:
        run: the run's folder.
        order: of the samples, one of the values of ``ORDERS``.
    """
    return _part(run / "samples.json", partial(_samples, order))


def _part(path: Path, draw: Callable[[Path], str]) -> str:
    if not path.exists():
        return f'<p class="page-note">The run has not written {escape(path.name)} yet.</p>'
    try:
        return draw(path)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        return f'<p class="page-note">Cannot read {escape(str(path))}: {escape(repr(error))}</p>'


def _read(path: Path) -> Any:
    return json.loads(read_text(path))


def _curves(others: Mapping[str, Path], path: Path) -> str:
    runs = {"this run": path, **{name: run / "metrics.jsonl" for name, run in others.items()}}
    rows = {}
    for name, each in runs.items():
        lines = read_text(each).splitlines()
        rows[name] = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written
    targets = targets_of(_read(path.with_name("config.json"))) if path.with_name("config.json").exists() else {}
    figures = "".join(_curve(rows, key, targets) for key in curve_keys(next(iter(rows.values()))[0]))
    legend = "".join(f'<span class="legend c{i % 10}">{escape(name)}</span>' for i, name in enumerate(runs))
    legend = legend if len(runs) > 1 else ""
    note = "Over the replies trained on. Thin: each iteration; thick: running mean; dashed: the target of the KL."
    return f'<p class="page-note">{note} {legend}</p><div class="run-curves">{figures}</div>'


def _curve(runs: dict[str, list[dict[str, float]]], key: str, targets: dict[str, float]) -> str:
    values = np.array([row[key] for row in next(iter(runs.values()))], dtype=float)
    first, last = (f"{round(value, 4) + 0.0:.3g}" for value in (values[0], running_mean(values)[-1]))  # no -0
    label = escape(f"{title_of(key)}: from {first} to {last}")
    figure = plot_curves({name: [run] for name, run in runs.items()}, [key], targets)
    figure.axes[0].set_title("")  # the caption says it
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")  # the colour of the page's text, light or dark
    svg = re.sub(
        r"<metadata>.*</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL
    )  # the style is the whole page's
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # every figure has the same ones
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}" fill="currentColor"', 1)
    return f"<figure><figcaption>{label}</figcaption>{svg}</figure>"


def _scores(path: Path) -> str:
    """The score table with a line for each measure, which is narrow enough for a phone."""
    found = path.with_name("intervals.json")
    (_, *header), *lines = zip(*score_cells(_read(path), _read(found) if found.exists() else None), strict=True)
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in ("measure", *header))
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in lines
    )
    note = (
        "The interval is that of the change, by bootstrap over the contexts. Distinct-1, distinct-2 and unique have "
        "none, because drawing with replacement repeats replies. The reward is the run's own, without the KL penalty."
    )
    return (
        f'<div class="run-scroll" tabindex="0"><table class="run-table"><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="page-note">{note}</p>'
    )


def _samples(order: str, path: Path) -> str:
    cards, samples = [], _read(path)
    if order:
        samples.sort(key=lambda sample: np.subtract(*sample["rewards"]), reverse=order == "worsened")
    for sample in samples:
        context = "".join(f"<p>{as_html(utterance)}</p>" for utterance in sample["context"])
        replies = "".join(
            f'<div><h3>{who}</h3><p dir="auto">{as_html(sample[who])}</p></div>'
            for who in ("before", "after", "people")
        )
        before, after = sample["rewards"]
        change = f"The run's reward: {before:.3f} before, {after:.3f} after ({after - before:+.3f})"
        change, quote = f'<p class="hint">{change}</p>', f"<blockquote>{context}</blockquote>"
        cards.append(f'<article class="run-sample">{quote}<div class="run-replies">{replies}</div>{change}</article>')
    return "".join(cards)
